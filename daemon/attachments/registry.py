"""The attachments of this node as the daemon knows them, in one place that others subscribe to.

1. The state files say which attachments exist; the registry follows them.
2. An attachment is added once it is complete, removed before anything of it is taken down, and
   released when nothing of it is left in the kernel. Subscribers are told in that order.
3. An attachment whose state file cannot be read (another release wrote it, or it is damaged) is
   `opaque`. Only its id and its address are known, from the file's name. It is not in the mapping,
   because nothing in its namespace can be changed. Its record and its pairs in the host filter
   stay until a DEL, of which subscribers are told as of any other.
4. `added` and `removed` are called in the event loop's thread and must not block. Subscribers are
   called in the order in which they subscribed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, ValuesView
from typing import Protocol

from netconf.attach.attachment import Attachment


class Subscriber(Protocol):
    """A part of the daemon that is told when attachments come and go."""

    def added(self, attachment: Attachment, *, fresh: bool) -> None:
        """`attachment` was added. With `fresh` it was just made and its kernel sets are empty;
        otherwise a former daemon may have filled them."""

    def removed(self, attachment: Attachment) -> None:
        """`attachment` is about to be taken down: do not change it any more."""

    async def released(self, attachment_id: str) -> None:
        """Nothing of the attachment is left in the kernel: close what is open in its namespace.

        Also called for an attachment that was never added."""


class Registry(Mapping[str, Attachment]):
    """The attachments of this node, by id."""

    def __init__(self) -> None:
        self._attachments: dict[str, Attachment] = {}
        self.opaque: dict[str, Attachment] = {}
        """By id; only `id` and `address` of these are valid (rule 3)."""
        self._subscribers: list[Subscriber] = []

    def __getitem__(self, attachment_id: str) -> Attachment:
        return self._attachments[attachment_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._attachments)

    def __len__(self) -> int:
        return len(self._attachments)

    def values(self) -> ValuesView[Attachment]:
        """Return the attachments; ``list(values())`` is safe in other threads than the loop's."""
        return self._attachments.values()

    def subscribe(self, subscriber: Subscriber) -> None:
        """Tell `subscriber` of every attachment that comes or goes from now on."""
        self._subscribers.append(subscriber)

    def add(self, attachment: Attachment, *, fresh: bool) -> None:
        """Add an attachment that is complete; see `Subscriber.added` for `fresh`."""
        self.opaque.pop(attachment.id, None)
        self._attachments[attachment.id] = attachment
        for subscriber in self._subscribers:
            subscriber.added(attachment, fresh=fresh)

    def update(self, attachment: Attachment) -> None:
        """Replace an attachment whose MTU or IPv6 network changed; one not known is not added."""
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
        """Tell subscribers that nothing of an attachment is left in the kernel."""
        for subscriber in self._subscribers:
            await subscriber.released(attachment_id)
