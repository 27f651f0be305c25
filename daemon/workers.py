"""Threads for what blocks: the kernel's locks, the disk.

1. Each kind of work has threads of its own, so that none waits for another: a hundred ADDs do not
   hold up a revocation, an audit of a thousand containers does not hold up an ADD, and a slow
   disk holds up nothing but saving.
2. A pool serves its work in the order in which it was handed over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Pool:
    """The threads of one kind of work."""

    def __init__(self, name: str, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, name)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in a thread and return its result; its exceptions come through."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: function(*args, **kwargs))

    def close(self) -> None:
        """Wait for what runs, and drop what waits."""
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
        self.mesh = Pool("mesh", 1)
        """Bringing the mesh up and reading its tables."""
        self.disk = Pool("disk", 1)
        """Writing records, policy and names."""

    def close(self) -> None:
        """Close all pools, that of the attachments first: nothing new comes then."""
        for pool in (self.attach, self.program, self.audit, self.mesh, self.disk):
            pool.close()
