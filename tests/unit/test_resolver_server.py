"""The resolver in real namespaces: who is served follows the files.

Loopback only, so any kernel will do; it needs root, for namespaces.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.journal import Journal
from daemon.resolver.client import Resolver
from daemon.resolver.main import state_folder
from daemon.resolver.server import Server
from netconf.errors import DecodeFailure, InvalidConfig, IOFailure, TryAgain
from tests.e2e.bare import Bare
from tests.e2e.machine import run, until
from tests.unit.model_kit import policy
from tests.unit.resolver_kit import (
    LIMIT,
    NAMES,
    NAMESPACES,
    Node,
    becomes,
    dial,
    framed,
    query,
    resolve,
    said,
    serving,
)

pytestmark = NAMESPACES
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Node(tmp_path) as made:
        yield made


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
