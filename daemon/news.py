"""Decides which faults get a line in the log. Pure; time is an argument.

1. A fault is logged when it appears, and again every `REMIND` seconds while it lasts. So a fault
   that comes back each second, because somebody undoes each repair, does not fill the log.
2. A fault that was not seen for `FORGET` seconds is new when it comes back.
"""

from __future__ import annotations

from collections.abc import Iterable

FORGET = 30.0
"""Seconds: longer than any pause between two looks, and short enough that a fault which comes back
after an operator's repair is logged again."""

REMIND = 600.0
"""Seconds between two lines about the same fault."""


class News:
    """Remembers which faults were seen and logged, and when."""

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}
        self._said: dict[str, float] = {}

    def tell(self, now: float, things: Iterable[str]) -> list[str]:
        """Return those of the `things` seen at the time `now` (seconds) that are to be logged."""
        told = []
        for thing in things:
            fresh = now - self._seen.get(thing, now - 2 * FORGET) > FORGET
            self._seen[thing] = now
            if fresh or now - self._said[thing] >= REMIND:
                self._said[thing] = now
                told.append(thing)
        for thing in [each for each, seen in self._seen.items() if now - seen > REMIND]:
            del self._seen[thing], self._said[thing]
        return told
