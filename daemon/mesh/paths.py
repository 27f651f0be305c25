"""The quality of the paths to other nodes, and their next hops. Pure.

1. Quality is 0–1: TQ/255 for BATMAN_IV; for BATMAN_V the path's throughput divided by the best
   path's. It is from batman-adv's own table, which also decides where this node's frames go.
2. batman-adv's tables hold MAC addresses. `NodeInfo.mesh_macs` tells to which node each belongs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from daemon.model.records import NodeInfo
from netconf.netlink.batadv import Originator


def owners(infos: Iterable[NodeInfo]) -> dict[str, str]:
    """Return the node of each MAC address of a mesh link."""
    return {mac: info.node for info in infos for mac in info.mesh_macs}


def quality(originators: Iterable[Originator], owner: Mapping[str, str]) -> dict[str, float]:
    """Return the quality, 0 to 1, of the best path to each node that has one."""
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
    """Return the node that is the next hop to each node; "" if its MAC is in no node's info."""
    return {
        owner[path.mac]: owner.get(path.neighbour, "")
        for path in originators
        if path.best and path.mac in owner
    }


def heard(
    originators: Iterable[Originator], owner: Mapping[str, str], now: float
) -> dict[str, float]:
    """Return when each node was heard last; `now` is when the table was read, in seconds."""
    found: dict[str, float] = {}
    for path in originators:
        if node := owner.get(path.mac):
            when = now - path.last_seen_ms / 1e3
            found[node] = max(when, found.get(node, when))
    return found
