"""The pairs of the host filter: whatever the order, what is asked for in the end is right."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daemon.reconcile.host_pairs import HostPairs, Pair
from netconf import names

ADDRESSES = [f"10.64.16.{number}" for number in range(1, 6)]
places = st.sampled_from(ADDRESSES)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("want"), st.integers(1, 4), places, st.frozensets(places, max_size=4)),
        st.tuples(st.just("forget"), st.integers(1, 4)),
        st.tuples(st.just("apply"), st.frozensets(places, max_size=2)),
        st.tuples(st.just("found"), st.frozensets(st.tuples(places, places), max_size=4)),
    ),
    max_size=30,
)


def both(one: str, other: str) -> set[Pair]:
    return {
        (names.mac_of(one), names.mac_of(other)),
        (names.mac_of(other), names.mac_of(one)),
    }


@given(steps)
def test_what_is_lacking_and_what_is_too_much(taken: list[tuple[object, ...]]) -> None:
    pairs = HostPairs()
    wanted: dict[str, tuple[str, frozenset[str]]] = {}
    kernel: set[Pair] = set()

    def needed() -> set[Pair]:
        found: set[Pair] = set()
        for address, peers in wanted.values():
            found = found.union(*(both(address, peer) for peer in peers))
        return found

    for step in taken:
        match step:
            case ("want", int() as number, str() as address, frozenset() as peers):
                wanted[str(number)] = (address, peers)
                pairs.want(str(number), address, peers)
            case ("forget", int() as number):
                wanted.pop(str(number), None)
                pairs.forget(str(number))
            case ("apply", frozenset() as busy):
                macs = {names.mac_of(address) for address in busy}
                added = pairs.lacking()
                assert added == needed() - kernel
                pairs.changed(added, ())
                kernel |= added
                removed = pairs.surplus(macs)
                assert removed == {p for p in kernel - needed() if macs.isdisjoint(p)}
                pairs.changed((), removed)
                kernel -= removed
            case ("found", frozenset() as there):
                actual = {(names.mac_of(a), names.mac_of(b)) for a, b in there}
                assert pairs.found(actual) == kernel ^ actual
                kernel = actual
        assert pairs.lacking() == needed() - kernel
        assert pairs.surplus() == kernel - needed()
        assert pairs.known() == wanted.keys()
        assert all(pairs.holds(pair) for pair in kernel)


def test_a_pair_of_two_local_replicas_stays_while_one_of_them_needs_it() -> None:
    pairs = HostPairs()
    one, other = ADDRESSES[:2]
    pairs.want("a", one, {other})
    pairs.want("b", other, {one})
    pairs.changed(pairs.lacking(), ())
    pairs.forget("a")
    assert pairs.surplus() == frozenset()
    pairs.want("b", other, ())
    assert pairs.surplus() == both(one, other)
