"""The resolver in real namespaces: no container starves another or the node.

Loopback only, so any kernel will do; it needs root, for namespaces.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.resolver import nameserver as parts
from netconf.names import NAMESERVER
from tests.e2e.machine import socket_in, until
from tests.unit.resolver_kit import (
    LIMIT,
    NAMES,
    NAMESPACES,
    Node,
    dial,
    framed,
    query,
    resolve,
    said,
    serving,
)

pytestmark = NAMESPACES


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Node(tmp_path) as made:
        yield made


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
