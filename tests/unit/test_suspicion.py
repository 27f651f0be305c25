"""When a node is suspect and when lost: the table, and what time does to it; no clock is read."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.liveness.suspicion import (
    FLOWS_AFTER,
    MESH_SILENT,
    MESH_VOUCHES,
    PROBE_VOUCHES,
    SILENT_ROUNDS,
    SLOTS_AFTER,
    TABLE,
    Event,
    State,
    Suspicion,
)

LEASE = 0.5
KEEP_ALIVE = LEASE / 4
GRACE = 0.05
ROUND = 0.4
"""Of probes that find nothing."""
LOOK = 0.25
OGM = 1.0


def suspect(now: float = 0.0) -> Suspicion:
    """A node whose token went at `now`, and of which nothing was heard until it was suspect."""
    made = Suspicion()
    made.token_gone(now)
    assert made.passes(now + SLOTS_AFTER) is State.SUSPECT
    return made


def silence(node: Suspicion, now: float) -> None:
    """Enough rounds of probes that find nothing, up to `now`."""
    for _ in range(SILENT_ROUNDS):
        node.silent(now)


AT = SLOTS_AFTER + FLOWS_AFTER
"""When a node whose token went at 0 may be lost at the earliest."""


# --- the table


@pytest.mark.parametrize("state", State)
def test_a_token_that_returns_ends_every_doubt(state: State) -> None:
    assert TABLE[state].get(Event.TOKEN_BACK, state) is State.ALIVE


def test_the_table_says_of_every_state_what_may_follow() -> None:
    assert set(TABLE) == set(State)
    ways = {(one, other) for one, moves in TABLE.items() for other in moves.values()}
    assert ways == {
        (State.ALIVE, State.HEADLESS),
        (State.HEADLESS, State.ALIVE),
        (State.HEADLESS, State.SUSPECT),
        (State.SUSPECT, State.ALIVE),
        (State.SUSPECT, State.HEADLESS),
        (State.SUSPECT, State.LOST),
        (State.LOST, State.ALIVE),
    }


# --- one node, step by step


def test_a_kernel_that_answers_keeps_its_slots() -> None:
    node = Suspicion()
    assert node.token_gone(0) is State.HEADLESS
    assert node.answered(0.01) is State.HEADLESS
    assert node.passes(0.01 + PROBE_VOUCHES - 0.01) is State.HEADLESS
    assert node.answered(1.2) is State.HEADLESS
    assert node.passes(1.2 + PROBE_VOUCHES) is State.SUSPECT


def test_a_token_without_any_sign_is_good_for_a_moment() -> None:
    node = Suspicion()
    node.token_gone(10.0)
    assert node.next() == 10.0 + SLOTS_AFTER
    assert node.passes(10.0 + SLOTS_AFTER - 0.01) is State.HEADLESS
    assert node.passes(10.0 + SLOTS_AFTER) is State.SUSPECT
    assert node.next() == 10.0 + SLOTS_AFTER + FLOWS_AFTER


def test_the_mesh_gives_the_slots_back_and_keeps_them() -> None:
    node = suspect()
    assert node.mesh(0.7, now=0.9) is State.HEADLESS
    for second in range(1, 3600):  # an hour behind a filter that drops all of the fabric
        node.silent(second)
        assert node.mesh(second + 0.7, now=second + 0.9) is State.HEADLESS
    assert node.passes(3599.7 + MESH_VOUCHES) is State.SUSPECT


@pytest.mark.parametrize("heard", [-0.9, -0.1, 0.1])
def test_an_ogm_from_before_the_silence_is_no_sign(heard: float) -> None:
    assert suspect().mesh(heard, now=0.5) is State.SUSPECT


def test_a_sign_that_comes_too_late_is_none() -> None:
    node = suspect()
    assert node.mesh(0.7, now=0.7 + MESH_VOUCHES) is State.SUSPECT


def test_fabric_and_mesh_silent_is_lost() -> None:
    node = suspect()
    silence(node, AT)
    assert node.mesh(-0.5, now=AT - 0.01) is State.SUSPECT
    assert node.mesh(-0.5, now=AT) is State.LOST
    assert node.witnesses(AT) == ["the mesh"]
    assert node.next() is None


def test_a_lost_node_stays_lost_until_its_token_returns() -> None:
    node = suspect()
    silence(node, AT)
    node.mesh(None, now=AT)
    for later in (node.answered(9), node.mesh(9.0, 9), node.told("n3", True, 9), node.passes(99)):
        assert later is State.LOST
    assert node.token_gone(100) is State.LOST
    assert node.token_back(101) is State.ALIVE


def test_a_mesh_that_heard_of_it_lately_does_not_agree() -> None:
    """The token went at once, with a reset: the last OGM came a little later."""
    node = suspect()
    silence(node, AT)
    assert node.mesh(0.1, now=AT) is State.SUSPECT
    assert node.mesh(0.1, now=0.1 + MESH_SILENT) is State.LOST


def test_without_a_mesh_that_can_be_read_another_node_is_needed() -> None:
    node = suspect()
    silence(node, AT)
    assert node.passes(99.0) is State.SUSPECT
    assert node.told("n3", False, 99.5) is State.LOST
    assert node.witnesses(99.5) == ["n3"]


def test_what_was_said_long_ago_is_no_witness() -> None:
    node = suspect()
    node.mesh(None, now=1.0)
    node.told("n3", False, 1.0)
    silence(node, AT)
    assert node.passes(AT) is State.SUSPECT


def test_another_node_that_reaches_it_keeps_its_flows_but_no_slots() -> None:
    node = suspect()
    silence(node, AT)
    node.told("n3", True, AT - 0.1)
    node.told("n4", False, AT - 0.1)
    assert node.mesh(None, now=AT) is State.SUSPECT
    assert node.told("n3", False, AT + 0.4) is State.LOST


def test_a_daemon_that_was_stopped_itself_cuts_nobody_off() -> None:
    node = suspect()
    node.silent(0.5)
    # Nothing was heard for ten seconds, because nobody listened.
    assert node.mesh(None, now=10.0) is State.SUSPECT
    for _ in range(SILENT_ROUNDS - 1):
        last = node.silent(10.5)
    assert last is State.LOST


def test_a_sign_during_suspicion_begins_it_anew() -> None:
    node = suspect()
    silence(node, 1.0)
    assert node.answered(2.0) is State.HEADLESS
    assert node.passes(2.0 + PROBE_VOUCHES) is State.SUSPECT
    node.mesh(None, now=5.4)
    assert node.passes(5.4) is State.SUSPECT
    silence(node, 5.5)
    assert node.mesh(None, now=5.5) is State.LOST


def test_what_others_are_told() -> None:
    node = Suspicion()
    assert node.reached is True
    node.token_gone(0)
    assert node.reached is None, "not yet known"
    node.answered(0.01)
    assert node.reached is True
    node.passes(PROBE_VOUCHES + 0.01)
    assert node.reached is False


# --- two witnesses, whatever happens in whatever order


EVENTS = st.one_of(
    st.tuples(st.just("answered")),
    st.tuples(st.just("silent")),
    st.tuples(st.just("mesh"), st.one_of(st.none(), st.floats(0.0, 4.0))),
    st.tuples(st.just("told"), st.sampled_from(["n3", "n4"]), st.booleans()),
    st.tuples(st.just("token_back")),
    st.tuples(st.just("token_gone")),
    st.tuples(st.just("passes")),
)
STEPS = st.lists(st.tuples(st.floats(0.0, 0.6), EVENTS), max_size=60)


@settings(max_examples=400)
@given(STEPS)
def test_no_way_to_lost_without_two_witnesses(
    steps: list[tuple[float, tuple[object, ...]]],
) -> None:
    """Before a node is lost, the fabric, the probes and another witness have agreed."""
    node = Suspicion()
    node.token_gone(0.0)
    now, quiet_since, rounds = 0.0, 0.0, 0
    mesh: tuple[float, float | None] | None = None
    said: dict[str, tuple[float, bool]] = {}
    before = node.state
    for pause, (event, *words) in steps:
        now += pause
        match event:
            case "answered":
                state = node.answered(now)
                quiet_since, rounds = now, 0
            case "silent":
                state = node.silent(now)
                rounds += 1
            case "mesh":
                age = words[0]
                heard = None if age is None else now - float(str(age))
                mesh = (now, heard)
                state = node.mesh(heard, now)
            case "told":
                said[str(words[0])] = (now, bool(words[1]))
                state = node.told(str(words[0]), bool(words[1]), now)
            case "token_back":
                state = node.token_back(now)
            case "token_gone":
                if node.state is State.ALIVE:
                    quiet_since, rounds = now, 0
                state = node.token_gone(now)
            case _:
                state = node.passes(now)
        if state is State.LOST and before is not State.LOST:
            assert now - quiet_since >= FLOWS_AFTER
            assert rounds >= SILENT_ROUNDS
            fresh = {name: reaches for name, (when, reaches) in said.items() if now - when <= 1.0}
            assert not any(fresh.values())
            silent = (
                mesh is not None
                and now - mesh[0] <= 1.0
                and (mesh[1] is None or now - mesh[1] >= MESH_SILENT)
            )
            assert silent or fresh
        before = state


# --- a blink and a death, as a node would live through them


def live_through(
    ends: float,
    *,
    keep_alive: float,
    ogm: float,
    look: float,
    way: float = 0.0,
    purged: bool = False,
) -> list[tuple[float, State]]:
    """Return the states of a node that nothing reaches from 0 to `ends`, each with its beginning.

    `keep_alive`, `ogm` and `look` are the phases, 0 to 1, of what is periodic: what the fabric
    sends, what the mesh sends, and the readings of the mesh. `way` is how long an answer takes.
    With `purged` it is the own link that blinks, and the mesh forgets its originators meanwhile.
    """
    node = Suspicion()
    gone = LEASE + GRACE - KEEP_ALIVE * keep_alive
    until = min(ends, 6.0) + 2.0
    events: list[tuple[float, str]] = [(gone, "gone")]
    began = gone
    while began < until:
        if began >= ends:
            events.append((began + way, "answered"))
            began += OGM
        else:
            events.append((began + ROUND, "silent"))
            began += ROUND
    for number in range(round(until / LOOK)):
        events.append((gone + LOOK * (look + number), "look"))
    ogms = [at for number in range(round(until) + 2) if not 0 < (at := number - ogm) < ends]
    found = [(0.0, node.state)]

    def note(when: float, state: State) -> None:
        if state is not found[-1][1]:
            found.append((when, state))

    for when, what in sorted(events):
        if (due := node.next()) is not None and due <= when:
            note(due, node.passes(due))
        match what:
            case "gone":
                state = node.token_gone(when)
            case "look" if purged and when < ends:
                state = node.mesh(None, when)
            case "look":
                state = node.mesh(max(at for at in (-ogm, *ogms) if at <= when), when)
            case "silent":
                state = node.silent(when)
            case _:
                state = node.answered(when)
        note(when, state)
    return found


PHASE = st.floats(0.0, 1.0)


@settings(max_examples=500)
@given(PHASE, PHASE, PHASE, st.floats(0.0, 0.2), st.floats(0.5, 2.0), st.booleans())
def test_no_blink_of_two_seconds_cuts_anything(
    keep_alive: float, ogm: float, look: float, way: float, length: float, purged: bool
) -> None:
    states = live_through(length, keep_alive=keep_alive, ogm=ogm, look=look, way=way, purged=purged)
    assert State.LOST not in {state for _, state in states}
    assert states[-1][1] is State.HEADLESS, "it has its slots again before its token is back"


def test_a_hundred_blinks_of_two_seconds_cut_nothing() -> None:
    """At every phase of the keep-alives, the OGMs and the readings of the mesh."""
    for number in range(100):
        phase = number / 100
        states = live_through(
            2.0, keep_alive=phase, ogm=(phase * 7) % 1, look=(phase * 11) % 1, way=0.2
        )
        assert [state for _, state in states] == [
            State.ALIVE, State.HEADLESS, State.SUSPECT, State.HEADLESS,
        ]  # fmt: skip


@settings(max_examples=500)
@given(PHASE, PHASE, PHASE, st.booleans())
def test_a_dead_node_is_out_of_all_slots_in_a_second_and_cut_in_three(
    keep_alive: float, ogm: float, look: float, purged: bool
) -> None:
    states = live_through(1e9, keep_alive=keep_alive, ogm=ogm, look=look, purged=purged)
    when = {state: at for at, state in states}
    assert when[State.SUSPECT] <= 0.9
    assert when[State.LOST] <= 2.9
