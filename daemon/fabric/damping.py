"""Limits how often one peer may cause our session to be replaced. Pure; time is an argument.

Replacing a session drops the links to all peers for a moment, so a single peer must not decide how
often that happens. As in RFC 2439 (route flap damping), each time adds a point to the penalty of
the peer that caused it. The penalty decays by half every `half_life`, and each point doubles the
pause before that peer may cause the next replacement:

1. What a peer causes for the first time in a while is followed at once.
2. If it goes on, it is followed less and less often, down to once every `limit`.
3. Each peer has a penalty of its own, so that no peer waits because of another.
"""

from __future__ import annotations

import math


class Damping:
    """The penalties of all peers."""

    def __init__(self, pause: float, limit: float, half_life: float) -> None:
        """All in seconds: the first `pause`, the longest one (`limit`), and the `half_life`."""
        self._pause = pause
        self._limit = limit
        self._half_life = half_life
        self._penalties: dict[str, tuple[float, float]] = {}
        """By peer: its penalty when it last caused something, and when that was."""

    def wait(self, peer: str, now: float) -> float:
        """Return the seconds until what `peer` causes may be followed; 0 if at once."""
        if peer not in self._penalties:
            return 0.0
        penalty, since = self._penalties[peer]
        pause = min(self._pause * math.exp2(min(penalty - 1.0, 32.0)), self._limit)
        return max(0.0, since + pause - now)

    def caused(self, peer: str, now: float) -> None:
        """Note that the session is replaced because of `peer`."""
        penalty, since = self._penalties.get(peer, (0.0, now))
        left = penalty * math.exp2(-max(0.0, now - since) / self._half_life)
        self._penalties[peer] = (left + 1.0, now)
