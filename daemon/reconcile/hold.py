"""The time after a start in which the kernel stays as the predecessor left it.

A daemon that does not yet know what its predecessor knew must cut nobody off, and one that does
not yet know what its peers know must open nothing: its policy may be older than theirs. So
containers that run keep the sets they have, and new ones stay closed, until
`daemon.cluster.freshness` has nothing to wait for any more.
"""

from __future__ import annotations

import asyncio

from daemon.attachments.registry import Registry
from daemon.cluster.exchange import Exchange
from daemon.cluster.liveness import Liveness
from daemon.cluster.membership import Membership
from daemon.journal import Journal
from daemon.model.store import Store
from daemon.reconcile.reconciler import Reconciler

LOOK_EVERY = 0.1
"""Seconds between looks at whether the hold can end."""


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
        dialled: int,
    ) -> None:
        """`dialled` is the number of other nodes' endpoints in ``fabric.connect``: where what the
        predecessor knew was lost, whom we dial is all there is to go by."""
        self._store = store
        self._membership = membership
        self._exchange = exchange
        self._liveness = liveness
        self._registry = registry
        self._reconciler = reconciler
        self._journal = journal
        self._dialled = dialled

    async def run(self) -> None:
        """End the hold when all nodes that live were heard, or when waiting is enough."""
        self._exchange.freshness.begin()
        waited: list[str] = []
        while reasons := self._reasons():
            waited = reasons
            await asyncio.sleep(LOOK_EVERY)
        policy = self._store.policy()
        self._journal.info(
            "hold ended", policy=policy.version if policy else 0, waited_last_for=waited
        )
        self._reconciler.hold = False
        await self._reconciler.request()

    def _reasons(self) -> list[str]:
        policy = self._store.policy()
        freshness = self._exchange.freshness
        reasons = freshness.waits_for(
            policy.version if policy else 0,
            known=self._membership.expected(),
            strangers=self._dialled,
            absent=self._liveness.judged - self._liveness.alive,
        )
        if policy is None and self._registry and freshness.early():
            reasons.append("there is no policy")  # all that runs would be closed
        return reasons
