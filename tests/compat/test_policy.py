"""A policy of a later release: each thing in it that is not known here costs itself alone.

What the old release is shown is what a later release would sign while old nodes are about.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from daemon.model import plan, records
from daemon.model.policy import Policy, compile, parse
from daemon.model.records import Envelope
from daemon.model.verdict import Outcome
from daemon.resolver.directory import directory
from netconf.errors import InvalidConfig
from tests.compat.released import Released
from tests.unit.model_kit import (
    KEYS,
    NOW,
    SLICES,
    TEXT,
    VIPS,
    filled,
    folder,
    identity,
    info,
    placed,
    policy,
    record,
    replica,
    store,
)  # fmt: skip

VAULT = {"id": 9, "name": "vault", "vip": "10.80.0.9", "requires": ["hours"], "hours": "8-17",
         "ports": [["tcp", 443, 443]], "edges": [[1, 9, [["tcp", 443]]]]}  # fmt: skip
REPLICAS = [
    replica("n1", 1), replica("n2", 2, "api"), replica("n1", 5, "vault"), replica("n2", 6, "vault"),
]  # fmt: skip
WEB_MAY = [(2, "tcp", 8080)]


def later(**changes: Any) -> bytes:
    """Today's policy with other values, as the authority's key signs it."""
    body = msgspec.msgpack.decode(msgspec.msgpack.encode(policy(TEXT)))
    return signed(body | changes)


def signed(body: dict[str, Any]) -> bytes:
    content = msgspec.msgpack.encode(body)
    authority = identity("authority")
    signature = authority.sign(
        records.to_sign("lab", KEYS.policy, body["version"], authority.name, content)
    )
    return records.encode(
        Envelope(KEYS.policy, body["version"], authority.name, content, signature)
    )


def services(**changes: dict[str, Any]) -> dict[str, Any]:
    """Today's services with fields changed in some of them."""
    found = msgspec.to_builtins(policy(TEXT).services)
    return {name: fields | changes.get(name, {}) for name, fields in found.items()}


def believing(sealed: bytes) -> tuple[Policy, plan.Plan, dict[str, str]]:
    """What this release makes of a policy, with the replicas above: policy, plan, refusals."""
    known = store()
    for data in (sealed, *(record(node, 1, info(node)) for node in SLICES)):
        assert known.offer(data, NOW).outcome is Outcome.ACCEPTED
    for one in REPLICAS:
        known.offer(record(one.node, 2, one), NOW)
    made = known.policy()
    assert made is not None
    local = [placed(one) for one in REPLICAS if one.node == "n1"]
    planned = plan.plan(
        made, known.replicas(), local, node="n1", alive=set(SLICES),
        quality=dict.fromkeys(SLICES, 1.0), previous=plan.NOTHING,
    )  # fmt: skip
    return made, planned, {one.key: one.reason for one in known.refusals()}


def test_a_guarded_service_is_closed_and_nothing_else(old: Released) -> None:
    made, planned, refusals = believing(later(guarded=[VAULT]))
    web, vault = planned.views[REPLICAS[0].attachment], planned.views[REPLICAS[2].attachment]
    assert sorted(web.egress) == WEB_MAY
    assert {slot[0] for slot in web.slots} == {made.services["api"].vip}
    assert vault == plan.EMPTY
    for one in REPLICAS[2:]:
        said = refusals[KEYS.replica(one.node, one.attachment)]
        assert "policy requires hours" in said
        assert "upgrade noctule on this node" in said
    assert set(refusals) == {KEYS.replica(r.node, r.attachment) for r in REPLICAS[2:]}
    assert "vault" not in directory(made, "").addresses


def test_the_old_release_closes_a_guarded_service_too(old: Released) -> None:
    known = [record(node, 1, info(node)) for node in SLICES]
    said = [later(guarded=[VAULT]), *known, *(record(r.node, 2, r) for r in REPLICAS)]
    local = [(r.attachment, r.service, r.network, r.address) for r in REPLICAS if r.node == "n1"]
    outcomes, told = old("offer", str(folder()), said, NOW)
    assert set(outcomes) == {"accepted"}
    assert set(told["services"]) == {"web", "api", "db"}
    views = old("views", str(folder()), said, NOW, local, "n1")
    assert views[REPLICAS[0].attachment][0] == WEB_MAY
    assert views[REPLICAS[2].attachment] == ([], [], [], [])


def test_a_guarded_service_cannot_be_open_as_well() -> None:
    known = store()
    api = VAULT | {"name": "api", "id": 17}
    assert known.offer(later(guarded=[api]), NOW).outcome is Outcome.MALFORMED
    assert known.offer(later(guarded=[VAULT | {"id": 2}]), NOW).outcome is Outcome.MALFORMED


def test_this_release_does_not_sign_what_follows_a_guarded_policy() -> None:
    """It would open what the later release narrowed, or give its id to another service."""
    made, _, _ = believing(later(guarded=[VAULT]))
    with pytest.raises(InvalidConfig, match=r"vault: .* signed by a later release"):
        compile(parse(TEXT), made, VIPS, 2)


def test_an_unknown_strategy_chooses_as_link_does() -> None:
    made, planned, _ = believing(later(services=services(api={"strategy": "cheapest"})))
    _, usual, _ = believing(later())
    assert made.services["api"].strategy == "cheapest"
    assert planned.views == usual.views
    assert planned.slots == usual.slots != {}


def test_a_port_of_an_unknown_protocol_is_dialled_by_nobody() -> None:
    ports = [["tcp", 80, 8080], ["sctp", 99, 99]]
    edges = [[1, 2, [["sctp", 99], ["tcp", 80]]], [2, 3, [["sctp", 99]]]]
    made, planned, _ = believing(later(services=services(api={"ports": ports}), edges=edges))
    web = planned.views[REPLICAS[0].attachment]
    assert sorted(web.egress) == WEB_MAY
    assert {slot[1] for slot in web.slots} == {"tcp"}
    assert directory(made, "").known == {"web": ("api",)}, "nothing of db can be dialled"


def test_filled_with_a_later_policy_a_snapshot_is_read_by_both(old: Released) -> None:
    known = filled(*(record(r.node, 2, r) for r in REPLICAS))
    later_one = later(guarded=[VAULT], version=2)
    assert known.offer(later_one, NOW).outcome is Outcome.ACCEPTED
    outcomes, told, again = old("load", str(folder()), known.dump(), NOW)
    assert set(outcomes) == {"accepted"}
    assert told["policy"] == 2
    third = store()
    third.load(again)
    held = third.policy()
    assert held is not None
    assert set(held.closed) == {"vault"}, "what the old release does not know it keeps"
