"""The records of one node in the store, and how much room they may take.

1. A node may fill `RECORDS_MAX` places and `BYTES_MAX` bytes with its replicas, of which
   `LIVE_MAX` may be live. Its info and its manifest are one record each, limited by the size of a
   record. So a node that floods fills its own share of the store and no other's.
2. A record that replaces another counts with the difference in size. A withdrawal that is no
   longer than the record it withdraws is always accepted, because it makes room.
3. A record that is refused because the share is full is found missing by the next manifest, and
   asked for again.
"""

from __future__ import annotations

import msgspec

from daemon.model.keys import Key
from daemon.model.records import Body, Envelope, Replica, Withdrawn

LIVE_MAX = 1_024
"""Live replicas of one node: as many as a Linux bridge has ports, a few more than a node can
attach."""
RECORDS_MAX = 2 * LIVE_MAX
"""Live replicas and withdrawn ones that no manifest has confirmed yet: a full node may replace
all its containers between two manifests."""
BYTES_MAX = 2 * 1024 * 1024
"""Bytes of a node's replica records as they travel. The longest that this release writes has
900 bytes; the rest is room for fields of later releases."""


class Held(msgspec.Struct, frozen=True):
    """One accepted record."""

    key: Key
    envelope: Envelope
    body: Body
    data: bytes
    """Its encoding."""


class Shelf:
    """The records of one node, by key."""

    def __init__(self) -> None:
        self.held: dict[str, Held] = {}
        self._places = 0
        self._live = 0
        self._bytes = 0

    def objection(self, new: Held) -> str:
        """Return why there is no room for `new`; "" where there is."""
        if new.key.kind != "replica":
            return ""
        old = self.held.get(new.envelope.key)
        before = len(old.data) if old is not None else 0
        if isinstance(new.body, Withdrawn) and len(new.data) <= before:
            return ""
        if old is None and self._places >= RECORDS_MAX:
            return f"{self._places} records of replicas are held, {RECORDS_MAX} is the limit"
        live = self._live - _is_live(old)
        if isinstance(new.body, Replica) and live >= LIVE_MAX:
            return f"{live} live replicas are held, {LIVE_MAX} is the limit"
        size = self._bytes - before + len(new.data)
        if size > BYTES_MAX:
            return f"its replicas would have {size} bytes, {BYTES_MAX} is the limit"
        return ""

    def put(self, new: Held) -> None:
        """Hold `new`, in the place of the record that was under its key."""
        self.drop(new.envelope.key)
        self.held[new.envelope.key] = new
        self._count(new, 1)

    def drop(self, key: str) -> None:
        """Remove the record under `key`, if there is one."""
        old = self.held.pop(key, None)
        if old is not None:
            self._count(old, -1)

    def _count(self, held: Held, sign: int) -> None:
        if held.key.kind == "replica":
            self._places += sign
            self._bytes += sign * len(held.data)
            self._live += sign * _is_live(held)


def _is_live(held: Held | None) -> bool:
    return held is not None and isinstance(held.body, Replica)
