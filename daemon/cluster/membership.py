"""Who belongs to the cluster, who may speak on its fabric, and where they are dialled.

1. Where policy lists `nodes`, those and nobody else; a node it no longer names is forgotten
   here, though its record may linger in the store.
2. Where it lists none, whoever has proved an identity that the CA certified.
"""

from __future__ import annotations

from collections.abc import Iterable

from daemon.fabric.interface import parse_endpoint
from daemon.model.records import NodeInfo
from daemon.model.store import Store
from daemon.model.trust import Dates
from netconf.errors import InvalidConfig


class Membership:
    """The cluster as one node's store describes it."""

    def __init__(self, node: str, connect: Iterable[str], store: Store) -> None:
        """`node` is this one; `connect` the endpoints it was told to dial."""
        self._node = node
        self._connect = tuple(connect)
        self._store = store

    def infos(self) -> dict[str, NodeInfo]:
        """Return the members that have said who they are, by node, this one included."""
        pinned = self._pinned()
        infos = self._store.infos()
        if pinned is None:
            return infos
        return {node: info for node, info in infos.items() if node in pinned}

    def certificates(self) -> dict[str, Dates]:
        """Return when the certificates of the members that `infos` has are in force, by node."""
        dates = self._store.certificates()
        return {node: dates[node] for node in self.infos() if node in dates}

    def others(self) -> set[str]:
        """Return the members' names without this node's."""
        return self.infos().keys() - {self._node}

    def speakers(self) -> frozenset[str] | None:
        """Return who may speak on the fabric; None for anyone the CA certified."""
        pinned = self._pinned()
        return frozenset(pinned) | {self._node} if pinned is not None else None

    def endpoints(self) -> list[str]:
        """Return whom to dial: those we were told, and those that members tell of themselves."""
        told = dict.fromkeys(self._connect)
        for info in self.infos().values():
            if info.node != self._node:
                told.update(dict.fromkeys(e for e in info.endpoints if _can_dial(e)))
        return list(told)

    def _pinned(self) -> dict[str, str] | None:
        policy = self._store.policy()
        return policy.nodes if policy else None


def _can_dial(endpoint: str) -> bool:
    """One node's odd endpoint must not keep the others from opening their fabric."""
    try:
        parse_endpoint(endpoint)
    except InvalidConfig:
        return False
    return True
