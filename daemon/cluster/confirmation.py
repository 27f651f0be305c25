"""What became of one record at a node that it was brought to.

1. A node answers `Confirm` with an `Ack`: the words of ``store.Outcome``, or `LATE`. Those words
   are the contract between releases; one that is not known here means that the node refused.
2. ``live`` is said of a kernel only: the node holds this very record, and its sets agree.
3. A node that held the record when its pass began may hold a newer one when it ends. So whether
   it is still held is asked of the store after the pass, not before.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from daemon.api.messages import NodeOutcome, Reached
from daemon.model.records import Ack, Answer
from daemon.model.store import Outcome

BELIEVED = (Outcome.ACCEPTED, Outcome.KNOWN)
LATE = "not programmed yet"
"""The outcome of a Confirm whose record was believed."""


class Confirmation(msgspec.Struct, frozen=True):
    """What one node made of a record."""

    outcome: Reached
    reason: str = ""
    """Of every outcome but ``live``, in words."""
    seconds: float = 0.0
    """Until the answer, as measured here."""

    @property
    def live(self) -> bool:
        """Whether the node's kernel agrees with the record."""
        return self.outcome == "live"

    def of(self, node: str) -> NodeOutcome:
        """Return it as the API tells it."""
        ms = self.seconds * 1e3 if self.live else None
        return NodeOutcome(node=node, outcome=self.outcome, ms=ms, reason=self.reason)


def read(answers: Iterable[Answer], seconds: float) -> Confirmation:
    """Return what the `answers` of a node mean, which took `seconds`."""
    ack = next((answer for answer in answers if isinstance(answer, Ack)), None)
    if ack is None:
        return Confirmation("unreachable", "it answered something else", seconds)
    if ack.outcome in BELIEVED:
        return Confirmation("live", seconds=seconds)
    if ack.outcome == LATE:
        return Confirmation("accepted", ack.reason or "its kernel does not agree yet", seconds)
    if ack.outcome == Outcome.STALE:
        return Confirmation("stale", ack.reason or "it holds a newer version", seconds)
    reason = f"{ack.outcome}: {ack.reason}" if ack.reason else ack.outcome
    return Confirmation("refused", reason, seconds)
