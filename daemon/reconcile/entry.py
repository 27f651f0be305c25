"""What is known of one attachment's sets: wanted, programmed, in trouble; values only.

1. `programmed` is what the kernel was last told; None where only the kernel knows.
2. A change that fails puts its attachment in trouble. It is tried again after `RETRY_FIRST`
   seconds, then after twice as long each time, up to `RETRY_MOST`; and at once when something
   else is wanted of it, since that may be a revocation.
3. Trouble is one attachment's alone: others are changed, and counted as agreeing, without it.
"""

from __future__ import annotations

import asyncio

from netconf.attach.attachment import Attachment
from netconf.program.desired import EMPTY, Desired

RETRY_FIRST = 1.0
"""A namespace that is being taken down, or a kernel short of memory, is another one by then."""
RETRY_MOST = 60.0
"""A secret that is missing may stay so for days, and each try is a line in the log; but whoever
puts it back waits for the next one."""


class Entry:
    """One attachment, as the reconciler knows it."""

    def __init__(self, attachment: Attachment, programmed: Desired | None) -> None:
        self.attachment = attachment
        self.desired: Desired = EMPTY
        self.programmed = programmed
        self.task: asyncio.Task[None] | None = None
        """Is bringing `desired` about."""
        self.failures = 0
        """In a row."""
        self.retry_at = 0.0
        """By the clock of whoever calls `failed` and `due`."""
        self.error = ""
        self._failed: Desired | None = None

    @property
    def agrees(self) -> bool:
        """Whether the kernel was last told just what is wanted."""
        if self.programmed is self.desired:
            return True
        if self.programmed is None or self.programmed != self.desired:
            return False
        self.programmed = self.desired  # so that the next comparison is one of identities
        return True

    def due(self, now: float) -> bool:
        """Tell whether there is something to change now."""
        if self.agrees:
            return False
        return not self.failures or now >= self.retry_at or self.desired is not self._failed

    def failed(self, wanted: Desired, error: str, now: float) -> bool:
        """`wanted` could not be brought about; tell whether that is worth a line in the log."""
        news = error != self.error or now >= self.retry_at
        pause = min(RETRY_FIRST * 2**self.failures, RETRY_MOST)
        self.failures += 1
        self.error, self._failed, self.programmed = error, wanted, None
        self.retry_at = now + pause
        return news

    def done(self, wanted: Desired) -> bool:
        """`wanted` was brought about; tell whether that ends trouble."""
        recovered = self.failures > 0
        self.programmed, self.failures, self.error, self._failed = wanted, 0, "", None
        return recovered
