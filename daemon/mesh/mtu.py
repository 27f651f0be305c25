"""One MTU for the whole mesh, so that nothing is ever fragmented. Pure.

1. It is the least that any known node can carry.
2. It never rises while a daemon runs: raising it needs every container's consent. A restart
   takes what is possible then.
3. A node that announces less than IP needs made a mistake, which must not become everybody's.
"""

from __future__ import annotations

from collections.abc import Iterable

from daemon.model.records import NodeInfo
from netconf import names
from netconf.errors import InvalidConfig
from netconf.mesh.config import MTU_MIN


def floor(ula: str) -> int:
    """Return the bytes that a mesh must carry; `ula` is the IPv6 network, if there is one."""
    return names.MTU_MIN6 if ula else MTU_MIN


def least(infos: Iterable[NodeInfo], node: str, floor: int) -> int | None:
    """Return the least that the others announced, `node` being this one; None if nobody did."""
    mtus = (info.mtu for info in infos if info.node != node)
    return min((mtu for mtu in mtus if mtu >= floor), default=None)


def check(mtu: int, floor: int) -> None:
    """Raise InvalidConfig if this node's mesh cannot carry what it was told to."""
    if mtu < floor:
        raise InvalidConfig(
            f"addresses.ula: IPv6 needs a mesh that carries {floor} bytes, and "
            f"mesh.links carry {mtu}; raise their MTU, or leave addresses.ula "
            "out on every node"
        )
