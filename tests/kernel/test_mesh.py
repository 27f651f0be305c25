"""Mesh bring-up on a real kernel: made, adopted, repaired, and undone when it fails."""

from __future__ import annotations

import json
from typing import Any

import pytest

from netconf import mesh, names
from netconf.errors import InvalidConfig
from netconf.mesh import Geneve, Link, MeshConfig, MeshFacts
from netconf.netlink import batadv, links
from tests.kernel.sandbox import Node

ETH1 = Link(interface="eth1")


def bring_up(node: Node, config: MeshConfig, mesh_mtu: int | None = None) -> MeshFacts:
    with node.ns.enter():
        return mesh.bring_up(config, mesh_mtu=mesh_mtu)


def shown(node: Node, *arguments: str) -> Any:
    return json.loads(node.ip("-j", "-d", *arguments) or "[]")


def numbers(node: Node) -> dict[str, int]:
    """Index by name: an index that changes is a device made anew."""
    return {link["ifname"]: link["ifindex"] for link in shown(node, "link")}


def settings(node: Node) -> list[list[Any]]:
    """What was configured; not the carrier, which comes and goes with the other end."""
    kept = ("ifname", "ifindex", "address", "mtu", "master", "inet6_addr_gen_mode")
    return [[link.get(key) for key in kept] for link in shown(node, "link")]


def test_made_from_nothing_adopted_and_repaired(wire: tuple[Node, Node]) -> None:
    node = wire[0]
    facts = bring_up(node, MeshConfig(links=[ETH1]))
    assert (facts.mtu, facts.limit) == (1500, 1500)
    with batadv.open(node.ns) as genl:
        bat0 = batadv.mesh(genl, facts.mesh_index)
        (hard,) = batadv.hard_interfaces(genl, facts.mesh_index)
    assert bat0.algorithm == "BATMAN_IV"
    assert not bat0.bridge_loop_avoidance
    assert not bat0.distributed_arp_table
    assert (hard.name, hard.mac) == ("eth1", facts.hard["eth1"])
    (bridge,) = shown(node, "link", "show", names.BRIDGE)
    assert "UP" in bridge["flags"]
    assert bridge["inet6_addr_gen_mode"] == "none"
    data = bridge["linkinfo"]["info_data"]
    assert (data["stp_state"], data["mcast_snooping"]) == (0, 0)
    made = numbers(node)
    for damage in (
        ("link", "set", names.MESH, "nomaster"),
        ("link", "set", names.BRIDGE, "down"),
        ("link", "set", names.BRIDGE, "type", "bridge", "stp_state", "1", "mcast_snooping", "1"),
        ("link", "set", names.MESH, "mtu", "1300"),
        ("link", "set", "eth1", "nomaster"),
    ):
        node.ip(*damage)
    assert bring_up(node, MeshConfig(links=[ETH1]), mesh_mtu=1400).mtu == 1400
    assert numbers(node) == made
    (bridge,) = shown(node, "link", "show", names.BRIDGE)
    (bat,) = shown(node, "link", "show", names.MESH)
    assert bridge["linkinfo"]["info_data"]["stp_state"] == 0
    assert (bridge["mtu"], bat["mtu"], bat["master"]) == (1400, 1400, names.BRIDGE)
    assert shown(node, "link", "show", "eth1")[0]["master"] == names.MESH


@pytest.mark.parametrize(
    ("addresses", "overhead"),
    [(("192.0.2.1", "192.0.2.2"), 50), (("2001:db8::1", "2001:db8::2"), 70)],
)
def test_geneve_carries_the_mesh(
    wire: tuple[Node, Node], addresses: tuple[str, str], overhead: int
) -> None:
    for node, address in zip(wire, addresses, strict=True):
        node.ip("link", "set", "eth1", "mtu", "1500", "up")
        nodad = ("nodad",) if ":" in address else ()
        node.ip("addr", "add", f"{address}/{64 if nodad else 24}", "dev", "eth1", *nodad)
    sent = [
        bring_up(
            node,
            MeshConfig(
                algorithm="BATMAN_V",
                links=[Link(geneve=Geneve(remote=remote, id=7), throughput=200_000)],
            ),
        )
        for node, remote in zip(wire, reversed(addresses), strict=True)
    ]
    assert [facts.mtu for facts in sent] == [1500 - overhead - 32] * 2
    assert sent[0].hard["gnv7"] != sent[1].hard["gnv7"]
    with batadv.open(wire[0].ns) as genl:
        (hard,) = batadv.hard_interfaces(genl, sent[0].mesh_index)
    assert (hard.name, hard.throughput_override) == ("gnv7", 200_000)
    # The peer moves: the tunnel follows, and stays the same device.
    before = numbers(wire[0])
    other = addresses[1][:-1] + "9"
    bring_up(
        wire[0],
        MeshConfig(algorithm="BATMAN_V", links=[Link(geneve=Geneve(remote=other, id=7))]),
    )
    assert numbers(wire[0]) == before
    (tunnel,) = shown(wire[0], "link", "show", "gnv7")
    assert other in tunnel["linkinfo"]["info_data"].values()


def test_what_fails_leaves_nothing_of_its_own(wire: tuple[Node, Node]) -> None:
    node = wire[0]
    node.ip("addr", "add", "192.0.2.1/24", "dev", "eth1")
    node.ip("link", "set", "eth1", "up")
    tunnel = Link(geneve=Geneve(remote="192.0.2.2", id=9))
    before = settings(node)
    for config, text in (
        (
            MeshConfig(links=[tunnel, Link(interface="eth7")]),
            r"mesh\.links\[1\]\.interface: no interface eth7 .* name one of: .*eth1",
        ),
        (
            MeshConfig(links=[tunnel, Link(geneve=Geneve(remote="203.0.113.1", id=1))]),
            r"mesh\.links\[1\]\.geneve\.remote: no route to 203\.0\.113\.1",
        ),
        (MeshConfig(links=[tunnel], mtu=1500), r"mesh\.mtu: this node's links carry at most 1450"),
    ):
        with pytest.raises(InvalidConfig, match=text):
            bring_up(node, config)
        assert settings(node) == before
    node.ip("link", "add", names.BRIDGE, "type", "dummy")
    with pytest.raises(InvalidConfig, match=f"{names.BRIDGE} exists and is no bridge"):
        bring_up(node, MeshConfig(links=[ETH1, tunnel]))
    node.ip("link", "del", names.BRIDGE)
    assert set(numbers(node)) == {"lo", "eth1"}
    assert "master" not in shown(node, "link", "show", "eth1")[0]


def test_what_cannot_be_changed_in_place_is_said(wire: tuple[Node, Node]) -> None:
    node = wire[0]
    bring_up(node, MeshConfig(links=[ETH1]))
    made = numbers(node)
    with pytest.raises(InvalidConfig, match=r"mesh\.algorithm: bat0 runs BATMAN_IV"):
        bring_up(node, MeshConfig(links=[ETH1], algorithm="BATMAN_V"))
    assert numbers(node) == made
    node.ip("link", "add", "other0", "type", "bridge")
    node.ip("link", "set", "eth1", "master", "other0")
    with pytest.raises(InvalidConfig, match=r"mesh\.links\[0\]: eth1 belongs to other0"):
        bring_up(node, MeshConfig(links=[ETH1]))
    with links.open(node.ns) as rtnl:
        facts = links.get(rtnl, "eth1")
        other = links.get(rtnl, "other0")
    assert facts is not None and other is not None
    assert facts.master == other.index
