"""Killed at any moment of ADD or DEL, daemon or executable: a DEL or a restart leaves nothing.

The moments are drawn from the time the same call takes undisturbed. Each run draws others and
prints its seed; NOCTULE_SEED repeats them, as far as moments can be repeated.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import vanishing
from tests.e2e.bare import Bare, bare
from tests.e2e.cluster import PLUGIN, Cluster
from tests.e2e.container import Container
from tests.e2e.inventory import inventory, settle
from tests.e2e.machine import until

POINTS = 10
DEATHS = {True: 5, False: 3}
"""Of the daemon, in full size and otherwise. Its start takes seconds under emulation, so each is
spent on four calls."""
SEED = int(os.environ.get("NOCTULE_SEED") or random.SystemRandom().randrange(10_000))


class Call:
    """One run of the executable that need not be waited for."""

    def __init__(self, cluster: Cluster, verb: str, container: Container) -> None:
        self.said = ""
        stdin = cluster.base / f"{verb}-{container.name}.json"
        stdin.write_text(json.dumps(cluster.config(container)))
        with stdin.open() as config:
            self._process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{container.node}", PLUGIN],
                env=cluster.environment(verb, container),
                stdin=config, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip

    def ended(self, within: float) -> bool:
        """Wait for it no longer than this many seconds; say whether it ended."""
        try:
            self._process.wait(within)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End it with SIGKILL."""
        self._process.kill()
        self._process.communicate()

    def succeeded(self) -> bool:
        """Wait for its end; tell whether it was a success, and insist on proper answers."""
        stdout, stderr = self._process.communicate(timeout=120)
        self.said = stdout + stderr
        if self._process.returncode != 0:
            assert json.loads(stdout)["code"] > 0, self.said
        return self._process.returncode == 0


class Moments:
    """Random moments within the time that ADD and DEL take here."""

    def __init__(self, cluster: Cluster) -> None:
        print(f"\nNOCTULE_SEED={SEED}")
        self._random = random.Random(SEED)
        took: dict[str, list[float]] = {"ADD": [], "DEL": []}
        for number in range(3):
            box = bare(cluster, f"usual-{number}", "web")
            for verb, times in took.items():
                began = time.monotonic()
                assert Call(cluster, verb, box).succeeded()
                times.append(time.monotonic() - began)
            cluster.containers.pop(box.name).kill()
        self._usual = {verb: statistics.median(times) for verb, times in took.items()}

    def draw(self, verb: str) -> float:
        """Return a number of seconds after the start of a call."""
        moment = self._random.uniform(0, self._usual[verb])
        print(f"{verb} + {moment * 1e3:.0f} of {self._usual[verb] * 1e3:.0f} ms")
        return moment


@pytest.fixture(scope="module")
def api(lone: Cluster) -> Container:
    """The one replica that nothing may happen to."""
    return lone.add("api", "n1", "api", 8080)


@pytest.fixture(scope="module")
def moments(lone: Cluster, api: Container) -> Moments:
    return Moments(lone)


@pytest.fixture
def boxes(lone: Cluster, moments: Moments) -> Iterator[list[Bare]]:
    count = max(POINTS, DEATHS[True] * 2 + 2)
    made = [bare(lone, f"box-{number}", "web") for number in range(count)]
    yield made
    for box in made:
        lone.containers.pop(box.name).kill()


def test_executable_killed(
    lone: Cluster, api: Container, moments: Moments, boxes: list[Bare]
) -> None:
    before = inventory(lone, "n1", api, *boxes)
    for box in boxes:
        adding = Call(lone, "ADD", box)
        if not adding.ended(moments.draw("ADD")):
            adding.kill()
        deleting = Call(lone, "DEL", box)
        if not deleting.ended(moments.draw("DEL")):
            deleting.kill()
        assert Call(lone, "DEL", box).succeeded()
        assert not _files(lone, box), f"{box.name} is left in the state folder"
    settle(lambda: inventory(lone, "n1", api, *boxes), before)


@pytest.mark.timeout(600)
def test_executable_killed_and_no_del(
    lone: Cluster, api: Container, moments: Moments, boxes: list[Bare]
) -> None:
    """What is there after the daemon's restart is complete, or it is nothing."""
    before = inventory(lone, "n1", api, *boxes, daemon=False)
    for box in boxes:
        adding = Call(lone, "ADD", box)
        if not adding.ended(moments.draw("ADD")):
            adding.kill()
    lone.kill("n1")
    lone.start("n1")
    complete = _complete_or_nothing(lone, boxes)
    print(f"complete: {complete} of {len(boxes)}")
    for box in boxes:
        assert Call(lone, "DEL", box).succeeded()
    settle(lambda: inventory(lone, "n1", api, *boxes, daemon=False), before)


@pytest.mark.timeout(900)
def test_daemon_killed(
    lone: Cluster, api: Container, moments: Moments, boxes: list[Bare], full: bool
) -> None:
    """Each death hits two ADDs and two DELs at once; DEL comes before or after the restart."""
    before = inventory(lone, "n1", api, *boxes, daemon=False)
    others = boxes[-2:]
    for number in range(DEATHS[full]):
        pair = boxes[number * 2 : number * 2 + 2]
        for box in others:
            assert Call(lone, "ADD", box).succeeded()
        calls = _killed_amid(
            lone,
            [(moments.draw("ADD"), "ADD", box) for box in pair]
            + [(moments.draw("DEL"), "DEL", box) for box in others],
        )
        for call in calls:
            assert call.succeeded(), f"the executable did not finish the work: {call.said}"
        for box in others:
            assert not _files(lone, box), "a DEL that succeeded left something"
        assert Call(lone, "DEL", pair[0]).succeeded()
        lone.start("n1")
        assert _complete_or_nothing(lone, pair) == 1
        assert Call(lone, "DEL", pair[1]).succeeded()
    settle(lambda: inventory(lone, "n1", api, *boxes, daemon=False), before)
    assert lone.differences("n1") == []


def _killed_amid(cluster: Cluster, wanted: list[tuple[float, str, Bare]]) -> list[Call]:
    """Start calls so that each has run for its time when the daemon is killed."""
    calls: list[Call] = []
    wanted.sort(key=lambda one: -one[0])
    for (age, verb, box), following in zip(wanted, [*wanted[1:], (0.0, "", None)], strict=True):
        calls.append(Call(cluster, verb, box))
        calls[-1].ended(age - following[0])
    cluster.kill("n1")
    return calls


def _files(cluster: Cluster, container: Container) -> list[Path]:
    """The state files of a container."""
    folder = cluster.base / container.node / "run" / "attachments"
    mine = f'"{container.name}"'
    return [path for path in vanishing.listed(folder) if mine in (vanishing.read(path) or "")]


def _complete_or_nothing(cluster: Cluster, boxes: list[Bare]) -> int:
    """Assert that each is attached in full or not at all; return how many are attached."""
    complete = 0
    for box in boxes:
        files = _files(cluster, box)
        if not files:
            continue
        (path,) = files
        state = json.loads(path.read_text())
        assert state["phase"] == "ready", f"{box.name}: {state}"
        box.result = {"ips": [{"address": state["address"] + "/12"}]}
        request = {"container": box.name, "ifname": box.ifname, "netns": box.netns,
                   "network": "mesh", "address": state["address"]}  # fmt: skip
        said = cluster.api("n1", "POST", "/v1/check", json.dumps(request).encode())
        assert said == {}, f"{box.name}: {said}"
        until(lambda b=box: _reaches_api(cluster, b), f"{box.name} to be opened")
        complete += 1
    return complete


def _reaches_api(cluster: Cluster, box: Bare) -> bool:
    try:
        return box.greet(cluster.vip("api"), 80) == "api"
    except OSError:
        return False
