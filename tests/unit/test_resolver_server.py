"""The resolver in real namespaces: who is served follows the files, and nobody starves another.

Loopback only, so any kernel will do; it needs root, for namespaces.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dnslib
import msgspec
import pytest

from daemon.journal import Journal
from daemon.resolver import attachment as parts
from daemon.resolver.client import Resolver
from daemon.resolver.main import state_folder
from daemon.resolver.server import Server
from netconf.attachment import Attachment, NodeNet, Request
from netconf.errors import DecodeFailure, InvalidConfig, IOFailure, TryAgain
from netconf.names import NAMESERVER
from netconf.namespace import identity
from netconf.state import State
from tests.e2e.bare import Bare
from tests.e2e.machine import run, socket_in, until
from tests.unit.model_kit import policy

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/run/netns").is_dir(), reason="needs root and ip netns"
)
NAMES = {"addresses": {"api": ["10.80.0.1"], "db": ["10.80.0.2"]}, "known": {"web": ["api"]}}
NODE = NodeNet(
    cluster="lab", node="n1", pool="10.64.0.0/12", slice="10.64.16.0/20", vips="10.80.0.0/16",
    mtu=1468,
)  # fmt: skip
LIMIT = 10.0
CHECKOUT = Path(__file__).parents[2]


class Node:
    """A state folder, and the boxes that its files tell of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state = State(folder)
        self._made: dict[str, Attachment] = {}
        self.boxes: list[Bare] = []

    def box(self, service: str = "web", phase: str = "ready", lo: str = "up") -> Bare:
        """A new namespace and its state file."""
        box = Bare(f"res-{secrets.token_hex(4)}", "n1", service)
        self.boxes.append(box)
        run("ip", "-n", box.name, "link", "set", "lo", lo)
        found = identity(box.netns)
        assert found is not None
        request = Request(
            container=box.name, ifname="eth0", netns=box.netns, network="mesh", service=service
        )
        self._made[box.name] = self._state.allocate(request, NODE, netns_id=found, salt=bytes(32))
        self.tell(box, phase)
        return box

    def attachment(self, box: Bare) -> Attachment:
        return self._made[box.name]

    def file(self, box: Bare) -> Path:
        made = self._made[box.name]
        return self.folder / "attachments" / f"{made.id}@{made.address}.json"

    def tell(self, box: Bare, phase: str = "ready") -> None:
        """Write the state file."""
        changes: dict[str, Any] = {"phase": phase, "netns_id": identity(box.netns)}
        self._state.save(msgspec.structs.replace(self._made[box.name], **changes))

    def names(self, content: Any) -> None:
        """Write ``names``, as the daemon does."""
        self.write(self.folder / "names", json.dumps(content))

    def write(self, path: Path, text: str) -> None:
        beside = path.with_suffix(".tmp")
        beside.write_text(text)
        beside.replace(path)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    for box in made.boxes:
        box.kill()


@contextlib.contextmanager
def serving(node: Node) -> Iterator[Server]:
    """A server in a thread, until the end of the block."""
    stopped, stop = socket.socketpair()
    ready = threading.Event()
    with stopped, stop, Server(node.folder, Journal()) as server:
        thread = threading.Thread(target=server.serve, args=(stopped, ready.set))
        thread.start()
        try:
            assert ready.wait(LIMIT)
            yield server
        finally:
            stop.send(b"x")
            thread.join()


def dial(box: Bare, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
    sock = socket_in(box.netns, kind)
    sock.settimeout(LIMIT)
    try:
        sock.connect((NAMESERVER, 53))
    except OSError:
        sock.close()
        raise
    return sock


def query(name: str = "api") -> bytes:
    return bytes(dnslib.DNSRecord.question(name).pack())


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def said(message: bytes) -> str:
    """What an answer means: an address, "" for none, or the name of an RCODE."""
    parsed = dnslib.DNSRecord.parse(message)
    if parsed.header.rcode:
        return str(dnslib.RCODE.get(parsed.header.rcode))
    return str(parsed.a.rdata) if parsed.rr else ""


def resolve(box: Bare, name: str = "api", patience: float = LIMIT) -> str:
    """Ask over UDP; "refused" if nobody listens, "silence" after `patience` seconds."""
    try:
        with dial(box) as sock:
            sock.settimeout(patience)
            sock.send(query(name))
            return said(sock.recv(2000))
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "silence"


def becomes(what: str, box: Bare, name: str = "api") -> None:
    until(lambda: resolve(box, name) == what, f"{name} to be {what}", LIMIT)


# --- who is served, and what is answered


def test_each_is_told_what_its_service_may_know(node: Node) -> None:
    node.names(NAMES | {"known": {"web": ["api"], "api": ["db"]}})
    web, api = node.box("web"), node.box("api")
    with serving(node):
        assert (resolve(web, "api"), resolve(web, "db")) == ("10.80.0.1", "NXDOMAIN")
        assert (resolve(api, "api"), resolve(api, "db")) == ("NXDOMAIN", "10.80.0.2")
        with dial(web, socket.SOCK_STREAM) as sock:
            sock.sendall(framed(query()) * 3)
            stream = sock.makefile("rb")
            for _ in range(3):
                assert said(stream.read(int.from_bytes(stream.read(2), "big"))) == "10.80.0.1"


def test_names_change_and_a_damaged_file_changes_nothing(node: Node) -> None:
    box = node.box()
    with serving(node):
        assert resolve(box) == "SERVFAIL"
        node.names(NAMES)
        becomes("10.80.0.1", box)
        for damaged in ({"addresses": 1}, NAMES | {"addresses": {"api": ["nowhere"]}}):
            node.names(damaged)
            later = node.box()  # served means that the names were looked at, too
            becomes("10.80.0.1", later)
            assert resolve(box) == "10.80.0.1"
        node.names(NAMES | {"known": {}})
        becomes("NXDOMAIN", box)
        (node.folder / "names").unlink()
        becomes("NXDOMAIN", node.box())


def test_files_come_and_go(node: Node) -> None:
    node.names(NAMES)
    with serving(node):
        box = node.box(phase="adding")
        other = node.box()
        becomes("10.80.0.1", other)
        assert resolve(box) == "refused"
        node.tell(box)
        becomes("10.80.0.1", box)
        node.tell(box, "deleting")
        becomes("refused", box)
        node.tell(box)
        becomes("10.80.0.1", box)
        node.write(node.file(box), "{")
        node.file(other).unlink()
        becomes("refused", other)
        assert resolve(box) == "10.80.0.1", "an unreadable file may be of a newer version"


def test_lo_may_come_up_later(node: Node) -> None:
    node.names(NAMES)
    box = node.box(lo="down")
    run("ip", "-n", box.name, "link", "add", "eth0", "type", "veth", "peer", "vc")
    run("ip", "-n", box.name, "addr", "add", "10.64.0.1/12", "dev", "eth0")
    run("ip", "-n", box.name, "link", "set", "eth0", "up")
    with serving(node):
        run("ip", "-n", box.name, "link", "set", "lo", "up")
        assert resolve(box) == "10.80.0.1"


def test_no_namespace_is_kept(node: Node) -> None:
    """An open socket would keep it; tests/e2e asks the kernel how many there are."""
    node.names(NAMES)
    with serving(node):
        kept = node.box()
        becomes("10.80.0.1", kept)
        before = _open_sockets()
        for leave in (lambda box: node.file(box).unlink(), lambda box: box.kill()):
            box = node.box()
            becomes("10.80.0.1", box)
            with dial(box, socket.SOCK_STREAM) as sock:
                sock.sendall(framed(query()))
                assert sock.recv(100)
            assert _open_sockets() > before
            leave(box)
            until(lambda: _open_sockets() == before, "the sockets to be closed", LIMIT)
        assert resolve(kept) == "10.80.0.1"


def _open_sockets() -> int:
    return sum("socket:" in os.path.realpath(link) for link in Path("/proc/self/fd").iterdir())


def test_a_path_that_leads_elsewhere(node: Node) -> None:
    node.names(NAMES)
    with serving(node):
        box = node.box()
        becomes("10.80.0.1", box)
        box.kill()
        again = Bare(box.name, "n1", "web")
        node.boxes.append(again)
        run("ip", "-n", again.name, "link", "set", "lo", "up")
        other = node.box()
        becomes("10.80.0.1", other)
        assert resolve(again) == "refused"
        node.tell(again)
        becomes("10.80.0.1", again)


# --- nobody harms another


def test_a_flood_is_its_own_authors_loss(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.names(NAMES)
    loud, quiet = node.box(), node.box()
    monkeypatch.setattr(parts, "BUDGET", 0.0002)
    with serving(node), dial(loud) as flood:
        flood.setblocking(False)
        message = query()
        answered = 0
        for _ in range(20):
            with contextlib.suppress(BlockingIOError):
                for _ in range(500):
                    flood.send(message)
            assert resolve(quiet) == "10.80.0.1"
            with contextlib.suppress(BlockingIOError):
                while flood.recv(512):
                    answered += 1
        assert answered < 20 * 500, "all of it was answered"
        # What is in the buffer comes first, and a query that finds it full is lost.
        until(lambda: resolve(loud, patience=0.2) == "10.80.0.1", "the flood to ebb away", LIMIT)


def test_connections_replace_one_another(node: Node) -> None:
    node.names(NAMES)
    box, other = node.box(), node.box()
    with serving(node), contextlib.ExitStack() as held:
        held.enter_context(dial(other, socket.SOCK_STREAM))
        socks = [
            held.enter_context(dial(box, socket.SOCK_STREAM)) for _ in range(parts.CONNECTIONS)
        ]
        for sock in reversed(socks):  # the last one has been silent longest
            sock.sendall(framed(query()))
            assert said(sock.recv(500)[2:]) == "10.80.0.1"
        one_more = held.enter_context(dial(box, socket.SOCK_STREAM))
        one_more.sendall(framed(query()))
        assert said(one_more.recv(500)[2:]) == "10.80.0.1"
        assert not _alive(socks[-1])
        assert all(_alive(sock) for sock in socks[:-1])
        assert resolve(other) == "10.80.0.1"


def _alive(sock: socket.socket) -> bool:
    try:
        sock.sendall(framed(query()))
        return bool(sock.recv(500))
    except ConnectionError:
        return False


@pytest.mark.parametrize(
    "sent",
    [b"\0", b"\0\x20half", framed(b"x" * 1233), framed(b""), framed(b"short"), b"\xff\xff"],
    ids=["a byte", "a part", "too long", "nothing", "no header", "longest"],
)
def test_connections_that_ask_nothing_end(
    node: Node, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(parts, "PATIENCE", 0.2)
    box = node.box()
    with serving(node), dial(box, socket.SOCK_STREAM) as sock:
        sock.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(100) == b""


def test_a_client_that_does_not_read(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "BUDGET", 1.0)
    node.names(NAMES)
    box = node.box()
    with serving(node):
        with socket_in(box.netns) as sock, pytest.raises(ConnectionError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            sock.settimeout(LIMIT)
            sock.connect((NAMESERVER, 53))
            while True:
                sock.sendall(framed(query()) * 100)
        assert resolve(box) == "10.80.0.1"


def test_sockets_that_were_destroyed_are_made_anew(node: Node) -> None:
    """CAP_NET_ADMIN in a container may do that (sock_diag(7), SOCK_DESTROY)."""
    node.names(NAMES)
    box, other = node.box(), node.box()
    with serving(node):
        killed = run("ip", "netns", "exec", box.name, "ss", "-KHuan", "src", NAMESERVER)
        if NAMESERVER not in killed.stdout:
            pytest.skip("this kernel destroys no sockets (CONFIG_INET_DIAG_DESTROY)")
        becomes("10.80.0.1", box)
        assert resolve(other) == "10.80.0.1"


# --- the daemon's end, and two resolvers


def test_the_daemon_asks(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "noctule")
    client = Resolver(node.folder, Journal())
    client.write(None, "")
    assert not (node.folder / "names").exists()
    client.write(policy(), "")
    box = node.box()

    def ask(within: float = LIMIT) -> list[str]:
        caplog.clear()
        asyncio.run(client.serve(node.attachment(box), within))
        return [record.message for record in caplog.records]

    assert ask(0) == []
    assert ask() == ["no names for new containers; is noctule-resolver running?"]
    assert ask() == [], "once is enough"
    with serving(node):
        assert ask() == []
        assert resolve(box) == policy().services["api"].vip
        assert (node.folder / "resolver.sock").stat().st_mode & 0o777 == 0o600
        node.file(box).unlink()
        assert len(ask()) == 1, "what it does not serve it says so"
    assert not (node.folder / "resolver.sock").exists()


def test_a_resolver_that_says_nothing(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "noctule")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(node.folder / "resolver.sock"))
        asyncio.run(Resolver(node.folder, Journal()).serve(node.attachment(node.box()), 0.05))
    assert len(caplog.records) == 1


def test_names_are_written_once_for_each_policy(node: Node) -> None:
    client = Resolver(node.folder, Journal())
    path = node.folder / "names"

    def written(version: int, ula: str) -> int:
        client.write(policy(version=version), ula)
        return path.stat().st_ino

    first = written(1, "")
    assert written(1, "") == first
    assert written(2, "") != first
    assert "fd00" not in path.read_text()
    written(2, "fd00:4e::/64")
    assert "fd00" in path.read_text()


def test_two_resolvers_on_one_folder(node: Node) -> None:
    with serving(node), pytest.raises(TryAgain, match=r"paths\.state: another"):
        Server(node.folder, Journal())
    with serving(node):
        pass


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(IOFailure, match=r"paths\.state"):
        Server(tmp_path / "file", Journal())
    with pytest.raises(InvalidConfig, match="107"):
        Server(tmp_path / ("long" * 30), Journal())


# --- the program


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("{", DecodeFailure, "line 1"),
        ("paths: 3", InvalidConfig, "paths"),
        ("paths: {state: here}", InvalidConfig, r"paths\.state.*absolute"),
        ("paths: {stat: /x}", InvalidConfig, "stat"),
        ("[]", InvalidConfig, "mapping"),
    ],
)
def test_a_configuration_that_is_none(
    tmp_path: Path, text: str, error: type[Exception], match: str
) -> None:
    file = tmp_path / "node.yaml"
    file.write_text(text)
    with pytest.raises(error, match=match):
        state_folder(file)
    with pytest.raises(IOFailure, match="--config"):
        state_folder(tmp_path / "none.yaml")


@contextlib.contextmanager
def program(node: Node) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Start the real thing; each call returns when it said that it is ready."""
    config = node.folder / "node.yaml"
    config.write_text(f"cluster: lab\npaths: {{state: {node.folder}}}\n")
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        path = node.folder / f"notify-{len(started)}"
        code = "from daemon.resolver.main import main; exit(main())"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.settimeout(60)
            notified.bind(str(path))
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", code, "--config", str(config)],
                    env=os.environ | {"NOTIFY_SOCKET": str(path), "PYTHONPATH": str(CHECKOUT)},
                )
            )
            assert notified.recv(100) == b"READY=1"
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_killed_and_started_again(node: Node) -> None:
    node.names(NAMES)
    box = node.box()
    with program(node) as start:
        first = start()
        assert resolve(box) == "10.80.0.1"
        first.kill()
        first.wait()
        assert resolve(box) == "refused"
        again = start()
        assert resolve(box) == "10.80.0.1"
        again.send_signal(signal.SIGTERM)
        assert again.wait(LIMIT) == 0
        assert not (node.folder / "resolver.sock").exists()
