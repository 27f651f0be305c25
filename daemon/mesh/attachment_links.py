"""What the mesh's changes mean for the links of attachments.

1. A bat0 that was made anew knows no container, and a bridge made anew has no port: each
   attachment's links are set right and its MAC is announced again.
2. A container's link of which the kernel tells that it is down or free is looked at when it
   has been so for `PATIENCE`: attach and detach pass through such states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from netconf import frames
from netconf.attach import inspection
from netconf.attach.attachment import Attachment, NodeNet
from netconf.attach.state import State
from netconf.errors import NoctuleError, UnknownContainer

PATIENCE = 0.5
"""Seconds; an ADD takes some milliseconds, on a slow machine some tenths."""


class AttachmentLinks:
    """Sets the links of attachments right; its work is for a worker thread."""

    def __init__(self, node: Callable[[], NodeNet], state: State) -> None:
        """`node` returns what an attachment needs to know of this node now."""
        self._node = node
        self._state = state

    def mend(self, attachments: Iterable[Attachment]) -> list[str]:
        """Set right what can be; return what was found, in sentences that name the attachment."""
        found = []
        for attachment in attachments:
            try:
                said = inspection.mend(self._node(), self._state, attachment.id)
            except UnknownContainer:
                continue  # the collector takes it down
            except NoctuleError as error:
                said = [error.message]
            found += [f"{attachment.id} ({attachment.service}): {one}" for one in said]
        return found

    def announce(self, attachments: Iterable[Attachment]) -> None:
        """Tell the mesh again which containers are here. OSError."""
        for attachment in attachments:
            frames.announce(attachment.mac)
