"""Finds the endpoints at which no daemon listens, so that a starting node need not wait for those.

1. If a kernel refuses a connection to a fabric endpoint, no daemon listens there.
2. If nothing answers at an endpoint for `SILENT_FOR` seconds, it cannot be reached. A shorter
   silence proves nothing, because this node's own links may still be coming up.
3. If a connection is accepted, a daemon is there, even if the fabric's link is not up yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from daemon.liveness.probe import Addresses, Probe, probe

PROBE_WITHIN = 0.4
"""Seconds that a kernel has to answer a SYN."""
SILENT_FOR = 3.0
"""Seconds: enough for a link to negotiate and for the fabric, which dials twice a second."""


class Absence:
    """Probes endpoints, and remembers what was found at each."""

    def __init__(
        self,
        clock: Callable[[], float],
        probe: Callable[[str], Awaitable[Probe]] | None = None,
    ) -> None:
        """`clock` returns seconds; `probe` connects to an endpoint ``tls/HOST:PORT``."""
        self._clock = clock
        self._probe = probe or self._connect
        self._addresses = Addresses()
        self._learning: asyncio.Future[None] | None = None
        self._found: dict[str, Probe] = {}
        self._silent_since: dict[str, float] = {}

    async def look(self, endpoints: Iterable[str]) -> None:
        """Probe all `endpoints` (``tls/HOST:PORT``) at the same time."""
        wanted = tuple(dict.fromkeys(endpoints))
        began = self._clock()
        if self._learning is None or self._learning.done():
            self._learning = asyncio.ensure_future(self._addresses.learn(wanted, began))
        # Endpoints that are addresses need no look-up; for names, wait as long as for a kernel.
        await asyncio.wait([self._learning], timeout=PROBE_WITHIN)
        found = await asyncio.gather(*map(self._probe, wanted))
        for endpoint, what in zip(wanted, found, strict=True):
            self._found[endpoint] = what
            if what is Probe.SILENT:
                self._silent_since.setdefault(endpoint, began)
            else:
                self._silent_since.pop(endpoint, None)

    def absent(self, endpoints: Iterable[str]) -> bool:
        """Tell whether there is no daemon at any of `endpoints`; True if there are no endpoints."""
        return all(map(self._absent, endpoints))

    def _absent(self, endpoint: str) -> bool:
        since = self._silent_since.get(endpoint)
        if since is not None:
            return self._clock() - since >= SILENT_FOR
        return self._found.get(endpoint) is Probe.REFUSED

    async def _connect(self, endpoint: str) -> Probe:
        """Probe all addresses of an endpoint. An invalid one, or one whose name has not been looked
        up yet, counts as silent."""
        found = await asyncio.gather(
            *(probe(address, port, PROBE_WITHIN) for address, port in self._addresses.of(endpoint))
        )
        for answer in (Probe.ANSWERS, Probe.REFUSED):
            if answer in found:
                return answer
        return Probe.SILENT
