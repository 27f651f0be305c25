"""The time after a start in which nothing is revoked.

A daemon that does not yet know what its predecessor knew must cut nobody off. So sets that a
predecessor filled are left alone until every known node was heard in full or found without a
daemon, at most `HOLD_FOR` seconds.
"""

from __future__ import annotations

import asyncio
import time

from daemon.attachments.registry import Registry
from daemon.cluster.exchange import Exchange
from daemon.cluster.liveness import Liveness
from daemon.cluster.membership import Membership
from daemon.model.store import Store
from daemon.reconcile.reconciler import Reconciler

HOLD_FOR = 10.0
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
        *,
        dialled: int,
    ) -> None:
        """`dialled` is the number of endpoints in ``fabric.connect``: where what the predecessor
        knew was lost, whom we dial is all there is to go by."""
        self._store = store
        self._membership = membership
        self._exchange = exchange
        self._liveness = liveness
        self._registry = registry
        self._reconciler = reconciler
        self._dialled = dialled

    async def run(self) -> None:
        """End the hold when all nodes that live were heard, or when waiting is enough."""
        until = time.monotonic() + HOLD_FOR
        known = self._membership.others()
        while self._registry and time.monotonic() < until and not self._heard(known):
            await asyncio.sleep(LOOK_EVERY)
        self._reconciler.hold = False
        await self._reconciler.request()

    def _heard(self, known: set[str]) -> bool:
        judged = self._exchange.heard | self._liveness.judged
        return (
            self._store.policy() is not None
            and len(judged) >= len(known or range(self._dialled))
            and known <= judged
        )
