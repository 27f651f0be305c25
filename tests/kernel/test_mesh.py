"""Mesh bring-up on a real kernel: made, adopted, repaired, and undone when it fails."""

from __future__ import annotations

import json
from typing import Any

import pytest

from netconf import names
from netconf.errors import InvalidConfig
from netconf.mesh import devices, source
from netconf.mesh.config import Geneve, Link, MeshConfig
from netconf.mesh.devices import MeshFacts
from netconf.netlink import batadv, links, routes
from tests.kernel.sandbox import Node, run
from tests.kernel.test_attach import until

ETH1 = Link(interface="eth1")


def bring_up(
    node: Node,
    config: MeshConfig,
    mesh_mtu: int | None = None,
    before: MeshFacts | None = None,
    *,
    adopt: bool = False,
) -> MeshFacts:
    with node.ns.enter():
        return devices.bring_up(config, mesh_mtu=mesh_mtu, before=before, adopt=adopt)


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
    # Made anew, after a reboot or because somebody deleted it, it has the address others know.
    wire[0].ip("link", "del", "gnv7")
    wire[0].ip("link", "del", names.MESH)
    tunnel = Link(geneve=Geneve(remote=addresses[1], id=7))
    again = bring_up(wire[0], MeshConfig(algorithm="BATMAN_V", links=[tunnel]))
    assert again.hard == sent[0].hard
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


DAMAGES = (
    (("ip", "link", "set", "eth1", "nomaster"), "eth1 was no part of bat0"),
    (("ip", "link", "set", "eth1", "down"), "eth1 was down"),
    (("ip", "link", "set", "bat0", "nomaster"), "bat0 was no part of noctule0"),
    (("ip", "link", "set", "bat0", "down"), "bat0 was down"),
    (("ip", "link", "set", "bat0", "mtu", "1300"), "bat0 had an MTU of 1300, not 1450"),
    (("ip", "link", "set", "bat0", "addrgenmode", "eui64"), "bat0 would have given itself IPv6"),
    (("batctl", "meshif", "bat0", "bridge_loop_avoidance", "1"), "bat0 had bridge loop avoidance"),
    (("batctl", "meshif", "bat0", "distributed_arp_table", "1"), "bat0 had the distributed ARP"),
    (("batctl", "meshif", "bat0", "ap_isolation", "1"), "bat0 had isolation on"),
    (("batctl", "meshif", "bat0", "fragmentation", "0"), "bat0 had fragmentation off"),
    (("batctl", "hardif", "eth1", "throughput_override", "1MBit"), "eth1 had another throughput"),
    (("ip", "link", "set", "noctule0", "down"), "noctule0 was down"),
    (("ip", "link", "set", "noctule0", "type", "bridge", "stp_state", "1"), "noctule0 had other"),
    (("ip", "link", "del", "noctule0"), "noctule0 was missing"),
    (("ip", "link", "del", "bat0"), "bat0 was missing"),
)


def test_each_damage_is_named_and_set_right(wire: tuple[Node, Node]) -> None:
    """All that a later look finds, one after the other, on the same mesh."""
    node = wire[0]
    config = MeshConfig(links=[Link(interface="eth1", throughput=200_000)], algorithm="BATMAN_V")
    facts = bring_up(node, config, 1450)
    assert bring_up(node, config, 1450, facts).mended == (), "what is right is left alone"
    for command, what in DAMAGES:
        run("ip", "netns", "exec", node.name, *command)
        after = bring_up(node, config, 1450, facts)
        assert any(said.startswith(what) for said in after.mended), (command, after.mended)
        again = bring_up(node, config, 1450, after)
        assert again.mended == (), f"{command} was not set right"
        assert (again.mtu, again.hard) == (1450, facts.hard)
        facts = after


def test_an_interface_that_comes_late_is_waited_for(wire: tuple[Node, Node]) -> None:
    node = wire[0]
    run("ip", "-n", node.name, "link", "set", "eth1", "name", "late0")
    config = MeshConfig(links=[ETH1, Link(geneve=Geneve(remote="192.0.2.2", id=9))])
    facts = bring_up(node, config)
    assert (facts.hard, facts.mtu) == ({}, devices.PLAIN_LIMIT)
    assert facts.limit == 1500, "it is no reason for others to lower theirs"
    assert list(facts.waiting) == ["mesh.links[0]", "mesh.links[1]"]
    assert "no interface eth1 in this namespace; correct" in facts.waiting["mesh.links[0]"]
    assert "no route to 192.0.2.2" in facts.waiting["mesh.links[1]"]
    run("ip", "-n", node.name, "link", "set", "late0", "name", "eth1")
    node.ip("addr", "add", "192.0.2.1/24", "dev", "eth1")
    node.ip("link", "set", "eth1", "up")
    after = bring_up(node, config, facts.mtu, facts)
    assert (after.waiting, set(after.hard)) == ({}, {"eth1", "gnv9"})
    assert after.mesh_index == facts.mesh_index
    assert after.mended == (), "what comes late was not broken"
    # It vanishes, and returns as another device.
    run("ip", "-n", node.name, "link", "del", "eth1")
    gone = bring_up(node, config, after.mtu, after)
    assert (set(gone.hard), set(gone.waiting)) == (set(), {"mesh.links[0]", "mesh.links[1]"}) or (
        set(gone.hard) == {"gnv9"}
    )
    assert gone.mtu == after.mtu, "no link is no reason for another MTU"
    node.ip("link", "add", "eth1", "mtu", "1532", "type", "dummy")
    node.ip("addr", "add", "192.0.2.1/24", "dev", "eth1")
    node.ip("link", "set", "eth1", "up")
    back = bring_up(node, config, gone.mtu, gone)
    assert (back.waiting, set(back.hard)) == ({}, {"eth1", "gnv9"})
    assert back.hard["eth1"] != after.hard["eth1"]


def test_the_trouble_of_one_link_is_its_own(wire: tuple[Node, Node]) -> None:
    """A link that somebody took away is said; the others are set right all the same."""
    node = wire[0]
    node.ip("link", "add", "eth2", "type", "dummy")
    config = MeshConfig(links=[Link(interface="eth2"), ETH1])
    facts = bring_up(node, config)
    node.ip("link", "add", "other0", "type", "bridge")
    node.ip("link", "set", "eth2", "nomaster")
    node.ip("link", "set", "eth2", "master", "other0")
    node.ip("link", "set", "eth1", "nomaster")
    after = bring_up(node, config, facts.mtu, facts)
    assert "eth2 belongs to other0" in after.waiting["mesh.links[0]"]
    assert after.mended == ("eth1 was no part of bat0",)
    assert set(after.hard) == {"eth1"}


def test_a_link_that_the_kernel_refuses_keeps_nothing_else_from_being_used(
    wire: tuple[Node, Node],
) -> None:
    """Neither at the start nor at a later look."""
    node = wire[0]
    far = [f"198.51.100.{number}" for number in range(1, 4)]
    for kind, remote in zip(("blackhole", "prohibit", "unreachable"), far, strict=True):
        node.ip("route", "add", kind, remote)
    tunnels = [Link(geneve=Geneve(remote=remote, id=id)) for id, remote in enumerate(far)]
    config = MeshConfig(links=[Link(interface="lo"), *tunnels, ETH1])
    facts = bring_up(node, config)
    for found in (facts, bring_up(node, config, facts.mtu, facts)):
        assert set(found.hard) == {"eth1"}
        assert list(found.waiting) == [f"mesh.links[{number}]" for number in range(4)]
        assert "refused to make lo part of bat0" in found.waiting["mesh.links[0]"]
        for number, remote in enumerate(far, 1):
            assert f"no route to {remote}" in found.waiting[f"mesh.links[{number}]"]
    for remote in far:
        node.ip("route", "del", remote)
    node.ip("link", "set", "eth1", "up")
    node.ip("addr", "add", "192.0.2.1/24", "dev", "eth1")
    node.ip("route", "add", "198.51.100.0/24", "dev", "eth1")
    assert set(bring_up(node, config, facts.mtu, facts).hard) == {"eth1", "gnv0", "gnv1", "gnv2"}


def test_a_mesh_of_somebody_else_is_not_taken_over(wire: tuple[Node, Node]) -> None:
    node = wire[0]
    config = MeshConfig(links=[ETH1])
    node.ip("link", "add", names.MESH, "type", "batadv")
    made = numbers(node)
    with pytest.raises(InvalidConfig, match=r"bat0 exists and Noctule did not make it; .* delete"):
        bring_up(node, config)
    assert numbers(node) == made
    # What release 0.1.0 made has no mark; the state folder tells that it is ours.
    assert bring_up(node, config, adopt=True).mesh_index == made[names.MESH]
    assert bring_up(node, config).mesh_index == made[names.MESH], "now it has our mark"
    # Somebody puts his own in its place while the daemon runs: neither used nor deleted.
    facts = bring_up(node, config)
    node.ip("link", "del", names.MESH)
    node.ip("link", "add", names.MESH, "type", "batadv")
    made = numbers(node)
    with pytest.raises(InvalidConfig, match="Noctule did not make it"):
        bring_up(node, config, before=facts)
    assert numbers(node) == made


def test_what_fails_leaves_nothing_of_its_own(wire: tuple[Node, Node]) -> None:
    node = wire[0]
    node.ip("addr", "add", "192.0.2.1/24", "dev", "eth1")
    node.ip("link", "set", "eth1", "up")
    tunnel = Link(geneve=Geneve(remote="192.0.2.2", id=9))
    node.ip("link", "add", "gnv3", "type", "dummy")
    before = settings(node)
    for config, text in (
        (
            MeshConfig(links=[tunnel, Link(geneve=Geneve(remote="192.0.2.3", id=3))]),
            r"mesh\.links\[1\]\.geneve\.id: gnv3 exists and is no GENEVE device",
        ),
        (MeshConfig(links=[tunnel], mtu=1500), r"mesh\.mtu: this node's links carry at most 1450"),
    ):
        with pytest.raises(InvalidConfig, match=text):
            bring_up(node, config)
        assert settings(node) == before
    # Nor a rule or a route, and those of a run before stay.
    node.ip("addr", "add", "192.0.2.9/32", "dev", "eth1")
    sent = Geneve(remote="192.0.2.2", id=9, local="192.0.2.9")
    for found in (False, True):
        with links.open(node.ns) as rtnl:
            if found:
                way = source.way(rtnl, sent)
                assert way is not None
                assert source.settle(rtnl, sent, way)
            with pytest.raises(InvalidConfig, match="at most 1450"):
                bring_up(node, MeshConfig(links=[Link(geneve=sent)], mtu=1500))
            assert source.peers(rtnl) == ({sent.remote} if found else set())
        table = node.ip("route", "show", "table", "all")
        assert (f"table {source.TABLE}" in table) == found
    node.ip("link", "del", "gnv3")
    node.ip("link", "add", names.BRIDGE, "type", "dummy")
    with pytest.raises(InvalidConfig, match=f"{names.BRIDGE} exists and is no bridge"):
        bring_up(node, MeshConfig(links=[ETH1, tunnel]))
    node.ip("link", "del", names.BRIDGE)
    assert set(numbers(node)) == {"lo", "eth1"}
    assert "master" not in shown(node, "link", "show", "eth1")[0]


def heard(node: Node, facts: MeshFacts) -> set[str]:
    """The MACs of the nodes that batman-adv hears directly."""
    with batadv.open(node.ns) as genl:
        return {neighbour.mac for neighbour in batadv.neighbours(genl, facts.mesh_index)}


@pytest.mark.parametrize(
    ("ours", "other", "peer", "prefix"),
    [
        ("192.0.2.1", "192.0.2.9", "192.0.2.2", 24),
        ("2001:db8::1", "2001:db8::9", "2001:db8::2", 64),
    ],
)
def test_a_tunnel_sends_from_the_address_that_the_peer_was_told(
    wire: tuple[Node, Node], ours: str, other: str, peer: str, prefix: int
) -> None:
    """The kernel would choose the other of two addresses, and the peer hear nothing."""
    here, there = wire
    nodad = ("nodad",) if ":" in ours else ()
    for node, addresses in ((here, (other, ours)), (there, (peer,))):
        node.ip("link", "set", "eth1", "mtu", "1500", "up")
        for address in addresses:
            node.ip("addr", "add", f"{address}/{prefix}", "dev", "eth1", *nodad)
    # Whichever of the two the kernel prefers, the peer was told the one it does not.
    with links.open(here.ns) as rtnl:
        chosen = routes.way_to(rtnl, peer).source
    told = ({ours, other} - {chosen}).pop()
    there_facts = bring_up(there, MeshConfig(links=[Link(geneve=Geneve(remote=told, id=7))]))
    mute = bring_up(here, MeshConfig(links=[Link(geneve=Geneve(remote=peer, id=7))]))
    assert f"sends from {chosen}, of " in mute.advice[0]
    config = MeshConfig(links=[Link(geneve=Geneve(remote=peer, id=7, local=told))])
    facts = bring_up(here, config, mute.mtu, mute)
    assert facts.mended == (f"gnv7 did not send from {told}",)
    assert facts.advice == ()
    until(lambda: facts.hard["gnv7"] in heard(there, there_facts), "the peer hears the tunnel")
    assert bring_up(here, config, facts.mtu, facts).mended == ()
    with links.open(here.ns) as rtnl:
        assert routes.way_to(rtnl, peer).source == chosen, "nothing else is routed differently"
        (rule,) = routes.rules(rtnl)
        routes.del_rule(rtnl, rule)
    assert bring_up(here, config, facts.mtu, facts).mended == facts.mended
    # An address that is not this node's is waited for; a tunnel without it leaves nothing.
    nobody = MeshConfig(links=[Link(geneve=Geneve(remote=peer, id=7, local=peer[:-1] + "7"))])
    assert "is no address of this node" in bring_up(here, nobody).waiting["mesh.links[0]"]
    bring_up(here, MeshConfig(links=[Link(geneve=Geneve(remote=peer, id=7))]))
    with links.open(here.ns) as rtnl:
        assert routes.rules(rtnl) == []
        assert routes.way_to(rtnl, peer, source.PORT).source == chosen
    for version in ("-4", "-6"):
        assert f"table {source.TABLE}" not in here.ip(version, "route", "show", "table", "all")


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
