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
import time
from collections.abc import Coroutine
from typing import Any

from daemon.attachments.lifecycle import Lifecycle
from daemon.attachments.opening import Opening
from daemon.attachments.registry import Registry
from daemon.attachments.turns import Turns
from daemon.journal import Journal
from daemon.news import News
from daemon.process.tasks import Tasks
from daemon.process.workers import Pool
from netconf.attach import operations
from netconf.attach.attachment import Attachment
from netconf.attach.state import State
from netconf.errors import NoctuleError
from netconf.namespace import identity

COLLECT_EVERY = 0.25
"""Seconds between looks at the state folder and at a part of the namespaces."""
RETRY_AFTER = 30.0
"""Seconds before a removal that failed is tried again: each try is a line in the log."""
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
        self._news = News()
        self._again: dict[str, float] = {}
        """When to try again what could not be taken down, by attachment id; monotonic clock."""

    async def watch(self) -> None:
        """Look, again and again; runs until cancelled."""
        for part in itertools.cycle(range(COLLECT_PARTS)):
            await asyncio.sleep(COLLECT_EVERY)
            try:
                await self._look(part)
            except NoctuleError as error:
                for told in self._news.tell(time.monotonic(), [error.message]):
                    self._journal.error("collector", error=told, details=error.details)

    async def _look(self, part: int) -> None:
        gone = [
            attachment
            for attachment in self._registry.values()
            if int(attachment.id, 16) % COLLECT_PARTS == part
            and attachment.id not in self._turns.busy()
            and identity(attachment.netns) != attachment.netns_id
        ]
        # All at once, because a removal mostly waits for the kernel.
        await asyncio.gather(*(self._remove(one, "namespace gone") for one in gone))
        found = self._state.ids()
        known = self._registry.keys() | self._registry.opaque.keys()
        vanished = known - found - self._turns.busy()
        await asyncio.gather(*(self._forget(one) for one in vanished))
        for attachment_id in found - self._registry.keys() - self._turns.busy():
            await self._discover(attachment_id)

    async def _forget(self, attachment_id: str) -> None:
        """Forget an attachment that the executable detached, unless it was attached anew."""
        async with self._turns.only(attachment_id):
            if attachment_id not in await self._pool.run(self._state.ids):
                self._registry.remove(attachment_id)
                await self._registry.release(attachment_id)

    async def _discover(self, attachment_id: str) -> None:
        """Adopt an attachment that the executable made while this daemon did not answer."""
        async with self._turns.only(attachment_id):
            attachment = await self._pool.run(self._state.get, attachment_id)
            if attachment_id in self._registry:
                return  # an ADD added it while this waited for its turn
            if attachment is not None and attachment.phase == "unreadable":
                self._lifecycle.keep_opaque(attachment)
            if attachment is None or attachment.phase not in ("ready", "deleting"):
                return
            why = "namespace gone"
            if attachment.phase == "deleting":
                why = "its removal had failed"
            elif await self._pool.run(operations.alive, attachment):
                self._adopt(attachment)
                return
        await self._remove(attachment, why)

    def _adopt(self, attachment: Attachment) -> None:
        # Not fresh: it may be one whose DEL failed, and its sets may then be filled.
        self._registry.add(attachment, fresh=False)
        opening = self._opening.open(attachment)
        self._tasks.start(f"open {attachment.id}", self._finish(attachment, opening))

    async def _finish(self, attachment: Attachment, opening: Coroutine[Any, Any, str]) -> None:
        self._journal.info(
            "adopted",
            attachment=attachment.id,
            service=attachment.service,
            neighbours=await opening,
        )

    async def _remove(self, attachment: Attachment, why: str) -> None:
        """Take `attachment` down; one that resists is tried again after `RETRY_AFTER`."""
        now = time.monotonic()
        if self._again.get(attachment.id, 0.0) > now:
            return
        if await self._lifecycle.try_remove(attachment, why):
            self._again.pop(attachment.id, None)
        else:
            self._again[attachment.id] = now + RETRY_AFTER
