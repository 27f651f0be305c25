"""Limits what one peer may cost this node: its questions and its log lines. Time is an argument.

1. A `Bucket` allows a burst at once, and after that one more per pause (a token bucket, RFC 2697).
2. The number of names is limited, because peers choose them: all names beyond the first
   `NAMES_MAX` share one bucket. So a peer that invents names neither grows this process nor gets a
   larger quota.
3. Trouble that repeats is logged once per `LOG_EVERY` seconds and name, with the number of times
   that it happened since. So a peer that floods does not flood the log as well.
"""

from __future__ import annotations

from collections import Counter

NAMES_MAX = 1_024
"""Names that have quotas of their own: more than there are nodes in a mesh."""
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
        # Add a microsecond, so that a rounding error does not end the wait just too early.
        return max(0.0, missing * self.pause + 1e-6) if missing > 0 else 0.0

    def take(self, now: float) -> bool:
        """Take one token; False if there is none."""
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
        """Take one token of `name`; False if it has none."""
        if name not in self._buckets and len(self._buckets) >= NAMES_MAX:
            name = ""
        bucket = self._buckets.setdefault(name, Bucket(self._burst, self._pause))
        return bucket.take(now)


class Complaints:
    """Decides when trouble with a peer gets a log line (rule 3)."""

    def __init__(self) -> None:
        self._logged: dict[tuple[str, str], float] = {}
        self._since: Counter[tuple[str, str]] = Counter()

    def note(self, name: str, trouble: str, now: float) -> int:
        """Count one case of `trouble` with the peer `name`.

        Returns how many cases to log now, this one included; 0 for no log line.
        """
        about = (name, trouble)
        if about not in self._logged and len(self._logged) >= NAMES_MAX:
            about = ("", trouble)
        self._since[about] += 1
        last = self._logged.get(about)
        if last is not None and now - last < LOG_EVERY:
            return 0
        self._logged[about] = now
        return self._since.pop(about)
