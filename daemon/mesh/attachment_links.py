"""Mends the links of attachments after a change of the mesh, or of the links themselves.

1. A bat0 that was made anew knows no container's MAC, and a bridge made anew has no ports. So each
   attachment's links are set right and its MAC is announced again.
2. If the kernel reports that a container's link is down, or is no bridge port any more, the link is
   looked at only after `PATIENCE` seconds, because attach and detach pass through such states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from netconf import frames
from netconf.attach import inspection
from netconf.attach.attachment import Attachment, NodeNet
from netconf.attach.state import State
from netconf.errors import NoctuleError, UnknownContainer

PATIENCE = 0.5
"""Seconds; an ADD takes some milliseconds, on a slow machine some tenths of a second."""


class AttachmentLinks:
    """Sets the links of attachments right. Its methods block: call them in a worker thread."""

    def __init__(self, node: Callable[[], NodeNet], state: State) -> None:
        """`node` returns what an attachment needs to know of this node now."""
        self._node = node
        self._state = state

    def mend(self, attachments: Iterable[Attachment]) -> list[str]:
        """Set right what can be; return sentences about what was wrong, with the attachment."""
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
        """Announce the MACs of these attachments to the mesh again. OSError if that fails."""
        for attachment in attachments:
            frames.announce(attachment.mac)
