"""Who belongs to the cluster, who may speak on its fabric, and where they are dialled.

1. Where policy lists `nodes`, those and nobody else; a node it no longer names is forgotten
   here, though its record may linger in the store.
2. Where it lists none, whoever has proved an identity that the CA certified.
3. New endpoints of a member make the fabric replace its session, which drops the links to all
   others for a moment. So a member whose endpoints keep changing is followed less and less
   (``daemon.fabric.damping``). It is not cut off meanwhile: it dials us.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from daemon.fabric.damping import Damping
from daemon.fabric.interface import parse_endpoint
from daemon.model.records import NodeInfo
from daemon.model.store import Store
from daemon.model.trust import Dates
from netconf.errors import InvalidConfig

FOLLOW_AGAIN = 30.0
"""Seconds before a second change of a member's endpoints is followed, twice as long for each
further one."""
FOLLOW_LIMIT = 3600.0
"""Seconds at most: a node whose endpoints change every second costs the others eight reopenings
in the first hour, and then one in each."""
FORGIVE = 6 * 3600.0
"""Seconds until half of that is forgotten."""


class Membership:
    """The cluster as one node's store describes it."""

    def __init__(
        self,
        node: str,
        connect: Iterable[str],
        store: Store,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`node` is this one; `connect` the endpoints it was told to dial; `clock` returns
        seconds and never goes back."""
        self._node = node
        self._connect = tuple(connect)
        self._store = store
        self._clock = clock
        self._followed: dict[str, tuple[str, ...]] = {}
        """The endpoints that are dialled, by member."""
        self._damping = Damping(FOLLOW_AGAIN, FOLLOW_LIMIT, FORGIVE)

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

    def expected(self) -> set[str]:
        """Return the names of all other nodes that are known to exist: those that have said who
        they are, and those that policy lists."""
        return (self.infos().keys() | (self._pinned() or {}).keys()) - {self._node}

    def speakers(self) -> frozenset[str] | None:
        """Return who may speak on the fabric; None for anyone the CA certified."""
        pinned = self._pinned()
        return frozenset(pinned) | {self._node} if pinned is not None else None

    def endpoints(self) -> list[str]:
        """Return whom to dial: those we were told, and those that members tell of themselves,
        as far as their changes are followed (rule 3)."""
        now = self._clock()
        told = dict.fromkeys(self._connect)
        for node, wanted in self._wanted().items():
            if self._followed.get(node) != wanted and self._damping.wait(node, now) <= 0:
                if node in self._followed:
                    self._damping.caused(node, now)
                self._followed[node] = wanted
            told.update(dict.fromkeys(self._followed.get(node, ())))
        return list(told)

    def postponed(self) -> float | None:
        """Return the seconds until a change that `endpoints` did not follow is due; None if it
        followed them all."""
        now = self._clock()
        waits = (
            self._damping.wait(node, now)
            for node, wanted in self._wanted().items()
            if self._followed.get(node) != wanted
        )
        return min(waits, default=None)

    def _wanted(self) -> dict[str, tuple[str, ...]]:
        infos = self.infos().values()
        return {
            info.node: tuple(sorted({e for e in info.endpoints if _can_dial(e)}))
            for info in infos
            if info.node != self._node
        }

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
