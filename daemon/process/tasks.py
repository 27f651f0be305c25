"""Background tasks: started in one place, logged when they fail, and cancelled together.

1. A task that ends with an exception is logged as one error, with its traceback. asyncio by itself
   says nothing until the task is collected as garbage, which may be too late.
2. A loop that dies of an exception begins again after `LOOP_AGAIN` seconds: soon enough to keep
   the daemon working, and too rarely to flood the log.
3. A failing task does not end the others (as asyncio.TaskGroup would): the daemon's parts serve
   different containers and peers, and the kernel goes on in any case.
4. After `close` nothing runs, and nothing can be started.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from daemon.journal import Journal

LOOP_AGAIN = 1.0
"""Seconds before a loop that died begins again."""


class Tasks:
    """The background tasks of the daemon, or of one part of it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._running: set[asyncio.Task[Any]] = set()
        self._closed = False

    def __len__(self) -> int:
        """Return how many tasks have not ended."""
        return len(self._running)

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` in the background; `name` names it in the log.

        Returns the task, which the caller may cancel.
        """
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        if self._closed:
            task.cancel()
        return task

    def forever(
        self, name: str, loop: Callable[[], Coroutine[Any, Any, None]]
    ) -> asyncio.Task[None]:
        """Run `loop`, again and again if it dies of an exception (rule 2).

        Returns the task, which ends when `loop` returns, and which the caller may cancel.
        """
        return self.start(name, self._again(name, loop))

    async def close(self) -> None:
        """Cancel all tasks and wait for their end."""
        self._closed = True
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _again(self, name: str, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                return await loop()
            except Exception as error:
                self._journal.error("loop died, and begins again", exc=error, loop=name)
                await asyncio.sleep(LOOP_AGAIN)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._journal.error("task died", exc=error, task=task.get_name())
