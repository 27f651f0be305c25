"""Decides when one peer is asked for records, and for which. Pure; time is an argument.

1. A peer that has just appeared is asked for everything, until it has answered (`Reason.OWED`).
   A peer that returned before it counted as gone is asked for its manifest (`Reason.RETURNED`);
   so is every peer when our own session was replaced.
2. A peer whose manifest lists records that we do not hold is asked for those (`Reason.LISTED`).
3. A peer is asked for everything if it published a record that we cannot verify with what we know
   of the peer (`Reason.PUZZLING`): a record may arrive before the info whose certificate it needs.
4. A peer is asked one question at a time. All reasons that come up meanwhile lead to one more
   question. If a question is not answered, its reason remains as long as the peer is there.
5. `ASK_BURST` questions may follow each other at once; after that there is one every `ASK_EVERY`
   seconds. If the peer's own words were the reason, but its answer changed nothing, that pause
   doubles, up to `ASK_LIMIT`, until an answer does change something. So a peer that claims to have
   what it does not have costs us little more than its own traffic. Puzzling records have a pace of
   their own, because where the fabric does not pin names anyone can publish them in the name of
   any node.
"""

from __future__ import annotations

from enum import Enum

from daemon.cluster.quotas import Bucket

ASK_BURST = 3
"""Questions: one for everything or the manifest, one for what the manifest lists, and one for
records that were published meanwhile."""
ASK_EVERY = 2.0
"""Seconds. Manifests come every 10 s; what one of them shows is asked for before the next."""
ASK_LIMIT = 60.0
"""Seconds between two questions to a peer whose answers bring nothing."""


class Reason(Enum):
    """Why a peer is asked (rules 1 to 3); where several apply, the first of them goes first."""

    OWED = "owed"
    RETURNED = "returned"
    LISTED = "listed"
    PUZZLING = "puzzling"


class _Pace:
    """A bucket whose pause doubles with each question that was of no use (rule 5)."""

    def __init__(self) -> None:
        self.bucket = Bucket(ASK_BURST, ASK_EVERY)
        self._useless = 0

    def judge(self, useful: bool) -> None:
        self._useless = 0 if useful else self._useless + 1
        pause = ASK_EVERY * 2.0 ** min(max(0, self._useless - 1), 16)
        self.bucket.pause = min(pause, ASK_LIMIT)


class Asking:
    """The reasons for which one peer is still to be asked, and how soon it may be."""

    def __init__(self) -> None:
        self.reasons: set[Reason] = set()
        self._known = _Pace()
        self._puzzles = _Pace()

    def wait(self, now: float) -> float:
        """Return the seconds until a question for one of the reasons may be sent; 0 for now."""
        return min(self._pace(reason).bucket.wait(now) for reason in self.reasons)

    def begin(self, now: float) -> Reason:
        """Take and return the reason for the question to send now; call it when `wait` says 0.

        Raises ValueError if no question may be sent yet.
        """
        for reason in Reason:
            if reason in self.reasons and self._pace(reason).bucket.take(now):
                self.reasons.discard(reason)
                if reason is Reason.OWED:  # the answer brings what all other reasons ask for
                    self.reasons.clear()
                return reason
        raise ValueError("there is nothing to ask yet")

    def answered(self, reason: Reason, useful: bool) -> None:
        """Note that a question for `reason` was answered, and the whole answer judged.

        `useful` tells whether the answer changed anything here, or the reason has gone.
        """
        if reason in (Reason.LISTED, Reason.PUZZLING):
            self._pace(reason).judge(useful)

    def _pace(self, reason: Reason) -> _Pace:
        return self._puzzles if reason is Reason.PUZZLING else self._known
