"""Follows the store: saves what is new, writes the resolver's names, and updates the fabric.

1. While records keep changing they are written once in `SAVE_EVERY` seconds. A record that comes
   alone, and a policy, are written at once. Records that a crash loses come again, from this node
   or from its peers.
2. A new policy does not wait for `SAVE_EVERY`: after a crash, what it forbids must not be allowed
   again.
3. The event loop only collects the records from the store. Encoding and writing them may take
   long, so a worker thread does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from daemon.cluster.membership import Membership
from daemon.cluster.snapshot import Snapshot
from daemon.fabric.interface import Fabric, NotOpenError
from daemon.journal import Journal
from daemon.model.store import Store
from daemon.model.verdict import Verdict
from daemon.news import News
from daemon.process.workers import Pool
from daemon.resolver.client import Resolver
from netconf.errors import NoctuleError

SAVE_EVERY = 1.0
"""Seconds between writings while records keep changing."""


class Saver:
    """Saves records and policy, and keeps the resolver and the fabric up to date."""

    def __init__(
        self,
        store: Store,
        snapshot: Snapshot,
        resolver: Resolver,
        membership: Membership,
        fabric: Fabric,
        disk: Pool,
        ula: str,
        journal: Journal,
    ) -> None:
        """`ula` is the cluster's IPv6 network, CIDR, or empty."""
        self._store = store
        self._snapshot = snapshot
        self._resolver = resolver
        self._membership = membership
        self._fabric = fabric
        self._disk = disk
        self._ula = ula
        self._journal = journal
        self._changed = asyncio.Event()
        self._ruled = asyncio.Event()
        """Set when the policy has changed."""
        self._saving = asyncio.Lock()
        self._news = News()
        self._later: asyncio.TimerHandle | None = None
        store.subscribe(self._heard)

    def _heard(self, verdict: Verdict) -> None:
        if verdict.key == self._store.keys.policy:
            self._ruled.set()
        self._changed.set()

    def refresh(self) -> None:
        """Save and reconfigure again, because the fabric was opened."""
        self._changed.set()

    async def watch(self) -> None:
        """Follow the store; runs until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            self._ruled.clear()
            await self.save()
            try:
                await self._fabric.reconfigure(
                    self._membership.endpoints(), self._membership.speakers()
                )
            except NotOpenError:
                pass  # `refresh` is called when it is open
            except NoctuleError as error:
                for why in self._news.tell(time.monotonic(), [error.message]):
                    self._journal.error("fabric", error=why, details=error.details)
            self._follow_later()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ruled.wait(), SAVE_EVERY)

    def _follow_later(self) -> None:
        """Set a timer for the moment when endpoints that are not followed yet may be followed."""
        if self._later is not None:
            self._later.cancel()
        wait = self._membership.postponed()
        loop = asyncio.get_running_loop()
        self._later = None if wait is None else loop.call_later(wait + 0.1, self._changed.set)

    async def save(self) -> None:
        """Save records, policy and names; log a failure."""
        try:
            await self.write()
        except NoctuleError as error:
            self._journal.error("not saved", error=error.message, details=error.details)

    async def write(self) -> None:
        """Save records and policy, and write ``names``; IOFailure names the file."""
        async with self._saving:
            policy = self._store.envelope(self._store.keys.policy)
            contents, revision = self._store.contents(), self._store.revision
            await self._disk.run(self._snapshot.write, contents, policy, revision)
            await self.name()

    async def name(self) -> None:
        """Write the names of the policy in force for the resolver; IOFailure names the file."""
        await self._disk.run(self._resolver.write, self._store.policy(), self._ula)
