"""Following the store: what was learned is saved, named to the resolver, and dialled.

1. Records are written `SAVE_EVERY` seconds apart at most while they keep changing; one that comes
   alone, and a policy, are written at once. What a crash loses is said again, by this node or by
   its peers.
2. A policy is written before the next one is waited for: what it forbids must not be allowed again
   by a crash.
3. The loop only collects the records, as they lie in the store; encoding and writing them, which
   takes long where there are many, is done in a worker.
"""

from __future__ import annotations

import asyncio
import contextlib

from daemon.cluster.membership import Membership
from daemon.cluster.snapshot import Snapshot
from daemon.fabric.interface import Fabric, NotOpenError
from daemon.journal import Journal
from daemon.model.store import Store, Verdict
from daemon.process.workers import Pool
from daemon.resolver.client import Resolver
from netconf.errors import NoctuleError

SAVE_EVERY = 1.0


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
        """The policy is another one."""
        self._saving = asyncio.Lock()
        self._later: asyncio.TimerHandle | None = None
        store.subscribe(self._heard)

    def _heard(self, verdict: Verdict) -> None:
        if verdict.key == self._store.keys.policy:
            self._ruled.set()
        self._changed.set()

    def refresh(self) -> None:
        """Have everything follow the store again: the fabric was opened."""
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
                pass  # it is opened with the rest, or the daemon ends (`refresh`)
            except NoctuleError as error:
                self._journal.error("fabric", error=error.message, details=error.details)
            self._follow_later()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ruled.wait(), SAVE_EVERY)

    def _follow_later(self) -> None:
        """Look again when endpoints that were not followed yet may be."""
        if self._later is not None:
            self._later.cancel()
        wait = self._membership.postponed()
        loop = asyncio.get_running_loop()
        self._later = None if wait is None else loop.call_later(wait + 0.1, self._changed.set)

    async def save(self) -> None:
        """Save what is known now; a failure is logged."""
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
        """Let the resolver know the names of the policy in force; IOFailure names the file."""
        await self._disk.run(self._resolver.write, self._store.policy(), self._ula)
