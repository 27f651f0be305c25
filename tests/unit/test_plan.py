"""The plan: what one end may send, the other may receive; and nothing without an edge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.model.balance import SLOTS
from daemon.model.plan import NOTHING, Plan, plan
from daemon.model.policy import Policy, compile
from daemon.model.policy_file import AllowText, Balance, Document, Port, ServiceText
from daemon.model.records import Replica
from netconf.program.desired import EMPTY, Desired
from tests.unit.model_kit import SLICES, VIPS, placed, policy, replica

NODES = sorted(SLICES)
SERVICES = ["a", "b", "c", "d"]
PORTS = (Port("tcp", 80, 8080), Port("udp", 53, 53), Port("tcp", 81, 8080))
DIALS = [("tcp", 80), ("udp", 53), ("tcp", 81), ("icmp", 0)]


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    services = {
        name: ServiceText(
            ports=PORTS,
            balance=Balance(
                strategy=draw(st.sampled_from(["link", "weighted", "nearest"])),
                sticky=draw(st.booleans()),
            ),
        )
        for name in SERVICES
    }
    name = st.sampled_from(SERVICES)
    dials = st.lists(st.sampled_from(DIALS), min_size=1, max_size=4, unique=True).map(tuple)
    allow = tuple(draw(st.lists(st.builds(AllowText, source=name, to=name, ports=dials))))
    return compile(Document(services=services, allow=allow), None, VIPS, 1)


@st.composite
def clusters(draw: st.DrawFn) -> list[Replica]:
    chosen = draw(
        st.lists(
            st.tuples(*map(st.sampled_from, (NODES, SERVICES, ["mesh", "other"])), st.booleans()),
            max_size=12,
        )
    )
    return [
        replica(node, number, service, network=network, healthy=healthy)
        for number, (node, service, network, healthy) in enumerate(chosen, 1)
    ]


def planned(
    made: Policy | None,
    replicas: list[Replica],
    node: str = "n1",
    alive: object = NODES,
    quality: dict[str, float] | None = None,
    before: Plan | None = None,
    attached: list[Replica] | None = None,
    suspect: Collection[str] = (),
) -> Plan:
    """Plan for `attached`, by default those of `replicas` that are on `node`."""
    return plan(
        made,
        replicas,
        [placed(one) for one in attached or replicas if one.node == node],
        node=node,
        alive=set(alive),  # type: ignore[call-overload]
        suspect=suspect,
        quality=dict.fromkeys(NODES, 1.0) if quality is None else quality,
        previous=before or NOTHING,
    )


EVERYBODY = """
services:
  web: {}
  api: {ports: [{protocol: tcp, port: 80}]}
  db: {ports: [{protocol: tcp, port: 1}]}
allow: [{from: web, to: api, ports: [tcp/80]}, {from: web, to: db, ports: [tcp/1]}]
"""


def everywhere(made: Policy, replicas: list[Replica]) -> dict[str, Desired]:
    """The view of every replica, each planned on its own node."""
    return {
        one.address: planned(made, replicas, node).views[one.attachment]
        for node in NODES
        for one in replicas
        if one.node == node
    }


@settings(max_examples=50)
@given(policies(), clusters())
def test_what_one_end_may_send_the_other_may_receive(made: Policy, replicas: list[Replica]) -> None:
    views = everywhere(made, replicas)
    of = {one.address: made.services[one.service].id for one in replicas}
    for here, view in views.items():
        assert here not in view.peers
        for there, peer in view.peers.items():
            assert here in views[there].peers
            assert peer.service == of[there]
            out = {(p, q) for service, p, q in view.egress if service == of[there]}
            into = {(p, q) for service, p, q in views[there].ingress if service == of[here]}
            assert out == into


@settings(max_examples=50)
@given(policies(), clusters())
def test_nothing_is_seen_without_an_edge(made: Policy, replicas: list[Replica]) -> None:
    networks = {one.address: one.network for one in replicas}
    healthy = {one.address for one in replicas if one.healthy}
    views = everywhere(made, replicas)
    for one in replicas:
        own = made.services[one.service].id
        joined = made.neighbours(own)
        view = views[one.address]
        assert {peer.service for peer in view.peers.values()} <= joined
        assert {grant[0] for grant in view.egress | view.ingress} <= joined
        assert {networks[address] for address in view.peers} <= {one.network}
        dialled = {
            (made.by_id[edge.to].vip, *dial)
            for edge in made.outgoing.get(own, ())
            for dial in edge.ports
        }
        grants = view.egress
        for (vip, protocol, port, number), (address, target) in view.slots.items():
            assert (vip, protocol, port) in dialled
            assert protocol != "icmp"
            assert 0 <= number < SLOTS
            assert address in view.peers
            assert address in healthy
            assert (view.peers[address].service, protocol, target) in grants
        for count in Counter(key[:3] for key in view.slots).values():
            assert count == SLOTS


@settings(max_examples=50)
@given(policies(), clusters(), st.data())
def test_planning_again_changes_nothing(
    made: Policy, replicas: list[Replica], data: st.DataObject
) -> None:
    first = planned(made, replicas)
    again = planned(made, data.draw(st.permutations(replicas)), before=first)
    assert again == first


@settings(max_examples=50)
@given(policies(), clusters(), st.sampled_from(["n2", "n3"]))
def test_a_dead_node_leaves_everything(made: Policy, replicas: list[Replica], dead: str) -> None:
    before = planned(made, replicas)
    after = planned(made, replicas, alive=set(NODES) - {dead}, before=before)
    lost = IPv4Network(SLICES[dead])
    for view in after.views.values():
        addresses = [*view.peers, *(target[0] for target in view.slots.values())]
        assert not any(IPv4Address(a) in lost for a in addresses)
    assert not any(IPv4Address(a) in lost for chosen in after.slots.values() for a in chosen)
    assert {k: v.egress for k, v in after.views.items()} == {
        k: v.egress for k, v in before.views.items()
    }


@settings(max_examples=50)
@given(policies(), clusters(), st.sets(st.sampled_from(NODES)))
def test_a_suspect_node_keeps_all_but_its_slots(
    made: Policy, replicas: list[Replica], suspect: set[str]
) -> None:
    before = planned(made, replicas)
    after = planned(made, replicas, suspect=suspect, before=before)
    for kept in ("peers", "egress", "ingress"):
        assert {k: getattr(v, kept) for k, v in after.views.items()} == {
            k: getattr(v, kept) for k, v in before.views.items()
        }
    nodes = {one.address: one.node for one in replicas}
    doubted = suspect - {"n1"}  # nobody doubts himself
    for view in after.views.values():
        for place in {slot[:3] for slot in view.slots}:
            to = {nodes[view.slots[slot][0]] for slot in view.slots if slot[:3] == place}
            assert to <= doubted or not to & doubted
    assert {k: set(v.slots) for k, v in after.views.items()} == {
        k: set(v.slots) for k, v in before.views.items()
    }, "no VIP refuses for a suspicion"


def test_slots_leave_a_suspect_at_once_and_return_when_it_does() -> None:
    web, near, far = replica("n1", 1), replica("n2", 2, "api"), replica("n3", 3, "api")
    replicas = [web, near, far]
    before = planned(policy(), replicas)
    assert {a for chosen in before.slots.values() for a in chosen} == {near.address, far.address}
    doubted = planned(policy(), replicas, suspect={"n3"}, before=before)
    assert {a for chosen in doubted.slots.values() for a in chosen} == {near.address}
    again = planned(policy(), replicas, before=doubted)
    shares = [{group: Counter(slots) for group, slots in p.slots.items()} for p in (before, again)]
    assert shares[0] == shares[1]


def test_a_suspect_with_no_healthy_other_is_tried() -> None:
    replicas = [replica("n1", 1), replica("n2", 2, "api", healthy=False), replica("n3", 3, "api")]
    view = planned(policy(), replicas, suspect={"n3"}).views[replicas[0].attachment]
    assert {target[0] for target in view.slots.values()} == {replicas[2].address}


@settings(max_examples=50)
@given(policies(), policies(), clusters(), clusters(), st.booleans())
def test_what_is_remembered_changes_nothing_but_which_objects_are_used(
    first: Policy, second: Policy, old: list[Replica], new: list[Replica], same: bool
) -> None:
    before = planned(first, old)
    made = first if same else second
    after = planned(made, new, before=before)
    assert after == planned(made, new, before=Plan(slots=before.slots))
    again = planned(made, new, before=after)
    for attachment, view in again.views.items():
        if view == after.views[attachment] != EMPTY:
            assert view is after.views[attachment]


@pytest.mark.parametrize(
    "change",
    [
        {"salts": {0: b"\7" * 32}},
        {"salts": {0: (2).to_bytes(32, "big"), 1: b"\7" * 32}},
        {"address": "10.64.32.9"},
        {"service": "db"},
    ],
)
def test_no_peer_is_remembered_as_it_was(change: dict[str, object]) -> None:
    made = policy(EVERYBODY)
    here, there = replica("n1", 1), replica("n2", 2, "api")
    now = [here, msgspec.structs.replace(there, **change)]
    before = planned(made, [here, there])
    after = planned(made, now, before=before)
    assert after.views[here.attachment].peers == planned(made, now).views[here.attachment].peers
    assert after.views != before.views


def test_a_service_with_another_id_is_another_peer() -> None:
    here, there = replica("n1", 1), replica("n2", 2, "api")
    first = policy(EVERYBODY)
    api = msgspec.structs.replace(first.services["api"], id=9)
    second = msgspec.structs.replace(
        first,
        services=first.services | {"api": api},
        edges=tuple(
            msgspec.structs.replace(edge, to=9)
            for edge in first.edges
            if edge.to == first.services["api"].id
        ),
    )
    before = planned(first, [here, there])
    after = planned(second, [here, there], before=before)
    assert after.views[here.attachment].peers[there.address].service == 9


def test_an_attachment_that_did_not_count_is_opened_when_it_does() -> None:
    here, other, there = replica("n1", 1), replica("n1", 2), replica("n2", 3, "api")
    before = planned(policy(), [here, there], attached=[here, other])
    assert before.views[other.attachment] == EMPTY
    after = planned(policy(), [here, other, there], before=before)
    assert after.views[other.attachment] == after.views[here.attachment] != EMPTY


def test_only_the_views_that_change_are_other_objects() -> None:
    webs = [replica("n1", number) for number in range(1, 4)]
    apis = [replica("n1", number, "api") for number in (11, 12)]
    before = planned(policy(), [*webs, *apis])
    assert len({id(before.views[one.attachment]) for one in webs}) == 1
    after = planned(policy(), [*webs, *apis, replica("n1", 4)], before=before)
    for one in webs:
        assert after.views[one.attachment] is before.views[one.attachment]
    for one in apis:
        assert after.views[one.attachment] != before.views[one.attachment]


def test_a_sticky_client_follows_a_share_that_another_client_does_not_notice() -> None:
    text = SELF.replace("a: {p", "w: {}, a: {balance: {sticky: client}, p").replace("m: a", "m: w")
    webs = [replica("n1", number, "w") for number in range(1, 30)]
    apis = [replica("n2", 40, "a"), replica("n3", 41, "a")]
    before = planned(policy(text), [*webs, *apis])
    after = planned(policy(text), [*webs, *apis], quality={"n2": 1.0, "n3": 0.3}, before=before)
    assert after.views == planned(
        policy(text), [*webs, *apis], quality={"n2": 1.0, "n3": 0.3},
        before=Plan(slots=before.slots),
    ).views  # fmt: skip
    assert after.views != before.views


def test_the_example_of_the_design() -> None:
    replicas = [
        replica("n1", 1),
        replica("n2", 2, "api"),
        replica("n3", 3, "api"),
        replica("n2", 4, "db"),
    ]
    views = everywhere(policy(), replicas)
    web, api, db = (views[replicas[i].address] for i in (0, 1, 3))
    assert set(web.peers) == {replicas[1].address, replicas[2].address}
    assert web.egress == {(2, "tcp", 8080)}
    assert web.ingress == frozenset()
    counts = Counter(web.slots.values())
    assert counts == {(replicas[1].address, 8080): 43, (replicas[2].address, 8080): 21}
    assert {key[:3] for key in web.slots} == {("10.80.0.2", "tcp", 80)}
    assert api.ingress == {(1, "tcp", 8080)}
    assert api.egress == {(3, "tcp", 5432), (3, "icmp", 0)}
    assert db.ingress == {(2, "tcp", 5432), (2, "icmp", 0)}
    assert db.slots == {}


def test_salts_reach_the_peers() -> None:
    salts = {1: b"\1" * 32, 2: b"\2" * 32}
    replicas = [replica("n1", 1), replica("n2", 2, "api", salts=salts)]
    view = everywhere(policy(), replicas)[replicas[0].address]
    assert view.peers[replicas[1].address].salts == salts


def test_without_a_policy_or_a_record_of_its_own_nothing_is_open() -> None:
    replicas = [replica("n1", 1), replica("n2", 2, "api")]
    assert planned(None, replicas).views == {replicas[0].attachment: EMPTY}
    for change in ({"service": "api"}, {"network": "other"}, {"address": "10.64.16.9"}):
        other = msgspec.structs.replace(replicas[0], **change)
        made = plan(
            policy(),
            [other, replicas[1]],
            [placed(replicas[0])],
            node="n1",
            alive=set(NODES),
            quality={},
            previous=NOTHING,
        )
        assert made.views == {replicas[0].attachment: EMPTY}


def test_no_healthy_replica_no_slots_but_still_a_peer() -> None:
    replicas = [replica("n1", 1), replica("n2", 2, "api", healthy=False)]
    view = everywhere(policy(), replicas)[replicas[0].address]
    assert view.slots == {}
    assert set(view.peers) == {replicas[1].address}


SELF = """
services: {a: {ports: [{protocol: tcp, port: 80}]}}
allow: [{from: a, to: a}]
"""


def test_a_service_that_dials_itself_never_reaches_the_same_replica() -> None:
    one, two = replica("n1", 1, "a"), replica("n1", 2, "a")
    alone = planned(policy(SELF), [one]).views[one.attachment]
    assert (alone.peers, alone.slots) == ({}, {})
    views = planned(policy(SELF), [one, two]).views
    assert {target[0] for target in views[one.attachment].slots.values()} == {two.address}
    assert {target[0] for target in views[two.attachment].slots.values()} == {one.address}
    near = policy(SELF.replace("a: {", "a: {balance: {strategy: nearest}, "))
    far = replica("n2", 3, "a")
    view = planned(near, [one, far]).views[one.attachment]
    assert {target[0] for target in view.slots.values()} == {far.address}


def test_a_sticky_client_has_one_replica_and_keeps_it_when_paths_change() -> None:
    text = SELF.replace("a: {p", "w: {}, a: {balance: {sticky: client}, p").replace("m: a", "m: w")
    made = policy(text)
    replicas = [
        *(replica("n1", i, "w") for i in range(1, 9)),
        replica("n2", 20, "a"),
        replica("n3", 21, "a"),
    ]
    first = planned(made, replicas, quality={"n2": 0.9, "n3": 0.9})
    chosen = {k: {t[0] for t in view.slots.values()} for k, view in first.views.items()}
    assert all(len(one) == 1 for one in chosen.values())
    assert len(set.union(*chosen.values())) == 2
    second = planned(made, replicas, quality={"n2": 0.92, "n3": 0.88}, before=first)
    assert second == first
