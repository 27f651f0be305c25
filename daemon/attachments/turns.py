"""One operation at a time with each attachment; different attachments in parallel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Set
from contextlib import asynccontextmanager


class Turns:
    """Whose turn it is, by attachment."""

    def __init__(self) -> None:
        self._turns: dict[str, tuple[asyncio.Lock, int]] = {}
        """The lock, and how many hold it or wait for it."""

    def busy(self) -> Set[str]:
        """Return the ids of the attachments that something is being done with."""
        return self._turns.keys()

    @asynccontextmanager
    async def only(self, attachment_id: str) -> AsyncIterator[None]:
        """Be the only one to do something with an attachment; waits for others."""
        lock, users = self._turns.get(attachment_id, (asyncio.Lock(), 0))
        self._turns[attachment_id] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._turns.pop(attachment_id)
            if users > 1:
                self._turns[attachment_id] = (lock, users - 1)
