"""Weights and slots: in proportion, few moves, the same answer everywhere it should be."""

from __future__ import annotations

import math
from collections import Counter

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.model.balance import HYSTERESIS, SLOTS, settle, slots, stick, weights
from daemon.model.policy import Service
from tests.unit.model_kit import replica

ADDRESSES = [f"10.64.0.{i}" for i in range(1, 9)]
WEIGHTS = st.dictionaries(
    st.sampled_from(ADDRESSES),
    st.floats(min_value=1e-6, max_value=1e6) | st.sampled_from([0.5, 1.0, 2.0]),
    min_size=1,
)
PREVIOUS = st.just(()) | st.lists(st.sampled_from(ADDRESSES), min_size=SLOTS, max_size=SLOTS).map(
    tuple
)
API = Service(id=1, name="api", vip="10.80.0.1")
N1, N2, N3 = (replica(node, 5, "api") for node in ("n1", "n2", "n3"))


def moves(old: tuple[str, ...], new: tuple[str, ...]) -> int:
    return sum(a != b for a, b in zip(old, new, strict=True))


@settings(max_examples=60)
@given(WEIGHTS, PREVIOUS)
def test_all_slots_are_given_in_proportion(shares: dict[str, float], old: tuple[str, ...]) -> None:
    given_out = slots(shares, old, "n1")
    assert len(given_out) == SLOTS
    counts = Counter(given_out)
    total = math.fsum(shares.values())
    for address, share in shares.items():
        assert abs(counts[address] - SLOTS * share / total) < 1 + 1e-6
    assert given_out == slots(dict(reversed(shares.items())), old, "n1")


@settings(max_examples=60)
@given(WEIGHTS, PREVIOUS)
def test_no_slot_moves_that_need_not(shares: dict[str, float], old: tuple[str, ...]) -> None:
    new = slots(shares, old)
    if old:
        before, after = Counter(old), Counter(new)
        assert moves(old, new) == sum(max(0, before[a] - after[a]) for a in before)
    assert slots(shares, new) == new


@settings(max_examples=60)
@given(st.integers(2, 7), st.data())
def test_of_equals_the_one_that_had_more_keeps_more(count: int, data: st.DataObject) -> None:
    equal = dict.fromkeys(ADDRESSES[:count], 1.0)
    before = slots(equal, (), data.draw(st.text(max_size=3)))
    assert slots(equal, before, data.draw(st.text(max_size=3))) == before


@settings(max_examples=60)
@given(WEIGHTS, st.data())
def test_a_replica_that_goes_moves_only_its_own(
    shares: dict[str, float], data: st.DataObject
) -> None:
    equal = dict.fromkeys(shares, 1.0)
    before = slots(equal)
    gone = data.draw(st.sampled_from(sorted(equal)))
    after = slots({a: w for a, w in equal.items() if a != gone}, before)
    if len(equal) == 1:
        assert after == ()
    else:
        assert moves(before, after) == Counter(before)[gone]


def test_weights_that_mean_nothing_get_nothing() -> None:
    assert slots({}) == ()
    assert slots({"a": 0.0, "b": -1.0, "c": math.nan, "d": math.inf}) == ()
    assert set(slots({"a": 0.0, "b": 1.0})) == {"b"}
    assert set(slots({"a": 5e-324, "b": 5e-324})) == {"a", "b"}
    assert set(slots({"a": 1.7e308, "b": 1.7e308})) == {"a", "b"}


def test_with_more_replicas_than_slots_nodes_leave_out_different_ones() -> None:
    many = {f"10.64.1.{i}": 1.0 for i in range(1, 201)}
    chosen = [set(slots(many, (), node)) for node in ("n1", "n2", "n3", "n4", "n5", "n6")]
    assert all(len(one) == SLOTS for one in chosen)
    assert len(set.union(*chosen)) > 2 * SLOTS


def test_small_changes_wait_and_large_ones_do_not() -> None:
    before = settle({"a": 1.0, "b": 1.0})
    assert Counter(before) == {"a": 32, "b": 32}
    assert settle({"a": 1.0, "b": 1.19}, before) == before  # 3 slots
    after = settle({"a": 1.0, "b": 1.3}, before)  # 4 slots
    assert moves(before, after) >= HYSTERESIS


def test_small_changes_add_up() -> None:
    last = settle({"a": 1.0, "b": 1.0})
    for step in range(1, 9):
        last = settle({"a": 1.0, "b": 1.0 + step / 10}, last)
    assert abs(Counter(last)["b"] - SLOTS * 1.8 / 2.8) <= HYSTERESIS


def test_coming_and_going_never_waits() -> None:
    before = settle({"a": 63.0, "b": 1.0})
    assert Counter(before)["b"] == 1
    assert "b" not in settle({"a": 63.0}, before)
    assert "c" in settle({"a": 62.0, "b": 1.0, "c": 1.0}, before)
    assert settle({}, before) == ()


@settings(max_examples=60)
@given(WEIGHTS, PREVIOUS)
def test_settling_is_settled(shares: dict[str, float], old: tuple[str, ...]) -> None:
    settled = settle(shares, old)
    assert settle(shares, settled) == settled


def test_a_sticky_client_stays_and_others_spread() -> None:
    shared = slots({"a": 3.0, "b": 1.0})
    clients = [f"10.65.{i // 250}.{i % 250}" for i in range(2000)]
    chosen = {client: stick(shared, client) for client in clients}
    assert all(len(set(one)) == 1 and len(one) == SLOTS for one in chosen.values())
    share = Counter(one[0] for one in chosen.values())["a"] / len(clients)
    assert abs(share - 0.75) < 0.05
    more = slots({"a": 3.0, "b": 1.0, "c": 4.0}, shared)
    for client, one in chosen.items():
        now = stick(more, client)
        assert now == one or now[0] == "c"
    assert stick((), "a") == ()


def test_link_weighs_desire_health_and_path() -> None:
    service = msgspec.structs.replace(API, weights={"n2": 0.5})
    paths = {"n2": 0.5, "n3": 0.8}
    got = weights(service, [N1, N2, N3], "n1", paths)
    assert got == {N1.address: 1.0, N2.address: 0.5 * 0.25, N3.address: 0.8**2}
    sick = msgspec.structs.replace(N3, healthy=False)
    assert set(weights(service, [N1, N2, sick], "n1", paths)) == {N1.address, N2.address}


def test_quality_never_refuses_but_a_desired_weight_of_nothing_does() -> None:
    assert weights(API, [N2, N3], "n1", {}) == {N2.address: 1.0, N3.address: 1.0}
    assert weights(API, [N2, N3], "n1", {"n2": math.nan, "n3": 0.1}).keys() == {N3.address}
    drained = msgspec.structs.replace(API, weights={"n2": 0.0})
    assert weights(drained, [N2], "n1", {"n2": 1.0}) == {}


def test_weighted_leaves_the_path_out() -> None:
    service = msgspec.structs.replace(API, strategy="weighted", weights={"n2": 3.0})
    assert weights(service, [N1, N2], "n1", {"n2": 0.1}) == {N1.address: 1.0, N2.address: 3.0}


def test_nearest_is_here_then_the_best_path_and_does_not_waver() -> None:
    service = msgspec.structs.replace(API, strategy="nearest")
    assert set(weights(service, [N1, N2], "n1", {"n2": 1.0})) == {N1.address}
    best = weights(service, [N2, N3], "n1", {"n2": 0.9, "n3": 0.85})
    assert set(best) == {N2.address}
    used = slots(best)
    wobble = {"n2": 0.85, "n3": 0.9}
    assert set(weights(service, [N2, N3], "n1", wobble, used)) == {N2.address}
    worse = {"n2": 0.7, "n3": 0.9}
    assert set(weights(service, [N2, N3], "n1", worse, used)) == {N3.address}
    assert set(weights(service, [N3], "n1", {"n3": 0.0}, used)) == {N3.address}
    assert weights(service, [], "n1", {}) == {}
