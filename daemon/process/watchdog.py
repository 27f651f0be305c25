"""Tells the service manager that this daemon makes progress, as long as it does.

1. The event loop makes progress if this loop runs. The workers make progress unless every thread
   of some pool has been in the same call for `STUCK_AFTER` seconds.
2. The service manager ends and restarts a daemon that it has not heard from for ``WatchdogSec``
   (sd_watchdog_enabled(3)). The kernel goes on meanwhile, and the next daemon adopts everything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from daemon.journal import Journal
from daemon.process import systemd
from daemon.process.workers import Pool

STUCK_AFTER = 120.0
"""Seconds. A call waits at most 10 s for a lock and 30 s for the kernel's answer; reading the
counters of a thousand containers takes half a minute on a slow board."""
LOOK_EVERY = 10.0
"""Seconds between looks, unless the service manager wants to hear more often."""


class Watchdog:
    """Watches the pools of one daemon."""

    def __init__(
        self,
        pools: Iterable[Pool],
        journal: Journal,
        tell: Callable[[str], None] = systemd.tell,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`tell` sends a state to the service manager; `clock` must be the one of the pools."""
        self._pools = tuple(pools)
        self._journal = journal
        self._tell = tell
        self._clock = clock
        self._stuck: list[str] = []

    async def watch(self) -> None:
        """Call `look` again and again; runs until cancelled."""
        pause = min(LOOK_EVERY, (systemd.watchdog() or 3 * LOOK_EVERY) / 3)
        while True:
            self.look()
            await asyncio.sleep(pause)

    def look(self) -> None:
        """Send ``WATCHDOG=1`` unless a pool is stuck; log when one becomes stuck."""
        before = self._clock() - STUCK_AFTER
        stuck = [pool.name for pool in self._pools if pool.stuck(before)]
        if not stuck:
            self._tell("WATCHDOG=1")
        elif stuck != self._stuck:
            self._journal.error("workers are stuck", pools=stuck, seconds=STUCK_AFTER)
        self._stuck = stuck
