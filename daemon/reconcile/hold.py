"""The time after a start in which the kernel stays as the predecessor left it.

A daemon that does not yet know what its predecessor knew must cut nobody off, and one that does
not yet know what its peers know must open nothing: its policy may be older than theirs. So
containers that run keep the sets they have, and new ones stay closed, until
`daemon.cluster.freshness` has nothing to wait for any more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from daemon.attachments.registry import Registry
from daemon.cluster.exchange import Exchange
from daemon.cluster.membership import Membership
from daemon.journal import Journal
from daemon.liveness.absence import Absence
from daemon.liveness.liveness import Liveness
from daemon.model.records import NodeInfo
from daemon.model.store import Store
from daemon.reconcile.reconciler import Reconciler

LOOK_EVERY = 0.1
"""Seconds between looks at whether the hold can end."""
PROBE_EVERY = 0.5
"""Seconds between looks at where no daemon listens."""


class Hold:
    """Ends the hold of the reconciler."""

    def __init__(
        self,
        store: Store,
        membership: Membership,
        exchange: Exchange,
        liveness: Liveness,
        registry: Registry,
        reconciler: Reconciler,
        journal: Journal,
        *,
        dialled: Iterable[str],
        absence: Absence | None = None,
    ) -> None:
        """`dialled` are the other nodes' endpoints in ``fabric.connect``: where what the
        predecessor knew was lost, whom we dial is all there is to go by."""
        self._store = store
        self._membership = membership
        self._exchange = exchange
        self._liveness = liveness
        self._registry = registry
        self._reconciler = reconciler
        self._journal = journal
        self._dialled = frozenset(dialled)
        self._absence = absence or Absence(time.monotonic)

    async def run(self) -> None:
        """End the hold when all nodes that live were heard, or when waiting is enough."""
        self._exchange.freshness.begin()
        probing = asyncio.ensure_future(self._probe())
        waited: list[str] = []
        try:
            while reasons := self._reasons():
                waited = reasons
                await asyncio.sleep(LOOK_EVERY)
        finally:
            probing.cancel()
        policy = self._store.policy()
        self._journal.info(
            "hold ended", policy=policy.version if policy else 0, waited_last_for=waited
        )
        self._reconciler.hold = False
        await self._reconciler.request()

    async def _probe(self) -> None:
        while True:
            said = (info.endpoints for info in self._infos().values())
            await self._absence.look((*self._dialled, *(e for some in said for e in some)))
            await asyncio.sleep(PROBE_EVERY)

    def _infos(self) -> dict[str, NodeInfo]:
        """Return the infos of those that are not there yet."""
        infos = self._membership.infos()
        return {n: info for n, info in infos.items() if n not in self._liveness.alive}

    def _absent(self) -> set[str]:
        """Return the names of nodes without a daemon. One whose endpoints are not known may be
        wherever we dial."""
        infos = self._infos()
        nowhere = self._absence.absent(self._unknown())
        nameless = self._membership.expected() - self._membership.infos().keys()
        nameless -= self._liveness.alive
        found = {name for name, info in infos.items() if self._absence.absent(info.endpoints)}
        return found | (nameless if nowhere else set())

    def _unknown(self) -> set[str]:
        """Return where we dial nodes that have not said who they are."""
        infos = self._membership.infos().values()
        return set(self._dialled) - {e for info in infos for e in info.endpoints}

    def _reasons(self) -> list[str]:
        policy = self._store.policy()
        freshness = self._exchange.freshness
        reasons = freshness.waits_for(
            policy.version if policy else 0,
            known=self._membership.expected(),
            strangers=sum(not self._absence.absent([e]) for e in self._dialled),
            absent=self._absent(),
        )
        if policy is None and self._registry and freshness.early():
            reasons.append("there is no policy")  # all that runs would be closed
        return reasons
