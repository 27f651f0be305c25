"""How often one peer may have everybody's session replaced. Pure; time is given.

Replacing a session drops the links to all peers for a moment, so what one peer does must not
decide how often that happens. As in RFC 2439 (route flap damping), each time costs the peer that
caused it a penalty that decays by half every `half_life`, and each point of penalty doubles the
pause before the next time:

1. What a peer causes for the first time in a while is followed at once.
2. A peer that goes on is followed less and less, down to once every `limit`.
3. Each peer has a penalty of its own: who behaves never waits for who does not.
"""

from __future__ import annotations

import math


class Damping:
    """The penalties of all peers."""

    def __init__(self, pause: float, limit: float, half_life: float) -> None:
        """All in seconds: the pause after the first time, the longest, and the penalty's decay."""
        self._pause = pause
        self._limit = limit
        self._half_life = half_life
        self._penalties: dict[str, tuple[float, float]] = {}
        """By peer: the penalty, and when it was that."""

    def wait(self, peer: str, now: float) -> float:
        """Return the seconds until what `peer` causes may be followed; 0 if at once."""
        if peer not in self._penalties:
            return 0.0
        penalty, since = self._penalties[peer]
        pause = min(self._pause * math.exp2(min(penalty - 1.0, 32.0)), self._limit)
        return max(0.0, since + pause - now)

    def caused(self, peer: str, now: float) -> None:
        """The session is replaced because of `peer`."""
        penalty, since = self._penalties.get(peer, (0.0, now))
        left = penalty * math.exp2(-max(0.0, now - since) / self._half_life)
        self._penalties[peer] = (left + 1.0, now)
