"""Queues on links: ours are set right, other people's are left alone. On any kernel with tbf."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from netconf.netlink import links, shaping
from netconf.netlink.shaping import Bucket
from tests.kernel.sandbox import Node, nodes, run

QUEUE = ("qdisc", "replace", "dev", "vh", "root", "tbf", "rate", "1mbit", "burst", "5kb",
         "latency", "1ms")  # fmt: skip


@pytest.fixture
def node() -> Iterator[Node]:
    with nodes(1) as (made,):
        run("ip", "-n", made.name, "link", "add", "vh", "type", "veth", "peer", "name", "vc")
        try:
            run("tc", "-n", made.name, *QUEUE)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this kernel has no tbf: {error.stderr}")
        yield made


def test_a_queue_is_left_alone_where_no_limit_was_asked_for(node: Node) -> None:
    with links.open(node.ns) as rtnl:
        found = [links.get(rtnl, name) for name in ("vh", "vc")]
        vh, vc = [(facts.name, facts.index) for facts in found if facts is not None]
        assert shaping.differences(rtnl, (vh, vc), (None, None)) == []
        wanted = Bucket(rate=1_000_000, burst=200_000)
        ((what, requests),) = shaping.differences(rtnl, (vh, vc), (wanted, None))
        assert what.startswith("vh has no token bucket of 1000000 bytes per second")
        rtnl.batch(requests)
        assert shaping.differences(rtnl, (vh, vc), (wanted, None)) == []
