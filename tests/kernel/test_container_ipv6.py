"""What the container's ruleset does in IPv6 alone: sources, ICMPv6, neighbour discovery."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from netconf import names
from netconf.nft import ruleset
from netconf.nft.elements import GENUINE6, PEER6
from netconf.nft.ruleset import Denial
from netconf.nft.wire import Batch
from tests.kernel.client_server import API, CLIENT, FIRST, FORGED, LIMIT, WEB, six, world_of
from tests.kernel.sandbox import run

IPV6 = 0x86DD


@pytest.fixture
def world():
    with world_of(socket.AF_INET6) as made:
        # One device plays all replicas: what it sends for the first one is genuine.
        mac = made.server.ip("-br", "link", "show", "eth0").split()[2]
        made.out.send(Batch().add(GENUINE6, [((mac, six(FIRST)), ())]))
        yield made


def test_an_ipv6_source_that_is_not_the_senders_is_dropped(world):
    """Whatever is known of that source, and whoever else may use it."""
    server = world.socket(world.server, socket.SOCK_DGRAM)
    server.bind((six(FIRST), 8080))
    world.client.ip("address", "add", f"{six(FORGED)}/108", "dev", "eth0", "nodad")
    world.inside.send(
        Batch()
        .add(PEER6, [((six(FORGED),), (WEB,))])
        .add(GENUINE6, [((names.mac_of(FORGED), six(FORGED)), ())])
    )
    udp = world.socket(world.client, socket.SOCK_DGRAM)
    udp.bind((six(FORGED), 4000))
    tcp = world.socket(world.client, socket.SOCK_STREAM)
    tcp.bind((six(FORGED), 4000))
    tcp.setblocking(False)
    assert tcp.connect_ex((six(FIRST), 8080)) == errno.EINPROGRESS
    for _ in range(3):
        udp.sendto(b"forged", (six(FIRST), 8080))
    genuine = world.socket(world.client, socket.SOCK_DGRAM)
    genuine.bind((six(CLIENT), 4000))
    genuine.sendto(b"genuine", (six(FIRST), 8080))
    assert server.recvfrom(10)[0] == b"genuine"
    found = [d for d in ruleset.denials(world.server.ns) if d.direction == "in"]
    assert Denial("in", CLIENT, "udp", 0, 3) in found
    assert {(d.protocol, d.peer) for d in found} == {("udp", CLIENT), ("tcp", CLIENT)}
    flows = run("nsenter", f"--net={world.server.path}", "cat", "/proc/net/nf_conntrack")
    assert six(FORGED).replace("::", ":") not in flows


def test_of_icmpv6_a_grant_means_echo_requests_only(world):
    raw = world.socket(world.client, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    for kind in (1, 3, 4, 127, *range(129, 138), 139, 143, 144, 200):
        with pytest.raises(PermissionError):
            raw.sendto(struct.pack("!BBHHH", kind, 0, 0, 1, 1), (six(FIRST), 0))


@pytest.fixture
def wire(world):
    """The server's end of the wire, below all rules of its namespace."""
    with world.server.ns.enter():
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(IPV6))
        opened.bind(("eth0", IPV6))
    opened.settimeout(LIMIT)
    with opened:
        yield opened


def test_a_neighbour_that_is_not_known_is_not_asked_for(world, wire):
    asked = six("10.64.0.77")
    world.out.send(Batch().add(PEER6, [((asked,), (API,))]))
    udp = world.socket(world.client, socket.SOCK_DGRAM)
    udp.sendto(b"x", (asked, 8080))
    udp.sendto(b"control", (six(FIRST), 8080))
    assert sent_by_client(wire) == [socket.IPPROTO_UDP]


def test_discovery_is_not_heard_nor_answered_even_when_it_speaks_of_a_flow(world, wire):
    """Conntrack would call a redirect that quotes a flow related to it (RFC 4861 4.5)."""
    ours, _theirs = world.dial(FIRST, 8080)
    ours.send(b"x")
    quoted = tcp_packet(ours.getsockname(), ours.getpeername())
    target = socket.inet_pton(socket.AF_INET6, six(CLIENT))
    redirect = bytes(4) + target * 2 + struct.pack("!BBHI", 4, 1 + len(quoted) // 8, 0, 0) + quoted
    raw = world.socket(world.client, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    for kind in (*range(130, 137), 143):
        wire.send(to_client(world, kind, bytes(4) + target))
    wire.send(to_client(world, 137, redirect))
    wire.send(to_client(world, 1, bytes(4) + quoted))
    kind = raw.recv(2000)[0]
    assert kind == 1, "the first that came in is the error about the flow"
    world.socket(world.client, socket.SOCK_DGRAM).sendto(b"control", (six(FIRST), 8080))
    assert socket.IPPROTO_ICMPV6 not in sent_by_client(wire)


def test_discovery_does_not_go_out_even_when_it_speaks_of_a_flow(world):
    ours, _theirs = world.dial(FIRST, 8080)
    quoted = tcp_packet(ours.getpeername(), ours.getsockname())
    raw = world.socket(world.client, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    raw.sendto(struct.pack("!BBHI", 1, 4, 0, 0) + quoted, (six(FIRST), 0))
    option = struct.pack("!BBHI", 4, 1 + len(quoted) // 8, 0, 0) + quoted
    target = socket.inet_pton(socket.AF_INET6, six(FIRST))
    with pytest.raises(PermissionError):
        raw.sendto(struct.pack("!BBHI", 137, 0, 0, 0) + target * 2 + option, (six(FIRST), 0))


def sent_by_client(wire):
    """Protocols of what the client sent, up to the first UDP."""
    mac = bytes.fromhex(names.mac_of(CLIENT).replace(":", ""))
    kinds = []
    while not kinds or kinds[-1] != socket.IPPROTO_UDP:
        frame = wire.recv(2000)
        if frame[6:12] == mac:
            kinds.append(frame[20])
    return kinds


def tcp_packet(source, target):
    """The beginning of a packet of a flow, as errors about it quote it."""
    addresses = b"".join(socket.inet_pton(socket.AF_INET6, end[0]) for end in (source, target))
    header = struct.pack("!IHBB", 6 << 28, 24, socket.IPPROTO_TCP, 64)
    ports = struct.pack("!HHIIBBHHH", source[1], target[1], 1, 1, 5 << 4, 0x10, 1000, 0, 0)
    return header + addresses + ports + bytes(4)


def to_client(world, kind, body):
    """An Ethernet frame from FIRST to the client with one ICMPv6 message."""
    ends = b"".join(socket.inet_pton(socket.AF_INET6, six(end)) for end in (FIRST, CLIENT))
    message = struct.pack("!BBH", kind, 4 if kind == 1 else 0, 0) + body
    pseudo = ends + struct.pack("!II", len(message), socket.IPPROTO_ICMPV6)
    total = sum(struct.unpack(f"!{(len(pseudo) + len(message)) // 2}H", pseudo + message))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    message = message[:2] + struct.pack("!H", ~total & 0xFFFF) + message[4:]
    ours = world.server.ip("-br", "link", "show", "eth0").split()[2]
    macs = bytes.fromhex((names.mac_of(CLIENT) + ours).replace(":", ""))
    header = struct.pack("!IHBB", 6 << 28, len(message), socket.IPPROTO_ICMPV6, 255)
    return macs + struct.pack("!H", IPV6) + header + ends + message
