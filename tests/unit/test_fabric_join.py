"""A fabric whose address comes late is waited for; what no time mends is not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from daemon.fabric import FabricError, zenoh_fabric
from daemon.fabric.interface import Listener
from daemon.fabric.join import join
from daemon.fabric.zenoh_fabric import ZenohFabric
from daemon.fabric.zenoh_session import Session
from daemon.journal import Journal
from daemon.process import tasks as tasks_module
from daemon.process.tasks import Tasks
from netconf.errors import InvalidConfig, NoctuleError
from tests.unit.fabric_kit import Authority, Recorder, free_ports

LIMIT = 10.0


class Late:
    """Of a fabric what `join` asks for: it cannot be opened while there is an `error`."""

    def __init__(self, error: NoctuleError) -> None:
        self.error: NoctuleError | None = error
        self.attempts = asyncio.Semaphore(0)
        self.listener: Listener | None = None

    async def open(self, listener: Listener) -> None:
        self.attempts.release()
        if self.error is not None:
            raise self.error
        self.listener = listener


def play(scene: Callable[[Tasks], Awaitable[None]]) -> None:
    async def run() -> None:
        tasks = Tasks(Journal())
        try:
            async with asyncio.timeout(LIMIT):
                await scene(tasks)
        finally:
            await tasks.close()

    asyncio.run(run())


def test_an_address_that_comes_late_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(tasks: Tasks) -> None:
        fabric = Late(FabricError("fabric.listen: the address is not this node's"))
        listener, joined = Recorder(), asyncio.Event()
        await join(
            fabric,  # type: ignore[arg-type]
            listener,
            tasks,
            Journal(),
            joined.set,
            within=0.0,
            again=0.0,
        )
        for _ in range(5):  # the start goes on meanwhile
            await fabric.attempts.acquire()
        assert not joined.is_set()
        fabric.error = None
        await joined.wait()
        assert fabric.listener is listener

    play(scene)
    assert [record.getMessage() for record in caplog.records] == ["fabric not joined"]


def test_an_identity_that_cannot_be_used_ends_the_start() -> None:
    async def scene(tasks: Tasks) -> None:
        fabric = Late(InvalidConfig("fabric.identity.key: cannot read"))
        with pytest.raises(InvalidConfig, match=r"identity\.key"):
            await join(
                fabric,  # type: ignore[arg-type]
                Recorder(),
                tasks,
                Journal(),
                lambda: None,
            )

    play(scene)


def test_an_identity_that_cannot_be_used_for_a_while_is_waited_for() -> None:
    async def scene(tasks: Tasks) -> None:
        fabric, joined = Late(FabricError("fabric.listen: no address")), asyncio.Event()
        await join(
            fabric,  # type: ignore[arg-type]
            Recorder(),
            tasks,
            Journal(),
            joined.set,
            within=0.0,
            again=0.0,
        )
        await fabric.attempts.acquire()
        fabric.error = InvalidConfig("fabric.identity.key: it does not fit the certificate")
        for _ in range(5):
            await fabric.attempts.acquire()
        fabric.error = None
        await joined.wait()

    play(scene)


def test_the_watch_over_links_outlives_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zenoh_fabric, "CHECK", 0.01)
    monkeypatch.setattr(tasks_module, "LOOP_AGAIN", 0.0)

    async def scene(_: Tasks) -> None:
        looked, loop = asyncio.Semaphore(0), asyncio.get_running_loop()

        def fail(_: Session) -> frozenset[str]:
            loop.call_soon_threadsafe(looked.release)
            raise ZeroDivisionError

        monkeypatch.setattr(Session, "linked", fail)
        fabric = ZenohFabric(Authority(tmp_path).settings("n1", free_ports(1)[0], []))
        await fabric.open(Recorder())
        try:
            for _ in range(3):
                await looked.acquire()
        finally:
            await fabric.close()

    play(scene)


def test_questions_that_cannot_be_sent_do_not_hold_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than there are threads: a peer that reads slowly blocks each."""
    gate = threading.Event()

    def blocks(*_: object) -> None:
        gate.wait(LIMIT)

    monkeypatch.setattr(Session, "get", blocks)

    async def scene(_: Tasks) -> None:
        fabric = ZenohFabric(Authority(tmp_path).settings("n1", free_ports(1)[0], []))
        await fabric.open(Recorder())
        asked = [asyncio.ensure_future(fabric.ask("n2", b"?", LIMIT)) for _ in range(40)]
        try:
            await asyncio.sleep(0)
            async with asyncio.timeout(LIMIT / 2):
                assert await fabric.reconfigure([f"tls/127.0.0.1:{free_ports(1)[0]}"], None)
        finally:
            gate.set()
            for one in asked:
                one.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            await fabric.close()

    play(scene)


def test_a_session_that_cannot_be_opened_again_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for pause in ("CHECK", "RETRY"):
        monkeypatch.setattr(zenoh_fabric, pause, 0.0)

    async def scene(_: Tasks) -> None:
        fabric = ZenohFabric(Authority(tmp_path).settings("n1", free_ports(1)[0], []))
        await fabric.open(Recorder())
        tried, loop = asyncio.Semaphore(0), asyncio.get_running_loop()

        def fail(*_: object) -> None:
            loop.call_soon_threadsafe(tried.release)
            raise FabricError("fabric.listen: cannot open it")

        with monkeypatch.context() as patch:
            patch.setattr(zenoh_fabric, "Session", fail)
            with pytest.raises(FabricError):
                await fabric.reconfigure([f"tls/127.0.0.1:{free_ports(1)[0]}"], None)
            for _ in range(10):
                await tried.acquire()
        await fabric.close()

    play(scene)
    assert sum("cannot open it" in str(vars(record)) for record in caplog.records) == 1


def test_zenoh_opens_once_its_port_is_free(tmp_path: Path) -> None:
    """The same, with the real thing: a port that somebody else holds for a while."""

    async def scene(tasks: Tasks) -> None:
        (port,) = free_ports(1)
        blocker = await asyncio.start_server(lambda *_: None, "127.0.0.1", port)
        fabric = ZenohFabric(Authority(tmp_path).settings("n1", port, []))
        joined = asyncio.Event()
        await join(fabric, Recorder(), tasks, Journal(), joined.set, within=0.0, again=0.01)
        assert not joined.is_set()
        blocker.close()
        await joined.wait()
        await fabric.close()

    play(scene)
