"""A table that somebody else fills costs no more than its limit: on any kernel."""

from __future__ import annotations

import errno
import subprocess
import tracemalloc
from collections.abc import Iterator

import pytest

from netconf.errors import KernelFailure
from netconf.netlink import links
from netconf.netlink.socket import DUMP_MOST, doing
from tests.kernel.sandbox import Node, nodes, run

MANY = 3 * DUMP_MOST


@pytest.fixture
def crowded() -> Iterator[tuple[Node, int]]:
    """A namespace with more neighbours than a dump takes, and the index of their link."""
    with nodes(1) as (node,):
        run("ip", "-n", node.name, "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
        node.ip("link", "set", "eth0", "up")
        lines = [
            f"neigh add 10.{n >> 16}.{n >> 8 & 255}.{n & 255} lladdr 02:00:00:00:00:01 dev eth0"
            for n in range(MANY)
        ]
        subprocess.run(
            ["ip", "-n", node.name, "-batch", "-"], input="\n".join(lines), text=True, check=True
        )
        with links.open(node.ns) as rtnl:
            facts = links.get(rtnl, "eth0")
        assert facts is not None
        yield node, facts.index


def test_a_dump_has_a_limit(crowded: tuple[Node, int]) -> None:
    node, index = crowded
    with links.open(node.ns) as rtnl:
        tracemalloc.start()
        try:
            with pytest.raises(OSError, match=f"not {DUMP_MOST}") as refused:
                links.neighbours(rtnl, index)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert refused.value.errno == errno.EOVERFLOW
        refusal = pytest.raises(KernelFailure, match="refused to read the neighbours")
        with refusal, doing("read the neighbours"):
            links.neighbours(rtnl, index)
        # The socket serves further, for other requests and for dumps.
        assert links.get(rtnl, "eth0") is not None
        assert {facts.name for facts in links.every(rtnl)} >= {"lo", "eth0"}
        node.ip("neigh", "flush", "dev", "eth0", "nud", "permanent")
        assert links.neighbours(rtnl, index) == {}
        assert peak < DUMP_MOST * 8192, "what is beyond the limit is not kept"
