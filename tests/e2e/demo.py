"""``make demo``: what Noctule does, in a few minutes, each line measured as it is printed.

Exit status 0 only if every line holds.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

from tests.e2e.capture import Capture
from tests.e2e.cluster import FABRIC, NODES, POLICY, Cluster
from tests.e2e.container import Container
from tests.e2e.machine import inside, run, until

GOOD, BAD = "\N{HEAVY CHECK MARK}", "\N{BALLOT X}"
DIALS = 192
MARKER = b"the-marker-that-must-not-appear-on-any-wire"


class Demo:
    """The lines, and whether each held."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.failed: list[str] = []

    def line(self, what: str, act: Callable[[], str]) -> None:
        """Do and print one line: `act` returns what was measured, or fails."""
        try:
            said, sign = act(), GOOD
        except (AssertionError, OSError) as error:
            said, sign = str(error) or type(error).__name__, BAD
            self.failed.append(what)
        first, *more = said.splitlines() or [""]
        print(f"  {sign} {what:<38} {first}", flush=True)
        for text in more:
            print(f"    {'':<38} {text}", flush=True)

    # --- the lines, in order

    def replicas(self) -> str:
        status = self.cluster.status("n1")
        via = {node["node"]: node["via"] for node in status["nodes"]}
        rows = []
        for container in self.cluster.containers.values():
            hop = via[container.node]
            path = "same node" if container.node == "n1" else f"n1 → {container.node}"
            if hop not in ("", container.node):
                path = f"n1 → {hop} → {container.node}"
            rows.append(
                f"{container.name:<6} {container.address:<14} {container.node}  {path:<14} "
                f"ADD {container.add_ms:5.0f} ms"
            )
        assert len(rows) == len({c.address for c in self.cluster.containers.values()})
        return "\n".join(rows)

    def balance(self, web: Container, field: str = "vip") -> str:
        vip = self.cluster.vip("api", field=field)
        answers = Counter(web.greet(vip, 80) for _ in range(DIALS))
        wanted = {c.name for c in self.cluster.containers.values() if c.service == "api"}
        assert set(answers) == wanted, f"answered: {answers}"
        # Three equal shares; 6 sigma of a binomial with p = 1/3.
        assert all(abs(n - DIALS / 3) < 6 * (DIALS * 2 / 9) ** 0.5 for n in answers.values())
        shares = ", ".join(f"{n} {answers[n] / DIALS:.0%}" for n in sorted(answers))
        return f"{DIALS} dials of {vip}, port 80: {shares}"

    def refused_at_source(self, web: Container) -> str:
        vip = self.cluster.vip("db")
        took = self._refused(web, vip)
        denied = [
            d for d in self.cluster.status("n1")["counters"]["denied"]
            if (d["service"], d["direction"], d["peer"], d["port"]) == ("web", "out", vip, 5432)
        ]  # fmt: skip
        assert denied and denied[0]["packets"] >= 1, f"not counted: {denied}"
        return (
            f"refused after {took:.1f} ms, counted: web → {vip} tcp/5432 × {denied[0]['packets']}"
        )

    def _refused(self, web: Container, address: str) -> float:
        began = time.monotonic()
        try:
            web.dial(address, 5432).close()
        except ConnectionRefusedError:
            return (time.monotonic() - began) * 1e3
        raise AssertionError(f"web reached {address}:5432")

    def refused_at_destination(self, web: Container, db: Container) -> str:
        """Take away, by hand, every hindrance on the source's side."""
        inside(web.netns, "nft", "delete", "table", "inet", "noctule")
        mac = db.result["interfaces"][0]["mac"]
        inside(web.netns, "ip", "neigh", "replace", db.address, "lladdr", mac,
               "dev", "eth0", "nud", "permanent")  # fmt: skip
        near = self._forbidden(web, db.address, "n1")
        inside("/run/netns/n1", "nft", "delete", "table", "bridge", "noctule")
        far = self._forbidden(web, db.address, "n2")
        until(lambda: not self.cluster.differences("n1"), "n1 to repair its tables")
        inside(web.netns, "nft", "list", "table", "inet", "noctule")
        inside("/run/netns/n1", "nft", "list", "table", "bridge", "noctule")
        return (
            f"web's table removed: n1's host filter drops {near} frames\n"
            f"n1's host filter removed too: n2's drops {far} frames\n"
            "n1's audit put both back"
        )

    def _forbidden(self, web: Container, address: str, node: str) -> int:
        before = self.cluster.status(node)["counters"]["forbidden"]
        try:
            web.dial(address, 5432, timeout=2.0).close()
        except OSError:
            after = self.cluster.status(node)["counters"]["forbidden"]
            assert after > before, f"{node} did not count it"
            return int(after - before)
        raise AssertionError(f"web reached {address}:5432")

    def encrypted(self, web: Container) -> str:
        target = next(c for c in self.cluster.containers.values() if c.name == "api-n3")
        with (
            Capture("/run/netns/n1", "eth1") as near,
            Capture("/run/netns/n3", "eth1") as far,
            web.dial(target.address, 8080) as sock,
        ):
            sock.recv(100)
            for _ in range(50):
                sock.sendall(MARKER)
                assert _exactly(sock, len(MARKER)) == MARKER, "the marker did not come back"
        kinds = near.kinds() + far.kinds()
        allowed = {"MACsec in batman-adv", "batman-adv routing", "fabric TLS", "ARP", "IPv6"}
        assert set(kinds) <= allowed, f"also on the wire: {kinds}"
        assert kinds["MACsec in batman-adv"] >= 200, f"captured too little: {kinds}"
        marked = near.holding(MARKER) + far.holding(MARKER)
        assert marked == 0, f"{marked} frames hold the marker"
        counted = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
        return f"{sum(kinds.values())} frames: {counted}\nthe marker: sent 100 times, seen 0 times"

    def two_hops(self) -> str:
        nodes = {n["node"]: n for n in self.cluster.status("n1")["nodes"]}
        assert nodes["n3"]["via"] == "n2", f"via {nodes['n3']['via']!r}"
        mac = inside("/run/netns/n3", "cat", "/sys/class/net/gnv7/address", check=False).stdout
        mac = mac.strip() or _mac("n3", "gnv7")
        trace = inside("/run/netns/n1", "batctl", "meshif", "bat0", "traceroute", "-n", mac)
        hops = [
            line for line in trace.stdout.splitlines() if line[:2].strip().rstrip(":").isdigit()
        ]
        assert len(hops) == 2, trace.stdout
        return (
            f"batman-adv's own traceroute: {len(hops)} hops, quality {nodes['n3']['quality']:.2f}"
        )

    def killed(self, web: Container) -> str:
        victim = self.cluster.containers.pop("api-n2")
        began = time.monotonic()
        victim.kill()
        api = lambda: next(  # noqa: E731
            s for s in self.cluster.status("n1")["services"] if s["name"] == "api"
        )
        until(lambda: victim.address not in api()["slots"], "n1 to take it from the VIP")
        took = (time.monotonic() - began) * 1e3
        vip = self.cluster.vip("api")
        answers = Counter(web.greet(vip, 80) for _ in range(48))
        assert victim.name not in answers and len(answers) == 2, f"{answers}"
        return f"killed on n2, gone from n1's VIP after {took:.0f} ms; 48 dials: 48 answered"

    def edited(self, web: Container) -> str:
        edited = POLICY.replace("allow:\n", "allow:\n  - {from: web, to: db, ports: [tcp/5432]}\n")
        applied = self.cluster.apply(edited)
        assert set(applied["live"]) == set(NODES), f"silent: {applied['silent']}"
        name = web.greet(self.cluster.vip("db"), 5432)
        times = ", ".join(f"{node} {ms:.0f} ms" for node, ms in sorted(applied["live"].items()))
        return f"version {applied['version']} in the kernels of {times}; web → {name} now answers"

    def daemons_killed(self, web: Container) -> str:
        target = next(c for c in self.cluster.containers.values() if c.name == "api-n3")
        with web.dial(self.cluster.vip("api"), 80) as first:
            first.recv(100)
        stream = Stream(web.dial(target.address, 8080))
        with stream:
            stream.progress()
            self.cluster.kill(*NODES)
            dead = stream.progress()
            self.cluster.start(*NODES)
            self.cluster.meet(*NODES)
            back = stream.progress()
        differences = [line for node in NODES for line in self.cluster.differences(node)]
        assert not differences, f"after the restart: {differences}"
        return (
            f"{dead} echoes while all daemons were dead, {back} after; "
            f"longest gap {stream.longest * 1e3:.0f} ms\n"
            f"adopted on return: kernel and plan agree on all nodes"
        )


class Stream:
    """One TCP connection on which short messages go back and forth without end."""

    def __init__(self, sock: socket.socket) -> None:
        self.echoes = 0
        self.longest = 0.0
        self.error: OSError | None = None
        self._socket = sock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Stream:
        self._socket.recv(100)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                began = time.monotonic()
                self._socket.sendall(b"0123456789")
                _exactly(self._socket, 10)
                self.longest = max(self.longest, time.monotonic() - began)
                self.echoes += 1
                self._stop.wait(0.005)
        except OSError as error:
            self.error = error

    def progress(self) -> int:
        """Wait until 100 more echoes came back; return how many there were."""
        before = self.echoes

        def moved() -> bool:
            if self.error is not None:
                raise AssertionError(f"the stream broke: {self.error}")
            return self.echoes >= before + 100

        until(moved, "the stream to move on")
        return self.echoes - before


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise ConnectionResetError("the stream ended")
        data += more
    return data


def _mac(node: str, device: str) -> str:
    shown = run("ip", "-n", node, "-br", "link", "show", device).stdout.split()
    return shown[2]


def main() -> int:
    """Run all lines; return the exit status."""
    began = time.monotonic()
    print("\nNoctule: three nodes, two segments, one network\n", flush=True)
    with Cluster() as cluster:
        demo = Demo(cluster)

        def up() -> str:
            cluster.start(*NODES)
            cluster.meet(*NODES)
            cluster.apply(POLICY)
            cluster.mesh()
            mtu = {cluster.status(node)["mtu"] for node in NODES}
            assert len(mtu) == 1, f"MTUs differ: {mtu}"
            peers = ", ".join(f"{node} {FABRIC[node]}" for node in NODES)
            return f"{peers}; one MTU {mtu.pop()}, containers 24 less"

        demo.line("three nodes, meshed, policy in force", up)
        if demo.failed:
            return 1
        web = cluster.add("web", "n1", "web")
        for node in NODES:
            cluster.add(f"api-{node}", node, "api", 8080)
        db = cluster.add("db", "n2", "db", 5432)
        demo.line("replicas: address, node, path", demo.replicas)
        demo.line("web → api by VIP, three replicas", lambda: demo.balance(web))
        demo.line("…and by IPv6 VIP", lambda: demo.balance(web, "vip6"))
        demo.line("web → db refused at the source", lambda: demo.refused_at_source(web))
        demo.line("…and again further on", lambda: demo.refused_at_destination(web, db))
        demo.line("on the wires: only ciphertext", lambda: demo.encrypted(web))
        demo.line("n1 → n3 goes over n2", demo.two_hops)
        demo.line("one replica killed", lambda: demo.killed(web))
        demo.line("policy.yaml edited and applied", lambda: demo.edited(web))
        demo.line("all daemons SIGKILLed under a stream", lambda: demo.daemons_killed(web))
        if demo.failed:
            for node in NODES:
                print(f"--- log of {node}\n{cluster.log(node)[-3000:]}", file=sys.stderr)
    good = "everything holds" if not demo.failed else f"{len(demo.failed)} lines do not hold"
    print(f"\n  {good}; {time.monotonic() - began:.0f} s\n", flush=True)
    return 1 if demo.failed else 0


if __name__ == "__main__":
    sys.exit(main())
