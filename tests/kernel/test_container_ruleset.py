"""A container's ruleset under traffic: one client, two replicas of a service, a stranger.

Every test runs once for each family, unless it says why not.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import socket

import pytest

from netconf.nft import ruleset
from netconf.nft.elements import EGRESS, INGRESS, INGRESS_ICMP, PEER
from netconf.nft.encoding import mark_of
from netconf.nft.ruleset import Denial
from netconf.nft.wire import Batch, Flows
from tests.kernel.client_server import (
    API,
    CLIENT,
    EMPTY_VIP,
    FIRST,
    FORGED,
    SECOND,
    STRANGER,
    VIP,
    WEB,
    echo_request,
    six,
    world_of,
)
from tests.kernel.sandbox import run


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def world(request):
    with world_of(request.param) as made:
        yield made


def test_slots_are_shares(world):
    reached = collections.Counter()
    for _ in range(200):
        ours, theirs = world.dial(VIP, 80)
        reached[theirs.getsockname()[0]] += 1
        ours.close()
        theirs.close()
    # 48 of 64 slots: 150 of 200 expected, standard deviation 6.
    assert set(reached) == {world.of(FIRST), world.of(SECOND)}
    assert 110 < reached[world.of(FIRST)] < 190


def test_what_no_grant_names_is_refused_at_once_and_counted(world):
    world.refused(EMPTY_VIP, 80)
    world.refused(VIP, 81)
    world.refused(FIRST, 22)
    world.refused(STRANGER, 8080)
    udp = world.socket(world.client, socket.SOCK_DGRAM)
    with pytest.raises(PermissionError):
        udp.sendto(b"x", (world.of(FIRST), 53))
    found = set(ruleset.denials(world.client.ns))
    assert found >= {
        Denial("out", world.of(EMPTY_VIP), "tcp", 80, 1),
        Denial("out", world.of(VIP), "tcp", 81, 1),
        Denial("out", world.of(FIRST), "tcp", 22, 1),
        Denial("out", world.of(STRANGER), "tcp", 8080, 1),
        Denial("out", world.of(FIRST), "udp", 53, 1),
    }


def test_a_service_without_replicas_is_closed_to_udp_too(world):
    udp = world.socket(world.client, socket.SOCK_DGRAM)
    udp.connect((world.of(EMPTY_VIP), 80))
    with pytest.raises((ConnectionRefusedError, PermissionError)):
        udp.send(b"x")
        udp.recv(10)


def test_a_mark_of_the_process_opens_nothing(world):
    world.refused(STRANGER, 8080, mark=API)
    world.out.send(Batch().delete(EGRESS, [(API, "tcp", 8080)]))
    world.refused(FIRST, 8080, mark=API)


def test_the_receiving_end_decides_too(world):
    world.inside.send(Batch().delete(INGRESS, [(WEB, "tcp", 8080), (WEB, "udp", 8080)]))
    world.refused(FIRST, 8080)
    udp = world.socket(world.client, socket.SOCK_DGRAM)
    udp.connect((world.of(FIRST), 8080))
    udp.send(b"x")
    with pytest.raises(OSError) as told:
        udp.recv(10)
    assert told.value.errno in (errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.EACCES)
    assert set(ruleset.denials(world.server.ns)) >= {
        Denial("in", world.of(CLIENT), "tcp", 8080, 1),
        Denial("in", world.of(CLIENT), "udp", 8080, 1),
    }


@pytest.mark.parametrize("world", [socket.AF_INET], indirect=True)
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


def test_icmp_is_a_grant_of_its_own(world):
    v6 = world.family == socket.AF_INET6
    protocol = socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP
    request, header = echo_request(world.family), 0 if v6 else 20
    reply, unreachable = (129, 1) if v6 else (0, 3)
    ping = world.socket(world.client, socket.SOCK_RAW, protocol)
    ping.sendto(request, (world.of(FIRST), 0))
    answer, (source, *_) = ping.recvfrom(200)
    assert (answer[header], source) == (reply, world.of(FIRST))
    with pytest.raises(PermissionError):
        ping.sendto(request, (world.of(STRANGER), 0))
    world.inside.send(Batch().delete(INGRESS_ICMP, [(WEB,)]))
    ping = world.socket(world.client, socket.SOCK_RAW, protocol)
    ping.sendto(request, (world.of(SECOND), 0))
    answer, _ = ping.recvfrom(200)
    assert answer[header] == unreachable
    denied = Denial("out", world.of(STRANGER), world.icmp, 0, 1)
    assert denied in ruleset.denials(world.client.ns)
    denied = Denial("in", world.of(CLIENT), world.icmp, 0, 1)
    assert denied in ruleset.denials(world.server.ns)


def test_a_port_that_nobody_listens_on_is_told_so(world):
    world.listener.close()
    world.refused(FIRST, 8080)
    # The server's wire is no SecY: it reports its groups, and that is dropped.
    assert [one for one in ruleset.denials(world.client.ns) if one.protocol != "icmpv6"] == []


@pytest.mark.parametrize("act", ["send", "shutdown"])
def test_a_flow_whose_replica_left_is_reset_at_once(world, act):
    ours, theirs = world.dial(VIP, 80)
    replica = theirs.getsockname()[0]
    ours.send(b"x")
    assert theirs.recv(1) == b"x"
    other = SECOND if replica == world.of(FIRST) else FIRST
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


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"])
def test_a_connections_mark_is_the_peer_and_flows_are_revoked_by_it(world, kind):
    """The mark that packets leave with conntrack is the one that flows are deleted by."""
    name = "tcp" if kind == socket.SOCK_STREAM else "udp"
    if kind == socket.SOCK_STREAM:
        ours, theirs = world.dial(VIP, 80)
    else:
        theirs = world.socket(world.server, kind)
        theirs.bind((world.of(FIRST), 8080))
        ours = world.socket(world.client, kind)
        ours.connect((world.of(FIRST), 8080))
        ours.send(b"x")
        asked, source = theirs.recvfrom(1)
        theirs.connect(source)
        theirs.send(asked)
        assert ours.recv(1) == b"x"
    replica = theirs.getsockname()[0]
    family = "ipv6" if world.family == socket.AF_INET6 else "ipv4"
    for node, peer in ((world.client, replica), (world.server, world.of(CLIENT))):
        (line,) = run(
            *("nsenter", f"--net={node.path}", "conntrack", "-L", "-p", name, "-f", family)
        ).splitlines()
        assert f" mark={mark_of(peer)} " in line
    # A revocation: the grant goes, then the flows that it opened.
    world.out.send(Batch().delete(EGRESS, [(API, name, 8080)]))
    ours.send(b"y")
    assert theirs.recv(1) == b"y"
    world.out.delete_flows(Flows(mark_of(replica), "out", name, 8080))
    theirs.setblocking(False)
    with pytest.raises(OSError):
        ours.send(b"z")
        ours.recv(1)
    with contextlib.suppress(ConnectionResetError), pytest.raises(BlockingIOError):
        theirs.recv(1)


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
        servers[address].bind((world.of(address), 8080))
        servers[address].setblocking(False)
    udp = world.socket(world.client, socket.SOCK_DGRAM)
    udp.connect((world.of(VIP), 80))

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
    held = world.out.dump(world.lb).items()
    slots = [slot for slot, target in held if target[0] == world.of(replica)]
    moved = [(slot, (world.of(other), 8080)) for slot in slots]
    world.out.send(Batch().delete(world.lb, slots).add(world.lb, moved))
    assert hit() == replica
    world.out.delete_flows(Flows(mark_of(replica)))
    assert hit() == other


def test_a_replica_reaches_itself_through_its_services_address(world):
    vip, first = world.of(VIP), world.of(FIRST)
    world.inside.send(
        Batch().add(world.lb, [((vip, "tcp", 80, n), (first, 8080)) for n in range(64)])
    )
    network = f"{six('10.80.0.0')}/112" if world.family == socket.AF_INET6 else "10.80.0.0/16"
    world.server.ip("route", "add", network, "dev", "eth0", "src", first)
    ours = world.socket(world.server, socket.SOCK_STREAM)
    ours.connect((vip, 80))
    theirs, _ = world.listener.accept()
    ours.send(b"x")
    assert theirs.recv(1) == b"x"
