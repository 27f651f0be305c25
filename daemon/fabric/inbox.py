"""Passes calls from zenoh's threads to the event loop: in order, bounded, and fair to each peer.

1. `put` may be called from any thread and never blocks. The loop is woken once for many calls.
2. Each source has a queue of its own, first in, first out, and the queues are served in turn. So
   messages of one peer reach the loop in order, and do not wait for another peer that floods.
3. At most `limit` items wait, because a peer that floods must not grow this process. If there is
   no room, the newest item of the longest queue is dropped (longest queue drop, RFC 7567, 4.1), so
   that a peer that floods loses its own messages. Each loss is counted. An item that must not be
   lost is put with ``bounded=False``, into a queue from which nothing is dropped.
4. A call that raises is logged, and stops neither later calls nor the inbox.
5. After `close` nothing is delivered.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable

log = logging.getLogger(__name__)

INBOX_LIMIT = 4096
"""Messages; enough for all records of 64 nodes with 50 replicas each."""

BURST = 256
"""Messages handled before the loop may do something else."""

Call = Callable[[], None]


class Inbox:
    """Calls to be made in the loop's thread, by source."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limit: int = INBOX_LIMIT,
        dropped: Call = lambda: None,
    ) -> None:
        """Deliver into `loop`; keep at most `limit` calls waiting. `dropped` is called for each
        dropped call, in the thread whose `put` found no room."""
        self._loop = loop
        self._limit = limit
        self._dropped = dropped
        self._lock = threading.Lock()
        """Guards the queues, which zenoh's threads and the loop change; held for microseconds."""
        self._urgent: deque[Call] = deque()
        self._queues: OrderedDict[str, deque[tuple[Call, Call | None]]] = OrderedDict()
        """By source, in the order of turns: calls, each with the one to make if it is dropped."""
        self._waiting = 0
        self._woken = False
        self._closed = False

    def put(
        self, call: Call, source: str = "", *, bounded: bool = True, instead: Call | None = None
    ) -> None:
        """Have `call` made in the loop's thread; if it is dropped, `instead` in some thread."""
        lost: Call | None = None
        with self._lock:
            if self._closed:
                return
            if bounded:
                self._queues.setdefault(source, deque()).append((call, instead))
                self._waiting += 1
                full = self._waiting > self._limit
                lost = self._give_way() if full else None
            else:
                full = False
                self._urgent.append(call)
            wake, self._woken = not self._woken, True
        if full:
            self._dropped()
        if lost is not None:
            lost()
        if wake:
            self._wake()

    def close(self) -> None:
        """Drop all calls that wait, and deliver none any more."""
        with self._lock:
            self._closed = True
            self._urgent.clear()
            self._queues.clear()
            self._waiting = 0

    def _give_way(self) -> Call | None:
        """Drop the newest item of the longest queue; return the call to make instead of it."""
        source = max(self._queues, key=lambda name: len(self._queues[name]))
        queue = self._queues[source]
        _, instead = queue.pop()
        self._waiting -= 1
        if not queue:
            del self._queues[source]
        return instead

    def _take(self) -> Call | None:
        with self._lock:
            if self._urgent:
                return self._urgent.popleft()
            if not self._queues:
                return None
            source, queue = self._queues.popitem(last=False)
            call, _ = queue.popleft()
            self._waiting -= 1
            if queue:
                self._queues[source] = queue  # at the end: the others' turn comes first
            return call

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._drain)
        except RuntimeError:  # the loop was closed without closing the fabric
            self.close()

    def _drain(self) -> None:
        for _ in range(BURST):
            call = self._take()
            if call is None:
                break
            try:
                call()
            except Exception:
                log.exception("a message of the fabric could not be handled")
        with self._lock:
            self._woken = bool(self._urgent or self._queues)
            again = self._woken
        if again:
            self._wake()
