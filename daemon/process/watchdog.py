"""Telling the service manager that this daemon makes progress, and only as long as it does.

1. The event loop makes progress if this loop runs. The workers make progress unless all threads
   of a pool have been in one call each for `STUCK_AFTER` seconds.
2. The service manager ends and restarts a daemon that it has not heard from for ``WatchdogSec``
   (sd_watchdog_enabled(3)); the kernel goes on meanwhile, and the next start adopts everything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from daemon.journal import Journal
from daemon.process import systemd
from daemon.process.workers import Pool

STUCK_AFTER = 120.0
"""A call waits at most 10 s for a lock and 30 s for the kernel's answer; reading what a thousand
containers refused takes half a minute on a slow board."""
LOOK_EVERY = 10.0
"""Seconds, where no service manager asks for more."""


class Watchdog:
    """Watches the pools of one daemon."""

    def __init__(
        self,
        pools: Iterable[Pool],
        journal: Journal,
        tell: Callable[[str], None] = systemd.tell,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`tell` reaches the service manager; `clock` is that of the pools."""
        self._pools = tuple(pools)
        self._journal = journal
        self._tell = tell
        self._clock = clock
        self._stuck: list[str] = []

    async def watch(self) -> None:
        """Look, and tell; runs until cancelled."""
        pause = min(LOOK_EVERY, (systemd.watchdog() or 3 * LOOK_EVERY) / 3)
        while True:
            self.look()
            await asyncio.sleep(pause)

    def look(self) -> None:
        """Tell the service manager that all is well, unless it is not."""
        before = self._clock() - STUCK_AFTER
        stuck = [pool.name for pool in self._pools if pool.stuck(before)]
        if not stuck:
            self._tell("WATCHDOG=1")
        elif stuck != self._stuck:
            self._journal.error("workers are stuck", pools=stuck, seconds=STUCK_AFTER)
        self._stuck = stuck
