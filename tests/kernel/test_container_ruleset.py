"""``container.nft`` under traffic: one client, two replicas of a service, a stranger."""

from __future__ import annotations

import collections
import contextlib
import errno
import socket
import struct

import pytest

from netconf import names
from netconf.nft import ruleset
from netconf.nft.elements import EGRESS, EGRESS_ICMP, INGRESS, INGRESS_ICMP, LB, PEER
from netconf.nft.encoding import mark_of
from netconf.nft.ruleset import Denial
from netconf.nft.wire import Batch, Flows, NftSocket
from tests.kernel.sandbox import nodes, run

CLIENT, FIRST, SECOND, STRANGER = "10.64.0.1", "10.64.0.2", "10.64.0.3", "10.64.0.9"
FORGED = "10.64.0.4"
VIP, EMPTY_VIP = "10.80.0.1", "10.80.0.2"
WEB, API = 5, 7
SO_MARK = 36
LIMIT = 5.0
"""Seconds until a socket operation counts as hung."""


class World:
    """A client namespace and one with the addresses of two replicas, joined by a veth."""

    def __init__(self, client, server):
        self.client, self.server = client, server
        client.ip(
            "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", server.name
        )
        client.ip("link", "set", "eth0", "address", names.mac_of(CLIENT))
        for node, addresses in ((client, [CLIENT]), (server, [FIRST, SECOND, STRANGER])):
            node.ip("link", "set", "eth0", "up")
            for address in addresses:
                node.ip("address", "add", f"{address}/12", "dev", "eth0")
            ruleset.load_container(node.ns, "10.80.0.0/16")
        # One device plays three replicas here: its MAC cannot spell all their addresses.
        for act in ("flush", "delete"):
            run(
                "nsenter", f"--net={client.path}", "nft", act, "chain", "inet", "noctule", "genuine"
            )
        client.ip("route", "add", "10.80.0.0/16", "dev", "eth0")
        self.out, self.inside = NftSocket(client.ns), NftSocket(server.ns)
        slots = [
            ((VIP, protocol, 80, n), ((FIRST, SECOND)[n % 4 == 3], 8080))
            for n in range(64)
            for protocol in ("tcp", "udp")
        ]
        peers = [((address,), (API,)) for address in (FIRST, SECOND)]
        grants = [((API, protocol, 8080), ()) for protocol in ("tcp", "udp")]
        self.out.send(
            Batch()
            .add(PEER, peers)
            .add(EGRESS, grants)
            .add(EGRESS_ICMP, [((API,), ())])
            .add(LB, slots)
        )
        grants = [((WEB, protocol, 8080), ()) for protocol in ("tcp", "udp")]
        self.inside.send(
            Batch()
            .add(PEER, [((CLIENT,), (WEB,))])
            .add(INGRESS, grants)
            .add(INGRESS_ICMP, [((WEB,), ())])
        )
        self.listener = self.socket(server, socket.SOCK_STREAM)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("0.0.0.0", 8080))
        self.listener.listen(200)

    def socket(self, node, kind, protocol=0):
        with node.ns.enter():
            made = socket.socket(socket.AF_INET, kind, protocol)
        made.settimeout(LIMIT)
        return made

    def dial(self, address, port, mark=0):
        """Connect; return (client's end, server's end). OSError if refused."""
        ours = self.socket(self.client, socket.SOCK_STREAM)
        if mark:
            ours.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        ours.connect((address, port))
        theirs, _ = self.listener.accept()
        theirs.settimeout(LIMIT)
        return ours, theirs

    def refused(self, address, port, mark=0):
        with pytest.raises(ConnectionRefusedError):
            self.dial(address, port, mark)

    def close(self):
        for each in (self.out, self.inside, self.listener):
            each.close()


@pytest.fixture
def world():
    with nodes(2) as (client, server):
        made = World(client, server)
        with contextlib.closing(made):
            yield made


def test_slots_are_shares(world):
    reached = collections.Counter()
    for _ in range(200):
        ours, theirs = world.dial(VIP, 80)
        reached[theirs.getsockname()[0]] += 1
        ours.close()
        theirs.close()
    # 48 of 64 slots: 150 of 200 expected, standard deviation 6.
    assert set(reached) == {FIRST, SECOND}
    assert 110 < reached[FIRST] < 190


def test_what_no_grant_names_is_refused_at_once_and_counted(world):
    world.refused(EMPTY_VIP, 80)
    world.refused(VIP, 81)
    world.refused(FIRST, 22)
    world.refused(STRANGER, 8080)
    udp = world.socket(world.client, socket.SOCK_DGRAM)
    with pytest.raises(PermissionError):
        udp.sendto(b"x", (FIRST, 53))
    found = set(ruleset.denials(world.client.ns))
    assert found >= {
        Denial("out", EMPTY_VIP, "tcp", 80, 1),
        Denial("out", VIP, "tcp", 81, 1),
        Denial("out", FIRST, "tcp", 22, 1),
        Denial("out", STRANGER, "tcp", 8080, 1),
        Denial("out", FIRST, "udp", 53, 1),
    }


def test_a_mark_of_the_process_opens_nothing(world):
    world.refused(STRANGER, 8080, mark=API)
    world.out.send(Batch().delete(EGRESS, [(API, "tcp", 8080)]))
    world.refused(FIRST, 8080, mark=API)


def test_the_receiving_end_decides_too(world):
    world.inside.send(Batch().delete(INGRESS, [(WEB, "tcp", 8080), (WEB, "udp", 8080)]))
    world.refused(FIRST, 8080)
    udp = world.socket(world.client, socket.SOCK_DGRAM)
    udp.connect((FIRST, 8080))
    udp.send(b"x")
    with pytest.raises(OSError) as told:
        udp.recv(10)
    assert told.value.errno in (errno.EHOSTUNREACH, errno.ECONNREFUSED)
    assert set(ruleset.denials(world.server.ns)) >= {
        Denial("in", CLIENT, "tcp", 8080, 1),
        Denial("in", CLIENT, "udp", 8080, 1),
    }


def test_a_source_that_the_mac_does_not_spell_is_overwritten(world):
    server = world.socket(world.server, socket.SOCK_DGRAM)
    server.bind((FIRST, 8080))
    world.client.ip("address", "add", f"{FORGED}/12", "dev", "eth0")
    udp = world.socket(world.client, socket.SOCK_DGRAM)
    udp.bind((FORGED, 4000))
    world.inside.send(Batch().delete(PEER, [(CLIENT,)]).add(PEER, [((FORGED,), (WEB,))]))
    udp.sendto(b"x", (FIRST, 8080))
    assert Denial("in", CLIENT, "udp", 8080, 1) in ruleset.denials(world.server.ns)
    world.inside.send(Batch().delete(PEER, [(FORGED,)]).add(PEER, [((CLIENT,), (WEB,))]))
    udp.sendto(b"y", (FIRST, 8080))
    assert server.recvfrom(10) == (b"y", (CLIENT, 4000))


def echo_request():
    header = struct.pack("!BBHHH", 8, 0, 0, 1, 1)
    total = sum(struct.unpack("!4H", header))
    return struct.pack("!BBHHH", 8, 0, ~total & 0xFFFF, 1, 1)


def test_icmp_is_a_grant_of_its_own(world):
    ping = world.socket(world.client, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    ping.sendto(echo_request(), (FIRST, 0))
    answer, (source, _) = ping.recvfrom(200)
    assert (answer[20], source) == (0, FIRST)
    with pytest.raises(PermissionError):
        ping.sendto(echo_request(), (STRANGER, 0))
    world.inside.send(Batch().delete(INGRESS_ICMP, [(WEB,)]))
    ping = world.socket(world.client, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    ping.sendto(echo_request(), (SECOND, 0))
    answer, _ = ping.recvfrom(200)
    assert answer[20] == 3
    assert Denial("out", STRANGER, "icmp", 0, 1) in ruleset.denials(world.client.ns)
    assert Denial("in", CLIENT, "icmp", 0, 1) in ruleset.denials(world.server.ns)


def test_a_port_that_nobody_listens_on_is_told_so(world):
    world.listener.close()
    world.refused(FIRST, 8080)
    assert ruleset.denials(world.client.ns) == []


@pytest.mark.parametrize("act", ["send", "shutdown"])
def test_a_flow_whose_replica_left_is_reset_at_once(world, act):
    ours, theirs = world.dial(VIP, 80)
    replica = theirs.getsockname()[0]
    ours.send(b"x")
    assert theirs.recv(1) == b"x"
    other = SECOND if replica == FIRST else FIRST
    world.out.delete_flows(Flows(mark_of(other)))
    ours.send(b"y")
    assert theirs.recv(1) == b"y"
    world.out.delete_flows(Flows(mark_of(replica)))
    with pytest.raises(ConnectionResetError):
        if act == "send":
            ours.send(b"z")
        else:
            ours.shutdown(socket.SHUT_WR)
        ours.recv(1)


def test_the_server_end_resets_a_flow_it_forgot(world):
    ours, _theirs = world.dial(VIP, 80)
    world.inside.delete_flows(Flows(mark_of(CLIENT)))
    ours.send(b"x")
    with pytest.raises(ConnectionResetError):
        ours.recv(1)


def test_flows_of_one_grant_go_and_others_stay(world):
    ours, theirs = world.dial(VIP, 80)
    replica = mark_of(theirs.getsockname()[0])
    for kept in (
        Flows(replica, "out", "tcp", 80),
        Flows(replica, "out", "udp", 8080),
        Flows(replica, "in", "tcp", 8080),
        Flows(replica, "out", "icmp", 0),
    ):
        world.out.delete_flows(kept)
    ours.send(b"x")
    assert theirs.recv(1) == b"x"
    world.out.delete_flows(Flows(replica, "out", "tcp", 8080))
    ours.send(b"y")
    with pytest.raises(ConnectionResetError):
        ours.recv(1)
    ours, theirs = world.dial(VIP, 80)
    world.inside.delete_flows(Flows(mark_of(CLIENT), "in", "tcp", 8080))
    ours.send(b"x")
    with pytest.raises(ConnectionResetError):
        ours.recv(1)


def test_a_udp_flow_moves_when_its_replica_leaves(world):
    servers = {}
    for address in (FIRST, SECOND):
        servers[address] = world.socket(world.server, socket.SOCK_DGRAM)
        servers[address].bind((address, 8080))
        servers[address].setblocking(False)
    udp = world.socket(world.client, socket.SOCK_DGRAM)
    udp.connect((VIP, 80))

    def hit():
        udp.send(b"x")
        found = []
        for address, server in servers.items():
            with contextlib.suppress(BlockingIOError):
                _, source = server.recvfrom(10)
                server.sendto(b"r", source)
                found.append(address)
        assert udp.recv(10) == b"r"
        (address,) = found
        return address

    replica = hit()
    assert {hit() for _ in range(20)} == {replica}
    other = SECOND if replica == FIRST else FIRST
    slots = [slot for slot, target in world.out.dump(LB).items() if target[0] == replica]
    world.out.send(Batch().delete(LB, slots).add(LB, [(slot, (other, 8080)) for slot in slots]))
    assert hit() == replica
    world.out.delete_flows(Flows(mark_of(replica)))
    assert hit() == other


def test_a_replica_reaches_itself_through_its_services_address(world):
    world.inside.send(Batch().add(LB, [((VIP, "tcp", 80, n), (FIRST, 8080)) for n in range(64)]))
    world.server.ip("route", "add", "10.80.0.0/16", "dev", "eth0", "src", FIRST)
    ours = world.socket(world.server, socket.SOCK_STREAM)
    ours.connect((VIP, 80))
    theirs, _ = world.listener.accept()
    ours.send(b"x")
    assert theirs.recv(1) == b"x"
