"""Reading batman-adv's tables: how well each node is reached, and which MACs are on which node.

1. The kernel sends no events about these tables (none in 6.1), so they have to be polled.
2. Quality is the TQ (0–255) under BATMAN_IV and the throughput under BATMAN_V; the other one is
   None.
3. A dump of originators holds every path to each node; `best` marks the path in use.
4. Times are in milliseconds, throughput in kbit/s (the kernel counts in units of 100 kbit/s).

Source: net/batman-adv/netlink.c, bat_iv_ogm.c, bat_v.c, translation-table.c.
"""

from __future__ import annotations

from typing import Any

import msgspec

from netconf.namespace import Namespace
from netconf.netlink.socket import NETLINK_GENERIC, Netlink, family_id
from netconf.uapi import batadv as uapi
from netconf.uapi.batadv import batadvmsg
from netconf.uapi.messages import nlmsg

KBIT_PER_UNIT = 100


class Originator(msgspec.Struct, frozen=True, kw_only=True):
    """One path to one node of the mesh."""

    mac: str
    """The node's originator address: the MAC of its primary hard interface."""
    neighbour: str
    """The MAC of the next hop."""
    interface: str
    """The local hard interface the path leaves by."""
    tq: int | None
    throughput: int | None
    """kbit/s"""
    last_seen_ms: int
    best: bool


class Neighbour(msgspec.Struct, frozen=True, kw_only=True):
    """One node heard directly on one hard interface."""

    mac: str
    interface: str
    throughput: int | None
    """kbit/s, BATMAN_V only"""
    last_seen_ms: int


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """One MAC of the translation tables."""

    mac: str
    originator: str
    """The originator address of the node that announces it; empty in the local table."""
    flags: int
    """BATADV_TT_CLIENT_*"""
    best: bool


class Mesh(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a mesh interface."""

    algorithm: str
    mac: str
    bridge_loop_avoidance: bool
    distributed_arp_table: bool
    ap_isolation: bool
    fragmentation: bool
    hard_interface: str
    """The primary hard interface; empty while there is none."""


class HardInterface(msgspec.Struct, frozen=True, kw_only=True):
    """One hard interface of the mesh: a link to other nodes."""

    ifindex: int
    name: str
    mac: str
    active: bool
    throughput_override: int
    """kbit/s; 0 if batman-adv estimates the throughput itself."""


def open(netns: Namespace | None = None) -> Netlink:
    """Open a generic netlink socket in `netns`, or in the thread's own namespace."""
    return Netlink(NETLINK_GENERIC, netns)


def originators(genl: Netlink, bat_ifindex: int) -> list[Originator]:
    """Return every path to every node."""
    return [
        Originator(
            mac=found.get_attr("BATADV_ATTR_ORIG_ADDRESS"),
            neighbour=found.get_attr("BATADV_ATTR_NEIGH_ADDRESS"),
            interface=found.get_attr("BATADV_ATTR_HARD_IFNAME") or "",
            tq=found.get_attr("BATADV_ATTR_TQ"),
            throughput=_kbit(found),
            last_seen_ms=found.get_attr("BATADV_ATTR_LAST_SEEN_MSECS", 0),
            best=_flag(found, "BATADV_ATTR_FLAG_BEST"),
        )
        for found in _dump(genl, uapi.BATADV_CMD_GET_ORIGINATORS, bat_ifindex)
    ]


def neighbours(genl: Netlink, bat_ifindex: int) -> list[Neighbour]:
    """Return the nodes heard directly."""
    return [
        Neighbour(
            mac=found.get_attr("BATADV_ATTR_NEIGH_ADDRESS"),
            interface=found.get_attr("BATADV_ATTR_HARD_IFNAME") or "",
            throughput=_kbit(found),
            last_seen_ms=found.get_attr("BATADV_ATTR_LAST_SEEN_MSECS", 0),
        )
        for found in _dump(genl, uapi.BATADV_CMD_GET_NEIGHBORS, bat_ifindex)
    ]


def translation_local(genl: Netlink, bat_ifindex: int) -> list[Client]:
    """Return the MACs this node announces."""
    return _clients(genl, uapi.BATADV_CMD_GET_TRANSTABLE_LOCAL, bat_ifindex)


def translation_global(genl: Netlink, bat_ifindex: int) -> list[Client]:
    """Return the MACs other nodes announce."""
    return _clients(genl, uapi.BATADV_CMD_GET_TRANSTABLE_GLOBAL, bat_ifindex)


def mesh(genl: Netlink, bat_ifindex: int) -> Mesh:
    """Return the settings of a mesh interface."""
    (found,) = _request(genl, uapi.BATADV_CMD_GET_MESH, bat_ifindex)
    return Mesh(
        algorithm=found.get_attr("BATADV_ATTR_ALGO_NAME"),
        mac=found.get_attr("BATADV_ATTR_MESH_ADDRESS"),
        bridge_loop_avoidance=bool(found.get_attr("BATADV_ATTR_BRIDGE_LOOP_AVOIDANCE_ENABLED", 0)),
        distributed_arp_table=bool(found.get_attr("BATADV_ATTR_DISTRIBUTED_ARP_TABLE_ENABLED", 0)),
        ap_isolation=bool(found.get_attr("BATADV_ATTR_AP_ISOLATION_ENABLED", 0)),
        fragmentation=bool(found.get_attr("BATADV_ATTR_FRAGMENTATION_ENABLED", 1)),
        hard_interface=found.get_attr("BATADV_ATTR_HARD_IFNAME") or "",
    )


def unfit(mesh: Mesh) -> list[str]:
    """Return the settings of a mesh that are wrong for containers, in words; empty if none is.

    Bridge loop avoidance drops every broadcast for 30 s after bat0 has joined the bridge, and is
    of no use, since the bridge has only containers as other ports. The distributed ARP table is of
    no use either: it cannot see ARP inside MACsec. Isolation cuts clients off from each other.
    Without fragmentation a node cannot announce a large table of clients.
    """
    wrong = {
        "bridge loop avoidance on": mesh.bridge_loop_avoidance,
        "the distributed ARP table on": mesh.distributed_arp_table,
        "isolation on": mesh.ap_isolation,
        "fragmentation off": not mesh.fragmentation,
    }
    return [name for name, found in wrong.items() if found]


def fit(genl: Netlink, bat_ifindex: int) -> None:
    """Set everything that `unfit` checks as it should be."""
    settings = [
        ("BATADV_ATTR_BRIDGE_LOOP_AVOIDANCE_ENABLED", 0),
        ("BATADV_ATTR_DISTRIBUTED_ARP_TABLE_ENABLED", 0),
        ("BATADV_ATTR_AP_ISOLATION_ENABLED", 0),
        ("BATADV_ATTR_FRAGMENTATION_ENABLED", 1),
    ]
    _request(genl, uapi.BATADV_CMD_SET_MESH, bat_ifindex, settings)


def hard_interfaces(genl: Netlink, bat_ifindex: int) -> list[HardInterface]:
    """Return the hard interfaces of a mesh."""
    return [
        HardInterface(
            ifindex=found.get_attr("BATADV_ATTR_HARD_IFINDEX"),
            name=found.get_attr("BATADV_ATTR_HARD_IFNAME"),
            mac=found.get_attr("BATADV_ATTR_HARD_ADDRESS"),
            active=_flag(found, "BATADV_ATTR_ACTIVE"),
            throughput_override=KBIT_PER_UNIT
            * found.get_attr("BATADV_ATTR_THROUGHPUT_OVERRIDE", 0),
        )
        for found in _dump(genl, uapi.BATADV_CMD_GET_HARDIF, bat_ifindex)
    ]


def override_throughput(genl: Netlink, bat_ifindex: int, ifindex: int, kbit: int) -> None:
    """Tell BATMAN_V the throughput of a hard interface in kbit/s; 0 lets it estimate again."""
    settings = [
        ("BATADV_ATTR_HARD_IFINDEX", ifindex),
        ("BATADV_ATTR_THROUGHPUT_OVERRIDE", kbit // KBIT_PER_UNIT),
    ]
    _request(genl, uapi.BATADV_CMD_SET_HARDIF, bat_ifindex, settings)


def _message(command: int, ifindex: int, settings: list[tuple[str, Any]]) -> batadvmsg:
    message = batadvmsg()
    message["cmd"] = command
    message["version"] = uapi.BATADV_NL_VERSION
    message["attrs"] = [("BATADV_ATTR_MESH_IFINDEX", ifindex), *settings]
    return message


def _request(
    genl: Netlink, command: int, ifindex: int, settings: list[tuple[str, Any]] | None = None
) -> list[nlmsg]:
    family = family_id(genl, uapi.BATADV_NL_NAME)
    return genl.request(family, _message(command, ifindex, settings or []))


def _dump(genl: Netlink, command: int, ifindex: int) -> list[nlmsg]:
    """Return a table; empty while the mesh has no active hard interface (the kernel's ENOENT)."""
    family = family_id(genl, uapi.BATADV_NL_NAME)
    try:
        return genl.dump(family, _message(command, ifindex, []))
    except FileNotFoundError:
        return []


def _clients(genl: Netlink, command: int, ifindex: int) -> list[Client]:
    return [
        Client(
            mac=found.get_attr("BATADV_ATTR_TT_ADDRESS"),
            originator=found.get_attr("BATADV_ATTR_ORIG_ADDRESS") or "",
            flags=found.get_attr("BATADV_ATTR_TT_FLAGS", 0),
            best=_flag(found, "BATADV_ATTR_FLAG_BEST"),
        )
        for found in _dump(genl, command, ifindex)
    ]


def _kbit(message: nlmsg) -> int | None:
    units = message.get_attr("BATADV_ATTR_THROUGHPUT")
    return None if units is None else KBIT_PER_UNIT * int(units)


def _flag(message: nlmsg, name: str) -> bool:
    return any(attribute[0] == name for attribute in message["attrs"])
