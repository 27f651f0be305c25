"""Background tasks: seen when they die, ended together."""

from __future__ import annotations

import asyncio

import pytest

from daemon.journal import Journal
from daemon.process import tasks as module
from daemon.process.tasks import Tasks


def test_a_task_that_dies_is_seen_and_ends_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        tasks = Tasks(Journal())

        async def bug() -> None:
            raise ZeroDivisionError

        waiting = tasks.start("waiting", asyncio.Event().wait())  # type: ignore[arg-type]
        await asyncio.wait([tasks.start("bug", bug())])
        await asyncio.sleep(0)
        assert [record.message for record in caplog.records] == ["task died"]
        assert not waiting.done()
        await tasks.close()
        assert waiting.cancelled()
        assert len(tasks) == 0

    asyncio.run(scene())


def test_a_loop_that_dies_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOP_AGAIN", 0.0)

    async def scene() -> None:
        tasks, begun, third = Tasks(Journal()), 0, asyncio.Event()

        async def loop() -> None:
            nonlocal begun
            begun += 1
            if begun < 3:
                raise ZeroDivisionError
            third.set()
            await asyncio.Event().wait()

        tasks.forever("loop", loop)
        async with asyncio.timeout(10):
            await third.wait()
        await tasks.close()

    asyncio.run(scene())


def test_nothing_starts_after_the_end() -> None:
    async def scene() -> None:
        tasks = Tasks(Journal())
        await tasks.close()
        ran = False

        async def late() -> None:
            nonlocal ran
            ran = True

        await asyncio.wait([tasks.start("late", late())])
        assert not ran

    asyncio.run(scene())
