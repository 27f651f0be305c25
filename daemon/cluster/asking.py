"""When one peer is asked, and for how much. Pure; time is given.

1. A peer that appeared is *owed* a question for everything, until it has answered. One that
   returned before it counted as gone is asked for its manifest; so is everyone when our own
   session was replaced.
2. A peer whose manifest *lists* what is not here is asked for that.
3. A peer that said what cannot be judged with what is known of it (a record may overtake the
   info whose certificate it needs) is *puzzling*, and asked for everything.
4. One question at a time per peer. Reasons that come meanwhile are good for one more, and a
   question that got no answer stays a reason as long as the peer is there.
5. `ASK_BURST` questions may follow each other at once; after that one every `ASK_EVERY`. Each
   answer that brings nothing, although the peer's own words were the reason, doubles that pause
   up to `ASK_LIMIT`, until one brings something: a peer that claims what it does not have costs
   little more than its own traffic, however long it goes on. Puzzles have a pace of their own:
   where the fabric does not pin names, anyone can set them in anyone's name.
"""

from __future__ import annotations

from enum import Enum

from daemon.cluster.quotas import Bucket

ASK_BURST = 3
"""For everything or the manifest, for what that lists, and for what overtook it meanwhile."""
ASK_EVERY = 2.0
"""Seconds; well below the manifests' 10, so that what one of them shows is never put off to
the next."""
ASK_LIMIT = 60.0
"""Seconds between two questions to a peer whose answers bring nothing."""


class Reason(Enum):
    """Why a peer is asked."""

    OWED = "owed"
    RETURNED = "returned"
    LISTED = "listed"
    PUZZLING = "puzzling"


class _Pace:
    """A bucket whose pause grows as long as what it allows is of no use (rule 5)."""

    def __init__(self) -> None:
        self.bucket = Bucket(ASK_BURST, ASK_EVERY)
        self._useless = 0

    def judge(self, useful: bool) -> None:
        self._useless = 0 if useful else self._useless + 1
        pause = ASK_EVERY * 2.0 ** min(max(0, self._useless - 1), 16)
        self.bucket.pause = min(pause, ASK_LIMIT)


class Asking:
    """What one peer is still to be asked."""

    def __init__(self) -> None:
        self.reasons: set[Reason] = set()
        self._known = _Pace()
        self._puzzles = _Pace()

    def wait(self, now: float) -> float:
        """Return the seconds until one of the reasons may be followed."""
        return min(self._pace(reason).bucket.wait(now) for reason in self.reasons)

    def begin(self, now: float) -> Reason:
        """Return the reason that is followed now; call it when `wait` says 0."""
        for reason in Reason:
            if reason in self.reasons and self._pace(reason).bucket.take(now):
                self.reasons.discard(reason)
                if reason is Reason.OWED:  # it is asked for everything anyway
                    self.reasons.clear()
                return reason
        raise ValueError("there is nothing to ask yet")

    def answered(self, reason: Reason, useful: bool) -> None:
        """The whole answer was judged; `useful` if it changed anything that is known, or there is
        no such reason any more."""
        if reason in (Reason.LISTED, Reason.PUZZLING):
            self._pace(reason).judge(useful)

    def _pace(self, reason: Reason) -> _Pace:
        return self._puzzles if reason is Reason.PUZZLING else self._known
