"""The links of an attachment: each damage is named by CHECK, and set right where that is safe."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import msgspec
import pytest

from netconf.attach import inspection
from netconf.attach.attachment import Attachment
from netconf.errors import CheckFailure, KernelFailure
from netconf.netlink import links, macsec
from netconf.netlink.shaping import Bandwidth
from tests.kernel.conftest import VIPS, Container, MeshNode
from tests.kernel.sandbox import run
from tests.kernel.test_attach import befriend, ping, until

LIMITS = Bandwidth(
    ingress_rate=80_000_000, ingress_burst=8_000_000, egress_rate=8_000_000, egress_burst=800_000
)

OUTSIDE = (
    ("ip link set {vh} down", "{vh} is down"),
    ("ip link set {vc} down", "{vc} is down"),
    ("ip link set {vh} nomaster", "{vh} is not a port of noctule0"),
    ("ip link set {vc} mtu 1400", "{vc} has MTU 1400"),
    ("ip link set {vh} mtu 1400", "{vh} has MTU 1400"),
    ("ip link set {vh} address 02:00:00:00:00:07", "{vh} has MAC 02:00:00:00:00:07"),
    ("ip link set {vc} address 02:00:00:00:00:07", "{vc} has MAC 02:00:00:00:00:07"),
    ("bridge link set dev {vh} learning on flood on", "{vh} has other options as a bridge port: "),
    ("bridge link set dev {vh} isolated on", "{vh} has other options as a bridge port: isolated"),
    ("bridge link set dev {vh} state 0", "{vh} does not forward"),
    ("bridge fdb del {mac} dev {vh} master", "noctule0 has no fixed forwarding entry of {mac}"),
    ("bridge fdb replace {mac} dev bat0 master static", "noctule0 has no fixed forwarding entry"),
    ("tc qdisc del dev {vh} root", "{vh} has no token bucket of 10000000 bytes per second"),
    ("tc qdisc replace dev {vc} root tbf rate 1mbit burst 5kb latency 1ms",
     "{vc} has no token bucket of 1000000 bytes per second"),
)  # fmt: skip

INSIDE = (
    ("ip link set eth0 type macsec encrypt off", "not encrypt on"),
    ("ip link set eth0 type macsec protect off encrypt off", "not protect on"),
    ("ip link set eth0 type macsec validate disabled", "not validate strict"),
    ("ip link set eth0 type macsec replay off", "not replay on"),
    ("ip link set eth0 type macsec replay on window 5000", "not window 64"),
    ("ip link set eth0 type macsec end_station off send_sci on", "not send_sci off"),
    ("ip link set eth0 type macsec encodingsa 3", "it does not transmit with SA 0"),
    ("ip link set eth0 arp on", "it asks by ARP"),
    ("ip link set eth0 down", "it is down"),
    ("ip addr del {address}/12 dev eth0", "it has no address {address}/12"),
    (f"ip route del {VIPS}", f"{VIPS} is not routed to it"),
)


def look(node: MeshNode, made: Attachment) -> list[str]:
    """One look of the audit."""
    with node.sandbox.ns.enter():
        return inspection.mend(node.net, node.state, made.id)


def test_each_damage_is_named_and_set_right(
    mesh_nodes: tuple[MeshNode, MeshNode], container: Callable[[], Container]
) -> None:
    node, box = mesh_nodes[0], container()
    made = node.attach(msgspec.structs.replace(box.request(), bandwidth=LIMITS))
    with links.open(node.sandbox.ns) as rtnl:
        until(lambda: _runs(rtnl, made.vh), "the port has a carrier")
    node.check(made.id)
    assert look(node, made) == []
    words = {"vh": made.vh, "vc": made.vc, "mac": made.mac, "address": made.address}
    for place, damages in ((node.sandbox, OUTSIDE), (box.sandbox, INSIDE)):
        for command, what in damages:
            run("ip", "netns", "exec", place.name, *command.format(**words).split())
            with pytest.raises(CheckFailure) as refused:
                node.check(made.id)
            assert what.format(**words) in refused.value.message, command
            found = look(node, made)
            assert any(said.startswith(what.format(**words)) for said in found), (command, found)
            assert all(said.endswith("; set right") for said in found), (command, found)
            with links.open(node.sandbox.ns) as rtnl:
                until(lambda: _runs(rtnl, made.vh), "the port has a carrier")
            assert look(node, made) == [], command
            node.check(made.id)


def _runs(rtnl: links.Netlink, name: str) -> bool:
    facts = links.get(rtnl, name)
    return facts is not None and facts.running


def test_what_only_a_new_attachment_mends_is_left_and_said(
    mesh_nodes: tuple[MeshNode, MeshNode], container: Callable[[], Container]
) -> None:
    node, box = mesh_nodes[0], container()
    made = node.attach(box.request())
    # Another key under the same number: nobody else knows it, and no salt leads back to ours.
    for command in ("tx sa 0 off", "del tx sa 0", f"add tx sa 0 pn 1 on key 01 {'5' * 32}"):
        words = command.split()
        if words[0] == "tx":
            words = ["set", *words]
        run("ip", "netns", "exec", box.sandbox.name, "ip", "macsec", words[0], "eth0", *words[1:])
    (said,) = look(node, made)
    assert said.startswith("SA 0 has key 01")
    assert said.endswith("; recreate the container")
    node.sandbox.ip("link", "del", made.vh)
    found = look(node, made)
    for name in (made.vh, made.vc):
        assert f"{name} is missing on the node; recreate the container" in found
    with node.state.holding(made.id):
        assert look(node, made) == [], "somebody attaches or detaches it just now"


def test_what_a_container_fills_its_namespace_with_is_its_own_trouble(
    mesh_nodes: tuple[MeshNode, MeshNode], container: Callable[[], Container]
) -> None:
    """Too many MACsec devices to read: a difference of this attachment, and DEL succeeds."""
    node, box = mesh_nodes[0], container()
    made = node.attach(box.request())
    box.sandbox.ip("link", "add", "d0", "type", "veth", "peer", "name", "d1")
    lines = [
        f"link add link d0 name m{n} type macsec port {n}" for n in range(1, macsec.SECYS_MOST + 1)
    ]
    subprocess.run(
        ["ip", "-n", box.sandbox.name, "-batch", "-"], input="\n".join(lines), text=True, check=True
    )
    with pytest.raises(KernelFailure, match=f"not {macsec.SECYS_MOST}"):
        look(node, made)
    with pytest.raises(KernelFailure, match=f"not {macsec.SECYS_MOST}"):
        node.check(made.id)
    assert node.detach(made.id) is not None


def test_traffic_comes_back_with_the_links(
    mesh_nodes: tuple[MeshNode, MeshNode], container: Callable[[], Container]
) -> None:
    """What was set right carries packets again, not only looks right."""
    here, there = mesh_nodes
    first, second = container(), container()
    one, two = here.attach(first.request()), there.attach(second.request())
    befriend(here, first, one, two)
    befriend(there, second, two, one)
    until(lambda: ping(first, two.address), "the two containers ping each other")
    for command in (
        f"ip link set {one.vh} nomaster",
        f"ip link set {one.vc} down",
        f"bridge fdb del {one.mac} dev {one.vh} master",
    ):
        run("ip", "netns", "exec", here.sandbox.name, *command.split())
        assert not ping(first, two.address), command
        assert look(here, one)
        until(lambda: ping(first, two.address), f"they ping again after {command}")
