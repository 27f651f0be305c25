"""Which attachments this node has, as the daemon knows it: one place, and others subscribe.

1. The state files are the truth about what exists; the registry follows them.
2. An attachment is added once it is complete, removed before anything of it is taken down, and
   released when nothing of it is left in the kernel. Subscribers hear of it in that order.
3. An attachment whose state file cannot be read (another release wrote it, or it is damaged) is
   `opaque`: its id and address are known, from the file's name, and that it is there. It is not
   in the mapping, for nothing in its namespace can be changed; but what this node says of it and
   the host filter's pairs stay, until a DEL. That is told as of others.
4. `added` and `removed` are called in the loop's thread and must not block. Subscribers are called
   in the order of their subscription.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from netconf.attach.attachment import Attachment


class Subscriber(Protocol):
    """Who follows which attachments there are."""

    def added(self, attachment: Attachment, *, fresh: bool) -> None:
        """`attachment` is there now. `fresh`: it was just made, and all of its sets are empty;
        otherwise a predecessor may have filled them."""

    def removed(self, attachment: Attachment) -> None:
        """`attachment` is about to be taken down: change nothing of it any more."""

    async def released(self, attachment_id: str) -> None:
        """Nothing of the attachment is left: let go of its namespace. May have been unknown."""


class Registry(Mapping[str, Attachment]):
    """The attachments of this node, by id."""

    def __init__(self) -> None:
        self._attachments: dict[str, Attachment] = {}
        self.opaque: dict[str, Attachment] = {}
        """By id; of each only the id and the address mean anything (rule 3)."""
        self._subscribers: list[Subscriber] = []

    def __getitem__(self, attachment_id: str) -> Attachment:
        return self._attachments[attachment_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._attachments)

    def __len__(self) -> int:
        return len(self._attachments)

    def subscribe(self, subscriber: Subscriber) -> None:
        """Tell `subscriber` of everything that comes or goes from now on."""
        self._subscribers.append(subscriber)

    def add(self, attachment: Attachment, *, fresh: bool) -> None:
        """Add an attachment that is complete; see `Subscriber.added` for `fresh`."""
        self.opaque.pop(attachment.id, None)
        self._attachments[attachment.id] = attachment
        for subscriber in self._subscribers:
            subscriber.added(attachment, fresh=fresh)

    def update(self, attachment: Attachment) -> None:
        """Take note of another MTU or IPv6 network; unknown attachments are not added."""
        if attachment.id in self._attachments:
            self._attachments[attachment.id] = attachment

    def remove(self, attachment_id: str) -> Attachment | None:
        """Remove an attachment that is about to be taken down; None if it is not known."""
        known = self._attachments.pop(attachment_id, None) or self.opaque.pop(attachment_id, None)
        if known is not None:
            for subscriber in self._subscribers:
                subscriber.removed(known)
        return known

    async def release(self, attachment_id: str) -> None:
        """Have everyone let go of an attachment of which nothing is left."""
        for subscriber in self._subscribers:
            await subscriber.released(attachment_id)
