"""Other nodes: real stores and certificates over a fabric in memory, and real TCP probes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec
import pytest

from daemon.cluster import exchange as module
from daemon.cluster.asking import ASK_EVERY
from daemon.cluster.exchange import Exchange
from daemon.fabric import FabricError, Settings
from daemon.journal import Journal
from daemon.liveness.liveness import Liveness
from daemon.model import records
from daemon.model.store import Store
from daemon.model.verdict import Outcome
from tests.unit import virtual_time
from tests.unit.memory_fabric import Network
from tests.unit.model_kit import (
    KEYS,
    NOW,
    attachment,
    filled,
    info,
    policy,
    record,
    replica,
    store,
)

LIMIT = 10.0


class Member:
    """One node: its store, its peers, and what they ask of the rest of the daemon."""

    def __init__(self, network: Network, name: str, known: Store) -> None:
        self.name = name
        self.store = known
        others = tuple(f"tls/10.0.0.{i}:1" for i in "123" if f"n{i}" != name)
        settings = Settings(
            cluster="lab", node=name, listen=(f"tls/10.0.0.{name[1:]}:1",), connect=others,
            ca="", certificate="", key="",
        )  # fmt: skip
        self.fabric = network.join(settings)
        self.passes: list[asyncio.Future[bool]] = []
        self.slow = False
        self.changes: list[bool] = []
        self.answered = 0
        self.asked: list[tuple[str, ...]] = []
        """What each Sync was for, the oldest first."""
        self.remembered: list[int] = []
        self.store.subscribe(lambda verdict: self.changes.append(verdict.key == KEYS.policy))
        self.store.subscribe(lambda _: self._program())
        self.liveness = Liveness(name, self.store, changed=self._program, journal=Journal())
        self.peers = Exchange(
            name,
            self.store,
            self.fabric,
            self,
            self.liveness,
            program=self._program,
            journal=Journal(),
            clock=lambda: NOW,
        )

    def _program(self, *, strict: bool = False) -> asyncio.Future[bool]:
        self.strict = strict
        self.passes.append(asyncio.get_running_loop().create_future())
        if not self.slow:
            self.passes[-1].set_result(True)
        return self.passes[-1]

    def everything(self, keys: Iterable[str] = ()) -> list[bytes]:
        """Return the records that answer a `Sync`; the publisher's part."""
        self.answered += 1
        self.asked.append(tuple(keys))
        return self.store.answer(self.name, keys)

    def is_behind(self, version: int) -> bool:
        """Tell whether a peer remembers more than the last version heard; the publisher's part."""
        return version > max(self.remembered, default=0)

    async def overtake(self, version: int) -> None:
        """Hear what a peer remembers of this node's versions; the publisher's part."""
        self.remembered.append(version)

    def end_passes(self, agreed: bool) -> None:
        for future in self.passes:
            if not future.done():
                future.set_result(agreed)

    def publish(self, sealed: bytes) -> None:
        """Hold and publish a record, as a node does."""
        self.store.offer(sealed, NOW)
        self.fabric.publish(records.decode(sealed).key, sealed)


async def until(condition: Callable[[], Any]) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0)


def play(
    scene: Callable[[Member, Member], Awaitable[None]], n1: Store | None = None,
    n2: Store | None = None,
) -> None:  # fmt: skip
    """Run `scene` with two nodes that have met."""

    async def main() -> None:
        network = Network()
        members = [Member(network, "n1", n1 or filled()), Member(network, "n2", n2 or filled())]
        for member in members:
            await member.fabric.open(member.peers)
        one, two = members
        await until(lambda: "n2" in one.peers.heard and "n1" in two.peers.heard)
        one.passes.clear()
        one.changes.clear()
        two.answered = 0
        two.asked.clear()
        try:
            async with asyncio.timeout(LIMIT):
                await scene(one, two)
        finally:
            for member in members:
                await member.peers.close()
                await member.liveness.close()
                await member.fabric.close()

    asyncio.run(main())


def test_nodes_that_meet_tell_each_other_everything() -> None:
    async def scene(one: Member, two: Member) -> None:
        assert one.liveness.alive == {"n1", "n2"}
        assert [r.node for r in one.store.held_replicas()] == ["n2"]
        assert two.remembered == [1]  # what n1 knew of n2 before it heard this

    play(scene, n2=filled(record("n2", 5, replica("n2", 5))))


def test_a_peer_that_dies_while_it_is_asked_is_asked_when_it_returns() -> None:
    async def scene(one: Member, two: Member) -> None:
        ask, dead = one.fabric.ask, asyncio.Event()

        async def dies(node: str, question: bytes, timeout: float) -> list[bytes]:
            await dead.wait()
            raise FabricError(f"no answer from {node}: it went away meanwhile")

        one.fabric.ask = dies  # type: ignore[method-assign]
        one.peers.on_alive("n2", False)
        one.peers.on_alive("n2", True)
        await asyncio.sleep(0)
        one.peers.on_alive("n2", False)
        dead.set()
        while any("ask n2" in task.get_name() for task in asyncio.all_tasks()):
            await asyncio.sleep(0)
        one.fabric.ask = ask  # type: ignore[method-assign]
        one.peers.heard.clear()
        one.peers.on_alive("n2", True)
        await until(lambda: "n2" in one.peers.heard)

    play(scene)


def test_a_peer_that_always_remembers_more_is_overtaken_a_few_times(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        network = Network()
        one, two = Member(network, "n1", filled()), Member(network, "n2", filled())

        async def lie(question: bytes) -> list[bytes]:
            yours = max(one.remembered, default=1) + 1
            return [records.encode_message(part) for part in records.parts([], yours)]

        two.peers.on_ask = lie  # type: ignore[method-assign]
        for member in (one, two):
            await member.fabric.open(member.peers)
        for _ in range(10):
            await asyncio.sleep(ASK_EVERY)
            one.peers.on_returned("n2")
        assert len(one.remembered) == module.OVERTAKES[0]
        for member in (one, two):
            await member.peers.close()
            await member.liveness.close()
            await member.fabric.close()

    virtual_time.run(main())
    told = [r for r in caplog.records if r.getMessage() == "versions not overtaken"]
    assert len(told) == 1


def test_a_record_asks_for_a_pass() -> None:
    async def scene(one: Member, two: Member) -> None:
        two.publish(record("n2", 5, replica("n2", 5)))
        await until(lambda: one.store.held_replicas())
        assert (len(one.passes), one.changes) == (1, [False])

    play(scene)


def test_a_policy_is_told_apart() -> None:
    async def scene(one: Member, two: Member) -> None:
        two.publish(record("authority", 2, policy(version=2)))
        await until(lambda: one.changes)
        assert one.changes == [True]

    play(scene)


def test_what_is_known_or_refused_asks_for_nothing() -> None:
    async def scene(one: Member, two: Member) -> None:
        sealed = record("n2", 5, replica("n2", 5))
        assert one.peers.offer(sealed).changed
        one.passes.clear()
        assert one.peers.offer(sealed).outcome is Outcome.KNOWN
        forged = sealed[:-1] + bytes([sealed[-1] ^ 1])
        assert one.peers.offer(forged).changed is False
        assert one.peers.offer(b"nonsense").outcome is Outcome.MALFORMED
        assert one.passes == []

    play(scene)


def test_an_unknown_signer_is_asked_for_everything() -> None:
    async def scene(one: Member, two: Member) -> None:
        assert "n2" not in one.store.infos()
        two.store.offer(record("n2", 1, info("n2")), NOW)
        two.publish(record("n2", 5, replica("n2", 5)))
        await until(lambda: one.store.held_replicas())
        assert "n2" in one.store.infos()

    # n2 has nothing to tell of itself when they meet.
    play(scene, n1=store_with_policy(), n2=store())


def store_with_policy() -> Store:
    made = store()
    made.offer(record("authority", 1, policy()), NOW)
    return made


def test_a_burst_of_what_cannot_be_judged_costs_two_questions() -> None:
    async def scene(one: Member, two: Member) -> None:
        for node in ("n1", "n2"):
            two.store.offer(record(node, 1, info(node)), NOW)
        for number in range(5, 45):
            two.publish(record("n2", number, replica("n2", number)))
        await until(lambda: len(one.store.held_replicas()) == 40)
        await until(lambda: two.answered)
        # Another question's answer comes after all of those that were asked before.
        await one.fabric.ask("n2", records.encode_message(records.Sync("n1")), LIMIT)
        assert two.answered <= 3

    play(scene, n1=store_with_policy(), n2=store())


def test_a_manifest_that_names_what_is_missing_is_followed_up() -> None:
    async def scene(one: Member, two: Member) -> None:
        two.store.offer(record("n2", 5, replica("n2", 5)), NOW)  # its publication was lost
        two.publish(record("n2", 6, two.store.manifest("n2")))
        await until(lambda: one.store.held_replicas())
        assert one.store.behind("n2") == []
        assert two.asked == [(f"node/n2/replica/{attachment(5)}",)]

    play(scene)


def test_a_manifest_that_names_nothing_new_is_not() -> None:
    async def scene(one: Member, two: Member) -> None:
        before = one.store.revision
        for version in range(6, 9):
            two.publish(record("n2", version, two.store.manifest("n2")))
        await one.fabric.ask("n2", records.encode_message(records.Sync("n1")), LIMIT)
        assert one.store.counts[Outcome.ACCEPTED] >= 3
        assert two.answered == 1
        assert (one.passes, one.changes, one.store.revision) == ([], [], before)

    play(scene)


def test_whoever_holds_a_newer_policy_is_asked_for_it() -> None:
    async def scene(one: Member, two: Member) -> None:
        two.store.offer(record("authority", 2, policy(version=2)), NOW)  # its publication is lost
        two.publish(record("n2", 6, two.store.manifest("n2")))
        await until(lambda: one.store.policy() == policy(version=2))
        assert two.asked == [("policy",)]
        one.peers.freshness.begin()
        waits_for = one.peers.freshness.waits_for
        assert waits_for(1, known={"n2"}, absent=set()) == ["n2 has policy 2"]
        assert waits_for(2, known={"n2"}, absent=set()) == []
        # And nothing comes of a peer that has the same, or an older one.
        one.publish(record("n1", 6, one.store.manifest("n1")))
        two.publish(record("n2", 7, two.store.manifest("n2")))
        await one.fabric.ask("n2", records.encode_message(records.Sync("n1")), LIMIT)
        assert (one.answered, two.answered) == (1, 2)  # one: as they met

    play(scene)


def test_a_peer_that_returned_is_asked_for_its_manifest() -> None:
    async def scene(one: Member, two: Member) -> None:
        two.store.offer(record("n2", 5, replica("n2", 5)), NOW)  # said while the link was down
        two.store.offer(record("n2", 6, two.store.manifest("n2")), NOW)
        await two.fabric.reconfigure(["tls/10.0.0.1:1"], None)
        await until(lambda: one.store.held_replicas())
        assert two.asked == [("node/n2/manifest",), (f"node/n2/replica/{attachment(5)}",)]

    play(scene)


def test_a_policy_is_brought_to_a_node_that_does_not_say_what_it_holds() -> None:
    # As one of release 0.1.0; the publication was lost.
    silent = records.Manifest(versions={"info": 1})

    async def scene(one: Member, two: Member) -> None:
        one.store.offer(record("authority", 2, policy(version=2)), NOW)
        two.publish(record("n2", 6, silent))
        await until(lambda: two.store.policy() == policy(version=2))
        heard = len(two.passes)
        for version in range(7, 10):
            two.publish(record("n2", version, silent))
        await one.fabric.ask("n2", records.encode_message(records.Sync("n1")), LIMIT)
        assert len(two.passes) == heard  # once
        one.store.offer(record("authority", 3, policy(version=3)), NOW)
        two.publish(record("n2", 10, silent))
        await until(lambda: two.store.policy() == policy(version=3))

    play(scene)


def test_a_manifest_of_the_release_before_is_read() -> None:
    old = msgspec.msgpack.encode({"type": "manifest", "versions": {"info": 1}})
    assert msgspec.msgpack.decode(old, type=records.Manifest) == records.Manifest(
        versions={"info": 1}
    )


def test_a_confirmation_waits_for_the_pass() -> None:
    async def scene(one: Member, two: Member) -> None:
        two.slow = True
        two.passes.clear()
        asking = asyncio.ensure_future(
            one.peers.confirm(record("n1", 9, replica("n1", 9)), ["n2", "n3"], LIMIT)
        )
        await until(lambda: len(two.passes) == 2)  # the record's, and the question's own
        assert two.store.held_replicas()
        assert not asking.done()
        two.end_passes(True)
        answers = await asking
        assert {node: answer.outcome for node, answer in answers.items()} == {
            "n2": "live",
            "n3": "unreachable",
        }

    play(scene)


def test_a_pass_that_failed_confirms_nothing() -> None:
    async def scene(one: Member, two: Member) -> None:
        two.slow = True
        two.passes.clear()
        sealed = record("n1", 9, replica("n1", 9))
        asking = asyncio.ensure_future(one.peers.confirm(sealed, ["n2"], LIMIT))
        await until(lambda: len(two.passes) == 2)
        two.end_passes(False)
        assert (await asking)["n2"].outcome == "accepted"

    play(scene)


def test_a_pass_that_takes_too_long_confirms_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONFIRM_WITHIN", 0.01)

    async def scene(one: Member, two: Member) -> None:
        two.slow = True
        sealed = record("n1", 9, replica("n1", 9))
        assert (await one.peers.confirm(sealed, ["n2"], LIMIT))["n2"].outcome == "accepted"

    play(scene)


def test_a_policy_is_confirmed_only_where_every_attachment_is_as_it_says() -> None:
    async def scene(one: Member, two: Member) -> None:
        await one.peers.confirm(record("n1", 9, replica("n1", 9)), ["n2"], LIMIT)
        assert two.strict is False
        await one.peers.confirm(record("authority", 2, policy(version=2)), ["n2"], LIMIT)
        assert two.strict is True

    play(scene)


def test_what_is_not_believed_is_not_confirmed() -> None:
    async def scene(one: Member, two: Member) -> None:
        newer = record("n1", 9, replica("n1", 9))
        two.store.offer(newer, NOW)
        stale = record("n1", 8, replica("n1", 9))
        for sealed, outcome in ((stale, "stale"), (b"nonsense", "refused"), (newer, "live")):
            assert (await one.peers.confirm(sealed, ["n2"], LIMIT))["n2"].outcome == outcome

    play(scene)


def test_another_node_asks_what_is_reached() -> None:
    async def scene(one: Member, two: Member) -> None:
        question = records.encode_message(records.Reach(("n1", "n2", "n3")))
        (answer,) = await one.fabric.ask("n2", question, LIMIT)
        assert records.decode_answer(answer) == records.Reached({"n1": True, "n2": True})

    play(scene)


def test_after_close_nothing_runs() -> None:
    async def scene(one: Member, two: Member) -> None:
        for member in (one, two):
            await member.peers.close()
            await member.liveness.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    play(scene)
