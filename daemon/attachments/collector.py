"""What happens to attachments without this daemon being asked.

1. A namespace that vanished without DEL is noticed by its identity, and its attachment is taken
   down.
2. What an executable attached by itself, while this daemon did not answer, is adopted and opened;
   what it detached is forgotten.
3. An executable that works alone may put a new attachment in the place of one seen here. Its file
   is read again under the lock that excludes executables, and the new one stays.
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
"""Looks in which every namespace is looked at once, within a second that is: one stat of each,
2 ms for a thousand, which every ADD of a busy node would pay four times a second."""


class Collector:
    """Follows namespaces and state files."""

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
        # Side by side, for most of a removal is waiting for the kernel.
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
        """Adopt the executable's own ADD, made while this daemon did not answer."""
        async with self._turns.only(attachment_id):
            attachment = await self._pool.run(self._state.get, attachment_id)
            if attachment_id in self._registry:
                return  # an ADD had its turn first
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
