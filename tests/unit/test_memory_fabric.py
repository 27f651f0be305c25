"""The memory fabric fails as told, and the same way each time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from daemon.fabric import FabricError, FabricTimeoutError
from daemon.model.keys import Keys
from tests.unit.fabric_kit import World, world

KEYS = Keys("test")
INFO = KEYS.record("n1", "info")


async def idle() -> None:
    """Let everything that is due run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def lossy(folder: Path) -> list[bytes]:
    async with world("memory", folder) as w:
        await w.join_all("n1", "n2")
        w.network.loss = 0.5
        for i in range(20):
            w.fabrics["n1"].publish(INFO, b"%d" % i)
        await idle()
        assert await w.fabrics["n1"].ask("n2", b"questions are not lost", 1)
        return [value for _, value in w.heard["n2"].records]


def test_loss_is_the_same_each_time(tmp_path: Path) -> None:
    first = asyncio.run(lossy(tmp_path / "1"))
    assert 0 < len(first) < 20
    assert asyncio.run(lossy(tmp_path / "2")) == first


def test_what_is_delayed_waits_for_time_to_pass(tmp_path: Path) -> None:
    async def run() -> None:
        async with world("memory", tmp_path) as w:
            await w.join_all("n1", "n2")
            w.network.delay = 2.0
            w.fabrics["n1"].publish(INFO, b"old")
            await idle()
            w.network.advance(1.9)
            await idle()
            assert not w.heard["n2"].records
            w.network.advance(0.1)
            await idle()
            assert w.heard["n2"].records == [(INFO, b"old")]
            with pytest.raises(FabricTimeoutError):
                await w.fabrics["n1"].ask("n2", b"?", 0.01)

    asyncio.run(run())


def test_a_partition_is_heard_on_both_sides_and_heals(tmp_path: Path) -> None:
    async def run() -> None:
        async with world("memory", tmp_path) as w:
            await w.join_all("n1", "n2", "n3")
            w.network.partition({"n1"}, {"n2", "n3"})
            await idle()
            assert [w.heard[n].alive for n in ("n1", "n2", "n3")] == [set(), {"n3"}, {"n2"}]
            w.fabrics["n1"].publish(INFO, b"lost")
            with pytest.raises(FabricError, match="not connected"):
                await w.fabrics["n1"].ask("n2", b"?", 1)
            w.network.heal()
            await idle()
            assert w.heard["n1"].alive == {"n2", "n3"}
            w.fabrics["n1"].publish(INFO, b"heard")
            await idle()
            assert w.heard["n2"].records == [(INFO, b"heard")]

    asyncio.run(run())


def test_what_is_under_way_is_lost_when_the_link_is_cut(tmp_path: Path) -> None:
    async def run() -> None:
        async with world("memory", tmp_path) as w:
            await w.join_all("n1", "n2")
            send(w)
            w.network.partition({"n1"}, {"n2"})
            await idle()
            assert not w.heard["n2"].records

    def send(w: World) -> None:
        w.fabrics["n1"].publish(INFO, b"on its way")

    asyncio.run(run())
