"""What the end-to-end tests stand on, and two nodes for runtimes on both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.cluster import POLICY, Cluster
from tests.e2e.conftest import _machine, lone, telling
from tests.e2e.machine import until

__all__ = ["_machine", "lone"]


@pytest.fixture(scope="module")
def cluster(_machine: None, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two nodes on one segment."""
    with telling(Cluster(), request) as made:
        made.start("n1", "n2")
        made.meet("n1", "n2")
        made.apply(POLICY)
        for node in ("n1", "n2"):
            # What a daemon opens for its first attachment stays open.
            made.add(f"first-{node}", node, "web")
            made.delete(f"first-{node}")
        until(lambda: _quality(made, "n1", "n2") > 0, "a path on the mesh")
        yield made


def _quality(cluster: Cluster, node: str, other: str) -> float:
    nodes = cluster.status(node)["nodes"]
    return float(next(one["quality"] for one in nodes if one["node"] == other))
