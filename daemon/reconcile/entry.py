"""The reconciler's state of one attachment: what is desired, programmed, or failed. No I/O.

1. `programmed` is what the kernel was last told; None if that is not known, so that the kernel has
   to be read back first.
2. If a change fails, the attachment is in trouble. The change is tried again after `RETRY_FIRST`
   seconds, then after twice as long each time, up to `RETRY_MOST`. It is tried at once if something
   else is desired, because that may be a revocation.
3. An attachment in trouble does not affect others: they are changed, and counted as agreeing,
   without it.
"""

from __future__ import annotations

import asyncio

from netconf.attach.attachment import Attachment
from netconf.program.desired import EMPTY, Desired

RETRY_FIRST = 1.0
"""Seconds. By then a namespace that was being taken down is gone, and memory may be free again."""
RETRY_MOST = 60.0
"""Seconds. A secret may be missing for days, and each try writes a line to the log; but an operator
who puts it back has to wait for the next try."""


class Entry:
    """One attachment, as the reconciler knows it."""

    def __init__(self, attachment: Attachment, programmed: Desired | None) -> None:
        self.attachment = attachment
        self.desired: Desired = EMPTY
        self.programmed = programmed
        self.task: asyncio.Task[None] | None = None
        """The task that changes the kernel to `desired`, while it runs."""
        self.failures = 0
        """The number of changes that failed since the last that succeeded."""
        self.retry_at = 0.0
        """When to try again, by the clock of the caller of `failed` and `due`."""
        self.error = ""
        self._failed: Desired | None = None

    @property
    def agrees(self) -> bool:
        """Whether the kernel was last told exactly what is desired."""
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
        """Note that the change to `wanted` failed; tell whether that deserves a log line."""
        news = error != self.error or now >= self.retry_at
        pause = min(RETRY_FIRST * 2**self.failures, RETRY_MOST)
        self.failures += 1
        self.error, self._failed, self.programmed = error, wanted, None
        self.retry_at = now + pause
        return news

    def done(self, wanted: Desired) -> bool:
        """Note that the change to `wanted` succeeded; tell whether there had been failures."""
        recovered = self.failures > 0
        self.programmed, self.failures, self.error, self._failed = wanted, 0, "", None
        return recovered
