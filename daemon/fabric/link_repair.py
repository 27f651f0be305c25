"""Detects links that carry nothing, so that the session is reopened. Pure; time is an argument.

This works around a fault of zenoh 1.10 (its issue 2806). If two nodes dial each other and the lease
expires on one of them only, the other adds the new link to the session that it still has, and never
declares its token, subscriptions and queryable again. Such a link carries nothing towards the first
node, for ever. That node sees a peer that is linked but has no token. If it reopens its own
session, which closes the old one properly, the other node begins anew.

1. A peer that has been linked without being alive for `PATIENCE` seconds is split from us.
2. The session is reopened for one peer less and less often (``damping``), because that drops the
   links to all others, and a peer that just declares no token must not keep us busy.
"""

from __future__ import annotations

from daemon.fabric.damping import Damping

CHECK = 0.5
"""Seconds between two looks at the links."""

PATIENCE = 1.0
"""Seconds. A token follows its link within 10 ms; a busy machine may take a tenth of this."""

PAUSE = 5.0
"""Seconds after the first reopening."""

PAUSE_LIMIT = 300.0
"""Seconds at most between two reopenings for one peer."""

HALF_LIFE = 300.0
"""Seconds. A peer that is split every two minutes, on a poor link, is mended without delay each
time. One that shows and hides its token all the time causes one reopening in 90 seconds."""


class LinkRepair:
    """Decides when to reopen the session."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._damping = Damping(PAUSE, PAUSE_LIMIT, HALF_LIFE)

    def look(self, linked: frozenset[str], alive: frozenset[str], now: float) -> frozenset[str]:
        """Return the peers for which to reopen the session now; empty for none."""
        self._since = {node: self._since.get(node, now) for node in linked - alive}
        split = frozenset(
            node
            for node, since in self._since.items()
            if now - since >= PATIENCE and self._damping.wait(node, now) <= 0
        )
        for node in split:
            self._damping.caused(node, now)
        if split:
            self._since.clear()
        return split
