"""ADD and DEL as a runtime pays for them, against the plugins it would call otherwise.

::

    python3 -m tests.bench.cni_speed [--rounds N] [--parallel N] [--attached N] [--bundle FILE]

Four contenders take turns, so that whatever else the machine does meets all of them: our script,
our packaged executable (of the .deb that ``make packages`` left in dist/, or ``--bundle FILE``),
``bridge`` with ``host-local``, and the chain of those with ``portmap`` and ``firewall`` (nothing
published: its cheapest form). Each call is a
whole process, from exec to exit, started in the node's namespace by a process that is there
already. The daemon is warm and has a replica whose neighbour every new container becomes.

1. One at a time: p50 and p99 of ADD and DEL, and the ratios to the reference of the same run.
2. `parallel` at once: the same figures of the single calls, and how long all took.
3. With more and more attached, up to `attached`: the last ADDs against the first.

Under emulation only the ratios mean anything.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from netconf.namespace import Namespace
from tests.e2e.bare import Bare, bare
from tests.e2e.cluster import PLUGIN, POLICY, Cluster
from tests.e2e.machine import run

REFERENCE = Path("/usr/lib/cni")
"""Where Debian installs containernetworking-plugins."""
BUILT = Path("/src/dist")
"""The checkout's dist/, as the lab's guest sees it."""
WINDOW = 20
"""ADDs whose median stands for "the first" and "the last"."""

Steps = list[tuple[Path, dict[str, Any]]]
"""The plugins of a chain with their configurations, in the order of ADD."""


class Contender:
    """One way to attach a container."""

    def __init__(self, name: str, steps: Callable[[Bare], Steps]) -> None:
        self.name = name
        self._steps = steps
        self._results: dict[str, dict[str, Any]] = {}

    def add(self, box: Bare) -> float:
        """Attach; return milliseconds."""
        result: dict[str, Any] = {}
        took = 0.0
        for plugin, config in self._steps(box):
            extra = {"prevResult": result} if result else {}
            ms, result = call(plugin, "ADD", box, config | extra)
            took += ms
        self._results[box.name] = result
        return took

    def delete(self, box: Bare) -> float:
        """Detach; return milliseconds."""
        result = self._results.pop(box.name)
        took = 0.0
        for plugin, config in reversed(self._steps(box)):
            took += call(plugin, "DEL", box, config | {"prevResult": result})[0]
        return took


def call(
    plugin: Path, verb: str, box: Bare, config: dict[str, Any]
) -> tuple[float, dict[str, Any]]:
    """Run one plugin; return milliseconds from exec to exit, and its result."""
    environment = {
        "CNI_COMMAND": verb, "CNI_CONTAINERID": box.name, "CNI_NETNS": box.netns,
        "CNI_IFNAME": "eth0", "CNI_PATH": f"{REFERENCE}:{Path(PLUGIN).parent}",
        "PATH": os.environ["PATH"],
    }  # fmt: skip
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout:
        stdin.write(json.dumps(config).encode())
        stdin.seek(0)
        places = [
            (os.POSIX_SPAWN_DUP2, stdin.fileno(), 0),
            (os.POSIX_SPAWN_DUP2, stdout.fileno(), 1),
        ]
        began = time.perf_counter()
        pid = os.posix_spawn(plugin, [str(plugin)], environment, file_actions=places)
        _, status = os.waitpid(pid, 0)
        took = (time.perf_counter() - began) * 1e3
        stdout.seek(0)
        said = stdout.read()
    if status:
        raise AssertionError(f"{plugin} {verb}: {said.decode(errors='replace')}")
    return took, json.loads(said) if said.strip() else {}


def unpacked(folder: Path) -> Path | None:
    """Unpack the package, if there is one, and return the plugin in it."""
    for package in sorted(BUILT.glob("noctule_*.deb")):
        run("dpkg-deb", "--extract", str(package), str(folder))
        return folder / "usr/lib/noctule/package/noctule"
    return None


def contenders(cluster: Cluster, bundle: Path | None) -> list[Contender]:
    """Return who takes part; the reference comes before the chain that contains it."""

    def ours(plugin: Path) -> Callable[[Bare], Steps]:
        return lambda box: [(plugin, cluster.config(box))]

    base = {"cniVersion": "1.0.0", "name": "reference"}
    ipam = {
        "type": "host-local",
        "dataDir": str(cluster.base / "host-local"),
        "ranges": [[{"subnet": "10.200.0.0/16"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = base | {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": ipam}
    portmap = base | {"type": "portmap", "capabilities": {"portMappings": True}}
    firewall = base | {"type": "firewall"}
    pair: Steps = [(REFERENCE / "bridge", bridge)]
    chain = [*pair, (REFERENCE / "portmap", portmap), (REFERENCE / "firewall", firewall)]
    found = [Contender("script", ours(Path(PLUGIN)))]
    if bundle is not None:
        found.append(Contender("packaged", ours(bundle)))
    found.append(Contender("bridge", lambda _: pair))
    found.append(Contender("chain", lambda _: chain))
    return found


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile of `values`."""
    if len(values) < 2:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def table(title: str, taken: dict[str, dict[str, list[float]]]) -> None:
    """Print p50 and p99 of each contender's verbs, and the ratios to both references."""
    print(f"\n{title}", flush=True)
    print(f"{'':10s} {'':4s} {'p50 ms':>8s} {'p99 ms':>8s} {'p50/bridge':>11s} {'p50/chain':>10s}")
    for name, verbs in taken.items():
        for verb, values in verbs.items():
            half = percentile(values, 50)
            ratios = [half / percentile(taken[other][verb], 50) for other in ("bridge", "chain")]
            print(
                f"{name:10s} {verb:4s} {half:8.1f} {percentile(values, 99):8.1f} "
                f"{ratios[0]:11.2f} {ratios[1]:10.2f}"
            )


def one_at_a_time(cluster: Cluster, all_of: list[Contender], rounds: int) -> None:
    """Figure 1."""
    taken: dict[str, dict[str, list[float]]] = {one.name: {"ADD": [], "DEL": []} for one in all_of}
    for number in range(rounds + 1):
        for one in all_of:
            box = bare(cluster, f"{one.name}-{number}", "web")
            add, delete = one.add(box), one.delete(box)
            cluster.containers.pop(box.name).kill()
            if number:  # the first of each loads modules and fills caches
                taken[one.name]["ADD"].append(add)
                taken[one.name]["DEL"].append(delete)
    table(f"one at a time, {rounds} rounds", taken)


def many_at_once(cluster: Cluster, all_of: list[Contender], parallel: int) -> None:
    """Figure 2."""
    taken: dict[str, dict[str, list[float]]] = {}
    whole: dict[str, float] = {}

    def inside(act: Callable[[Bare], float], box: Bare) -> float:
        with Namespace.open("/run/netns/n1") as node, node.enter():
            return act(box)

    with ThreadPoolExecutor(parallel) as pool:
        for one in all_of:
            boxes = [bare(cluster, f"{one.name}-at-once-{n}", "web") for n in range(parallel)]
            began = time.perf_counter()
            adds = list(pool.map(lambda box, one=one: inside(one.add, box), boxes))
            whole[one.name] = (time.perf_counter() - began) * 1e3
            deletes = list(pool.map(lambda box, one=one: inside(one.delete, box), boxes))
            for box in boxes:
                cluster.containers.pop(box.name).kill()
            taken[one.name] = {"ADD": adds, "DEL": deletes}
    table(f"{parallel} at once", taken)
    for name, ms in whole.items():
        print(f"{name:10s} all ADDs after {ms:8.1f} ms = {ms / whole['bridge']:.2f} × bridge")


def more_and_more(cluster: Cluster, one: Contender, attached: int) -> None:
    """Figure 3."""
    boxes: list[Bare] = []
    adds: list[float] = []
    for number in range(attached):
        boxes.append(bare(cluster, f"{one.name}-of-many-{number}", "web"))
        adds.append(one.add(boxes[-1]))
    first, last = statistics.median(adds[:WINDOW]), statistics.median(adds[-WINDOW:])
    print(
        f"\n{one.name}: ADD with {WINDOW} attached {first:.1f} ms, with {attached} {last:.1f} ms: "
        f"{last / first:.2f} × (medians of {WINDOW})"
    )
    for box in boxes:
        one.delete(box)
        cluster.containers.pop(box.name).kill()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--parallel", type=int, default=16)
    parser.add_argument("--attached", type=int, default=0)
    parser.add_argument("--bundle", type=Path)
    arguments = parser.parse_args()
    with Cluster() as cluster:
        bundle = arguments.bundle or unpacked(cluster.base / "package")
        cluster.start("n1")
        cluster.apply(POLICY)
        cluster.add("api", "n1", "api", 8080)
        all_of = contenders(cluster, bundle)
        with Namespace.open("/run/netns/n1") as node, node.enter():
            one_at_a_time(cluster, all_of, arguments.rounds)
            if arguments.parallel:
                many_at_once(cluster, all_of, arguments.parallel)
            if arguments.attached:
                for one in all_of[:-1]:  # the chain would take minutes, and is not the question
                    more_and_more(cluster, one, arguments.attached)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
