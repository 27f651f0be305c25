"""From zenoh's threads into the loop's: in order, woken once per burst, bounded.

1. `put` may be called from any thread and never blocks.
2. At most `limit` items wait; more are refused and counted by the caller, because a peer
   that floods must not grow this process. What must not be lost passes ``bounded=False``.
3. After `close` nothing is delivered.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

INBOX_LIMIT = 4096
"""Messages; all records of 64 nodes with 50 replicas each fit in."""

BURST = 256
"""Messages handled before the loop may do something else."""


class Inbox:
    """A queue of calls to be made in the loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int = INBOX_LIMIT) -> None:
        """Deliver into `loop`; keep at most `limit` calls waiting."""
        self._loop = loop
        self._limit = limit
        self._calls: deque[Callable[[], None]] = deque()
        self._woken = False
        self._closed = False

    def put(self, call: Callable[[], None], *, bounded: bool = True) -> bool:
        """Have `call` made in the loop's thread; False if there was no room."""
        if bounded and len(self._calls) >= self._limit:
            return False
        self._calls.append(call)
        if not self._woken:
            self._woken = True
            self._wake()
        return True

    def close(self) -> None:
        """Drop what waits and deliver nothing more."""
        self._closed = True
        self._calls.clear()

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._drain)
        except RuntimeError:  # the loop was closed without closing the fabric
            self._closed = True

    def _drain(self) -> None:
        # Cleared before looking, so that a put that finds it set is always looked at.
        self._woken = False
        for _ in range(BURST):
            if self._closed or not self._calls:
                return
            self._calls.popleft()()
        if self._calls and not self._woken:
            self._woken = True
            self._wake()
