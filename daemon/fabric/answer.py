"""Splits an answer into numbered replies, and puts it together again at the asker.

1. Each reply carries (index, total), two 16-bit numbers in network byte order.
2. An answer without replies is sent as one empty reply with total 0.
3. An incomplete answer is not used at all: the node may have died while it answered.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

_PLACE = struct.Struct("!HH")

MAX_REPLIES = 128
"""Replies to one question; with `MAX_PAYLOAD` this limits an answer to 7.7 MB. The records of a
full node are a tenth of that, the infos of a thousand nodes a third."""


def split(replies: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield (place, payload) for each reply; ValueError if there are too many."""
    if len(replies) > MAX_REPLIES:
        raise ValueError(f"{len(replies)} replies, more than {MAX_REPLIES}")
    for index, payload in enumerate(replies or (b"",)):
        yield _PLACE.pack(index, len(replies)), payload


class Answer:
    """The replies to one question that have come so far."""

    def __init__(self) -> None:
        self._total: int | None = None
        self._replies: dict[int, bytes] = {}

    def add(self, place: bytes, payload: bytes) -> None:
        """Take one reply; ValueError if it does not fit the others."""
        try:
            index, total = _PLACE.unpack(place)
        except struct.error:
            raise ValueError("a reply without its place") from None
        if self._total not in (None, total) or index >= max(total, 1) or total > MAX_REPLIES:
            raise ValueError(f"reply {index} of {total} does not fit the others")
        self._total = total
        self._replies.setdefault(index, payload)

    @property
    def whole(self) -> bool:
        """Whether all replies have come."""
        return self._total is not None and len(self._replies) == max(self._total, 1)

    def replies(self) -> list[bytes]:
        """Return the payloads in order; call it when the answer is `whole`."""
        return [self._replies[index] for index in range(self._total or 0)]
