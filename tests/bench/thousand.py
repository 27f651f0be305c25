"""A thousand containers on one node: are all reachable, and what does the daemon take?

::

    python3 -m tests.bench.thousand [CONTAINERS]

Leaves are attached to n1 in steps; a hub on the same node and one on another, the leaves' peers,
then ping each of them. At every step: the daemon's memory (RSS, PSS is the same, for nothing of
it is shared), its processor time while nothing happens, and the time of the last ADDs. In the
end the node is filled up to its limit, and the first container too many must be refused and
leave nothing.
"""

from __future__ import annotations

import os
import socket
import statistics
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from daemon.reconcile.audit import AUDIT_EVERY
from netconf.attach.allocation import CONTAINERS_MAX
from netconf.namespace import Namespace
from tests.e2e.bare import Bare, bare
from tests.e2e.cluster import POLICY, Cluster, Failed
from tests.e2e.machine import until

STEPS = (10, 100, 500, 1000)
PARALLEL = 8
IDLE = AUDIT_EVERY
"""Seconds of watching the processor time of a daemon that has nothing to do but to audit."""
ALONE = 9
"""ADDs one after the other at each step, whose median is printed."""

TEXT = (
    POLICY.partition("services:")[0]
    + """\
services:
  hub:  {ports: [{protocol: tcp, port: 80}]}
  leaf: {ports: [{protocol: tcp, port: 80}]}
allow:
  - {from: hub, to: leaf, ports: [icmp]}
  - {from: leaf, to: hub, ports: [tcp/80]}
"""
)


class Daemon:
    """The processor time and memory of a process, from proc(5)."""

    def __init__(self, pid: int) -> None:
        self._proc = Path(f"/proc/{pid}")

    def seconds(self) -> float:
        """Return user and system time."""
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def megabytes(self) -> float:
        """Return the resident set in MB."""
        pages = int((self._proc / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def files(self) -> int:
        """Return how many descriptors it has."""
        return len(list((self._proc / "fd").iterdir()))


def ping(hub: Bare, addresses: list[str]) -> set[str]:
    """Send one echo request to each of `addresses`; return who answered."""
    with Namespace.open(hub.netns) as netns, netns.enter():
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    header = struct.pack("!BBHHH", 8, 0, 0, 0x4E4F, 1)
    checksum = 0xFFFF ^ sum(struct.unpack("!4H", header)) % 0xFFFF
    request = struct.pack("!BBHHH", 8, 0, checksum, 0x4E4F, 1)
    answered: set[str] = set()
    with sock:
        sock.settimeout(2.0)
        for start in range(0, len(addresses), 20):
            asked = addresses[start : start + 20]
            for address in asked:
                sock.sendto(request, (address, 0))
            try:
                while not answered.issuperset(asked):
                    data, (sender, _) = sock.recvfrom(200)
                    if data[20] == 0:
                        answered.add(sender)
            except TimeoutError:
                continue
    return answered


def report(daemon: Daemon, attached: int, add_ms: float) -> None:
    """Print one line."""
    before = daemon.seconds()
    time.sleep(IDLE)
    idle = (daemon.seconds() - before) / IDLE * 100
    print(
        f"{attached:5d} attached: {daemon.megabytes():6.1f} MB, {idle:5.1f} % of a processor when "
        f"idle, {daemon.files()} files" + (f"; ADD {add_ms:.0f} ms" if add_ms else ""),
        flush=True,
    )


def main() -> int:
    """Measure and print; status 1 if a container could not be reached or the limit is not kept."""
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else STEPS[-1]
    with Cluster() as cluster, ThreadPoolExecutor(PARALLEL) as pool:
        cluster.start("n1", "n2")
        cluster.meet("n1", "n2")
        cluster.apply(TEXT)
        daemon = Daemon(cluster.daemons["n1"].pid)
        report(daemon, 0, 0.0)
        hubs = [bare(cluster, "hub-here", "hub"), bare(cluster, "hub-there", "hub", "n2")]
        for hub in hubs:
            hub.result = cluster.cni("ADD", hub)
        leaves: list[Bare] = []

        def attach() -> Bare:
            box = bare(cluster, f"leaf-{len(leaves)}", "leaf")
            leaves.append(box)
            return box

        def add(box: Bare) -> float:
            began = time.perf_counter()
            box.result = cluster.cni("ADD", box)
            return (time.perf_counter() - began) * 1e3

        for step in (*(s for s in STEPS if s < wanted), wanted):
            boxes = [attach() for _ in range(step - len(leaves) - ALONE)]
            list(pool.map(add, boxes))
            alone = statistics.median(add(attach()) for _ in range(ALONE))
            report(daemon, step, alone)
        addresses = [leaf.address for leaf in leaves]
        missing = []
        for hub in hubs:
            until(lambda hub=hub: ping(hub, addresses[-1:]), f"{hub.name} to reach the last leaf")
            found = ping(hub, addresses)
            missing += [a for a in addresses if a not in found]
            print(f"{hub.name}: {len(found)} of {len(addresses)} answer", flush=True)
        status = 1 if missing else 0
        if wanted >= STEPS[-1]:
            list(pool.map(add, [attach() for _ in range(CONTAINERS_MAX - 1 - len(leaves))]))
            extra = bare(cluster, "one-too-many", "leaf")
            try:
                add(extra)
                print(f"{CONTAINERS_MAX + 1} attached: the limit is not kept")
                status = 1
            except Failed as failure:
                print(f"number {CONTAINERS_MAX + 1}: code {failure.code}: {failure.error['msg']}")
        verified = cluster.verify("n1")
        wrong = verified["differences"]
        print(
            f"verify: {len(wrong)} of {verified['attachments']} differ from the plan: {wrong[:5]}"
        )
    return 1 if wrong else status


if __name__ == "__main__":
    sys.exit(main())
