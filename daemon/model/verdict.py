"""What becomes of a record that was offered to the store."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Outcome(StrEnum):
    """What became of an offered record; also the label of its counter."""

    ACCEPTED = "accepted"
    KNOWN = "known"
    STALE = "stale"
    """A newer version is here, or a newer manifest does not list it."""
    UNKNOWN_SIGNER = "unknown signer"
    NOT_ENTITLED = "not entitled"
    BAD_SIGNATURE = "bad signature"
    BAD_CERTIFICATE = "bad certificate"
    FOREIGN_CLUSTER = "foreign cluster"
    OVERSIZED = "oversized"
    OVER_QUOTA = "over quota"
    """The node's share of the store is full."""
    MALFORMED = "malformed"
    UNKNOWN_KIND = "unknown kind"
    """The record is of a kind that a later release added: it is neither held nor asked for."""


HARMLESS = (
    Outcome.ACCEPTED,
    Outcome.KNOWN,
    Outcome.STALE,
    Outcome.UNKNOWN_SIGNER,
    Outcome.UNKNOWN_KIND,
)
"""The outcomes that are normal. All others are refusals, which are logged and counted."""


class Verdict(msgspec.Struct, frozen=True):
    """What the store did with one offered record, and why."""

    outcome: Outcome
    key: str = ""
    node: str = ""
    """The node whose record it is; empty for the policy and for data that cannot be decoded."""
    reason: str = ""
    news: bool = False
    """Whether the contents of the store have changed for its readers (rule 7)."""

    @property
    def changed(self) -> bool:
        """Whether the record was accepted, so that the store now holds it."""
        return self.outcome is Outcome.ACCEPTED
