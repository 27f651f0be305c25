"""A node's certificate ends under traffic: nothing that works stops, nothing new begins.

A stream runs from n2 to a replica on n1 all the time, through renewals, the end of n1's
certificate, and restarts of both daemons after it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from daemon.ctl import pki
from tests.e2e.cluster import POLICY, Cluster
from tests.e2e.conftest import telling
from tests.e2e.demo import Stream
from tests.e2e.machine import until

REST = 60.0
"""Seconds that the short-lived certificate has left when it is put in place."""
HELD = 15.0
"""Seconds after a daemon's start within which it has ended its hold, and would cut what it cuts."""


@pytest.fixture(scope="module")
def cluster(_machine: None, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with telling(Cluster(), request) as made:
        made.start("n1", "n2")
        made.meet("n1", "n2")
        made.apply(POLICY)
        yield made


def renew(cluster: Cluster, rest: float) -> float:
    """Put a pair in place that lasts `rest` seconds from now; return when it ends."""
    place = cluster.base / f"renewed-{rest:.0f}"
    place.mkdir()
    for name in ("ca.crt", "ca.key"):
        shutil.copy(cluster.base / "pki" / name, place)
    end = time.time() + rest
    address = cluster.underlay.fabric["n1"]
    for made in pki.issue(place, "n1", [address], end - pki.NODE_LIFE.total_seconds()):
        shutil.copy(made, cluster.base / "pki" / made.name)
    return end


def seen(cluster: Cluster, node: str = "n1", by: str = "n2") -> dict[str, Any]:
    """Return what `by` says of `node`."""
    found = {one["node"]: one for one in cluster.status(by)["nodes"]}
    return dict(found[node])


def counting(cluster: Cluster, node: str) -> set[str]:
    """Return the addresses of the replicas that count on `node`."""
    return {one["address"] for one in cluster.status(node)["replicas"] if not one["refused"]}


def steady(stream: Stream, seconds: float) -> None:
    """The stream moves on for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        stream.progress()


def test_an_end_cuts_nothing_and_begins_nothing(cluster: Cluster) -> None:
    api = cluster.add("api-n1", "n1", "api", 8080)
    web = cluster.add("web-n2", "n2", "web")
    until(lambda: api.address in counting(cluster, "n2"), "n2 to hear of the replica")
    with Stream(web.dial(api.address, 8080)) as stream:
        stream.progress()
        end = renew(cluster, REST)

        def followed() -> bool:
            until_ = datetime.fromisoformat(seen(cluster)["certificate_until"])
            return abs(until_.timestamp() - end) < 2

        until(followed, "n2 to see n1's other certificate", REST)
        until(lambda: "certificate ends soon" in cluster.log("n1"), "n1 to warn", REST)
        until(lambda: "other nodes end soon" in cluster.log("n2"), "n2 to warn", REST)
        stream.progress()

        until(lambda: time.time() > end, "the end", REST + 10)
        until(lambda: "certificate has ended" in cluster.log("n1"), "n1 to say so")
        late = cluster.add("late-n1", "n1", "api", 8080)
        steady(stream, HELD)
        # Zenoh closes the links, but one that is dialled in the last second may live on.
        assert not seen(cluster)["lost"]
        assert late.address not in counting(cluster, "n2")

        for node in ("n2", "n1"):  # they agree with what they believed before
            cluster.kill(node)
            cluster.start(node)
            steady(stream, HELD)
            assert not seen(cluster)["alive"]
            assert api.address in counting(cluster, node)
            assert late.address not in counting(cluster, node)
            assert cluster.differences(node) == []

        renew(cluster, 3600)
        until(lambda: seen(cluster)["alive"], "n1 to be back")
        until(lambda: late.address in counting(cluster, "n2"), "the late replica to count")
        assert late.name in {web.greet(cluster.vip("api", "n2"), 80) for _ in range(64)}
        stream.progress()
