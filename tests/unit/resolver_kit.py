"""What the tests of the resolver share: a node's files, namespaces, and questions from inside."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dnslib
import msgspec
import pytest

from daemon.journal import Journal
from daemon.resolver.server import Server
from netconf.attach.attachment import Attachment, AttachRequest, NodeNet
from netconf.attach.state import State
from netconf.names import NAMESERVER
from netconf.namespace import identity
from tests.e2e.bare import Bare
from tests.e2e.machine import run, socket_in, until

NAMES = {"addresses": {"api": ["10.80.0.1"], "db": ["10.80.0.2"]}, "known": {"web": ["api"]}}
NODE = NodeNet(
    cluster="lab", node="n1", pool="10.64.0.0/12", slice="10.64.16.0/20", vips="10.80.0.0/16",
    mtu=1468,
)  # fmt: skip
LIMIT = 10.0
NAMESPACES = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for namespaces")


class Node:
    """A state folder, and the boxes that its files tell of; leaving it ends the boxes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state = State(folder)
        self._made: dict[str, Attachment] = {}
        self.boxes: list[Bare] = []

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        for box in self.boxes:
            box.kill()

    def box(self, service: str = "web", phase: str = "ready", lo: str = "up") -> Bare:
        """A new namespace and its state file."""
        box = Bare(f"res-{secrets.token_hex(4)}", "n1", service)
        self.boxes.append(box)
        run("ip", "-n", box.name, "link", "set", "lo", lo)
        found = identity(box.netns)
        assert found is not None
        request = AttachRequest(
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
    """Ask until the answer is `what`: a question that meets a change may get none, as on any
    network, so each is given a part of the time only."""
    until(lambda: resolve(box, name, LIMIT / 10) == what, f"{name} to be {what}", LIMIT)
