"""What the mesh's table says of nodes: pure, from rows to names."""

from __future__ import annotations

from daemon.mesh import paths
from netconf.netlink.batadv import Originator

FIRST, SECOND, STRANGER = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:09"
OWNER = {FIRST: "n1", SECOND: "n2"}


def row(mac: str, last_seen_ms: int, *, best: bool = True) -> Originator:
    return Originator(
        mac=mac, neighbour=FIRST, interface="eth1", tq=255, throughput=None,
        last_seen_ms=last_seen_ms, best=best,
    )  # fmt: skip


def test_a_node_was_heard_when_any_path_heard_it_last() -> None:
    table = [row(FIRST, 700), row(SECOND, 4000), row(SECOND, 250, best=False), row(STRANGER, 1)]
    assert paths.heard(table, OWNER, 100.0) == {"n1": 99.3, "n2": 99.75}
    assert paths.heard([], OWNER, 100.0) == {}
