"""One question that waits for its answer: replies come in zenoh's threads, the answer in the loop.

1. The answer is settled once: when it is whole, or when zenoh says that no more replies come.
2. A reply that does not fit the others is left out, so the answer stays incomplete and fails.
3. An error that the peer itself sent fails the answer with FabricRefusedError. So the asker can
   tell a peer that does not know the question from one that could not be asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

from daemon.fabric.answer import Answer
from daemon.fabric.interface import MAX_PAYLOAD, FabricError, FabricRefusedError


class Inquiry:
    """Collects the replies of one node; `answer` is awaited in the loop."""

    def __init__(self, node: str, loop: asyncio.AbstractEventLoop) -> None:
        self.node = node
        self.answer: asyncio.Future[list[bytes]] = loop.create_future()
        self.ended = False
        self._loop = loop
        self._lock = threading.Lock()
        self._parts = Answer()
        self._trouble = ""
        self._refused = False

    def reply(self, reply: Any) -> None:
        """Take one reply. Access control lets only the node that was asked send replies."""
        with self._lock:
            try:
                sample = reply.ok
                if sample is None:
                    self._trouble = reply.err.payload.to_bytes()[:200].decode(errors="replace")
                    self._refused = True
                    return
                if len(sample.payload) > MAX_PAYLOAD:
                    raise ValueError("a reply is too long")
                place = sample.attachment.to_bytes() if sample.attachment else b""
                self._parts.add(place, sample.payload.to_bytes())
                if not self._parts.whole:
                    return
                result = self._parts.replies()
            except ValueError as error:
                self._trouble = str(error)
                return
        self._finish(lambda: self.answer.set_result(result))

    def end(self) -> None:
        """Note that no more replies come: unless the answer is whole it fails (rule 3)."""
        self.ended = True
        reason = self._trouble or "it is not connected, or went away meanwhile"
        kind = FabricRefusedError if self._refused else FabricError
        error = kind(f"no answer from {self.node}: {reason}")
        self._finish(lambda: self.answer.set_exception(error))

    def _finish(self, settle: Callable[[], None]) -> None:
        def once() -> None:
            if not self.answer.done():
                settle()

        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(once)
