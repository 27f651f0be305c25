"""A cluster in one machine: three nodes as network namespaces, everything else real.

::

    n1 ── 192.0.2.0/24 ── n2 ── 198.51.100.0/24 ── n3
       a shared segment       routed IP only: the mesh crosses it by GENEVE

1. What is made here is removed by `close`, whatever happened: daemons by pid, namespaces
   by name, files by folder.
2. A container is a process in a network namespace of its own; its CNI configuration and
   environment are what a runtime would give.
3. Waiting is for a condition, with a limit; nothing sleeps for luck.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from daemon.ctl import pki as make_pki
from tests.e2e.container import Container
from tests.e2e.machine import inside, run, until
from tests.e2e.underlay import IPV4, Underlay

HERE = Path(__file__).parent
PLUGIN = "/opt/cni/bin/noctule"
NETWORK = "mesh"
NODES = ("n1", "n2", "n3")
FABRIC = IPV4.fabric
SLICE = {"n1": "10.64.16.0/20", "n2": "10.64.32.0/20", "n3": "10.64.48.0/20"}
ULA = "fd4e:6f63:7475::/96"
POLICY = """\
nodes:
  n1: {slice: 10.64.16.0/20}
  n2: {slice: 10.64.32.0/20}
  n3: {slice: 10.64.48.0/20}
services:
  web: {}
  api: {ports: [{protocol: tcp, port: 80, target: 8080}], balance: {strategy: weighted}}
  db:  {ports: [{protocol: tcp, port: 5432}], nodes: [n1, n2]}
allow:
  - {from: web, to: api, ports: [tcp/80, icmp]}
  - {from: api, to: db, ports: [tcp/5432, icmp]}
"""


class Failed(AssertionError):
    """The plugin answered with an error."""

    def __init__(self, error: dict[str, Any], stderr: str) -> None:
        super().__init__(f"{error} {stderr}")
        self.code = error.get("code")
        self.error = error


class Cluster:
    """Three nodes; a context manager that removes all it made."""

    def __init__(
        self, *, confirm_ms: int = 2000, lease_ms: int = 10_000, underlay: Underlay = IPV4
    ) -> None:
        """Under emulation a neighbour needs many times the default 100 ms to confirm, and a
        busy one is silent for longer than the default lease."""
        self.confirm_ms = confirm_ms
        self.lease_ms = lease_ms
        self.underlay = underlay
        self.base = Path(tempfile.mkdtemp(prefix="noctule-"))
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.resolvers: dict[str, subprocess.Popen[bytes]] = {}
        self.containers: dict[str, Container] = {}
        self._namespaces: list[str] = []

    def __enter__(self) -> Cluster:
        try:
            self._underlay()
            self._files()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            for node in NODES:
                print(f"--- log of {node}\n{self.log(node)[-4000:]}", file=sys.stderr)
        self.close()

    def close(self) -> None:
        """Remove everything."""
        for container in self.containers.values():
            container.kill()
        for process in (*self.daemons.values(), *self.resolvers.values()):
            process.kill()
            process.wait()
        for name in self._namespaces:
            run("ip", "netns", "del", name, check=False)
        shutil.rmtree(self.base, ignore_errors=True)

    # --- nodes

    def _underlay(self) -> None:
        for node in NODES:
            run("ip", "netns", "add", node)
            self._namespaces.append(node)
            run("ip", "-n", node, "link", "set", "lo", "up")
        for left, left_name, right, right_name in (
            ("n1", "eth1", "n2", "eth1"),
            ("n2", "eth2", "n3", "eth1"),
        ):
            run("ip", "link", "add", left_name, "netns", left, "type", "veth",
                "peer", "name", right_name, "netns", right)  # fmt: skip
            run("ip", "-n", left, "link", "set", left_name, "up")
            run("ip", "-n", right, "link", "set", right_name, "up")
        for node, address, device in self.underlay.addresses:
            self.give(node, address, device)
        for node, network, gateway in self.underlay.routes:
            run("ip", "-n", node, "route", "add", network, "via", gateway)
        inside("/run/netns/n2", "sysctl", "-q", "-w", f"{self.underlay.forwarding}=1")

    def give(self, node: str, address: str, device: str) -> None:
        """Give a node an address of the underlay, usable at once."""
        nodad = ("nodad",) if ":" in address else ()
        run("ip", "-n", node, "addr", "add", address, "dev", device, *nodad)

    def _files(self) -> None:
        pki = self.base / "pki"
        # In this process: four starts of noctulectl would cost an emulated machine ten seconds.
        make_pki.init(pki, "lab", time.time())
        for node in NODES:
            make_pki.issue(pki, node, [self.underlay.fabric[node]], time.time())
            folder = self.base / node
            folder.mkdir()
            (folder / "node.yaml").write_text(self.node_yaml(node))
        (self.base / "mesh.key").write_bytes(os.urandom(32))
        (self.base / "policy.yaml").write_text(POLICY)

    def node_yaml(self, node: str) -> str:
        """Return the configuration of `node`."""
        folder, pki = self.base / node, self.base / "pki"
        connect = ", ".join(f'"{self.underlay.endpoint(o)}"' for o in NODES if o != node)
        return f"""\
cluster: lab
node: {node}
mesh:
  links:
{self.underlay.links[node]}
addresses: {{pool: 10.64.0.0/12, slice: {SLICE[node]}, vips: 10.80.0.0/16, ula: "{ULA}"}}
fabric:
  listen: ["{self.underlay.endpoint(node)}"]
  connect: [{connect}]
  confirm_ms: {self.confirm_ms}
  lease_ms: {self.lease_ms}
  identity: {{ca: {pki}/ca.crt, certificate: {pki}/{node}.crt, key: {pki}/{node}.key}}
policy: {{authority: {pki}/authority.crt}}
paths: {{state: {folder}/run, socket: {folder}/run/noctuled.sock, cache: {folder}/cache}}
"""

    def start(self, *nodes: str) -> None:
        """Start daemons, and resolvers where none runs; wait until each answers."""
        for node in nodes:
            self.daemons[node] = self._run("noctuled", node)
        self.start_resolver(*(node for node in nodes if node not in self.resolvers))
        for node in nodes:
            until(
                lambda n=node: self._up(n, self.daemons[n], self.socket(n), socket.SOCK_STREAM),
                f"noctuled of {node} to answer",
            )

    def start_resolver(self, *nodes: str) -> None:
        """Start resolvers and wait until each listens."""
        for node in nodes:
            self.resolvers[node] = self._run("noctule-resolver", node)
        for node in nodes:
            path = self.base / node / "run" / "resolver.sock"
            until(
                lambda n=node, p=path: self._up(n, self.resolvers[n], p, socket.SOCK_DGRAM),
                f"noctule-resolver of {node} to listen",
            )

    def _run(self, program: str, node: str) -> subprocess.Popen[bytes]:
        with (self.base / node / "log").open("ab") as log:
            return subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{node}", self.program(node, program),
                 "--config", str(self.base / node / "node.yaml")],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def program(self, node: str, name: str) -> str:
        """Return the daemon, resolver or noctulectl of a node, as a path or to be found by PATH."""
        return name

    def _up(
        self, node: str, process: subprocess.Popen[bytes], path: Path, kind: socket.SocketKind
    ) -> bool:
        if process.poll() is not None:
            raise AssertionError(f"{process.args} ended: {self.log(node)[-3000:]}")
        with socket.socket(socket.AF_UNIX, kind) as sock:
            try:
                sock.connect(str(path))
            except OSError:
                return False
        return True

    def kill(self, *nodes: str) -> None:
        """End daemons with SIGKILL."""
        for node in nodes:
            self.daemons[node].send_signal(signal.SIGKILL)
        for node in nodes:
            self.daemons.pop(node).wait()

    def kill_resolver(self, *nodes: str) -> None:
        """End resolvers with SIGKILL."""
        for node in nodes:
            self.resolvers[node].kill()
            self.resolvers.pop(node).wait()

    def meet(self, *nodes: str) -> None:
        """Wait until the daemons of `nodes` all see each other."""
        wanted = set(nodes)
        for node in nodes:
            until(
                lambda n=node: wanted <= {o["node"] for o in self.status(n)["nodes"] if o["alive"]},
                f"{node} to see {', '.join(nodes)}",
            )

    def mesh(self) -> None:
        """Wait until batman-adv of each node has a path to each other."""
        for node in NODES:
            until(
                lambda n=node: all(o["quality"] > 0 for o in self.status(n)["nodes"]),
                f"{node} to have paths on the mesh",
            )

    def socket(self, node: str) -> Path:
        """Path of the daemon's socket."""
        return self.base / node / "run" / "noctuled.sock"

    def log(self, node: str) -> str:
        """What the daemon wrote."""
        path = self.base / node / "log"
        return path.read_text() if path.exists() else ""

    def ctl(self, node: str, *arguments: str) -> Any:
        """Run ``noctulectl … --json`` against a node; return what it printed."""
        done = run(*self._ctl(node, *arguments))
        return json.loads(done.stdout) if done.stdout else None

    def verify(self, node: str) -> Any:
        """What ``noctulectl verify`` prints; differences are an answer, not a failure."""
        done = run(*self._ctl(node, "verify"), check=False)
        assert done.returncode in (0, 3), f"{done.returncode}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout)

    def differences(self, node: str) -> list[str]:
        """Return where a node's kernel differs from its plan, a line each."""
        return list(self.verify(node)["differences"])

    def _ctl(self, node: str, *arguments: str) -> list[str]:
        program = self.program(node, "noctulectl")
        return [program, "--socket", str(self.socket(node)), *arguments, "--json"]

    def api(self, node: str, method: str, target: str, body: bytes = b"") -> Any:
        """Ask the daemon directly: no process to start, so it can be used in tight loops."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(str(self.socket(node)))
            sock.sendall(
                f"{method} {target} HTTP/1.0\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        return json.loads(answer.partition(b"\r\n\r\n")[2])

    def status(self, node: str) -> Any:
        """What the node knows."""
        return self.api(node, "GET", "/v1/status")

    def apply(self, text: str, node: str = "n1") -> Any:
        """Sign and publish a policy through `node`; nodes that are away are no failure."""
        (self.base / "policy.yaml").write_text(text)
        key = str(self.base / "pki" / "authority.key")
        words = ("policy", "apply", str(self.base / "policy.yaml"), "--key", key)
        done = run(*self._ctl(node, *words), check=False)
        assert done.returncode in (0, 3), f"{done.returncode}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout)

    def vip(self, service: str, node: str = "n1", field: str = "vip") -> str:
        """Return the VIP of a service; with the field ``vip6`` the IPv6 one."""
        services = self.status(node)["services"]
        return str(next(s[field] for s in services if s["name"] == service))

    # --- containers

    def launch(self, name: str, node: str, service: str, *ports: int) -> Container:
        """Start a replica's process in a new namespace; no network yet."""
        process = subprocess.Popen(
            ["unshare", "--net", sys.executable, "-I", "-S", str(HERE / "replica.py"), name,
             *map(str, ports)],
            stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        container = Container(name, node, service, process)
        self.containers[name] = container
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return container

    def add(self, name: str, node: str, service: str, *ports: int) -> Container:
        """Start a replica and attach it."""
        container = self.launch(name, node, service, *ports)
        began = time.monotonic()
        container.result = self.cni("ADD", container)
        container.add_ms = (time.monotonic() - began) * 1e3
        return container

    def delete(self, name: str) -> None:
        """Detach a replica and end it."""
        container = self.containers.pop(name)
        self.cni("DEL", container)
        container.kill()

    def config(self, container: Container, **fields: Any) -> dict[str, Any]:
        """Return the network configuration a runtime would pass for a container."""
        return {
            "cniVersion": "1.1.0", "name": NETWORK, "type": "noctule",
            "service": container.service, "key": {"file": str(self.base / "mesh.key")},
            "socket": str(self.socket(container.node)), **fields,
        }  # fmt: skip

    def environment(self, command: str, container: Container, **variables: str) -> dict[str, str]:
        """Return the environment of the CNI specification."""
        return {
            "CNI_COMMAND": command, "CNI_CONTAINERID": container.name,
            "CNI_NETNS": container.netns, "CNI_IFNAME": container.ifname,
            "CNI_PATH": "/opt/cni/bin", "PATH": os.environ["PATH"], **variables,
        }  # fmt: skip

    def cni(self, command: str, container: Container, **fields: Any) -> dict[str, Any]:
        """Run the executable as a runtime would, in the node's namespace; Failed on errors."""
        config = self.config(container, **fields)
        if command == "CHECK":
            config.setdefault("prevResult", container.result)
        return self.execute(
            container.node, self.environment(command, container), json.dumps(config)
        )

    def plugin(self, node: str) -> list[str]:
        """Return the command that runs the executable on a node."""
        return ["nsenter", f"--net=/run/netns/{node}", PLUGIN]

    def execute(self, node: str, environment: dict[str, str], stdin: str) -> dict[str, Any]:
        """Run the executable with exactly this; Failed on errors."""
        done = run(*self.plugin(node), check=False, input=stdin, env=environment)
        try:
            answer = json.loads(done.stdout) if done.stdout.strip() else {}
        except ValueError as error:
            raise AssertionError(f"not JSON: {done.stdout!r} {done.stderr!r}") from error
        if done.returncode != 0:
            raise Failed(answer, done.stderr)
        return dict(answer)


@contextlib.contextmanager
def running(policy: str = POLICY) -> Iterator[Cluster]:
    """A cluster with all three daemons up, meshed, and a policy in force."""
    with Cluster() as cluster:
        cluster.start(*NODES)
        cluster.meet(*NODES)
        cluster.apply(policy)
        cluster.mesh()
        yield cluster
