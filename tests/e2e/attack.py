"""What attackers of the end-to-end tests are made of: frames, an intruder, watched wires."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from netconf import names
from netconf.namespace import Namespace
from tests.e2e.capture import MACSEC, Capture
from tests.e2e.cluster import HERE, NETWORK, POLICY, Cluster
from tests.e2e.container import Container
from tests.e2e.machine import inside, run, until

ENCRYPTED = 0x4C
"""TCI of the form we send, with AN 0: ES, E and C (IEEE 802.1AE 9.5)."""
FAR_AHEAD = 0x10000
"""A packet number that no replay window refuses."""

ADMIN_PORT = 9000
TWO_PORTS = "port: 80, target: 8080}, {protocol: udp, port: 9000}, {protocol: tcp, port: 9000}"
RULES = (
    POLICY.replace("  web: {}\n", "  web: {}\n  admin: {}\n")
    .replace("port: 80, target: 8080}", TWO_PORTS)
    .replace("allow:\n", "allow:\n  - {from: admin, to: api, ports: [udp/9000, tcp/9000]}\n")
)
"""The demo's policy, and a service that may dial a port of api that web may not."""


def octets(mac: str) -> bytes:
    """Return the six bytes of a MAC."""
    return bytes.fromhex(mac.replace(":", ""))


def frame(to: str, source: str, ethertype: int, payload: bytes) -> bytes:
    """Return an Ethernet frame, no shorter than one may be."""
    return octets(to) + octets(source) + ethertype.to_bytes(2, "big") + payload.ljust(64, b"\0")


def dressed(to: str, source: str, payload: bytes) -> bytes:
    """Return a frame that looks encrypted and is not."""
    tag = struct.pack("!BBI", ENCRYPTED, 0, FAR_AHEAD)
    return frame(to, source, MACSEC, tag + payload.ljust(64, b"\0"))


def datagram(source: str, to: str, port: int, payload: bytes) -> bytes:
    """Return an IPv4 packet with a UDP datagram (RFC 791, RFC 768; no UDP checksum)."""
    addresses = socket.inet_aton(source) + socket.inet_aton(to)
    length = 28 + len(payload)
    head = struct.pack("!BBHIBBH", 0x45, 0, length, 0, 64, socket.IPPROTO_UDP, 0) + addresses
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:]
    return head + struct.pack("!HHHH", 4000, port, length - 20, 0) + payload


def mac_of(container: Container) -> str:
    """Return the MAC that follows from a container's address."""
    return names.mac_of(container.address)


def settled(container: Container) -> str:
    """Return the name of the device below a container's SecY."""
    return names.lower_end(names.attachment_id(NETWORK, container.name, container.ifname))


def secy_counter(container: Container, name: str) -> int:
    """Return the sum of a counter, such as InPktsNotValid, over a container's SecY."""
    lines = inside(container.netns, "ip", "-s", "macsec", "show", "eth0").stdout.splitlines()
    total = 0
    for head, row in itertools.pairwise(lines):
        columns = head.replace("stats:", "").split()
        if name in columns:
            total += int(row.split()[columns.index(name)])
    return total


def confined(cluster: Cluster, name: str, node: str, service: str) -> Container:
    """Attach a container whose network namespace belongs to a user namespace of its own."""
    process = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-I", "-S",
         str(HERE / "replica.py"), name],
        stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    container = Container(name, node, service, process)
    cluster.containers[name] = container
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    container.result = cluster.cni("ADD", container)
    return container


class Intruder:
    """Root with all capabilities inside a container, and with no other way out."""

    def __init__(self, container: Container) -> None:
        """Enter the container's user namespace, if it has one, and its network namespace."""
        self.container = container
        self.mac = mac_of(container)
        self._enter = [
            *("nsenter", "--target", str(container.process.pid)),
            *("--user", "--net", "--preserve-credentials"),
        ]
        users = Path(f"/proc/{container.process.pid}/ns/user")
        self.confined = users.readlink() != Path("/proc/self/ns/user").readlink()
        if not self.confined:
            # Entering the user namespace one is in is refused.
            self._enter.remove("--user")
        self._sender = subprocess.Popen(
            [*self._enter, sys.executable, "-I", "-S", str(HERE / "intruder.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._answer() == "ready"

    def send(self, frame: bytes, link: str = "eth0", mark: int = 0) -> None:
        """Put a raw frame on a link; it must be taken."""
        assert self._ask({"link": link, "frame": frame.hex(), "mark": mark}) == "ok"

    def add_link(self, over: int, kind: str, data: Sequence[int] = ()) -> str:
        """Make x0 over a device of the node, by its index; return ``ok`` or the error's name.

        `data` is one 16-bit attribute of the kind and its value.
        """
        return self._ask({"over": over, "kind": kind, "data": list(data)})

    def run(self, *command: str) -> None:
        """Run a command that must succeed."""
        run(*self._enter, *command)

    def refused(self, *command: str) -> str:
        """Run a command that must fail; return what it said, nothing if it succeeded."""
        done = run(*self._enter, *command, check=False)
        return done.stderr.strip() if done.returncode else ""

    def shown(self, *command: str) -> Any:
        """Run a command that prints JSON."""
        return json.loads(run(*self._enter, *command).stdout)

    @contextlib.contextmanager
    def secy(self, settings: str, back: str) -> Iterator[None]:
        """Change the settings of eth0's SecY, and back at the end."""
        self.run("ip", "link", "set", "eth0", "type", "macsec", *settings.split())
        try:
            yield
        finally:
            self.run("ip", "link", "set", "eth0", "type", "macsec", *back.split())

    def close(self) -> None:
        """End the sender."""
        self._sender.kill()
        self._sender.wait()

    def _ask(self, wish: dict[str, Any]) -> str:
        assert self._sender.stdin is not None
        self._sender.stdin.write(json.dumps(wish) + "\n")
        self._sender.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._sender.stdout is not None
        return self._sender.stdout.readline().strip()


class Watch:
    """Captures at several places, and where in them something is seen."""

    def __init__(self, places: dict[str, tuple[str, str]]) -> None:
        """`places` are (namespace, interface) by a word for them."""
        self._captures = {place: Capture(*where) for place, where in places.items()}

    def __enter__(self) -> Watch:
        for capture in self._captures.values():
            capture.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        for capture in self._captures.values():
            capture.__exit__()

    def seen(self, piece: bytes) -> set[str]:
        """Return the places at which a frame held `piece`."""
        return {place for place, capture in self._captures.items() if capture.holding(piece)}

    def saw(self, piece: bytes, places: set[str]) -> bool:
        """Tell whether `piece` was seen at all of `places`, elsewhere or not."""
        return self.seen(piece) >= places


@dataclass
class Scene:
    """Who is where: the intruders and two others on n1, their peers on n2 and n3."""

    cluster: Cluster
    by: Container
    admin: Container
    api: Container
    far: Container
    db: Container
    intruders: dict[bool, Intruder] = field(default_factory=dict)

    @contextlib.contextmanager
    def watch(self) -> Iterator[Watch]:
        """Watch wires and containers, to the end of an allowed dial that must be seen."""
        places = {f"wire of {node}": (f"/run/netns/{node}", "eth1") for node in ("n1", "n2", "n3")}
        for other in (self.by, self.admin):
            places[f"below {other.name}"] = ("/run/netns/n1", settled(other))
        for other in (self.by, self.admin, self.api, self.far, self.db):
            places[f"in {other.name}"] = (other.netns, "eth0")
        with Watch(places) as watch:
            yield watch
            for target in (self.api, self.far):
                assert self.by.greet(target.address, 8080) == target.name
                mesh = {f"wire of {node}" for node in ("n1", "n2")} | {"below by"}
                if target is self.far:
                    mesh.add("wire of n3")
                pair = octets(mac_of(target)) + octets(mac_of(self.by))
                until(partial(watch.saw, pair, mesh), "the captures to see what may go")

    def counters(self, node: str = "n1") -> dict[str, int]:
        """Return what a host filter dropped."""
        counters = self.cluster.status(node)["counters"]
        return {name: counters[name] for name in ("plaintext", "foreign", "forbidden")}

    @contextlib.contextmanager
    def counted(self, node: str = "n1", **more: int) -> Iterator[None]:
        """Expect a node's host filter to drop exactly so many frames more, for these reasons.

        From another node they take their time.
        """
        before = self.counters(node)
        yield
        wanted = {name: count + more.get(name, 0) for name, count in before.items()}
        with contextlib.suppress(AssertionError):
            until(lambda: self.counters(node) == wanted, "the host filter to count", 20)
        assert self.counters(node) == wanted

    def denied(self, where: Container, protocol: str, port: int, peer: str) -> int:
        """Return how many packets from `peer` a container's own ruleset refused."""
        return sum(
            denial["packets"]
            for denial in self.cluster.status(where.node)["counters"]["denied"]
            if (denial["service"], denial["direction"]) == (where.service, "in")
            and (denial["peer"], denial["protocol"], denial["port"]) == (peer, protocol, port)
        )


def reaches(dialler: Container, target: Container) -> bool:
    """Tell whether a container reaches another that it may dial."""
    try:
        return dialler.greet(target.address, 8080) == target.name
    except OSError:
        return False


def _raw(namespace: str, link: str, data: bytes) -> None:
    with Namespace.open(namespace) as opened, opened.enter():
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with sender:
        sender.sendto(data, (link, 0))


def send_from_node(node: str, data: bytes) -> None:
    """Send into the mesh as the node itself, past its bridge and host filter."""
    _raw(f"/run/netns/{node}", names.MESH, data)


def send_below(container: Container, data: bytes) -> None:
    """Send from the device below a container's SecY."""
    _raw(f"/run/netns/{container.node}", settled(container), data)
