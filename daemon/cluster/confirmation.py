"""What another node did with a record that it was sent in a `Confirm`.

1. A node answers `Confirm` with an `Ack`, whose outcome is a value of ``verdict.Outcome``, or
   `LATE`. Those strings are a contract between releases; an unknown one counts as a refusal.
2. ``live`` means that the node holds this very record and that its kernel sets agree with it.
3. A node that held the record when its pass began may hold a newer one when it ends. So the
   answering node looks into its store once more after the pass.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from daemon.api.messages import NodeOutcome, Reached
from daemon.model.records import Ack, Answer
from daemon.model.verdict import Outcome

BELIEVED = (Outcome.ACCEPTED, Outcome.KNOWN)
LATE = "not programmed yet"
"""The outcome of a Confirm whose record was accepted, but is not in the kernel yet."""


class Confirmation(msgspec.Struct, frozen=True):
    """What one node did with a record."""

    outcome: Reached
    reason: str = ""
    """Why, in words, for every outcome but ``live``."""
    seconds: float = 0.0
    """Seconds until the answer came, as measured here."""

    @property
    def live(self) -> bool:
        """Whether the node's kernel agrees with the record."""
        return self.outcome == "live"

    def of(self, node: str) -> NodeOutcome:
        """Return it as the outcome of `node`, in the form of the API."""
        ms = self.seconds * 1e3 if self.live else None
        return NodeOutcome(node=node, outcome=self.outcome, ms=ms, reason=self.reason)


def read(answers: Iterable[Answer], seconds: float) -> Confirmation:
    """Return what the `answers` of a node mean, which came after `seconds`."""
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
