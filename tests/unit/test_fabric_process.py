"""Nodes as processes: how their end is noticed, and that they do end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from daemon.fabric import FabricError
from tests.unit.fabric_kit import World, world

ROOT = Path(__file__).parents[2]


@contextlib.asynccontextmanager
async def child(w: World, node: str, end: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `node` in a process; it is killed at the end if it is still there."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.unit.fabric_child",
        msgspec.json.encode(w.settings(node)).decode(),
        end,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"open\n"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def test_a_killed_node_is_noticed_at_once(tmp_path: Path) -> None:
    async def run() -> None:
        async with world("zenoh", tmp_path) as w:
            await w.join("n1")
            heard = w.heard["n1"]
            async with child(w, "n2", "wait") as process:
                await heard.until(lambda: heard.alive == {"n2"})
                start = time.monotonic()
                process.kill()
                await heard.until(lambda: not heard.alive)
                # Far below the lease and far above the 60 ms it takes.
                assert time.monotonic() - start < 0.4
            assert heard.changes == [("n2", True), ("n2", False)]

    asyncio.run(run())


def test_a_silent_node_is_given_up_after_its_lease_and_taken_back(tmp_path: Path) -> None:
    async def run() -> None:
        async with world("zenoh", tmp_path) as w:
            await w.join("n1")
            heard = w.heard["n1"]
            async with child(w, "n2", "wait") as process:
                await heard.until(lambda: heard.alive == {"n2"})
                start = time.monotonic()
                process.send_signal(signal.SIGSTOP)
                await heard.until(lambda: not heard.alive)
                assert time.monotonic() - start < 2
                with pytest.raises(FabricError):
                    await w.fabrics["n1"].ask("n2", b"?", 0.1)
                process.send_signal(signal.SIGCONT)
                await heard.until(lambda: heard.alive)
                assert heard.changes == [("n2", True), ("n2", False), ("n2", True)]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("end", "status"), [("raise", 1), ("exit", 3), ("forget", 0), ("signal", 0), ("wait", -15)]
)
def test_a_process_ends_however_it_is_ended(tmp_path: Path, end: str, status: int) -> None:
    async def run() -> None:
        async with world("zenoh", tmp_path) as w:
            await w.join("n1")  # a peer, so that there are links and callbacks to get rid of
            async with child(w, "n2", end) as process:
                if end in ("signal", "wait"):
                    await w.heard["n1"].until(lambda: w.heard["n1"].alive)
                    process.terminate()
                assert await asyncio.wait_for(process.wait(), 5) == status
                await w.heard["n1"].until(lambda: not w.heard["n1"].alive)

    asyncio.run(run())
