"""Pools of threads for calls that block on the kernel or on the disk.

1. Each kind of work has threads of its own, so that none waits for another: a hundred ADDs do not
   delay a revocation, an audit of a thousand containers does not delay an ADD, a slow disk delays
   nothing but saving, and a peer that reads slowly delays only questions or only answers.
2. A pool begins its calls in the order in which they were passed to it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Pool:
    """The threads of one kind of work."""

    def __init__(
        self, name: str, threads: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` returns seconds and never goes back."""
        self.name = name
        self._threads = threads
        self._clock = clock
        self._executor = ThreadPoolExecutor(threads, name)
        self._since: dict[int, float] = {}
        """By thread that is in a call: when the call began."""

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in a thread and return its result; its exceptions come through."""

        def call() -> T:
            self._since[threading.get_ident()] = self._clock()
            try:
                return function(*args, **kwargs)
            finally:
                del self._since[threading.get_ident()]

        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def stuck(self, since: float) -> bool:
        """Tell whether every thread has been in one and the same call since before `since`."""
        begun = list(self._since.values())
        return len(begun) == self._threads and all(one < since for one in begun)

    def close(self) -> None:
        """Wait for the calls that run, and drop those that have not begun."""
        self._executor.shutdown(cancel_futures=True)


class Workers:
    """All pools of one daemon."""

    def __init__(self) -> None:
        self.attach = Pool("attach", 8)
        """ADD, DEL, CHECK and collecting; most of an ADD is waiting for the kernel's locks."""
        self.program = Pool("program", 8)
        """Changing sets, keys, neighbours and host pairs."""
        self.audit = Pool("audit", 2)
        """Reading the kernel back, for audits, ``verify`` and ``status``."""
        self.look = Pool("look", 2)
        """CNI's STATUS, which a kubelet asks for every 5 s: it must not wait for an audit."""
        self.fabric = Pool("fabric", 2)
        """Opening the fabric's session and reading its files and links."""
        self.ask = Pool("ask", 8)
        """Sending questions, which blocks while the link to the peer is congested."""
        self.answer = Pool("answer", 8)
        """Sending answers; likewise."""
        self.liveness = Pool("liveness", 2)
        """Having the kernel ask for a suspect's link address."""
        self.mesh = Pool("mesh", 1)
        """Bringing the mesh up and reading its tables."""
        self.disk = Pool("disk", 1)
        """Writing records, policy and names."""

    def __iter__(self) -> Iterator[Pool]:
        """Return the pools. `attach` is first, so that `close` ends ADDs before what they use."""
        kernel = (self.attach, self.program, self.audit, self.look, self.mesh, self.disk)
        return iter((*kernel, self.fabric, self.ask, self.answer, self.liveness))

    def close(self) -> None:
        """Close all pools."""
        for pool in self:
            pool.close()
