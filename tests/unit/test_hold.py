"""The end of the hold, with real stores and exchanges over a fabric in memory, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from daemon.attachments.registry import Registry
from daemon.cluster.freshness import HEAR_WITHIN
from daemon.cluster.membership import Membership
from daemon.journal import Journal
from daemon.model.store import Store
from daemon.reconcile.hold import LOOK_EVERY, Hold
from tests.unit.memory_fabric import Network
from tests.unit.model_kit import NOW, info, policy, record, store
from tests.unit.test_exchange import Member
from tests.unit.virtual_time import run


class Reconciler:
    """Writes down on which policy, and when, the hold ended."""

    def __init__(self, known: Store) -> None:
        self._known = known
        self._hold = True
        self.ended: tuple[float, int] | None = None

    @property
    def hold(self) -> bool:
        return self._hold

    @hold.setter
    def hold(self, hold: bool) -> None:
        found = self._known.policy()
        self.ended = asyncio.get_running_loop().time(), found.version if found else 0

    async def request(self) -> bool:
        return True


def holding(member: Member, dialled: int = 0) -> tuple[Hold, Reconciler]:
    made = Reconciler(member.store)
    membership = Membership(member.name, (), member.store)
    hold = Hold(
        member.store, membership, member.peers, member.liveness, Registry(),
        made, Journal(), dialled=dialled,  # type: ignore[arg-type]
    )  # fmt: skip
    return hold, made


def two_nodes() -> Store:
    """What n1 remembers: n2, and a policy."""
    known = store()
    known.offer(record("authority", 1, policy()), NOW)
    for node in ("n1", "n2"):
        known.offer(record(node, 1, info(node)), NOW)
    return known


def ended(joins_after: float, known: Store, dialled: int = 0) -> tuple[float, int]:
    """Return when n1's hold ended, and its policy then, if n2 has version 2 and a daemon only
    after `joins_after` seconds."""

    async def main() -> tuple[float, int]:
        network = Network()
        one = Member(network, "n1", known)
        two = Member(network, "n2", two_nodes())
        two.store.offer(record("authority", 2, policy(version=2)), NOW)
        hold, reconciler = holding(one, dialled)
        await one.fabric.open(one.peers)
        asyncio.get_running_loop().call_later(
            joins_after, lambda: asyncio.ensure_future(two.fabric.open(two.peers))
        )
        await hold.run()
        for member in (one, two):
            await member.peers.close()
            await member.fabric.close()
        assert reconciler.ended is not None
        return reconciler.ended

    return run(main())


@pytest.mark.parametrize("joins_after", [0.0, 0.3, 4.0, 9.0])
def test_the_newer_policy_is_here_before_anything_opens(joins_after: float) -> None:
    when, version = ended(joins_after, two_nodes())
    assert version == 2
    assert when <= joins_after + 2 * LOOK_EVERY


def test_after_a_reboot_whom_we_dial_has_to_answer() -> None:
    rebooted = store()
    rebooted.offer(record("authority", 1, policy()), NOW)
    when, version = ended(4.0, rebooted, dialled=1)
    assert (version, when >= 4.0) == (2, True)


def test_whom_policy_lists_has_to_answer() -> None:
    pinned = "services: {}\nnodes: {n1: {slice: 10.64.16.0/20}, n2: {slice: 10.64.32.0/20}}\n"
    rebooted = store()
    rebooted.offer(record("authority", 1, policy(pinned)), NOW)
    assert ended(4.0, rebooted)[1] == 2


def test_who_never_comes_is_waited_for_ten_seconds() -> None:
    when, version = ended(60.0, two_nodes())
    assert version == 1
    assert HEAR_WITHIN <= when <= HEAR_WITHIN + 2 * LOOK_EVERY


def test_whoever_is_alone_waits_for_nobody() -> None:
    alone = store()
    alone.offer(record("n1", 1, info("n1")), NOW)
    assert ended(60.0, alone) == (0.0, 0)
