"""The daemon's side of the resolver: writes ``names`` for it, and asks it to serve an attachment.

1. ``names`` is replaced when the policy has changed, and at the daemon's start. Without a policy
   the file is left as the former daemon wrote it, which is better than nothing.
2. A missing or slow resolver never fails an ADD: a container without names can still be reached,
   and has them as soon as a resolver runs again.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import msgspec

from daemon.journal import Journal
from daemon.model.policy import Policy
from daemon.resolver.directory import directory
from daemon.resolver.protocol import NAMES, SERVED, SOCKET
from netconf import files
from netconf.attach.attachment import Attachment


class Resolver:
    """Writes the names for this node's resolver, and asks it to serve attachments."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        """`folder` is the state folder, which both share."""
        self._folder = folder
        self._journal = journal
        self._written: tuple[Policy, str] | None = None
        self._missing = False

    def write(self, policy: Policy | None, ula: str) -> None:
        """Write ``names`` if its content has changed; IOFailure names it. Blocks on the disk.

        `ula` is the cluster's IPv6 network in CIDR notation, or empty.
        """
        if policy is None or self._written == (policy, ula):
            return
        files.replace(self._folder / NAMES, msgspec.json.encode(directory(policy, ula)))
        self._written = (policy, ula)

    async def serve(self, attachment: Attachment, within: float) -> None:
        """Wait at most `within` seconds until the name server of a ready attachment runs.

        With 0, do not wait: the resolver finds the attachment by itself soon after.
        """
        if not within:
            return
        try:
            answer = await asyncio.wait_for(
                self._ask(f"{attachment.id}@{attachment.address}.json"), within
            )
            problem = "" if answer == SERVED else answer.decode()
        except TimeoutError:
            problem = f"no answer in {within:g} s"
        except OSError as error:
            problem = str(error)
        if problem and not self._missing:
            self._journal.warning(
                "no names for new containers; is noctule-resolver running?",
                attachment=attachment.id,
                error=problem,
            )
        self._missing = bool(problem)

    async def _ask(self, file: str) -> bytes:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.bind("")  # the kernel chooses a name, to which the resolver answers
            sock.connect(str(self._folder / SOCKET))
            await loop.sock_sendall(sock, file.encode())
            return await loop.sock_recv(sock, 64)
