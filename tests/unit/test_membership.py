"""Whom the fabric dials: members' endpoints, followed, but not at any pace."""

from __future__ import annotations

from daemon.cluster.membership import FOLLOW_AGAIN, FOLLOW_LIMIT, Membership
from daemon.fabric.damping import Damping
from tests.unit.model_kit import NOW, filled, info, policy, record

HOUR = 3600


class World:
    """n1's view of n2 and n3, with time given by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.store = filled()
        self.version = 10
        self.membership = Membership("n1", ["tls/192.0.2.9:1"], self.store, lambda: self.now)
        self.membership.endpoints()

    def moves(self, node: str, *endpoints: str) -> None:
        """`node` says that it listens elsewhere."""
        self.version += 1
        self.store.offer(record(node, self.version, info(node, endpoints=endpoints)), NOW)


def test_members_are_dialled_where_they_say_and_oneself_is_not() -> None:
    world = World()
    world.moves("n1", "tls/192.0.2.1:9")
    world.moves("n2", "tls/192.0.2.2:1", "tcp/192.0.2.2:2")
    assert set(world.membership.endpoints()) == {
        "tls/192.0.2.9:1",
        "tls/192.0.2.1:7447",  # what n3 says in these tests
        "tls/192.0.2.2:1",
    }
    assert world.membership.postponed() is None


def test_a_node_that_moves_every_second_costs_the_others_little() -> None:
    world = World()
    reopened: list[float] = []
    dialled = set(world.membership.endpoints())
    for second in range(0, 8 * HOUR, 30):
        world.now = float(second)
        world.moves("n2", f"tls/192.0.2.2:{1 + second}")
        if (found := set(world.membership.endpoints())) != dialled:
            dialled = found
            reopened.append(world.now)
    assert reopened[0] == 0.0
    assert sum(when < HOUR for when in reopened) <= 8
    assert len(reopened) <= 8 + 8


def test_who_moves_once_is_followed_at_once_whatever_others_do() -> None:
    world = World()
    for port in range(1, 9):
        world.now += FOLLOW_AGAIN * 2
        world.moves("n2", f"tls/192.0.2.2:{port}")
        world.membership.endpoints()
    world.moves("n3", "tls/192.0.2.3:1")
    assert "tls/192.0.2.3:1" in world.membership.endpoints()
    assert "tls/192.0.2.2:8" not in world.membership.endpoints()
    # And what was put off is due, some time.
    wait = world.membership.postponed()
    assert wait is not None
    assert 0 < wait <= FOLLOW_LIMIT
    world.now += wait
    assert "tls/192.0.2.2:8" in world.membership.endpoints()
    assert world.membership.postponed() is None


def test_who_is_no_longer_listed_is_not_dialled() -> None:
    world = World()
    world.moves("n2", "tls/192.0.2.2:1")
    assert "tls/192.0.2.2:1" in world.membership.endpoints()
    pinned = "services: {}\nnodes: {n1: {slice: 10.64.16.0/20}, n3: {slice: 10.64.48.0/20}}\n"
    world.store.offer(record("authority", 2, policy(pinned, 2)), NOW)
    assert "tls/192.0.2.2:1" not in world.membership.endpoints()
    assert world.membership.postponed() is None


def test_a_penalty_decays_and_is_each_peers_own() -> None:
    damping = Damping(10.0, 1000.0, 100.0)
    assert damping.wait("n2", 0.0) == 0.0
    pauses = []
    now = 0.0
    for _ in range(20):
        damping.caused("n2", now)
        pauses.append(damping.wait("n2", now))
        now += pauses[-1]
    assert pauses[0] == 10.0
    assert pauses == sorted(pauses)
    assert pauses[1] > 15.0
    assert damping.wait("n3", now) == 0.0
    assert damping.wait("n2", now + 1000.0) == 0.0
    damping.caused("n2", now + 10_000.0)
    assert damping.wait("n2", now + 10_000.0) < 11.0
