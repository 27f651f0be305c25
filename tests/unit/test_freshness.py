"""Nothing is opened on an older policy than the peers hold; and nobody keeps a node closed."""

from __future__ import annotations

from daemon.cluster.freshness import FETCH_WITHIN, HEAR_WITHIN, Freshness

NOBODY: set[str] = set()
BOTH = {"n2", "n3"}


class World:
    """A node that has just started, and its clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.fresh = Freshness(lambda: self.now)
        self.fresh.begin()

    def waits(self, version: int = 7, known: set[str] = BOTH, absent: set[str] = NOBODY) -> bool:
        return bool(self.fresh.waits_for(version, known=known, absent=absent))


def test_a_node_alone_waits_for_nobody() -> None:
    assert World().fresh.waits_for(0, known=NOBODY, absent=NOBODY) == []


def test_everyone_known_has_to_answer() -> None:
    world = World()
    assert world.waits()
    world.fresh.answered("n2")
    assert world.fresh.waits_for(7, known=BOTH, absent=NOBODY) == ["n3 has not answered"]
    world.fresh.answered("n3")
    assert not world.waits()


def test_who_is_learned_of_meanwhile_has_to_answer_too() -> None:
    world = World()
    for node in BOTH:
        world.fresh.answered(node)
    assert world.waits(known={*BOTH, "n4"})


def test_where_no_name_is_known_as_many_as_are_dialled_have_to_answer() -> None:
    world = World()
    world.fresh.answered("n2")

    def waits() -> list[str]:
        return world.fresh.waits_for(7, known=NOBODY, strangers=2, absent=NOBODY)

    assert waits() == ["1 of 2 peers have answered"]
    world.fresh.answered("n3")
    assert waits() == []


def test_a_node_without_a_daemon_need_not_answer() -> None:
    world = World()
    world.fresh.answered("n2")
    assert world.waits()
    assert not world.waits(absent={"n3"})


def test_silence_ends() -> None:
    world = World()
    world.now += HEAR_WITHIN - 0.1
    assert world.fresh.early()
    assert world.waits()
    world.now += 0.1
    assert not world.fresh.early()
    assert not world.waits()


def test_a_newer_policy_is_fetched_before_anything_opens() -> None:
    world = World()
    world.now += HEAR_WITHIN - 1.0  # n3 was slow: its manifest comes before its answer
    world.fresh.answered("n2")
    world.fresh.claimed("n3", 9)
    world.now += 2.0
    assert world.fresh.waits_for(7, known=BOTH, absent=NOBODY) == ["n3 has policy 9"]
    assert not world.waits(version=9)
    assert not world.waits(version=10)


def test_a_claim_alone_keeps_nobody_closed() -> None:
    world = World()
    end = world.now + HEAR_WITHIN + FETCH_WITHIN
    version = 2**62
    for node in BOTH:
        world.fresh.answered(node)
    while world.now < end:
        version += 1
        world.fresh.claimed("n3", version)
        world.now += 0.5
    assert not world.waits()
    world.fresh.claimed("n3", version + 1)
    assert not world.waits()


def test_the_start_is_when_the_fabric_opens() -> None:
    world = World()
    world.fresh = Freshness(lambda: world.now)
    world.now += 2 * HEAR_WITHIN
    assert world.waits()
    world.fresh.begin()
    assert world.waits()
    world.now += HEAR_WITHIN
    assert not world.waits()
