"""Opens the fabric at the start, and waits if its address is not there yet.

1. If the address of ``fabric.listen`` is not this node's yet, or another process has the port, the
   daemon tries again and says so in the log; it does not end. Meanwhile its containers are served
   with the records from disk.
2. If the identity cannot be used at the first attempt, the daemon does not start: InvalidConfig is
   raised at once. Later its files may be just being replaced, so the daemon tries again as well.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from daemon.fabric.interface import Fabric, FabricError, Listener
from daemon.journal import Journal
from daemon.news import News
from daemon.process.tasks import Tasks
from netconf.errors import InvalidConfig

AGAIN = 1.0
"""Seconds between two attempts; one costs some milliseconds."""

JOIN_FOR = 5.0
"""Seconds that a start waits for the fabric before it goes on without it; usually it takes
milliseconds."""


async def join(
    fabric: Fabric,
    listener: Listener,
    tasks: Tasks,
    journal: Journal,
    joined: Callable[[], None],
    *,
    within: float = JOIN_FOR,
    again: float = AGAIN,
) -> None:
    """Open `fabric`, trying every `again` seconds; after `within` seconds, in the background.

    `joined` is called once it is open. InvalidConfig if the identity is unusable at first.
    """
    opening = tasks.start("joining the fabric", _open(fabric, listener, journal, joined, again))
    await asyncio.wait({opening}, timeout=within)
    if opening.done():
        opening.result()


async def _open(
    fabric: Fabric,
    listener: Listener,
    journal: Journal,
    joined: Callable[[], None],
    again: float,
) -> None:
    news = News()
    first = True
    while True:
        try:
            await fabric.open(listener)
        except (FabricError, InvalidConfig) as error:
            if first and isinstance(error, InvalidConfig):
                raise
            first = False
            for why in news.tell(time.monotonic(), [error.message]):
                journal.warning("fabric not joined", waiting=why, details=error.details)
            await asyncio.sleep(again)
        else:
            joined()
            return
