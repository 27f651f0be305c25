"""Which nodes live: telling a dead daemon from a dead node.

1. A token that vanished means that the daemon is gone. Only when the node's kernel does not
   answer either (`probe`: not even with a reset) is the node lost and its replicas leave; a
   daemon that crashed or is being upgraded costs nobody a connection.
2. A lost node comes back with its daemon, not with its kernel: after a reboot its replicas are
   gone, and nobody but its daemon can say so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from daemon.cluster.probe import Probe, probe
from daemon.journal import Journal
from daemon.model.store import Store
from daemon.tasks import Tasks
from netconf.errors import InvalidConfig

PROBE_WITHIN = 0.4
"""Seconds a kernel has to answer a SYN, retransmission not included: slow radio included."""
PROBE_TRIES = 2
"""A single lost SYN is no death."""
PROBE_EVERY = 2.0
"""Seconds between looks at a node whose daemon is gone and whose kernel answered."""


class Liveness:
    """What this node believes about who lives."""

    def __init__(
        self, node: str, store: Store, *, changed: Callable[[], object], journal: Journal
    ) -> None:
        """`node` is this one; `changed` is called when a node was lost or came back."""
        self._node = node
        self._store = store
        self._changed = changed
        self._journal = journal
        self._tasks = Tasks(journal)
        self._watching: dict[str, asyncio.Task[None]] = {}
        self.alive: set[str] = {node}
        """Nodes whose daemon's token is present, this one included."""
        self.lost: set[str] = set()
        """Nodes whose replicas count no more."""
        self.judged: set[str] = set()
        """Nodes that were found with or without a living kernel since this daemon started."""

    def appeared(self, node: str) -> None:
        """The token of `node` is there: its daemon runs."""
        self.alive.add(node)
        if watching := self._watching.pop(node, None):
            watching.cancel()
        if node in self.lost:
            self.lost.discard(node)
            self._journal.info("node back", peer=node)
            self._changed()
        self._journal.info("peer alive", peer=node)

    def vanished(self, node: str) -> None:
        """The token of `node` is gone: find out why."""
        self.alive.discard(node)
        self._journal.warning("peer silent", peer=node)
        self.watch(node)

    def watch(self, node: str) -> None:
        """`node` has no token: find out whether its kernel lives, until its token returns."""
        if node not in self._watching and node != self._node:
            self._watching[node] = self._tasks.start(f"watch {node}", self._watch(node))

    async def close(self) -> None:
        """End all that runs."""
        await self._tasks.close()

    async def _watch(self, node: str) -> None:
        while True:
            if node not in self.lost and not await self._answers(node):
                self.lost.add(node)
                self._journal.warning("node lost", peer=node)
                self._changed()
            self.judged.add(node)
            await asyncio.sleep(PROBE_EVERY)

    async def _answers(self, node: str) -> bool:
        """Tell whether the kernel of `node` answers at any endpoint of its record."""
        info = self._store.infos().get(node)
        endpoints = info.endpoints if info is not None else ()
        for _ in range(PROBE_TRIES):
            found = await asyncio.gather(*map(_probe, endpoints))
            if any(answer is not Probe.SILENT for answer in found):
                return True
        return False


async def _probe(endpoint: str) -> Probe:
    try:
        return await probe(endpoint, PROBE_WITHIN)
    except (InvalidConfig, ValueError):  # what a node says of itself need not make sense
        return Probe.SILENT
