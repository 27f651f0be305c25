"""The service manager hears of progress only while there is some."""

from __future__ import annotations

import asyncio
import threading

import pytest

from daemon.journal import Journal
from daemon.process import systemd
from daemon.process.watchdog import STUCK_AFTER, Watchdog
from daemon.process.workers import Pool

LIMIT = 10.0


def test_a_pool_is_stuck_when_all_of_its_threads_are(caplog: pytest.LogCaptureFixture) -> None:
    now, told = 0.0, []
    go, inside = threading.Event(), threading.Semaphore(0)

    def hang() -> None:
        inside.release()
        go.wait(LIMIT)

    async def scene() -> None:
        nonlocal now
        pool = Pool("disk", 2, clock=lambda: now)
        idle = Pool("mesh", 1, clock=lambda: now)
        watchdog = Watchdog((pool, idle), Journal(), told.append, clock=lambda: now)
        one = asyncio.ensure_future(pool.run(hang))
        await asyncio.to_thread(inside.acquire)
        now = STUCK_AFTER + 1
        watchdog.look()
        assert told == ["WATCHDOG=1"]  # the other thread could still serve
        other = asyncio.ensure_future(pool.run(hang))
        await asyncio.to_thread(inside.acquire)
        watchdog.look()
        assert len(told) == 2  # it began only now
        now += STUCK_AFTER + 1
        watchdog.look()
        watchdog.look()
        assert len(told) == 2
        assert [record.message for record in caplog.records] == ["workers are stuck"]
        go.set()
        await asyncio.gather(one, other)
        watchdog.look()
        assert len(told) == 3
        for each in (pool, idle):
            each.close()

    asyncio.run(scene())


def test_pools_do_not_wait_for_one_another() -> None:
    go, inside = threading.Event(), threading.Event()

    def hang() -> None:
        inside.set()
        go.wait(LIMIT)

    async def scene() -> None:
        slow, other = Pool("audit", 1), Pool("attach", 1)
        hanging = asyncio.ensure_future(slow.run(hang))
        await asyncio.to_thread(inside.wait, LIMIT)
        assert await other.run(lambda: "attached") == "attached"
        assert not hanging.done()
        go.set()
        await hanging
        slow.close()
        other.close()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_service_manager_says_how_patient_it_is(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], seconds: float | None
) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert systemd.watchdog() == seconds
