"""Joining the fabric when its address comes late.

1. Where the address of ``fabric.listen`` is not this node's yet, or something else holds the
   port, the daemon waits and says so; it does not end. Its containers are served meanwhile with
   what it knows from disk.
2. An identity that cannot be used is a mistake that no time mends: InvalidConfig at once.
"""

from __future__ import annotations

import asyncio
import time

from daemon.fabric.interface import Fabric, FabricError, Listener
from daemon.journal import Journal
from daemon.news import News

AGAIN = 1.0
"""Seconds between two attempts; one costs some milliseconds."""


async def join(fabric: Fabric, listener: Listener, journal: Journal, again: float = AGAIN) -> None:
    """Open `fabric`, trying `again` and again every so many seconds."""
    news = News()
    while True:
        try:
            await fabric.open(listener)
        except FabricError as error:
            for why in news.tell(time.monotonic(), [error.message]):
                journal.warning("fabric not joined", waiting=why, details=error.details)
            await asyncio.sleep(again)
        else:
            return
