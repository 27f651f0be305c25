"""What counts after many small steps is what counts when everything is told at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daemon.model.eligibility import Eligibility
from daemon.model.policy import Policy
from daemon.model.records import NodeInfo, Replica
from tests.unit.model_kit import KEYS, SLICES, TEXT, info, policy, replica

PINNED = """
nodes:
  n1: {slice: 10.64.16.0/20}
  n2: {slice: 10.64.99.0/24}
  n3: {slice: 10.64.48.0/20}
"""
POLICIES = [
    policy(TEXT),
    policy(TEXT.replace("nodes: [n1, n2]", "nodes: [n3]")),
    policy(PINNED + TEXT),
    None,
]
NUMBERS = st.integers(1, 4)
NODES = st.sampled_from(sorted(SLICES))

steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("put"), NODES, NUMBERS, NUMBERS, st.sampled_from(["web", "db", "nobody"])
        ),
        st.tuples(st.just("drop"), NODES, NUMBERS),
        st.tuples(st.just("policy"), st.sampled_from(POLICIES)),
        st.tuples(st.just("info"), NODES, st.sampled_from([*SLICES.values(), "10.64.16.0/21"])),
        st.tuples(st.just("look")),
    ),
    max_size=40,
)


@given(steps)
def test_small_steps_lead_where_one_large_step_does(taken: list[tuple[object, ...]]) -> None:
    effect = Eligibility(KEYS)
    ruling: Policy | None = None
    infos: dict[str, NodeInfo] = {}
    held: dict[str, tuple[int, Replica]] = {}
    for version, step in enumerate(taken, 1):
        match step:
            case ("put", str() as node, int() as number, int() as place, str() as service):
                # Another node's place, too: two records for one address, or an address outside.
                made = replica(node, number, service, address=f"10.64.{16 * place}.7")
                held[KEYS.replica(node, made.attachment)] = (version, made)
                effect.put(KEYS.replica(node, made.attachment), version, made)
            case ("drop", str() as node, int() as number):
                key = KEYS.replica(node, replica(node, number).attachment)
                held.pop(key, None)
                effect.drop(key)
            case ("policy", Policy() | None as chosen):
                ruling = chosen
                effect.govern(ruling, infos)
            case ("info", str() as node, str() as slice):
                infos[node] = info(node, slice=slice)
                effect.govern(ruling, infos)
            case _:
                effect.replicas()
    fresh = Eligibility(KEYS)
    fresh.govern(ruling, infos)
    for key, (version, made) in held.items():
        fresh.put(key, version, made)
    assert effect.replicas() == fresh.replicas()
    assert effect.refusals() == fresh.refusals()
    refused = {refusal.key for refusal in effect.refusals()}
    counted = {KEYS.replica(one.node, one.attachment) for one in effect.replicas()}
    assert counted | refused >= held.keys()
    assert not counted & refused
