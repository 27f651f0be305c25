"""The daemon is killed amid a hundred ADDs, and comes back as its service manager would have it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from netconf.namespace import Namespace
from netconf.netlink import links
from tests.e2e.bare import Bare, bare
from tests.e2e.cluster import Cluster, Failed
from tests.e2e.container import Container
from tests.e2e.inventory import Bag, inventory, settle
from tests.e2e.machine import until

STORM = {True: 100, False: 40}
"""ADDs, in full size and otherwise."""
PARALLEL = 16
DONE_FIRST = {True: 60, False: 16}
"""ADDs that have ended when the daemon is killed. `PARALLEL` are under way then; all from there
to the daemon's return are the executables' own work, seconds for each under emulation."""


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(PARALLEL) as workers:
        yield workers


@pytest.fixture(scope="module")
def api(lone: Cluster) -> Container:
    return lone.add("api", "n1", "api", 8080)


@pytest.fixture(scope="module")
def before(lone: Cluster, api: Container) -> Bag:
    return inventory(lone, "n1", api, daemon=False)


@pytest.mark.timeout(900)
def test_every_add_succeeds_or_fails_cleanly(
    lone: Cluster, api: Container, pool: ThreadPoolExecutor, before: Bag, full: bool
) -> None:
    boxes = [bare(lone, f"storm-{number}", "web") for number in range(STORM[full])]
    began = time.monotonic()
    calls = {box.name: pool.submit(lone.cni, "ADD", box) for box in boxes}
    until(
        lambda: sum(call.done() for call in calls.values()) >= DONE_FIRST[full],
        "the storm to rise",
        300,
    )
    lone.kill("n1")
    assert not all(call.done() for call in calls.values())
    lone.start("n1")
    attached = [box for box in boxes if _succeeded(box, calls[box.name])]
    print(f"\n{len(attached)} of {len(boxes)} succeeded, {time.monotonic() - began:.0f} s")
    assert len(attached) >= DONE_FIRST[full]

    # An executable that could not have the node's lock in time leaves what the daemon had done to
    # the DEL that the runtime owes; nobody else's address is among it.
    addresses = {box.address for box in attached}
    assert len(addresses) == len(attached)
    held = {path.stem.partition("@")[2] for path in (lone.base / "n1/run/attachments").iterdir()}
    assert held >= addresses | {api.address}
    assert len(held) <= 1 + len(boxes)
    # What was made closed while the daemon was away is opened by its successor.
    for box in (attached[0], attached[len(attached) // 2], attached[-1]):
        until(lambda box=box: _reaches(box, lone.vip("api")), f"{box.name} to reach api")
    until(lambda: lone.differences("n1") == [], "kernel and plan to agree")

    # A runtime calls DEL for both kinds.
    list(pool.map(lambda box: lone.cni("DEL", box), boxes))
    for box in boxes:
        assert _links(box) == {"lo"}
        lone.containers.pop(box.name).kill()
    settle(lambda: inventory(lone, "n1", api, daemon=False), before)
    assert lone.differences("n1") == []


def _succeeded(box: Bare, call: Future[dict[str, object]]) -> bool:
    """Wait for an ADD; False if it failed as the specification has it, and said why."""
    try:
        box.result = call.result()
    except Failed as failure:
        assert isinstance(failure.code, int) and failure.code > 0
        assert failure.error["msg"]
        assert failure.code != 999, failure
        return False
    return True


def _links(box: Bare) -> set[str]:
    with Namespace.open(box.netns) as netns, links.open(netns) as rtnl:
        return {facts.name for facts in links.every(rtnl)}


def _reaches(box: Bare, vip: str) -> bool:
    try:
        return box.greet(vip, 80) == "api"
    except OSError:
        return False
