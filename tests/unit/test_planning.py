"""What a plan is made from: attachments of which only the file's name can be read, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.attachments.registry import Registry
from daemon.cluster.membership import Membership
from daemon.cluster.publisher import Publisher
from daemon.journal import Journal
from daemon.liveness.liveness import Liveness
from daemon.reconcile.planning import Planner
from netconf.attach.attachment import AttachRequest, NodeNet
from netconf.attach.state import State
from netconf.program.desired import EMPTY
from tests.unit.model_kit import SLICES, filled, identity, record, replica

NODE = NodeNet(
    cluster="lab", node="n1", pool="10.64.0.0/12", slice=SLICES["n1"], vips="10.80.0.0/16", mtu=1468
)  # fmt: skip


@pytest.mark.parametrize("damaged", [False, True])
def test_a_state_file_that_cannot_be_read_is_no_withdrawn_replica(
    tmp_path: Path, damaged: bool
) -> None:
    """Its peers stay what they were, and so do the host filter's pairs, which follow from them."""
    state = State(tmp_path)
    wanted = AttachRequest(
        container="c0ffee", ifname="eth0", netns="/run/netns/x", network="mesh", service="web"
    )
    made = state.allocate(wanted, NODE, netns_id=(4, 17), salt=bytes(32))
    mine = replica("n1", 1, attachment=made.id, address=made.address, salts={0: bytes(32)})
    peer = replica("n2", 2, "api")
    store = filled(record("n1", 2, mine), record("n2", 2, peer))
    registry = Registry()
    publisher = Publisher(identity("n1"), store, lambda key, sealed: None, Journal())
    publisher.resume()
    if damaged:
        file = tmp_path / "attachments" / f"{made.id}@{made.address}.json"
        file.write_text('{"phase": "drained"}')
    (found,) = state.all()
    if damaged:
        registry.opaque[found.id] = found
    else:
        registry.add(found, fresh=False)

    publisher.align(registry.values(), registry.opaque)
    assert publisher.replicas() == {made.id}
    assert store.withdrawn() == []
    planner = Planner(
        "n1", store, registry, Membership("n1", [], store),
        Liveness("n1", store, changed=lambda: None, journal=Journal()), lambda: {},
    )  # fmt: skip
    work = planner.plan()
    assert work.attachments[made.id].address == made.address
    assert list(work.desired[made.id].peers) == [peer.address]

    registry.subscribe(publisher)
    registry.remove(made.id)
    assert publisher.replicas() == set()
    assert planner.plan().desired.get(made.id, EMPTY) == EMPTY
