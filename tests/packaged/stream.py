"""A TCP connection between two containers that never falls silent, and its longest gap."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType

from tests.e2e.container import Container
from tests.e2e.machine import socket_in, until

PACE = 0.05
"""Seconds between an answer and the next question: an emulated processor has more to do."""
NUMBER = struct.Struct("!Q")


class Stream:
    """One end counts, the other echoes; a context manager that closes both.

    `gap` is the longest time in seconds from a question to its answer.
    """

    def __init__(self, client: Container, server: Container, port: int) -> None:
        """Connect `client` to `port` of `server`."""
        self.count, self.gap = 0, 0.0
        self.error: Exception | None = None
        self._stop = False
        with socket_in(server.netns) as listener:
            listener.bind(("0.0.0.0", port))
            listener.listen(1)
            self._near = client.dial(server.address, port)
            self._far, _ = listener.accept()
        self._near.settimeout(60)
        self._threads = [
            threading.Thread(target=self._guarded, args=[f]) for f in (self._ask, self._echo)
        ]
        for thread in self._threads:
            thread.start()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            if not self._stop:
                self.error = error

    def _ask(self) -> None:
        while not self._stop:
            asked = time.monotonic()
            self._near.sendall(NUMBER.pack(self.count))
            answer = self._near.recv(NUMBER.size, socket.MSG_WAITALL)
            if answer != NUMBER.pack(self.count):
                raise AssertionError(f"the answer to {self.count} is {answer!r}")
            self.gap = max(self.gap, time.monotonic() - asked)
            self.count += 1
            time.sleep(PACE)

    def _echo(self) -> None:
        while data := self._far.recv(4096):
            self._far.sendall(data)

    def flows(self) -> None:
        """Wait for one more answer; AssertionError if the connection broke."""
        seen = self.count
        until(lambda: self.error or self.count > seen + 1, "the stream to go on")
        assert self.error is None, repr(self.error)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop = True
        for end in (self._near, self._far):
            # Each by itself: nothing may lead from one to the other any more.
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._near.close()
        self._far.close()
