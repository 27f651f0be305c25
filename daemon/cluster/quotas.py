"""How much one peer may cost this node: questions by rate, log lines by interval. Time is given.

1. A `Bucket` (RFC 2697 calls its two figures rate and burst) allows a burst at once, and then
   one more per pause.
2. Names that peers give themselves are bounded: beyond `NAMES_MAX` all further names share one
   bucket, so that inventing names neither grows this process nor buys anything.
3. Whatever is refused often is logged once per interval and name, with how often it happened
   since; a peer that floods must not flood the log as well.
"""

from __future__ import annotations

from collections import Counter

NAMES_MAX = 1_024
"""Names that are told apart: more nodes than a mesh carries."""
LOG_EVERY = 60.0
"""Seconds between two lines about the same trouble of the same peer."""


class Bucket:
    """Allows `burst` at once and one more every `pause` seconds."""

    def __init__(self, burst: int, pause: float) -> None:
        self.pause = pause
        self._burst = burst
        self._tokens = float(burst)
        self._filled = 0.0

    def wait(self, now: float) -> float:
        """Return the seconds until `take` will be allowed; 0 if it is now."""
        missing = 1.0 - self._level(now)
        # A wait that ends a rounding error too early would have to be waited for again.
        return max(0.0, missing * self.pause + 1e-6) if missing > 0 else 0.0

    def take(self, now: float) -> bool:
        """Use one; False if there is none."""
        level = self._level(now)
        if level < 1.0:
            return False
        self._tokens, self._filled = level - 1.0, now
        return True

    def _level(self, now: float) -> float:
        return min(float(self._burst), self._tokens + max(0.0, now - self._filled) / self.pause)


class Quotas:
    """One bucket for each name."""

    def __init__(self, burst: int, pause: float) -> None:
        self._burst = burst
        self._pause = pause
        self._buckets: dict[str, Bucket] = {}

    def take(self, name: str, now: float) -> bool:
        """Use one of `name`'s; False if it has none."""
        if name not in self._buckets and len(self._buckets) >= NAMES_MAX:
            name = ""
        bucket = self._buckets.setdefault(name, Bucket(self._burst, self._pause))
        return bucket.take(now)


class Complaints:
    """Tells when trouble is worth a line in the log."""

    def __init__(self) -> None:
        self._logged: dict[tuple[str, str], float] = {}
        self._since: Counter[tuple[str, str]] = Counter()

    def note(self, name: str, trouble: str, now: float) -> int:
        """Count one case; return how many to log now, this one included, or 0 for no line."""
        about = (name, trouble)
        if about not in self._logged and len(self._logged) >= NAMES_MAX:
            about = ("", trouble)
        self._since[about] += 1
        last = self._logged.get(about)
        if last is not None and now - last < LOG_EVERY:
            return 0
        self._logged[about] = now
        return self._since.pop(about)
