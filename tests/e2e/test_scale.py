"""Hundreds of containers come and go on one node, and nothing of them stays."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.bare import Bare, bare
from tests.e2e.cluster import Cluster
from tests.e2e.container import Container
from tests.e2e.inventory import Bag, inventory, settle
from tests.e2e.machine import until

CONTAINERS = {True: 200, False: 50}
"""In full size, and otherwise."""
PARALLEL = 8
VANISHED = 20


@pytest.fixture(scope="module")
def api(lone: Cluster) -> Container:
    """The one replica that stays; every other one becomes its neighbour and leaves again."""
    return lone.add("api", "n1", "api", 8080)


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(PARALLEL) as workers:
        yield workers


@pytest.fixture(scope="module")
def before(lone: Cluster, api: Container, pool: ThreadPoolExecutor) -> Bag:
    """What exists once the daemon has all its threads: eight at a time came and went."""
    boxes = [bare(lone, f"first-{number}", "web") for number in range(PARALLEL)]
    _attach(lone, pool, boxes)
    _detach(lone, pool, boxes)
    return inventory(lone, "n1", api)


@pytest.mark.timeout(900)
def test_a_crowd_comes_and_goes(
    lone: Cluster, api: Container, pool: ThreadPoolExecutor, before: Bag, full: bool
) -> None:
    boxes = [bare(lone, f"web-{number}", "web") for number in range(CONTAINERS[full])]
    adding = _attach(lone, pool, boxes)
    addresses = {box.address for box in boxes}
    assert len(addresses | {api.address}) == len(boxes) + 1
    known = {replica["address"] for replica in lone.status("n1")["replicas"]}
    assert known == addresses | {api.address}
    for box in (boxes[0], boxes[-1]):
        assert box.greet(lone.vip("api"), 80) == "api"
    assert lone.differences("n1") == []

    deleting = _detach(lone, pool, boxes)
    print(
        f"\n{len(boxes)} containers by {PARALLEL} executables: "
        f"added in {adding:.1f} s, deleted in {deleting:.1f} s"
    )
    settle(lambda: inventory(lone, "n1", api), before)
    assert lone.differences("n1") == []


def test_vanished_namespaces_are_collected(
    lone: Cluster, api: Container, pool: ThreadPoolExecutor, before: Bag
) -> None:
    boxes = [bare(lone, f"lost-{number}", "web") for number in range(VANISHED)]
    _attach(lone, pool, boxes)
    began = time.monotonic()
    for box in boxes:
        lone.containers.pop(box.name).kill()
    folder = lone.base / "n1" / "run" / "attachments"
    until(lambda: len(list(folder.iterdir())) == 1, "the daemon to notice")
    noticed = time.monotonic() - began
    print(f"\n{VANISHED} namespaces deleted without DEL: collected after {noticed:.1f} s")
    settle(lambda: inventory(lone, "n1", api), before)


def _attach(cluster: Cluster, pool: ThreadPoolExecutor, boxes: list[Bare]) -> float:
    """ADD all; return the seconds it took."""
    began = time.monotonic()
    for box, result in zip(boxes, pool.map(lambda b: cluster.cni("ADD", b), boxes), strict=True):
        box.result = result
    return time.monotonic() - began


def _detach(cluster: Cluster, pool: ThreadPoolExecutor, boxes: list[Bare]) -> float:
    """DEL all and end them; return the seconds that DEL took."""
    began = time.monotonic()
    list(pool.map(lambda b: cluster.cni("DEL", b), boxes))
    took = time.monotonic() - began
    for box in boxes:
        cluster.containers.pop(box.name).kill()
    return took
