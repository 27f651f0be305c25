"""Both families between the containers of two nodes, and what never leaves them.

The first container may dial api's VIP, whose one replica is the second container.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Callable, Iterator

import msgspec
import pytest

from netconf import names
from netconf.attach import readdress
from netconf.attach.attachment import Attachment
from netconf.errors import CheckFailure, KernelFailure
from netconf.namespace import Namespace
from netconf.netlink import links, macsec, routes
from netconf.nft import host, ruleset
from netconf.nft.ruleset import Denial
from netconf.program.actual import differences
from netconf.program.desired import EMPTY, Desired, Peer
from netconf.program.programmer import Programmer
from tests.kernel.client_server import ULA, echo_request
from tests.kernel.conftest import SECRET, VIPS, Container, MeshNode, pairs
from tests.kernel.sandbox import nodes
from tests.kernel.test_attach import LIMIT, ip_json, until

MakeContainer = Callable[[], Container]
WEB, API, VIP = 1, 2, "10.80.0.1"
IPV6 = b"\x86\xdd"
DISCOVERY = frozenset({*range(130, 138), 143})
"""ICMPv6 types of MLD and neighbour discovery (RFC 2710, 4861, 3810)."""


class World:
    """web on one node, api on the other, opened to each other as policy would."""

    def __init__(self, places: tuple[MeshNode, MeshNode], container: MakeContainer) -> None:
        self.boxes = container(), container()
        self.places = places
        self.programmer = Programmer()
        self.web, self.api = (
            place.attach(box.request()) for place, box in zip(places, self.boxes, strict=True)
        )
        self.views = (
            Desired(
                peers={self.api.address: peer(self.api, API)},
                egress=frozenset(
                    {(API, "tcp", 8080), (API, "udp", 8080), (API, "icmp", 0), (API, "tcp", 8081)}
                ),
                slots={
                    (VIP, protocol, 80, n): (self.api.address, 8080)
                    for n in range(64)
                    for protocol in ("tcp", "udp")
                },
            ),
            Desired(
                peers={self.web.address: peer(self.web, WEB)},
                ingress=frozenset({(WEB, "tcp", 8080), (WEB, "udp", 8080), (WEB, "icmp", 0)}),
            ),
        )
        for place, made, view in zip(places, (self.web, self.api), self.views, strict=True):
            self.program(made, EMPTY, view)
            with place.sandbox.ns.enter():
                host.change_pairs(pairs(made.address, view), [])
        self.listener = self.socket(1, socket.AF_INET6, socket.SOCK_STREAM)
        self.listener.bind(("", 8080))  # both families
        self.listener.listen(10)

    def program(self, made: Attachment, old: Desired | None, new: Desired) -> None:
        self.programmer.admit(made.id)
        self.programmer.apply(made, old, new, lambda: SECRET)
        assert differences(self.programmer.observe(made), new, made.ula) == []

    def socket(self, box: int, family: int, kind: int, protocol: int = 0) -> socket.socket:
        with Namespace.open(self.boxes[box].sandbox.path) as netns, netns.enter():
            made = socket.socket(family, kind, protocol)
        made.settimeout(LIMIT)
        return made

    def dial(self, address: str, port: int) -> tuple[socket.socket, socket.socket]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        ours = self.socket(0, family, socket.SOCK_STREAM)
        ours.connect((address, port))
        theirs, _ = self.listener.accept()
        theirs.settimeout(LIMIT)
        return ours, theirs

    def meet(self) -> None:
        """Wait until the mesh carries frames: TCP asks again and again."""
        for end in self.dial(self.api.address, 8080):
            end.close()

    def close(self) -> None:
        self.programmer.close()
        self.listener.close()


def peer(made: Attachment, service: int) -> Peer:
    return Peer(address=made.address, service=service, salts={made.an: bytes.fromhex(made.salt)})


@pytest.fixture
def world(mesh_nodes: tuple[MeshNode, MeshNode], container: MakeContainer) -> Iterator[World]:
    with contextlib.closing(World(mesh_nodes, container)) as made:
        made.meet()
        yield made


def carries(ours: socket.socket, theirs: socket.socket) -> None:
    ours.send(b"x")
    assert theirs.recv(1) == b"x"
    theirs.send(b"y")
    assert ours.recv(1) == b"y"


def test_a_network_that_comes_later_reaches_containers_that_run(
    mesh_nodes: tuple[MeshNode, MeshNode], container: MakeContainer
) -> None:
    later = [place.net for place in mesh_nodes]
    for place in mesh_nodes:
        place.net = msgspec.structs.replace(place.net, ula="")
    with contextlib.closing(World(mesh_nodes, container)) as world:
        world.meet()
        flow = world.dial(VIP, 80)
        carries(*flow)
        for net, place, made, view in zip(
            later, mesh_nodes, (world.web, world.api), world.views, strict=True
        ):
            place.net = net
            assert world.programmer.mend(msgspec.structs.replace(made, ula=net.ula), VIPS) != []
            for _ in range(2):
                with place.sandbox.ns.enter():
                    added = readdress.add_ipv6(net, place.state, made.id)
                if added is not None:
                    world.program(added, None, view)
            assert added is None  # the second time there is nothing to do
            place.check(made.id)
        carries(*flow)
        six = names.address6_of(VIP, ULA)
        carries(*world.dial(six, 80))
        with pytest.raises(ConnectionRefusedError):
            world.dial(six, 81)


def test_a_service_is_reached_in_both_families_and_no_more_than_allowed(world: World) -> None:
    for of in (str, lambda address: names.address6_of(address, ULA)):
        six = ":" in of(VIP)
        family = socket.AF_INET6 if six else socket.AF_INET
        flow = world.dial(of(VIP), 80)
        carries(*flow)
        server = world.socket(1, family, socket.SOCK_DGRAM)
        server.bind((of(world.api.address), 8080))
        client = world.socket(0, family, socket.SOCK_DGRAM)
        client.connect((of(VIP), 80))
        client.send(b"x")
        data, source = server.recvfrom(10)
        server.sendto(data + b"y", source)
        assert client.recv(10) == b"xy"
        assert source[0] == of(world.web.address)
        protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
        with world.socket(0, family, socket.SOCK_RAW, protocol) as ping:
            ping.sendto(echo_request(family), (of(world.api.address), 0))
            assert ping.recv(200)[0 if six else 20] == (129 if six else 0)

        # Refused at once: at the source for want of egress, at the target for want of ingress.
        for port in (9, 8081):
            with pytest.raises(ConnectionRefusedError):
                world.dial(of(world.api.address), port)
        for box, denial in (
            (0, Denial("out", of(world.api.address), "tcp", 9, 1)),
            (1, Denial("in", of(world.web.address), "tcp", 8081, 1)),
        ):
            with Namespace.open(world.boxes[box].sandbox.path) as netns:
                assert denial in ruleset.denials(netns)
        for end in (*flow, server, client):
            end.close()


def test_a_grant_that_goes_cuts_the_flows_of_both_families(world: World) -> None:
    flows = [world.dial(vip, 80) for vip in (VIP, names.address6_of(VIP, ULA))]
    for flow in flows:
        carries(*flow)
    before = world.views[0]
    after = Desired(peers=before.peers, egress=before.egress - {(API, "tcp", 8080)})
    world.program(world.web, before, after)
    for ours, _ in flows:
        with pytest.raises(ConnectionAbortedError):
            ours.send(b"x")
            ours.recv(1)
    with pytest.raises(ConnectionRefusedError):
        world.dial(names.address6_of(world.api.address, ULA), 8080)


def test_a_forged_ipv6_source_is_dropped_and_the_forger_counted(world: World) -> None:
    forged = names.address6_of("10.64.16.99", ULA)
    world.boxes[0].sandbox.ip("address", "add", f"{forged}/108", "dev", "eth0")
    server = world.socket(1, socket.AF_INET6, socket.SOCK_DGRAM)
    server.bind(("::", 8080))
    target = (names.address6_of(world.api.address, ULA), 8080)
    with world.socket(0, socket.AF_INET6, socket.SOCK_DGRAM) as forger:
        forger.bind((forged, 4000))
        forger.sendto(b"forged", target)
    with world.socket(0, socket.AF_INET6, socket.SOCK_DGRAM) as honest:
        honest.bind((names.address6_of(world.web.address, ULA), 4000))
        honest.sendto(b"honest", target)
    assert server.recv(10) == b"honest"
    with Namespace.open(world.boxes[1].sandbox.path) as netns:
        assert Denial("in", world.web.address, "udp", 0, 1) in ruleset.denials(netns)


def test_discovery_never_leaves_a_container(
    mesh_nodes: tuple[MeshNode, MeshNode], container: MakeContainer
) -> None:
    """Beside it, an ordinary interface shows how long to wait for what others do."""
    here = mesh_nodes[0]
    heard: list[bytes] = []
    seen: list[bytes] = []
    with contextlib.ExitStack() as opened:
        (ordinary,) = opened.enter_context(nodes(1))
        ordinary.ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
        control = opened.enter_context(tap(ordinary.ns, "v1"))
        world = opened.enter_context(contextlib.closing(World(mesh_nodes, container)))
        assert frames_out(here, world.web) == 0
        inside = opened.enter_context(Namespace.open(world.boxes[0].sandbox.path))
        own = opened.enter_context(tap(inside, "eth0"))
        for end in ("v0", "v1"):
            ordinary.ip("link", "set", end, "up")
        ordinary.ip("address", "add", "fd4e:ffff::1/64", "dev", "v0")
        until(
            # It asked for routers, probed its address, and reported its groups.
            lambda: kinds(drained(control, heard)) >= {133, 135, 143},
            "an ordinary interface has said all it says",
        )
        world.meet()
        flow = world.dial(names.address6_of(VIP, ULA), 80)
        carries(*flow)
        with world.socket(0, socket.AF_INET6, socket.SOCK_DGRAM) as udp:
            udp.connect((names.address6_of("10.64.32.200", ULA), 9))
            with pytest.raises(PermissionError):
                udp.send(b"x")  # to a neighbour that nobody told it of

        def sent() -> list[bytes]:
            frames = drained(own, seen)
            return [frame for frame in frames if frame[6:12].hex(":") == world.web.mac]

        def counted() -> set[int]:
            (secy,) = secys(inside)
            return {secy.tx_sas[0].stats.out_encrypted, frames_out(here, world.web), len(sent())}

        until(lambda: len(counted()) == 1, "all that left to have been seen before it left")
        assert any(frame[12:14] == IPV6 for frame in sent())
        assert not kinds(seen) & DISCOVERY
        refused = {one.protocol for one in ruleset.denials(inside)}
        assert refused == {"udp"}, "it did not even try"
        for end in flow:
            end.close()


def kinds(frames: list[bytes]) -> set[int]:
    """Return the ICMPv6 types in Ethernet frames, behind a hop-by-hop header or not."""
    found = set()
    for frame in frames:
        if frame[12:14] != IPV6:
            continue
        protocol, offset = frame[20], 54
        if protocol == 0:
            protocol, offset = frame[54], 54 + 8 * (frame[55] + 1)
        if protocol == socket.IPPROTO_ICMPV6:
            found.add(frame[offset])
    return found


@contextlib.contextmanager
def tap(place: Namespace, interface: str) -> Iterator[socket.socket]:
    """Listen to an interface, which may be down yet."""
    every = 0x0003
    with place.enter():
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(every))
        opened.bind((interface, every))
    opened.setblocking(False)
    opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # ENETDOWN, said once
    with opened:
        yield opened


def drained(source: socket.socket, into: list[bytes]) -> list[bytes]:
    """Add what a tap has heard since; return all of it."""
    with contextlib.suppress(BlockingIOError):
        while True:
            into.append(source.recv(65536))
    return into


def frames_out(node: MeshNode, made: Attachment) -> int:
    """Return how many frames ever came out of a container, as its port of the bridge counts."""
    (shown,) = ip_json(node.sandbox, "-s", "link", "show", made.vh)
    return int(shown["stats64"]["rx"]["packets"])


def secys(netns: Namespace) -> list[macsec.SecY]:
    with macsec.open(netns) as genl:
        return list(macsec.dump(genl).values())


def test_a_namespace_that_begins_without_ipv6_gets_it_on_our_interface_only(
    mesh_nodes: tuple[MeshNode, MeshNode], container: MakeContainer
) -> None:
    node, box = mesh_nodes[0], container()
    sysctl = ("ip", "netns", "exec", box.sandbox.name, "sysctl", "-n")
    for which in ("all", "default"):
        subprocess.run([*sysctl, "-w", f"net.ipv6.conf.{which}.disable_ipv6=1"], check=True)
    box.sandbox.ip("link", "add", "other", "type", "dummy")
    made = node.attach(box.request())
    node.check(made.id)

    def disabled(which: str) -> str:
        command = [*sysctl, f"net.ipv6.conf.{which}.disable_ipv6"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert [disabled(which) for which in ("eth0", "all", "default", "other")] == [*"0111"]
    with Namespace.open(box.sandbox.path) as netns, links.open(netns) as rtnl:
        facts = links.get(rtnl, "eth0")
        assert facts is not None
        there = routes.addresses(rtnl, facts.index)
    assert [f"{address}/{prefix}" for address, prefix in there.items()] == node.net.addresses(
        made.address
    )
    node.detach(made.id)


def test_check_sees_what_is_missing_of_either_family(
    mesh_nodes: tuple[MeshNode, MeshNode], container: MakeContainer
) -> None:
    node, box = mesh_nodes[0], container()
    made = node.attach(box.request())
    node.check(made.id)
    four, six = node.net.addresses(made.address)
    vips, vips6 = node.net.routes()
    for what, said, back in (
        (("route", "del", vips6), f"{vips6} is not routed", ("route", "add", vips6)),
        (("route", "del", vips), f"{vips} is not routed", ("route", "add", vips)),
        (("address", "del", six), f"no address {six}", ("address", "add", six)),
        (("address", "del", four), f"no address {four}", ()),
    ):
        box.sandbox.ip(*what, "dev", "eth0")
        with pytest.raises(CheckFailure, match=said):
            node.check(made.id)
        if back:
            box.sandbox.ip(*back, "dev", "eth0")
            if "address" in back:
                box.sandbox.ip("-6", "route", "replace", vips6, "dev", "eth0")
            node.check(made.id)
    node.detach(made.id)


def test_a_kernel_without_ipv6_is_named() -> None:
    """It has no such sysctls, which an interface that does not exist hasn't either."""
    with nodes(1) as (node,), pytest.raises(KernelFailure, match=r"addresses\.ula: .* no IPv6"):
        links.enable_ipv6(node.ns, "none0")
