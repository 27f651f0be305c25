"""Does a fresh replica's very first packet arrive? One hundred attaches, each then dials.

::

    python3 -m tests.bench.first_packet [ATTACHES]

A new replica on n1 dials, the moment its ADD has returned, a replica on n2. A SYN that is lost
on the way is sent again after a second, and TCP_INFO of the socket tells. Prints that figure,
the time of ADD as a runtime sees it and without the start of the executable, and how often the
daemon gave up waiting for the other node to confirm that it knows the new replica.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import struct
import sys
import time
from dataclasses import dataclass, field

from tests.e2e.bare import bare
from tests.e2e.cluster import POLICY, Cluster
from tests.e2e.container import Container

RETRANSMITS = struct.Struct("=2xB")
"""struct tcp_info of include/uapi/linux/tcp.h: tcpi_retransmits, of the timer that runs."""
RETRANS = struct.Struct("=36xI")
"""tcpi_retrans: segments sent again and not yet acknowledged."""
TOTAL_RETRANS = struct.Struct("=100xI")
"""tcpi_total_retrans: segments sent again since the socket exists, SYNs included."""


@dataclass
class Figures:
    """What was measured."""

    add_ms: list[float] = field(default_factory=list)
    """ADD as a runtime sees it."""
    daemon_ms: list[float] = field(default_factory=list)
    """The daemon's part of it."""
    dial_ms: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    """Which attaches needed a retransmission, or did not get through at all."""
    gave_up: int = 0
    """How often ADD returned without the other node's confirmation."""

    def __str__(self) -> str:
        """Return what a person wants to read."""
        first = len(self.add_ms) - len(self.lost)
        return (
            f"first SYN arrived in {first} of {len(self.add_ms)} attaches\n"
            f"ADD p50 {_percentile(self.add_ms, 50):.1f} ms, p99 {_percentile(self.add_ms, 99):.1f}"
            f" ms; in the daemon p50 {_percentile(self.daemon_ms, 50):.1f} ms, "
            f"p99 {_percentile(self.daemon_ms, 99):.1f} ms\n"
            f"dial p50 {_percentile(self.dial_ms, 50):.1f} ms, "
            f"p99 {_percentile(self.dial_ms, 99):.1f} ms\n"
            f"ADD gave up waiting for the other node in {self.gave_up} of {len(self.add_ms)}"
        )


def ready(cluster: Cluster) -> Container:
    """Start n1 and n2, and a replica on n2 that answers."""
    cluster.start("n1", "n2")
    cluster.meet("n1", "n2")
    cluster.apply(POLICY)
    api = cluster.add("api", "n2", "api", 8080)
    warm = bare(cluster, "warm", "web")
    warm.result = cluster.cni("ADD", warm)
    warm.greet(api.address, 8080)
    cluster.delete("warm")
    return api


def measure(cluster: Cluster, api: Container, attaches: int) -> Figures:
    """Attach one after the other, dial at once, and delete again."""
    figures = Figures()
    start = len(cluster.log("n1"))
    for number in range(attaches):
        fresh = bare(cluster, f"fresh-{number}", "web")
        began = time.monotonic()
        fresh.result = cluster.cni("ADD", fresh)
        added = time.monotonic()
        problem = _dial(fresh, api.address)
        figures.dial_ms.append((time.monotonic() - added) * 1e3)
        figures.add_ms.append((added - began) * 1e3)
        if problem:
            figures.lost.append(f"attach {number}: {problem}")
        cluster.delete(fresh.name)
    for line in cluster.log("n1")[start:].splitlines():
        event = json.loads(line)
        if event["event"] == "attached":
            figures.daemon_ms.append(event["duration_ms"])
            figures.gave_up += event["neighbours"].startswith("gave up")
    return figures


def _dial(fresh: Container, address: str) -> str:
    """Connect and hear one line; return what went wrong, if anything did."""
    try:
        with fresh.dial(address, 8080) as sock:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
            sock.recv(100)
    except OSError as error:
        return str(error)
    counts = {
        "retransmits": RETRANSMITS.unpack_from(info)[0],
        "retrans": RETRANS.unpack_from(info)[0],
        "total_retrans": TOTAL_RETRANS.unpack_from(info)[0],
    }
    return str(counts) if any(counts.values()) else ""


def _percentile(values: list[float], percent: int) -> float:
    if len(values) < 2:
        return values[0] if values else 0.0
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def main() -> int:
    """Measure and print; status 1 if more than one in a hundred was lost."""
    attaches = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    confirm = os.environ.get("NOCTULE_CONFIRM_MS")
    with Cluster(**({"confirm_ms": int(confirm)} if confirm else {})) as cluster:
        api = ready(cluster)
        figures = measure(cluster, api, attaches)
    print(figures)
    for line in figures.lost:
        print(line)
    return 1 if len(figures.lost) * 100 > attaches else 0


if __name__ == "__main__":
    sys.exit(main())
