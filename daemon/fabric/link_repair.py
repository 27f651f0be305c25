"""Links without tokens: the sign of a session that zenoh has split. Pure; time is given.

zenoh 1.10 (its issue 2806): when two nodes dial each other and only one lets its lease run
out, the other adds the new link to the session it still has and never declares its token,
subscriptions and queryable again. Such a link carries nothing towards us, for ever. The
side that let go sees a linked peer that is not alive; reopening its own session, which
closes properly, makes the other begin anew.

1. A peer that is linked but not alive for `PATIENCE` is split from us.
2. Reopening for one peer is tried less and less often, because it drops the links to all others,
   and a peer that merely declares no token must not keep us busy (``damping``).
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
"""Seconds. Who is split every two minutes, on a poor link, is mended without delay each time; who
shows and hides its token all the time costs the others one reopening in a minute and a half."""


class LinkRepair:
    """Tells when to reopen the session."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._damping = Damping(PAUSE, PAUSE_LIMIT, HALF_LIFE)

    def look(self, linked: frozenset[str], alive: frozenset[str], now: float) -> frozenset[str]:
        """Return the peers to reopen for; empty if there is nothing to do now."""
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
