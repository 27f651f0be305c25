"""What the kernel is asked about routes, and told: on any kernel, two namespaces and a wire."""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterator

import pytest

from netconf.mesh import source
from netconf.mesh.config import Geneve
from netconf.netlink import links, routes
from netconf.netlink.socket import Netlink
from tests.kernel.sandbox import Node, nodes, run

NEAR, FAR, BEYOND = "192.0.2.1", "192.0.2.2", "198.51.100.9"
NEAR6, FAR6, BEYOND6 = "2001:db8::1", "2001:db8::2", "2001:db8:1::9"


@pytest.fixture
def wire() -> Iterator[tuple[Node, Node]]:
    """Two nodes and a wire; the first has routes by the second, in both families."""
    with nodes(2) as (one, two):
        run("ip", "link", "add", "eth1", "netns", one.name, "type", "veth",
            "peer", "name", "eth1", "netns", two.name)  # fmt: skip
        for node, address, address6 in ((one, NEAR, NEAR6), (two, FAR, FAR6)):
            node.ip("link", "set", "eth1", "up")
            node.ip("addr", "add", f"{address}/24", "dev", "eth1")
            node.ip("addr", "add", f"{address6}/64", "dev", "eth1", "nodad")
        one.ip("route", "add", f"{BEYOND}/32", "via", FAR)
        one.ip("route", "add", f"{BEYOND6}/128", "via", FAR6)
        yield one, two


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def forge(node: Node, mtu: int) -> None:
    """Send what a router would send whose next link carries `mtu` bytes: anybody can.

    The packet that it is about is an echo reply, which is no socket's (icmp_err).
    """
    packed = [socket.inet_pton(socket.AF_INET, each) for each in (NEAR, BEYOND)]
    inner = struct.pack("!BBHHHBBH", 0x45, 0, 1428, 1, 0x4000, 64, 1, 0) + b"".join(packed)
    body = struct.pack("!HH", 0, mtu) + inner + bytes(8)
    sum_of = checksum(struct.pack("!BBH", 3, 4, 0) + body)
    with node.ns.enter():
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with sock:
        sock.sendto(struct.pack("!BBH", 3, 4, sum_of) + body, (NEAR, 0))


def forge6(node: Node, mtu: int) -> None:
    """Do as `forge`, in IPv6: ICMPv6 "packet too big". The kernel makes the checksum."""
    packed = [socket.inet_pton(socket.AF_INET6, each) for each in (NEAR6, BEYOND6)]
    inner = struct.pack("!IHBB", 6 << 28, 1408, 58, 64) + b"".join(packed)
    body = struct.pack("!BBHI", 2, 0, 0, mtu) + inner + bytes(8)
    with node.ns.enter():
        sock = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    with sock:
        sock.sendto(body, (NEAR6, 0))


@pytest.mark.parametrize(("remote", "gateway", "own"), [(BEYOND, FAR, 1400), (BEYOND6, FAR6, 1400)])
def test_a_forged_icmp_changes_no_mtu(
    wire: tuple[Node, Node], remote: str, gateway: str, own: int
) -> None:
    """One packet of anybody's would lower the MTU of the whole cluster for good."""
    one, two = wire
    plain = ("route", "replace", remote, "via", gateway)
    with links.open(one.ns) as rtnl:
        assert routes.way_to(rtnl, remote).mtu is None
        for expected in (None, own):
            if expected:
                one.ip(*plain, "mtu", str(expected))
            if ":" in remote:
                forge6(two, 1280)
            else:
                forge(two, 600)
            assert f"mtu {1280 if ':' in remote else 600}" in one.ip("route", "get", remote)
            assert routes.way_to(rtnl, remote).mtu == expected
            assert routes.way_to(rtnl, remote, 6081).mtu == expected


@pytest.mark.parametrize("kind", ["blackhole", "prohibit", "unreachable"])
def test_a_route_that_refuses_is_no_way(wire: tuple[Node, Node], kind: str) -> None:
    """The peer is waited for, whatever kind of route leads nowhere."""
    one, _ = wire
    for remote, near in (("203.0.113.1", NEAR), ("2001:db8:3::1", NEAR6)):
        one.ip("route", "add", kind, remote)
        with links.open(one.ns) as rtnl:
            assert source.way(rtnl, Geneve(remote=remote, id=7, local=near)) is None
            assert not source.is_ours(rtnl, remote)


@pytest.mark.parametrize(
    ("remote", "gateway", "local"),
    [("203.0.113.1", "10.99.0.1", "192.0.2.7"), ("2001:db8:3::1", "2001:db8:99::1", "2001:db8::7")],
)
def test_a_gateway_that_only_the_route_knows_to_be_on_the_link(
    wire: tuple[Node, Node], remote: str, gateway: str, local: str
) -> None:
    one, _ = wire
    give(one, local)
    one.ip("route", "add", remote, "via", gateway, "dev", "eth1", "onlink",
           "src", NEAR6 if ":" in remote else NEAR)  # fmt: skip
    tunnel = Geneve(remote=remote, id=7, local=local)
    with links.open(one.ns) as rtnl:
        assert settle(rtnl, tunnel)
        sent = routes.way_to(rtnl, remote, source.PORT)
        assert (sent.source, sent.gateway) == (local, gateway)
        assert not settle(rtnl, tunnel), "what is right is left alone"


@pytest.mark.parametrize(
    ("network", "specific"),
    [("10.80.0.0/16", "10.80.0.0/32"), ("fd4e::a50:0/112", "fd4e::a50:0/128")],
)
def test_our_route_is_found_whatever_else_is_routed(
    wire: tuple[Node, Node], network: str, specific: str
) -> None:
    """A more specific route or a rule is somebody's intent, and setting ours right is no cure."""
    one, _ = wire
    version = "-6" if ":" in network else "-4"
    with links.open(one.ns) as rtnl:
        facts = links.get(rtnl, "eth1")
        assert facts is not None
        assert not routes.routed(rtnl, facts.index, network)
        rtnl.batch([routes.route_request(facts.index, network)])
        assert routes.routed(rtnl, facts.index, network)
        one.ip("route", "add", specific, "dev", "lo")
        one.ip(version, "rule", "add", "to", network, "lookup", "100")
        one.ip("route", "add", network, "dev", "lo", "table", "100")
        assert routes.routed(rtnl, facts.index, network)
        one.ip("route", "del", network, "dev", "eth1")
        assert not routes.routed(rtnl, facts.index, network)
    with nodes(1) as (empty,), links.open(empty.ns) as rtnl:
        assert not routes.routed(rtnl, 1, network)


SECOND, SECOND6 = "192.0.2.7", "2001:db8::7"


@pytest.mark.parametrize(
    ("remote", "local", "detour"), [(BEYOND, SECOND, FAR), (BEYOND6, SECOND6, FAR6)]
)
def test_our_route_is_the_one_that_packets_from_there_take(
    wire: tuple[Node, Node], remote: str, local: str, detour: str
) -> None:
    """Rules may look at the source; the route of another source leads elsewhere."""
    one, _ = wire
    give(one, local)
    other = detour[:-1] + "3"
    version = "-6" if ":" in remote else "-4"
    one.ip(version, "rule", "add", "from", local, "lookup", "100")
    one.ip("route", "add", remote, "via", other, "table", "100")
    tunnel = Geneve(remote=remote, id=7, local=local)
    with links.open(one.ns) as rtnl:
        assert settle(rtnl, tunnel)
        sent = routes.way_to(rtnl, remote, source.PORT)
        assert (sent.source, sent.gateway) == (local, other)
        assert routes.way_to(rtnl, remote).gateway == detour, "nothing else goes there"
        assert not settle(rtnl, tunnel)
        source.forget(rtnl, set())
        assert routes.way_to(rtnl, remote, source.PORT).gateway == detour
        assert source.peers(rtnl) == set()


@pytest.mark.parametrize(
    ("remote", "ours", "sender"),
    [(BEYOND, {NEAR, SECOND}, FAR), (BEYOND6, {NEAR6, SECOND6}, FAR6)],
)
def test_what_others_send_through_this_node_is_not_rerouted(
    wire: tuple[Node, Node], remote: str, ours: set[str], sender: str
) -> None:
    one, _ = wire
    give(one, SECOND)
    give(one, SECOND6)
    for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        run("ip", "netns", "exec", one.name, "sysctl", "-qw", f"{name}=1")
    with links.open(one.ns) as rtnl:
        (local,) = ours - {routes.way_to(rtnl, remote).source}
        assert settle(rtnl, Geneve(remote=remote, id=7, local=local))
    one.ip("route", "replace", "unreachable", remote)
    looked_up = ("route", "get", remote, "ipproto", "udp", "dport", str(source.PORT))
    assert "via" in one.ip(*looked_up), "the tunnel's own packets"
    with pytest.raises(subprocess.CalledProcessError):
        one.ip(*looked_up, "from", sender, "iif", "eth1")


def test_a_gateway_of_the_other_family(wire: tuple[Node, Node]) -> None:
    """IPv4 by way of an IPv6 router, as BGP unnumbered has it (RFC 8950)."""
    one, _ = wire
    give(one, SECOND)
    for router in (FAR6, "2001:db8:5::"):
        one.ip("route", "replace", BEYOND, "via", "inet6", router, "dev", "eth1", "onlink")
        with links.open(one.ns) as rtnl:
            settle(rtnl, Geneve(remote=BEYOND, id=7, local=SECOND))
            sent = routes.way_to(rtnl, BEYOND, source.PORT)
            assert (sent.source, sent.gateway) == (SECOND, router)
        assert f"via inet6 {router}" in one.ip("route", "show", "table", str(source.TABLE))


def give(node: Node, address: str) -> None:
    """Give eth1 a further address, ready for use at once."""
    bits = ("128", "nodad") if ":" in address else ("32",)
    node.ip("addr", "add", f"{address}/{bits[0]}", "dev", "eth1", *bits[1:])


def settle(rtnl: Netlink, tunnel: Geneve) -> bool:
    ordinary = source.way(rtnl, tunnel)
    assert ordinary is not None
    return source.settle(rtnl, tunnel, ordinary)
