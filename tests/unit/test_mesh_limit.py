"""What this node's links carry: the least of them, but no fault of one link."""

from __future__ import annotations

from netconf.mesh.limit import limit


def test_the_least_link_counts() -> None:
    assert limit({}, 1304, None) == (1500, {})
    assert limit({"eth1": 1468, "gnv7": 1418}, 1304, None) == (1418, {})
    assert limit({"eth1": 9000}, 1304, 1468) == (1500, {})
    assert limit({"eth1": 1468, "gnv7": 1304}, 1304, 1468) == (1304, {})


def test_a_link_below_the_floor_lowers_nothing_while_the_mesh_runs() -> None:
    carried = {"eth1": 1468, "gnv7": 518}
    found, faults = limit(carried, 1304, 1418)
    assert found == 1468
    assert list(faults) == ["gnv7"]
    assert "518 bytes of the mesh now, and 1304 are needed" in faults["gnv7"]
    assert limit({"gnv7": 518}, 1304, 1418)[0] == 1418, "it stays what it was"
    # At the start nobody depends on it yet, and the caller refuses it.
    assert limit(carried, 1304, None) == (518, {})
