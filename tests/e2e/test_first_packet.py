"""The very first packet of a fresh replica arrives: ADD returns only when it can.

tests/bench/first_packet.py measures the same a hundred times.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bench import first_packet
from tests.e2e.cluster import Cluster
from tests.e2e.conftest import telling

ATTACHES = 20


@pytest.fixture(scope="module")
def pair(_machine: None, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster of which n1 and n2 run."""
    with telling(Cluster(), request) as cluster:
        yield cluster


def test_first_syn_arrives(pair: Cluster) -> None:
    api = first_packet.ready(pair)
    figures = first_packet.measure(pair, api, ATTACHES)
    print(f"\n{figures}")
    assert not figures.lost
    assert len(figures.daemon_ms) == ATTACHES
