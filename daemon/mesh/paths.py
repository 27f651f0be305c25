"""How good the paths to other nodes are, and by whom they lead. Pure.

1. Quality is 0–1: TQ/255 for BATMAN_IV, throughput over the best path's for BATMAN_V. It comes
   from batman-adv's own table, so it says what this node's frames will really meet.
2. batman-adv knows MAC addresses; whose they are, nodes say of themselves (`NodeInfo.mesh_macs`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from daemon.model.records import NodeInfo
from netconf.netlink.batadv import Originator


def owners(infos: Iterable[NodeInfo]) -> dict[str, str]:
    """Return whose each MAC address on the mesh is."""
    return {mac: info.node for info in infos for mac in info.mesh_macs}


def quality(originators: Iterable[Originator], owner: Mapping[str, str]) -> dict[str, float]:
    """Return the quality of the best path to each node that has one."""
    originators = list(originators)
    best = max((path.throughput or 0 for path in originators), default=0)
    return {
        owner[path.mac]: path.tq / 255
        if path.tq is not None
        else (path.throughput or 0) / max(best, 1)
        for path in originators
        if path.best and path.mac in owner
    }


def via(originators: Iterable[Originator], owner: Mapping[str, str]) -> dict[str, str]:
    """Return the next hop, as a node, on the best path to each node; "" if nobody says whose."""
    return {
        owner[path.mac]: owner.get(path.neighbour, "")
        for path in originators
        if path.best and path.mac in owner
    }


def heard(
    originators: Iterable[Originator], owner: Mapping[str, str], now: float
) -> dict[str, float]:
    """Return when each node that is known was heard last; `now` is when the table was read."""
    found: dict[str, float] = {}
    for path in originators:
        if node := owner.get(path.mac):
            when = now - path.last_seen_ms / 1e3
            found[node] = max(when, found.get(node, when))
    return found
