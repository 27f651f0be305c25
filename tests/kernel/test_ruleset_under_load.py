"""Both ends' rulesets are replaced again and again under traffic: nothing is lost, nothing opens.

A client dials a replica through a VIP: a TCP stream, a flood of UDP, and new connections all the
time, each from a process of its own, since what goes wrong does so for microseconds.
Meanwhile it sends to a port that only the replica's end would let in, and a stranger, which has no
ruleset at all, sends to a port that only the client may dial.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import socket
import time

import pytest

from netconf import names
from netconf.nft import readback, replacement, ruleset
from netconf.nft.container_ruleset import container_ruleset
from netconf.nft.elements import EGRESS, INGRESS, LB, PEER
from netconf.nft.wire import Batch, NftSocket
from tests.conftest import LAB
from tests.kernel import release_010
from tests.kernel.sandbox import nodes

VIPS = "10.80.0.0/16"
CLIENT, REPLICA, STRANGER = "10.64.0.1", "10.64.0.2", "10.64.0.9"
VIP, PORT, ONE_ENDED = "10.80.0.1", 8080, 9
WEB, API = 5, 7
TIMES = int(os.environ.get("NOCTULE_REPLACEMENTS", "40" if os.environ.get(LAB) else "300"))
"""In the lab each takes most of a second: a build does not wait for hundreds (NOCTULE_REPLACEMENTS
does)."""
LIMIT = 20.0
"""Seconds until a socket operation counts as hung."""
AHEAD = 500
"""Datagrams in one go; two of them are within what a socket may hold."""
SO_RCVBUFFORCE = 33
SEEN = (
    *("blocks", "sent", "received", "dials", "refused", "sent by the stranger"),
    *("passed the client's end", "passed the replica's end"),
)
FORK = multiprocessing.get_context("fork")
DECLARED = container_ruleset(VIPS, "")


class World:
    """Client, replica and stranger on one bridge, which is the client's own interface."""

    def __init__(self, client, replica, stranger, stack):
        self.client, self.replica, self.stranger = client, replica, stranger
        self._stack = stack
        self.seen = {what: FORK.Value("Q", lock=False) for what in SEEN}
        self.done = FORK.Event()
        client.ip("link", "add", "wire0", "type", "bridge")
        client.ip("link", "set", "wire0", "address", names.mac_of(CLIENT), "up")
        client.ip("address", "add", f"{CLIENT}/12", "dev", "wire0")
        for node, port, address in (
            (replica, "to1", REPLICA),
            (stranger, "to2", STRANGER),
        ):
            client.ip("link", "add", port, "type", "veth", "peer", "eth0", "netns", node.name)
            client.ip("link", "set", port, "master", "wire0", "up")
            node.ip("link", "set", "eth0", "address", names.mac_of(address), "up")
            node.ip("address", "add", f"{address}/12", "dev", "eth0")
        client.ip("route", "add", VIPS, "dev", "wire0")
        for node, address, device in (
            (client, REPLICA, "wire0"),
            (replica, CLIENT, "eth0"),
            (stranger, REPLICA, "eth0"),
        ):
            mac = names.mac_of(address)
            node.ip("neighbour", "replace", address, "lladdr", mac, "dev", device)
        self.sockets = []
        for node in (client, replica):
            ruleset.load_container(node.ns, VIPS, "")
            self.sockets.append(NftSocket(node.ns))
            stack.callback(self.sockets[-1].close)
        self.fill()

    def fill(self):
        slots = [
            ((VIP, protocol, 80, n), (REPLICA, PORT))
            for n in range(64)
            for protocol in ("tcp", "udp")
        ]
        out, inside = self.sockets
        grants = [((API, "tcp", PORT), ()), ((API, "udp", PORT), ())]
        out.send(Batch().add(PEER, [((REPLICA,), (API,))]).add(LB, slots).add(EGRESS, grants))
        grants = [((WEB, "tcp", PORT), ()), ((WEB, "udp", PORT), ()), ((WEB, "udp", ONE_ENDED), ())]
        inside.send(Batch().add(PEER, [((CLIENT,), (WEB,))]).add(INGRESS, grants))

    def socket(self, node, kind):
        with node.ns.enter():
            made = self._stack.enter_context(socket.socket(socket.AF_INET, kind))
        made.settimeout(LIMIT)
        return made

    def at(self, kind, port):
        """Listen at the replica."""
        made = self.socket(self.replica, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("", port))
        return made

    # -- what goes on meanwhile, each in a process of its own -------------------------------

    def stream(self):
        """One connection through the VIP, each block echoed."""
        block = b"x" * 8192
        while not self.done.is_set():
            self.stream_end.sendall(block)
            left = len(block)
            while left:
                got = self.stream_end.recv(left)
                assert got, "the stream ended"
                left -= len(got)
            self.seen["blocks"].value += 1
        self.stream_end.shutdown(socket.SHUT_WR)

    def echo_stream(self):
        while got := self.stream_far.recv(8192):
            self.stream_far.sendall(got)

    def flood(self):
        """One flow through the VIP, as fast as it goes, never far ahead of who receives."""
        sent, received = self.seen["sent"], self.seen["received"]
        while not self.done.is_set():
            for _ in range(AHEAD):
                self.udp.send(b"x")
            sent.value += AHEAD
            patience = time.monotonic() + LIMIT
            while received.value < sent.value - AHEAD:
                assert time.monotonic() < patience, f"{sent.value - received.value} are lost"

    def sink(self):
        while (got := self.udp_far.recv(100)) != b"end":
            self.seen["received" if got == b"x" else "passed the replica's end"].value += 1

    def dials(self):
        """A new connection through the VIP, one byte each way, again and again."""
        while not self.done.is_set():
            with self.socket(self.client, socket.SOCK_STREAM) as ours:
                ours.connect((VIP, 80))
                ours.sendall(b"d")
                assert ours.recv(1) == b"d"
            self.seen["dials"].value += 1

    def answer_dials(self):
        got = b""
        while got != b"e":
            theirs, _ = self.listener.accept()
            with theirs:
                theirs.settimeout(LIMIT)
                got = theirs.recv(1)
                theirs.sendall(got)

    def forbidden(self):
        """From the client to where its own end alone forbids it; each a new flow."""
        self._forbidden(self.client, ONE_ENDED, "refused")

    def strange(self):
        """From the stranger to the replica; each a new flow."""
        self._forbidden(self.stranger, PORT, "sent by the stranger")

    def _forbidden(self, node, port, what):
        while not self.done.is_set():
            with self.socket(node, socket.SOCK_DGRAM) as sock:
                try:
                    sock.sendto(b"forbidden", (REPLICA, port))
                except OSError as error:
                    if error.errno not in (errno.EPERM, errno.EACCES):
                        raise
            self.seen[what].value += 1

    def trap(self):
        while self.trapped.recv(100) != b"end":
            self.seen["passed the client's end"].value += 1


@pytest.fixture
def world():
    with nodes(3) as made, contextlib.ExitStack() as stack:
        yield World(*made, stack)


def under_load(world, act):
    """Call `act` `TIMES` times under all that traffic; return what failed."""
    world.listener = world.at(socket.SOCK_STREAM, PORT)
    world.listener.listen(50)
    world.udp_far = world.at(socket.SOCK_DGRAM, PORT)
    world.udp_far.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
    world.trapped = world.at(socket.SOCK_DGRAM, ONE_ENDED)
    for patient in (world.udp_far, world.trapped, world.listener):
        patient.settimeout(None)
    world.stream_end = world.socket(world.client, socket.SOCK_STREAM)
    world.stream_end.connect((VIP, 80))
    world.stream_far, _ = world.listener.accept()
    world.stream_far.settimeout(LIMIT)
    world.udp = world.socket(world.client, socket.SOCK_DGRAM)
    world.udp.connect((VIP, 80))
    failed = FORK.SimpleQueue()

    def guarded(part):
        try:
            part()
        except BaseException as error:
            failed.put(f"{part.__name__}: {error!r}")

    busy = [world.stream, world.flood, world.dials, world.forbidden, world.strange]
    serving = [world.echo_stream, world.sink, world.answer_dials, world.trap]
    parts = [FORK.Process(target=guarded, args=(part,)) for part in busy + serving]
    for part in parts:
        part.start()
    try:
        for number in range(TIMES):
            act(number)
    finally:
        world.done.set()
        for part in parts[: len(busy)]:
            part.join()
        end = world.socket(world.replica, socket.SOCK_DGRAM)
        for port in (PORT, ONE_ENDED):
            end.sendto(b"end", ("127.0.0.1", port))
        last = world.socket(world.replica, socket.SOCK_STREAM)
        last.connect(("127.0.0.1", PORT))
        last.sendall(b"e")
        for part in parts:
            part.join(LIMIT)
            part.kill()
    found = []
    while not failed.empty():
        found.append(failed.get())
    return found


def judge(world, failed):
    seen = {what: counted.value for what, counted in world.seen.items()}
    assert failed == []
    assert seen["received"] == seen["sent"]
    assert seen["passed the client's end"] == seen["passed the replica's end"] == 0
    for what in ("blocks", "sent", "dials", "refused", "sent by the stranger"):
        assert seen[what] > TIMES / 10, seen


def test_nothing_is_lost_and_nothing_opens(world):
    def act(number):
        replacement.replace(world.sockets[number % 2], DECLARED)

    judge(world, under_load(world, act))
    for node in (world.client, world.replica):
        assert ruleset.mend_container(node.ns, VIPS, "") == []


def test_release_010_is_left_without_losing_anything(world):
    for sock in world.sockets:
        sock.delete_table(DECLARED.family, "noctule")
        release_010.load(sock, "container")
    world.fill()
    said = []

    def act(number):
        if number < 2:
            node = (world.client, world.replica)[number]
            said.append(ruleset.mend_container(node.ns, VIPS, ""))
        else:
            replacement.replace(world.sockets[number % 2], DECLARED)

    judge(world, under_load(world, act))
    assert all(said)
    for sock in world.sockets:
        assert readback.differences(sock, DECLARED) == []
