"""The MTU of the mesh, which is the same on all nodes, so that nothing is ever fragmented. Pure.

1. It is the least that any known node can carry.
2. It never rises while a daemon runs, because containers keep the MTU that they were given. At a
   restart the daemon takes what is possible then.
3. A node that announces less than IP needs has a fault, and is ignored: it must not lower the MTU
   of all others.
"""

from __future__ import annotations

from collections.abc import Iterable

from daemon.model.records import NodeInfo
from netconf import names
from netconf.errors import InvalidConfig
from netconf.mesh.config import MTU_MIN


def floor(ula: str) -> int:
    """Return the least bytes that a mesh must carry; `ula` is the IPv6 network (CIDR) or empty."""
    return names.MTU_MIN6 if ula else MTU_MIN


def least(infos: Iterable[NodeInfo], node: str, floor: int) -> int | None:
    """Return the least MTU (bytes) that nodes other than `node` announced; None if none did.

    Announcements below `floor` are ignored (rule 3).
    """
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
