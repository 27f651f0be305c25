"""What the resolver costs, and how fast it answers: memory, processor, queries, 99th percentile.

Loopback in real namespaces, so any kernel will do; needs root. For 0, 100 and 1,000
attachments (or those given as arguments):

* start: until every namespace is served, as READY=1 tells, and with it the cost of a restart.
* memory and processor while nobody asks.
* serve: from the daemon's question about a new attachment to the answer, its namespace opened
  and its sockets made. This is what the resolver adds to an ADD, beside all else that ADD waits
  for.
* query: one client asks 500 times a second; the ratio is taken against the same client and a
  bare UDP echo in Python, in the same namespace, alternating.
* at most: without a pause, and so until the client has used the share of a processor that one
  container is given.
* next to a flood: the first again, while the container next door sends as fast as it can.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dnslib

from netconf.names import NAMESERVER
from netconf.namespace import identity
from tests.e2e.bare import Bare
from tests.e2e.machine import run, socket_in

CHECKOUT = Path(__file__).parents[2]
ROUNDS, QUERIES = 5, 500
PAUSE = 0.002
IDLE = 5.0
"""Seconds over which the processor is measured."""
ECHO = """
import socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
while True:
    sock.sendto(*sock.recvfrom(1232))
"""
FLOOD = """
import socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
message = bytes.fromhex(sys.argv[2])
while True:
    sock.send(message)
"""
QUERY = bytes(dnslib.DNSRecord.question("api").pack())


class Figures:
    """One process, seen from outside."""

    def __init__(self, pid: int) -> None:
        self._proc = Path(f"/proc/{pid}")

    def memory(self) -> float:
        """Resident MiB."""
        line = next(
            line for line in (self._proc / "status").read_text().splitlines() if "VmRSS" in line
        )
        return int(line.split()[1]) / 1024

    def seconds(self) -> float:
        """Seconds of a processor used so far."""
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def attachment(folder: Path, number: int, box: Bare) -> str:
    """Write a state file as the daemon does; return its name."""
    name = f"{number:012x}"
    path = folder / "attachments" / f"{name}@10.64.{number // 250}.{number % 250}.json"
    state = {"netns": box.netns, "netns_id": identity(box.netns), "service": "web"}
    path.with_suffix(".tmp").write_text(json.dumps(state | {"phase": "ready"}))
    path.with_suffix(".tmp").replace(path)
    return path.name


@contextmanager
def resolver(folder: Path) -> Iterator[tuple[int, float]]:
    """Run one; yield its pid, and the seconds until it was ready."""
    (folder / "node.yaml").write_text(f"paths: {{state: {folder}}}\n")
    path = folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(path))
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-c", "from daemon.resolver.main import main; exit(main())",
             "--config", str(folder / "node.yaml"), "--log", "error"],
            env=os.environ | {"NOTIFY_SOCKET": str(path), "PYTHONPATH": str(CHECKOUT)},
        )  # fmt: skip
        try:
            notified.recv(100)
            path.unlink()
            yield process.pid, time.monotonic() - began
        finally:
            process.terminate()
            process.wait()


@contextmanager
def helper(code: str, sock: socket.socket, *arguments: str) -> Iterator[None]:
    """Run a program with one socket of another namespace."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code, str(sock.fileno()), *arguments],
        pass_fds=[sock.fileno()], stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        process.kill()
        process.wait()


def ask(sock: socket.socket, pause: float = 0.0) -> list[float]:
    """Return the microseconds that each of many queries took."""
    took = []
    for _ in range(QUERIES):
        if pause:
            time.sleep(pause)
        began = time.perf_counter_ns()
        sock.send(QUERY)
        sock.recv(600)
        took.append((time.perf_counter_ns() - began) / 1e3)
    return took


def compared(box: Bare, pause: float) -> tuple[list[float], list[float]]:
    """Ask the resolver and an echo in turn, with a pause between any two queries."""
    with ExitStack() as held:
        echo, to_echo, to_resolver = (
            held.enter_context(socket_in(box.netns, socket.SOCK_DGRAM)) for _ in range(3)
        )
        echo.bind(("127.0.0.1", 9))
        to_echo.connect(("127.0.0.1", 9))
        to_resolver.connect((NAMESERVER, 53))
        for sock in (to_echo, to_resolver):
            sock.settimeout(10)
        resolved, echoed = [], []
        with helper(ECHO, echo):
            ask(to_echo)  # warm
            for _ in range(ROUNDS):
                resolved += ask(to_resolver, pause)
                echoed += ask(to_echo, pause)
    return resolved, echoed


def flooded(quiet: Bare, loud: Bare, processor: Callable[[], float]) -> tuple[list[float], float]:
    """Ask while another floods; return microseconds, and the resolver's share of a processor."""
    with socket_in(loud.netns, socket.SOCK_DGRAM) as flood:
        flood.connect((NAMESERVER, 53))
        with helper(FLOOD, flood, QUERY.hex()), socket_in(quiet.netns, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.connect((NAMESERVER, 53))
            used, began = processor(), time.monotonic()
            time.sleep(IDLE)
            share = (processor() - used) / (time.monotonic() - began)
            return ask(sock, PAUSE), share


def served(folder: Path, number: int, box: Bare) -> float:
    """Return the milliseconds in which a new attachment gets its name server."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("")
        sock.connect(str(folder / "resolver.sock"))
        name = attachment(folder, number, box)
        began = time.perf_counter()
        sock.send(name.encode())
        assert sock.recv(100) == b"served"
        return (time.perf_counter() - began) * 1e3


def spread(values: list[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile."""
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[98]


def measure(count: int, boxes: list[Bare]) -> None:
    """Print the figures of a node with `count` attachments; `boxes` has 22 more."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "attachments").mkdir()
        content = {"addresses": {"api": ["10.80.0.1"]}, "known": {"web": ["api"]}}
        (folder / "names").write_text(json.dumps(content))
        for number, box in enumerate(boxes[:count]):
            attachment(folder, number, box)
        with resolver(folder) as (pid, started):
            figures = Figures(pid)
            memory, used = figures.memory(), figures.seconds()
            time.sleep(IDLE)
            share = (figures.seconds() - used) / IDLE
            print(f"\n{count} attachments")
            print(f"  start to READY=1       {started * 1e3:10.0f} ms")
            print(f"  memory, resident       {memory:10.1f} MiB")
            print(f"  processor, idle        {share * 100:10.2f} %")
            serve = [served(folder, count + n, boxes[count + n]) for n in range(22)]
            p50, p99 = statistics.median(serve), max(serve)
            print(f"  serve a new one        {p50:10.2f} ms p50 {p99:8.2f} ms max")
            resolved, echoed = compared(boxes[count], PAUSE)
            for what, values in (("query", resolved), ("bare echo", echoed)):
                p50, p99 = spread(values)
                print(f"  {what:<22} {p50:10.1f} µs p50 {p99:8.1f} µs p99")
            ratios = [a / b for a, b in zip(spread(resolved), spread(echoed), strict=True)]
            print(f"  query over echo        {ratios[0]:10.2f} ×  p50 {ratios[1]:8.2f} ×  p99")
            rates = [1e6 / statistics.mean(values) for values in compared(boxes[count], 0.0)]
            print(f"  at most                {rates[0]:10.0f} /s; bare echo {rates[1]:.0f} /s")
            values, share = flooded(boxes[count], boxes[count + 1], figures.seconds)
            p50, p99 = spread(values)
            print(f"  next to a flood        {p50:10.1f} µs p50 {p99:8.1f} µs p99")
            print(f"  processor for a flood  {share * 100:10.2f} %")


def main() -> None:
    """Print a block for each number of attachments."""
    counts = [int(argument) for argument in sys.argv[1:]] or [0, 100, 1000]
    boxes: list[Bare] = []
    try:
        for number in range(max(counts) + 22):
            boxes.append(Bare(f"resolver-{number}", "n1", "web"))
            if number < 22 or number in {count + extra for count in counts for extra in (0, 1)}:
                run("ip", "-n", boxes[-1].name, "link", "set", "lo", "up")
        for count in counts:
            measure(count, boxes)
    finally:
        for box in boxes:
            box.kill()


if __name__ == "__main__":
    main()
