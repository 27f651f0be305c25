"""A lock for each attachment: one operation at a time on each, different ones in parallel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Set
from contextlib import asynccontextmanager


class Turns:
    """The locks that are held or waited for, by attachment."""

    def __init__(self) -> None:
        self._turns: dict[str, tuple[asyncio.Lock, int]] = {}
        """The lock, and how many hold it or wait for it."""

    def busy(self) -> Set[str]:
        """Return the ids of the attachments on which an operation runs or waits."""
        return self._turns.keys()

    @asynccontextmanager
    async def only(self, attachment_id: str) -> AsyncIterator[None]:
        """Hold the lock of an attachment; waits until operations begun earlier have ended."""
        lock, users = self._turns.get(attachment_id, (asyncio.Lock(), 0))
        self._turns[attachment_id] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._turns.pop(attachment_id)
            if users > 1:
                self._turns[attachment_id] = (lock, users - 1)
