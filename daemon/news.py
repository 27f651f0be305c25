"""Which of the things that are wrong are worth a line in the log. Pure; time is given.

1. What is wrong is said when it appears, and again every `REMIND` seconds while it lasts: a
   thing that somebody else undoes each second must not fill the log.
2. What was not seen for `FORGET` seconds is news when it comes back.
"""

from __future__ import annotations

from collections.abc import Iterable

FORGET = 30.0
"""Seconds: longer than any pause between two looks, shorter than a person's patience."""

REMIND = 600.0
"""Seconds between two lines about the same thing."""


class News:
    """Remembers what was said."""

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}
        self._said: dict[str, float] = {}

    def tell(self, now: float, things: Iterable[str]) -> list[str]:
        """Return which of the `things` seen at the time `now` are to be said."""
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
