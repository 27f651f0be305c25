"""Asking at a pace: honest peers at once, those that lie less and less, and nobody for ever."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest

from daemon.cluster.asking import ASK_BURST, ASK_EVERY, ASK_LIMIT, Asking, Reason
from daemon.cluster.quotas import LOG_EVERY, NAMES_MAX, Bucket, Complaints, Quotas
from daemon.fabric import FabricError
from daemon.model import records
from daemon.model.records import Copy, Manifest
from tests.unit.memory_fabric import Chaos, Network
from tests.unit.model_kit import KEYS, NOW, attachment, filled, identity, record, replica
from tests.unit.test_exchange import Member
from tests.unit.virtual_time import run

MINUTES = 60.0


def asked(reason: Reason, useful: Callable[[int], bool], seconds: float) -> list[float]:
    """Return when a peer is asked that gives a `reason` all the time."""
    asking, now, found = Asking(), 0.0, []
    while now < seconds:
        asking.reasons.add(reason)
        now += asking.wait(now)
        assert asking.begin(now) is reason
        found.append(now)
        asking.answered(reason, useful(len(found)))
    return found


def test_a_burst_is_asked_at_once_and_then_at_a_pace() -> None:
    times = asked(Reason.LISTED, lambda _: True, 60.0)
    assert times[:ASK_BURST] == [0.0] * ASK_BURST
    assert times[-1] - times[-2] == pytest.approx(ASK_EVERY, abs=0.01)


@pytest.mark.parametrize("reason", [Reason.LISTED, Reason.PUZZLING])
def test_answers_of_no_use_are_asked_for_less_and_less(reason: Reason) -> None:
    times = asked(reason, lambda _: False, 60 * MINUTES)
    assert len(times) <= 60 + 12
    assert times[-1] - times[-2] == pytest.approx(ASK_LIMIT, abs=0.01)


def test_one_answer_of_use_ends_that() -> None:
    times = asked(Reason.LISTED, lambda number: number == 8, 10 * MINUTES)
    pauses = [b - a for a, b in itertools.pairwise(times)]
    assert pauses[6] > 8 * ASK_EVERY
    assert pauses[8] == pytest.approx(ASK_EVERY, abs=0.01)


def test_puzzles_do_not_slow_down_what_a_manifest_lists() -> None:
    asking = Asking()
    asking.reasons.add(Reason.PUZZLING)
    while asking.wait(0.0) == 0:
        asking.begin(0.0)
        asking.answered(Reason.PUZZLING, useful=False)
        asking.reasons.add(Reason.PUZZLING)
    asking.reasons.add(Reason.LISTED)
    assert asking.wait(0.0) == 0
    assert asking.begin(0.0) is Reason.LISTED


def test_what_appeared_is_asked_for_everything_first() -> None:
    asking = Asking()
    asking.reasons |= {Reason.PUZZLING, Reason.LISTED, Reason.RETURNED, Reason.OWED}
    assert asking.begin(0.0) is Reason.OWED
    assert asking.reasons == set()
    with pytest.raises(ValueError, match="nothing to ask"):
        asking.begin(0.0)


def test_a_bucket_never_allows_more_than_its_figures() -> None:
    bucket = Bucket(5, 2.0)
    taken = sum(bucket.take(tick / 100) for tick in range(100_00))
    assert taken == 5 + 49
    assert bucket.wait(100.0) <= 2.0 + 1e-5
    assert bucket.take(100.0 + bucket.wait(100.0))


def test_invented_names_share_one_quota() -> None:
    quotas = Quotas(1, 1000.0)
    assert all(quotas.take(f"n{number}", 0.0) for number in range(NAMES_MAX))
    assert quotas.take("another", 0.0)
    assert not any(quotas.take(f"x{number}", 0.0) for number in range(1000))


def test_trouble_is_logged_once_per_interval_with_its_count() -> None:
    complaints = Complaints()
    lines = [complaints.note("n2", "malformed", tick * 0.01) for tick in range(100_00)]
    assert [line for line in lines if line] == [1, round(LOG_EVERY * 100)]
    assert complaints.note("n3", "malformed", 99.0) == 1
    assert complaints.note("n2", "oversized", 99.0) == 1


Scene = Callable[[Member, Member], Awaitable[None]]


def play(scene: Scene) -> None:
    """Run `scene` with two nodes that have met, in virtual time."""

    async def main() -> None:
        network = Network()
        members = [Member(network, name, filled()) for name in ("n1", "n2")]
        for member in members:
            await member.fabric.open(member.peers)
        await asyncio.sleep(1)
        for member in members:
            member.asked.clear()
        await scene(*members)
        for member in members:
            await member.peers.close()
            await member.liveness.close()
            await member.fabric.close()

    run(main())


def test_a_question_that_is_lost_is_asked_again() -> None:
    async def scene(one: Member, two: Member) -> None:
        network = one.fabric._network
        two.store.offer(record("n2", 50, replica("n2", 5)), NOW)
        two.publish(record("n2", 51, two.store.manifest("n2")))
        await asyncio.sleep(0)
        network.chaos = Chaos(lost=1.0, doubled=0.0, late=0.0)  # the question
        await asyncio.sleep(1)
        network.chaos = None
        assert one.store.held_replicas() == []
        await asyncio.sleep(5.0 + ASK_EVERY)  # nothing else is said meanwhile
        assert len(one.store.held_replicas()) == 1

    play(scene)


def test_a_node_that_appeared_is_asked_until_it_has_answered() -> None:
    async def main() -> None:
        network = Network()
        one, two = (Member(network, name, filled()) for name in ("n1", "n2"))
        for member in (one, two):
            await member.fabric.open(member.peers)
        while "n2" not in one.liveness.alive:
            await asyncio.sleep(0)
        network.chaos = Chaos(lost=1.0, doubled=0.0, late=0.0)
        await asyncio.sleep(1)
        network.chaos = None
        assert one.peers.heard == set()
        await asyncio.sleep(5.0 + ASK_EVERY)
        assert one.peers.heard == {"n2"}
        for member in (one, two):
            await member.peers.close()
            await member.fabric.close()

    run(main())


def test_a_liar_cannot_make_us_ask_for_ever() -> None:
    # Ten records a second that cannot be verified; its answers are honest, and bring nothing.
    forged = record("n2", 50, replica("n2", 5))
    forged = forged[:-1] + bytes([forged[-1] ^ 1])

    async def scene(one: Member, two: Member) -> None:
        for _ in range(6000):
            two.fabric.publish(KEYS.replica("n2", attachment(5)), forged)
            await asyncio.sleep(0.1)
        assert len(two.asked) <= 20
        # And an honest word of it is still followed up at once.
        two.store.offer(record("n2", 60, replica("n2", 6)), NOW)
        two.publish(record("n2", 61, two.store.manifest("n2")))
        await asyncio.sleep(1)
        assert [held.attachment for held in one.store.held_replicas()] == [attachment(6)]

    play(scene)


def test_a_liar_cannot_make_us_ask_somebody_else() -> None:
    forged = records.seal(
        KEYS, KEYS.replica("n2", attachment(5)), 50, replica("n2", 5), identity("n1")
    )
    envelope = records.decode(forged)
    forged = records.encode(records.Envelope(envelope.key, 50, "n2", envelope.body, b"x"))

    async def scene(one: Member, two: Member) -> None:
        two.peers.on_record(KEYS.replica("n1", attachment(5)), forged)
        one.peers.on_record(KEYS.replica("n3", attachment(5)), forged)
        await asyncio.sleep(1)
        assert (one.asked, two.asked) == ([], [])

    play(scene)


def test_who_claims_a_policy_that_it_does_not_have_is_asked_less_and_less() -> None:
    async def scene(one: Member, two: Member) -> None:
        for version in range(100, 160):  # ten minutes of manifests
            claim = Copy(2**62 + version, b"a policy")
            versions = two.store.manifest("n2").versions
            lie = Manifest(versions=versions, shared={"policy": claim})
            two.publish(record("n2", version, lie))
            await asyncio.sleep(10)
        assert len(two.asked) <= 20

    play(scene)


def test_who_asks_too_often_is_refused_and_others_are_not() -> None:
    async def scene(one: Member, two: Member) -> None:
        def ask(name: str) -> Awaitable[list[bytes]]:
            return one.fabric.ask("n2", records.encode_message(records.Sync(name)), 5.0)

        refused = 0
        for _ in range(100):
            try:
                await ask("n1")
            except FabricError as error:
                assert "too many questions of n1" in error.message
                refused += 1
        assert refused == 100 - 8
        await ask("n3")
        await asyncio.sleep(1.1)
        await ask("n1")

    play(scene)


def test_a_long_answer_leaves_the_loop_room() -> None:
    async def scene(one: Member, two: Member) -> None:
        for number in range(1, 201):
            two.store.offer(record("n2", 10 + number, replica("n2", number)), NOW)
        two.publish(record("n2", 500, two.store.manifest("n2")))
        held: list[int] = []
        while len(one.store.held_replicas()) < 200:
            held.append(len(one.store.held_replicas()))
            await asyncio.sleep(0)
        assert max(b - a for a, b in itertools.pairwise(held)) <= 32

    play(scene)
