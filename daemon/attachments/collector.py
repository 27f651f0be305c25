"""Follows changes to attachments that happen without a request to this daemon.

1. If a namespace vanishes without DEL, the collector notices that its path no longer leads to the
   same namespace (by device and inode), and takes the attachment down.
2. If the executable attached a container by itself because this daemon did not answer, the
   collector adopts the attachment and opens it. If the executable detached one by itself, the
   collector removes it from the registry.
3. While the collector is about to take an attachment down, an executable that works alone may
   replace it by a new one with the same id. So the state file is read again under the lock that
   executables take too, and a new attachment is left alone.
"""

from __future__ import annotations

import asyncio
import itertools

from daemon.attachments.lifecycle import Lifecycle
from daemon.attachments.opening import Opening
from daemon.attachments.registry import Registry
from daemon.attachments.turns import Turns
from daemon.journal import Journal
from daemon.process.tasks import Tasks
from daemon.process.workers import Pool
from netconf.attach import operations
from netconf.attach.attachment import Attachment
from netconf.attach.state import State
from netconf.errors import NoctuleError
from netconf.namespace import identity

COLLECT_EVERY = 0.25
"""Seconds between looks at the state folder and at a part of the namespaces."""
COLLECT_PARTS = 4
"""Looks in which every namespace is checked once, that is once a second. Checking a thousand takes
2 ms in the event loop, which would delay ADDs if it were done at every look."""


class Collector:
    """Looks at namespaces and state files, and does what the module's rules say."""

    def __init__(
        self,
        state: State,
        pool: Pool,
        registry: Registry,
        turns: Turns,
        lifecycle: Lifecycle,
        opening: Opening,
        tasks: Tasks,
        journal: Journal,
    ) -> None:
        self._state = state
        self._pool = pool
        self._registry = registry
        self._turns = turns
        self._lifecycle = lifecycle
        self._opening = opening
        self._tasks = tasks
        self._journal = journal

    async def watch(self) -> None:
        """Look, again and again; runs until cancelled."""
        for part in itertools.cycle(range(COLLECT_PARTS)):
            await asyncio.sleep(COLLECT_EVERY)
            try:
                await self._look(part)
            except NoctuleError as error:
                self._journal.error("collector", error=error.message, details=error.details)

    async def _look(self, part: int) -> None:
        gone = [
            attachment
            for attachment in self._registry.values()
            if int(attachment.id, 16) % COLLECT_PARTS == part
            and attachment.id not in self._turns.busy()
            and identity(attachment.netns) != attachment.netns_id
        ]
        # All at once, because a removal mostly waits for the kernel.
        await asyncio.gather(*(self._lifecycle.try_remove(one, "namespace gone") for one in gone))
        found = self._state.ids()
        known = self._registry.keys() | self._registry.opaque.keys()
        vanished = known - found - self._turns.busy()
        for attachment_id in vanished:
            self._registry.remove(attachment_id)
        for attachment_id in vanished:
            await self._registry.release(attachment_id)
        for attachment_id in found - self._registry.keys() - self._turns.busy():
            await self._discover(attachment_id)

    async def _discover(self, attachment_id: str) -> None:
        """Adopt an attachment that the executable made while this daemon did not answer."""
        async with self._turns.only(attachment_id):
            attachment = await self._pool.run(self._state.get, attachment_id)
            if attachment_id in self._registry:
                return  # an ADD added it while this waited for its turn
            if attachment is not None and attachment.phase == "unreadable":
                self._lifecycle.keep_opaque(attachment)
            if attachment is None or attachment.phase != "ready":
                return
            alive = await self._pool.run(operations.alive, attachment)
            if alive:
                self._adopt(attachment)
        if not alive:
            await self._lifecycle.try_remove(attachment, "namespace gone")

    def _adopt(self, attachment: Attachment) -> None:
        self._registry.add(attachment, fresh=True)
        self._tasks.start(f"open {attachment.id}", self._open(attachment))
        self._journal.info("adopted", attachment=attachment.id, service=attachment.service)

    async def _open(self, attachment: Attachment) -> None:
        await self._opening.open(attachment)
