"""The hold: the time after a start in which the kernel stays as the former daemon left it.

A daemon that has just started may not know all records that the former one knew, so it must cut
nobody off. Its policy may be older than its peers', so it must open nothing either. So running
containers keep their sets, and new ones stay closed, until `daemon.cluster.freshness` waits for
nothing any more.
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
from daemon.process.tasks import Tasks
from daemon.reconcile.reconciler import Reconciler

LOOK_EVERY = 0.1
"""Seconds between looks at whether the hold can end."""
PROBE_EVERY = 0.5
"""Seconds between probes for endpoints at which no daemon listens."""


class Hold:
    """Ends the reconciler's hold when it is time."""

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
        """`dialled` are the other nodes' endpoints in ``fabric.connect``. If the records on disk
        were lost, nothing else tells how many other nodes there are."""
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
        """Wait until all live peers have answered or the time limits are over; end the hold.

        The time limits run from `Freshness.begin` on, that is once the fabric is open.
        """
        tasks = Tasks(self._journal)
        tasks.forever("probes for absence", self._probe)
        waited: list[str] = []
        try:
            while reasons := self._reasons():
                waited = reasons
                await asyncio.sleep(LOOK_EVERY)
        finally:
            await tasks.close()
        policy = self._store.policy()
        self._journal.info(
            "hold ended", policy=policy.version if policy else 0, waited_last_for=waited
        )
        self._reconciler.hold = False
        await self._reconciler.request()

    async def _probe(self) -> None:
        # While this node has no address, nothing that its kernel says tells of other nodes.
        while not self._exchange.freshness.begun:
            await asyncio.sleep(LOOK_EVERY)
        while True:
            said = (info.endpoints for info in self._infos().values())
            await self._absence.look((*self._dialled, *(e for some in said for e in some)))
            await asyncio.sleep(PROBE_EVERY)

    def _infos(self) -> dict[str, NodeInfo]:
        """Return the infos of the members whose tokens are not there yet."""
        infos = self._membership.infos()
        return {n: info for n, info in infos.items() if n not in self._liveness.alive}

    def _absent(self) -> set[str]:
        """Return the names of nodes that were found to have no daemon.

        A node whose endpoints are not known may be at any configured endpoint that belongs to no
        known node. So it counts as absent only if no daemon is at any of those. Before the fabric
        is open, no node counts as absent.
        """
        if not self._exchange.freshness.begun:
            return set()
        infos = self._infos()
        nowhere = self._absence.absent(self._unknown())
        nameless = self._membership.expected() - self._membership.infos().keys()
        nameless -= self._liveness.alive
        found = {name for name, info in infos.items() if self._absence.absent(info.endpoints)}
        return found | (nameless if nowhere else set())

    def _unknown(self) -> set[str]:
        """Return the configured endpoints that are not in the info of any member."""
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
            reasons.append("there is no policy")  # without one, running containers would be closed
        return reasons
