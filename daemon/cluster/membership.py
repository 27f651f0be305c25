"""Which nodes belong to the cluster, may speak on its fabric, and where they are dialled.

1. If policy lists `nodes`, those and no others are members. A node that policy no longer lists is
   left out here, even while the store still holds its info.
2. If policy lists none, every node is a member whose info is in the store, that is, which has a
   certificate of the CA.
3. If a member changes its endpoints, the fabric must replace its session, which drops the links to
   all others for a moment. So the more often a member changes them, the longer we wait before we
   dial its new ones (``daemon.fabric.damping``). It is not cut off meanwhile: it dials us.
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
"""Seconds before a second change of a member's endpoints is followed; each further change doubles
the wait."""
FOLLOW_LIMIT = 3600.0
"""The longest such wait, in seconds. A node whose endpoints change every second makes the others
replace their sessions eight times in the first hour, and then once in an hour."""
FORGIVE = 6 * 3600.0
"""Seconds after which the penalty for earlier changes has decayed by half."""


class Membership:
    """The members of the cluster, according to this node's store."""

    def __init__(
        self,
        node: str,
        connect: Iterable[str],
        store: Store,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`node` is this node's id; `connect` are the endpoints of ``fabric.connect``
        (``tls/HOST:PORT``); `clock` returns seconds and never goes back."""
        self._node = node
        self._connect = tuple(connect)
        self._store = store
        self._clock = clock
        self._followed: dict[str, tuple[str, ...]] = {}
        """By member: those of its endpoints that are dialled."""
        self._damping = Damping(FOLLOW_AGAIN, FOLLOW_LIMIT, FORGIVE)

    def infos(self) -> dict[str, NodeInfo]:
        """Return the infos of all members that have published one, by node, this one included."""
        pinned = self._pinned()
        infos = self._store.infos()
        if pinned is None:
            return infos
        return {node: info for node, info in infos.items() if node in pinned}

    def certificates(self) -> dict[str, Dates]:
        """Return the dates of the certificates of the members in `infos`, by node."""
        dates = self._store.certificates()
        return {node: dates[node] for node in self.infos() if node in dates}

    def others(self) -> set[str]:
        """Return the names of the members in `infos`, without this node."""
        return self.infos().keys() - {self._node}

    def expected(self) -> set[str]:
        """Return the names of all other nodes that should exist: those in `infos`, and those that
        policy lists."""
        return (self.infos().keys() | (self._pinned() or {}).keys()) - {self._node}

    def speakers(self) -> frozenset[str] | None:
        """Return the nodes that may speak on the fabric; None for all that the CA certified."""
        pinned = self._pinned()
        return frozenset(pinned) | {self._node} if pinned is not None else None

    def endpoints(self) -> list[str]:
        """Return the endpoints to dial: the configured ones, and those in the members' infos, as
        far as their changes are followed now (rule 3)."""
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
        """Return the seconds until a change of endpoints that is not followed yet may be; None if
        there is none."""
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
    """Tell whether `endpoint` is valid: one that is not must not keep the fabric from opening."""
    try:
        parse_endpoint(endpoint)
    except InvalidConfig:
        return False
    return True
