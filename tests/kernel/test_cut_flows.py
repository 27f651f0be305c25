"""Who waits on a connection hears at once that it was cut: veth, no MACsec, on any kernel.

The programmer changes what nftables, conntrack and sockets hold; what it does to MACsec and to
neighbours is left out here, and tested in `test_program`.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading

import pytest

from netconf.program import programmer
from netconf.program.actual import expected
from netconf.program.desired import Desired, Peer, differing
from netconf.program.netns_sockets import NetnsSockets
from tests.kernel import client_server
from tests.kernel.client_server import API, CLIENT, FIRST, SECOND, ULA, VIP, WEB
from tests.kernel.sandbox import nodes, run

AT_ONCE = 1.0
"""Seconds within which whoever waits must have heard."""


class WithoutMacsec(NetnsSockets):
    """The real sockets; MACsec and neighbours are as the programmer believes."""

    def add_channel(self, sci):
        pass

    def del_channel(self, sci):
        pass

    def add_key(self, sci, an, sak, key_id):
        pass

    def set_neighbour(self, address, mac):
        pass

    def del_neighbour(self, address):
        pass


def view(peers, service, egress=frozenset(), ingress=frozenset(), targets=()):
    return Desired(
        peers={a: Peer(address=a, service=service, salts={0: bytes(32)}) for a in peers},
        egress=egress,
        ingress=ingress,
        slots={
            (VIP, protocol, 80, n): (targets[-1 if n % 4 == 3 else 0], 8080)
            for n in range(64 if targets else 0)
            for protocol in ("tcp", "udp")
        },
    )


BOTH = frozenset({(API, "tcp", 8080), (API, "udp", 8080)})
CLIENTS = view([FIRST, SECOND], API, egress=BOTH, targets=[FIRST, SECOND])
SERVERS = view([CLIENT], WEB, ingress=frozenset({(WEB, "tcp", 8080), (WEB, "udp", 8080)}))


class World(client_server.World):
    """Both namespaces, programmed; the listener has both families where the client's is IPv4."""

    def __init__(self, client, server, family, listening):
        super().__init__(client, server, family)
        if listening != family:
            self.listener.close()
            with server.ns.enter():
                self.listener = socket.create_server(
                    ("", 8080), family=listening, dualstack_ipv6=True
                )
            self.listener.settimeout(client_server.LIMIT)
        self.hands = {node: WithoutMacsec(node.ns, "eth0") for node in (client, server)}
        self.views = {node: Desired() for node in (client, server)}
        self.program(client, CLIENTS)
        self.program(server, SERVERS)

    def program(self, node, new):
        before, after = differing(self.views[node], new)
        self.views[node] = new
        old = expected(before, ULA)
        programmer.change(self.hands[node], old, after, ULA, "mesh", lambda: b"x" * 16)

    def replica(self, address):
        """Leave the client one replica only, from now on."""
        self.program(self.client, view([address], API, egress=BOTH, targets=[address]))

    def dial_replica(self, address):
        """Connect to the VIP until it leads to the replica; close the others."""
        for _ in range(100):
            ours, theirs = self.dial(VIP, 80)
            if theirs.getsockname()[0].removeprefix("::ffff:") == self.of(address):
                return ours, theirs
            ours.close()
            theirs.close()
        raise AssertionError(f"the VIP never led to {address}")

    def close(self):
        for hands in self.hands.values():
            hands.close()
        super().close()


@pytest.fixture(
    params=[
        (socket.AF_INET, socket.AF_INET),
        (socket.AF_INET6, socket.AF_INET6),
        (socket.AF_INET, socket.AF_INET6),
    ],
    ids=["IPv4", "IPv6", "IPv4 at a dual-stack listener"],
)
def world(request):
    with nodes(2) as (client, server):
        made = World(client, server, *request.param)
        with contextlib.closing(made):
            yield made


@contextlib.contextmanager
def waiting(sock):
    """A thread reads; at the end of the body it must hear that the connection is gone."""
    heard = []
    reading = threading.Event()

    def read():
        reading.set()
        try:
            heard.append(sock.recv(1))
        except OSError as error:
            heard.append(error.errno)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        assert reading.wait(AT_ONCE)
        yield
        thread.join(AT_ONCE)
        assert heard == [errno.ECONNABORTED]
    finally:
        thread.join()


def carries(ours, theirs):
    ours.send(b"x")
    assert theirs.recv(1) == b"x"
    theirs.send(b"y")
    assert ours.recv(1) == b"y"


@pytest.mark.parametrize("half_closed", [False, True], ids=["open", "half closed"])
def test_a_client_that_reads_hears_that_its_replica_left(world, half_closed):
    kept, cut = world.dial_replica(SECOND), world.dial_replica(FIRST)
    for flow in (kept, cut):
        carries(*flow)
    if half_closed:
        cut[0].shutdown(socket.SHUT_WR)
        assert cut[1].recv(1) == b""
    with waiting(cut[0]):
        world.replica(SECOND)
    carries(*kept)
    for _ in range(8):
        ours, theirs = world.dial(VIP, 80)
        carries(ours, theirs)
        assert theirs.getsockname()[0].removeprefix("::ffff:") == world.of(SECOND)


def test_a_server_that_reads_hears_that_its_client_left(world):
    _ours, theirs = world.dial(VIP, 80)
    with waiting(theirs):
        world.program(world.server, Desired())
    world.program(world.server, SERVERS)
    carries(*world.dial(VIP, 80))


def test_a_grant_that_goes_cuts_its_own_flows_only(world):
    other = {(API, "tcp", 8081)}
    world.program(world.client, view([FIRST, SECOND], API, BOTH | other, targets=[FIRST]))
    flow = world.dial(VIP, 80)
    world.program(world.client, view([FIRST, SECOND], API, BOTH, targets=[FIRST]))
    carries(*flow)
    with waiting(flow[0]):
        world.program(world.client, view([FIRST, SECOND], API, BOTH - {(API, "tcp", 8080)}))


def test_listeners_outlive_the_connections_that_ended_lately(world):
    """The kernel answers with a listener where it finds no connected socket."""
    with world.client.ns.enter():
        beside = socket.create_server(("", 80), family=world.family)
    with contextlib.closing(beside):
        ours, theirs = world.dial(VIP, 80)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        with pytest.raises(ConnectionResetError):
            ours.recv(1)
        ours.close()
        _ends = world.dial(VIP, 80)
        family = "ipv6" if world.family == socket.AF_INET6 else "ipv4"
        entries = run(
            *("nsenter", f"--net={world.server.path}", "conntrack", "-L", "-p", "tcp"),
            *("-f", family),
        )
        assert len(entries.splitlines()) == 2
        for node in (world.client, world.server):
            was = world.views[node]
            world.program(node, Desired())
            world.program(node, was)
        for listener, node, address in (
            (world.listener, world.client, (world.of(FIRST), 8080)),
            (beside, world.client, (world.of(CLIENT), 80)),
        ):
            listener.settimeout(client_server.LIMIT)
            ours = world.socket(node, socket.SOCK_STREAM)
            ours.connect(address)
            listener.accept()[0].close()


def test_a_dial_under_way_is_not_aborted_and_finds_another_replica(world):
    table = f"{'ip6' if world.family == socket.AF_INET6 else 'ip'} daddr {world.of(FIRST)} drop"
    inside = ("nsenter", f"--net={world.server.path}", "nft")
    run(
        *inside,
        "add table inet deaf; add chain inet deaf in"
        " { type filter hook prerouting priority -500; }; add rule inet deaf in " + table,
    )
    world.replica(FIRST)
    ours = world.socket(world.client, socket.SOCK_STREAM)
    ours.setblocking(False)
    with pytest.raises(BlockingIOError):
        ours.connect((world.of(VIP), 80))
    world.replica(SECOND)
    ours.settimeout(client_server.LIMIT)
    theirs, _ = world.listener.accept()
    assert theirs.getsockname()[0].removeprefix("::ffff:") == world.of(SECOND)
    carries(ours, theirs)


def test_udp_finds_another_replica_and_hears_nothing(world):
    servers = []
    for address in (FIRST, SECOND):
        servers.append(world.socket(world.server, socket.SOCK_DGRAM))
        servers[-1].bind((world.of(address), 8080))
    ours = world.socket(world.client, socket.SOCK_DGRAM)
    ours.connect((world.of(VIP), 80))
    for server, address in zip(servers, (FIRST, SECOND), strict=True):
        world.replica(address)
        ours.send(b"x")
        asked, source = server.recvfrom(1)
        server.sendto(asked, source)
        assert ours.recv(1) == b"x"


def test_a_socket_bound_to_its_device_is_found(world):
    world.replica(FIRST)
    ours = world.socket(world.client, socket.SOCK_STREAM)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
    ours.connect((world.of(VIP), 80))
    with waiting(ours):
        world.replica(SECOND)


def test_many_are_aborted_together(world):
    world.replica(FIRST)
    flows = [world.dial(VIP, 80) for _ in range(100)]
    world.replica(SECOND)
    for ours, _ in flows:
        ours.setblocking(False)
        with pytest.raises(ConnectionAbortedError):
            ours.recv(1)
