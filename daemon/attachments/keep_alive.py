"""Sends frames for replicas that are silent, so that the mesh does not forget their MACs.

batman-adv forgets a client that sent nothing for 600 s (BATADV_TT_LOCAL_TIMEOUT,
net/batman-adv/main.h). It learns the source MAC of the frame that `netconf.frames.keep_alive`
sends; the frame itself is addressed to nobody, so every node drops it.
"""

from __future__ import annotations

import asyncio

from daemon.attachments.registry import Registry
from daemon.journal import Journal
from daemon.process.workers import Pool
from netconf import frames
from netconf.errors import NoctuleError

KEEP_ALIVE_EVERY = 200.0
"""Seconds between frames: two in a row may be lost before the 600 s are over."""


class KeepAlive:
    """Sends one frame with the MAC of each attachment every `KEEP_ALIVE_EVERY` seconds."""

    def __init__(self, registry: Registry, pool: Pool, journal: Journal) -> None:
        self._registry = registry
        self._pool = pool
        self._journal = journal

    async def watch(self) -> None:
        """Send, again and again; runs until cancelled."""
        while True:
            await asyncio.sleep(KEEP_ALIVE_EVERY)
            for attachment in [*self._registry.values(), *self._registry.opaque.values()]:
                try:
                    await self._pool.run(frames.keep_alive, attachment.mac)
                except (NoctuleError, OSError) as error:
                    self._journal.warning("keep-alive", attachment=attachment.id, error=str(error))
