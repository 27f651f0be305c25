"""Where no daemon listens: what a node that has just started need not wait for.

1. Where a kernel refuses a connection to the fabric's endpoint, no daemon is there now.
2. Where nothing answers for `SILENT_FOR`, nobody can be reached. Not earlier: this node's own
   links may still be coming up.
3. Where a connection is accepted, a daemon is there, though the fabric's link may be yet to come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from daemon.liveness.probe import Addresses, Probe, probe

PROBE_WITHIN = 0.4
"""Seconds a kernel has to answer a SYN."""
SILENT_FOR = 3.0
"""Seconds; a link that negotiates and a fabric that dials every half second fit in."""


class Absence:
    """What was found at the endpoints that were looked at."""

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
        """Probe all `endpoints`, side by side."""
        wanted = tuple(dict.fromkeys(endpoints))
        began = self._clock()
        if self._learning is None or self._learning.done():
            self._learning = asyncio.ensure_future(self._addresses.learn(wanted, began))
        # Addresses are known at once; a name server has as long as a kernel.
        await asyncio.wait([self._learning], timeout=PROBE_WITHIN)
        found = await asyncio.gather(*map(self._probe, wanted))
        for endpoint, what in zip(wanted, found, strict=True):
            self._found[endpoint] = what
            if what is Probe.SILENT:
                self._silent_since.setdefault(endpoint, began)
            else:
                self._silent_since.pop(endpoint, None)

    def absent(self, endpoints: Iterable[str]) -> bool:
        """Tell whether no daemon is at any of `endpoints`; True for none at all."""
        return all(map(self._absent, endpoints))

    def _absent(self, endpoint: str) -> bool:
        since = self._silent_since.get(endpoint)
        if since is not None:
            return self._clock() - since >= SILENT_FOR
        return self._found.get(endpoint) is Probe.REFUSED

    async def _connect(self, endpoint: str) -> Probe:
        """Probe all addresses of an endpoint; one that makes no sense, or whose name is not known
        yet, is silent."""
        found = await asyncio.gather(
            *(probe(address, port, PROBE_WITHIN) for address, port in self._addresses.of(endpoint))
        )
        for answer in (Probe.ANSWERS, Probe.REFUSED):
            if answer in found:
                return answer
        return Probe.SILENT
