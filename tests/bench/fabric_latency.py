"""How fast the fabric is between three processes over TLS, beside a bare TCP echo.

Run from the repository's root: ``python -m tests.bench.fabric_latency [ROUNDS]``. n1 publishes;
n2 and n3 note when they hear (one monotonic clock serves all processes of a machine). The
echo runs in n2's process, in the same run, so that the ratio means something on any machine.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from daemon.fabric import Fabric, FabricError, Keys, Settings
from daemon.fabric.zenoh_fabric import ZenohFabric
from tests.unit.fabric_kit import Authority, Recorder, free_ports

ROUNDS = 2000
SIZE = 300
"""Bytes of a record: a replica's, with its salts and signature."""

KEYS = Keys("test")
RECORD = KEYS.record("n1", "replica", "8f")


class Job(msgspec.Struct):
    """What a child process is told."""

    settings: Settings
    echo: int
    """The port to echo on, or 0."""


class Peer(Recorder):
    """Notes how long each record was on its way; answers with that list when asked."""

    def __init__(self) -> None:
        super().__init__(self._report)
        self._delays: list[int] = []

    def on_record(self, key: str, value: bytes) -> None:
        """Note the nanoseconds since the record was published."""
        self._delays.append(time.monotonic_ns() - int.from_bytes(value[:8], "big"))

    async def _report(self, question: bytes) -> list[bytes]:
        if question != b"delays":
            return [bytes(SIZE)]
        delays, self._delays = self._delays, []
        return [msgspec.msgpack.encode(delays)]


async def child(job: Job) -> None:
    """Be n2 or n3 until stdin closes."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    if job.echo:
        await asyncio.start_server(echo, "127.0.0.1", job.echo)
    fabric = ZenohFabric(job.settings)
    await fabric.open(Peer())
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await fabric.close()


async def start(job: Job) -> asyncio.subprocess.Process:
    """Start a child and wait until it is open."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.bench.fabric_latency",
        "--child",
        msgspec.json.encode(job).decode(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    await process.stdout.readline()
    return process


async def echo_times(port: int, rounds: int) -> list[int]:
    """Return the nanoseconds of each round trip of `SIZE` bytes over bare TCP."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    times = []
    for _ in range(rounds):
        begin = time.monotonic_ns()
        writer.write(bytes(SIZE))
        await reader.readexactly(SIZE)
        times.append(time.monotonic_ns() - begin)
    writer.close()
    return times


async def publish_times(fabric: Fabric, rounds: int) -> list[int]:
    """Return the nanoseconds from publish to on_record, of both peers."""
    for node in ("n2", "n3"):
        await fabric.ask(node, b"delays", 5)
    for _ in range(rounds):
        fabric.publish(RECORD, time.monotonic_ns().to_bytes(8, "big") + bytes(SIZE - 8))
        await asyncio.sleep(0.001)  # paced: a burst would measure the queue
    times: list[int] = []
    for node in ("n2", "n3"):
        (reply,) = await fabric.ask(node, b"delays", 5)
        times += msgspec.msgpack.decode(reply, type=list[int])
    return times


async def ask_times(fabric: Fabric, rounds: int) -> list[int]:
    """Return the nanoseconds of each question and its answer."""
    times = []
    for _ in range(rounds):
        begin = time.monotonic_ns()
        await fabric.ask("n2", bytes(SIZE), 5)
        times.append(time.monotonic_ns() - begin)
    return times


async def burst_times(fabric: Fabric, rounds: int) -> tuple[list[int], int]:
    """Return nanoseconds until the last of 100 records is heard by n2, and how many were lost."""
    times, lost = [], 0
    for _ in range(rounds):
        for _ in range(100):
            fabric.publish(RECORD, time.monotonic_ns().to_bytes(8, "big") + bytes(SIZE - 8))
        await asyncio.sleep(0.05)
        (reply,) = await fabric.ask("n2", b"delays", 5)
        delays = msgspec.msgpack.decode(reply, type=list[int])
        lost += 100 - len(delays)
        times.append(max(delays, default=0))
    return times, lost


async def end_times(
    recorder: Recorder, jobs: dict[str, Job], running: dict[str, asyncio.subprocess.Process]
) -> list[int]:
    """Return the nanoseconds from a SIGKILL of n3 to on_alive, restarting it in between."""
    times = []
    for _ in range(5):
        await recorder.until(lambda: "n3" in recorder.alive)
        begin = time.monotonic_ns()
        running["n3"].kill()
        await recorder.until(lambda: "n3" not in recorder.alive)
        times.append(time.monotonic_ns() - begin)
        await running["n3"].wait()
        running["n3"] = await start(jobs["n3"])
    return times


async def reopen_times(fabric: Fabric, endpoints: list[str]) -> list[int]:
    """Return the nanoseconds from `reconfigure` to the first answer after it."""
    times = []
    for count in (1, 2) * 5:
        begin = time.monotonic_ns()
        # An endpoint where nobody listens makes the list another one.
        extra = [f"tls/127.0.0.1:{i}" for i in range(1, count)]
        await fabric.reconfigure([*endpoints, *extra], None)
        while True:
            try:
                await fabric.ask("n2", b"", 1)
                break
            except FabricError:
                await asyncio.sleep(0)
        times.append(time.monotonic_ns() - begin)
    return times


def row(name: str, times: list[int], base: float) -> str:
    """One line of the table, in microseconds; `base` is what the ratio is to."""
    ordered = sorted(times)
    half, most = (
        statistics.median(ordered),
        ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
    )
    return f"{name:<44}{half / 1000:>11.0f}{most / 1000:>11.0f}{half / base:>9.1f}"


async def main(rounds: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority(Path(folder))
        *ports, echo = free_ports(4)
        nodes = {
            f"n{i + 1}": authority.settings(f"n{i + 1}", port, [p for p in ports if p != port])
            for i, port in enumerate(ports)
        }
        jobs = {n: Job(nodes[n], echo if n == "n2" else 0) for n in ("n2", "n3")}
        running = {n: await start(job) for n, job in jobs.items()}
        recorder = Recorder()
        fabric = ZenohFabric(nodes["n1"])
        await fabric.open(recorder)
        try:
            await recorder.until(lambda: recorder.alive == {"n2", "n3"})
            trips = await echo_times(echo, rounds)
            base = statistics.median(trips)
            print(f"{'300 B, 3 processes, mutual TLS; microseconds':<44}", end="")
            print(f"{'p50':>11}{'p99':>11}{'ratio':>9}")
            print(row("bare TCP echo, round trip (ratio 1)", trips, base))
            print(row("publish to on_record", await publish_times(fabric, rounds), base))
            print(row("ask, round trip", await ask_times(fabric, rounds), base))
            bursts, lost = await burst_times(fabric, 20)
            print(row(f"100 records, until the last ({lost} of 2000 lost)", bursts, base))
            print(
                row(
                    "reconfigure, until the next answer",
                    await reopen_times(fabric, list(nodes["n1"].connect)),
                    base,
                )
            )
            print(row("SIGKILL to on_alive", await end_times(recorder, jobs, running), base))
        finally:
            await fabric.close()
            for process in running.values():
                assert process.stdin is not None
                process.stdin.close()
                await process.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        asyncio.run(child(msgspec.json.decode(sys.argv[2], type=Job)))
    else:
        asyncio.run(main(int(sys.argv[1]) if sys.argv[1:] else ROUNDS))
