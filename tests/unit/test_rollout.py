"""A policy on its way to every kernel: real stores, exchanges and rollouts over a fabric in memory.

Only the kernel is a stand-in: it agrees, refuses, or takes its time, as a test says.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from daemon import config
from daemon.api.messages import PolicyApplied, PolicyState
from daemon.api.server import Api, Service
from daemon.cluster import exchange, rollout
from daemon.cluster.exchange import Exchange
from daemon.cluster.membership import Membership
from daemon.cluster.publisher import Publisher
from daemon.cluster.rollout import Rollout
from daemon.fabric import Settings
from daemon.journal import Journal
from daemon.liveness.liveness import Liveness
from daemon.model import records
from daemon.reconcile.reconciler import Reconciler
from netconf.errors import InvalidConfig
from tests.unit.ctl_kit import key_folder, run
from tests.unit.memory_fabric import Network
from tests.unit.model_kit import KEYS, NOW, SLICES, TEXT, filled, identity, policy, record
from tests.unit.test_config import GOOD

LIMIT = 10.0
PINNED = TEXT + "nodes:\n" + "".join(f"  {n}: {{slice: {s}}}\n" for n, s in SLICES.items())
GHOST = PINNED + "  n4: {slice: 10.64.64.0/20}\n"


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not agree is given up soon."""
    monkeypatch.setattr(rollout, "CONFIRM_WITHIN", 0.3)
    monkeypatch.setattr(rollout, "AGAIN", 0.02)
    monkeypatch.setattr(exchange, "CONFIRM_WITHIN", 0.1)


class Kernel:
    """What a reconciler tells of its kernel."""

    def __init__(self) -> None:
        self.answer: bool | None = True
        """Whether a pass succeeds; None while it does not end."""
        self.passed: Callable[[], None] = lambda: None
        self.policy_version = 0
        self.waiting: list[asyncio.Future[bool]] = []

    def request(self, *, strict: bool = False) -> asyncio.Future[bool]:
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        if self.answer is not None:
            self.end(self.answer)
        return future

    def end(self, answer: bool) -> None:
        """End all passes that were asked for."""
        self.answer = answer
        for future in self.waiting:
            if not future.done():
                future.set_result(answer)
        self.waiting.clear()


class Member:
    """One node's share in a rollout, all real but for the kernel."""

    def __init__(self, network: Network, name: str) -> None:
        self.name = name
        self.store = filled()
        listen = {f"n{i}": f"tls/10.0.0.{i}:1" for i in (1, 2, 3)}
        others = tuple(endpoint for node, endpoint in listen.items() if node != name)
        self.fabric = network.join(
            Settings(cluster="lab", node=name, listen=(listen[name],), connect=others,
                     ca="", certificate="", key="")
        )  # fmt: skip
        self.kernel = Kernel()
        journal = Journal()
        self.publisher = Publisher(
            identity(name), self.store, self.fabric.publish, journal, clock=lambda: NOW
        )
        self.publisher.resume()
        self.liveness = Liveness(name, self.store, changed=self.kernel.request, journal=journal)
        self.exchange = Exchange(
            name, self.store, self.fabric, self.publisher, self.liveness,
            program=self.kernel.request, journal=journal, clock=lambda: NOW,
        )  # fmt: skip
        told = config.parse(GOOD.replace("node: n2", f"node: {name}"))
        self.rollout = Rollout(
            told, self.store, Membership(name, others, self.store), self.exchange,
            cast(Reconciler, self.kernel), self.fabric.publish, journal,
        )  # fmt: skip

    async def close(self) -> None:
        await self.exchange.close()
        await self.liveness.close()
        await self.fabric.close()

    # what the API offers of it

    def policy_state(self) -> PolicyState:
        return self.rollout.state()

    async def apply_policy(self, envelope: bytes, *, wait: bool) -> PolicyApplied:
        return await self.rollout.apply(envelope, wait=wait)


class Cluster:
    """Three nodes that have met."""

    def __init__(self) -> None:
        self.network = Network()
        self.members = {name: Member(self.network, name) for name in SLICES}

    def __getitem__(self, name: str) -> Member:
        return self.members[name]

    async def meet(self) -> None:
        for member in self.members.values():
            await member.fabric.open(member.exchange)
        async with asyncio.timeout(LIMIT):
            while any(len(member.exchange.heard) < 2 for member in self.members.values()):
                await asyncio.sleep(0)

    async def close(self) -> None:
        for member in self.members.values():
            await member.close()


def play(scene: Callable[[Cluster], Awaitable[None]]) -> None:
    async def main() -> None:
        cluster = Cluster()
        await cluster.meet()
        try:
            async with asyncio.timeout(LIMIT):
                await scene(cluster)
        finally:
            await cluster.close()

    asyncio.run(main())


def sealed(version: int, text: str = PINNED) -> bytes:
    return record("authority", version, policy(text, version=version))


def told(applied: PolicyApplied) -> dict[str, tuple[str, str]]:
    return {one.node: (one.outcome, one.reason) for one in applied.nodes}


def rivals(version: int) -> tuple[bytes, bytes]:
    """Two policies of one version: the one that loses everywhere, and the one that wins."""
    two = [sealed(version), sealed(version, PINNED + "  n9: {slice: 10.64.96.0/20}\n")]
    one, other = sorted(two, key=lambda data: records.decode(data).order)
    return one, other


def test_live_everywhere() -> None:
    async def scene(cluster: Cluster) -> None:
        applied = await cluster["n1"].rollout.apply(sealed(2))
        assert told(applied) == dict.fromkeys(SLICES, ("live", ""))
        assert set(applied.live) == set(SLICES)
        assert applied.silent == []

    play(scene)


def test_each_way_to_fall_short_is_told_apart() -> None:
    async def scene(cluster: Cluster) -> None:
        cluster.network.partition({"n1", "n2"}, {"n3"})
        async with asyncio.timeout(LIMIT):
            while "n3" in cluster["n1"].liveness.alive:
                await asyncio.sleep(0)
        cluster["n2"].kernel.answer = False
        applied = await cluster["n1"].rollout.apply(sealed(2, GHOST))
        assert told(applied) == {
            "n1": ("live", ""),
            "n2": ("accepted", "its kernel could not be changed; its log says why"),
            "n3": ("unreachable", "its daemon is not there"),
            "n4": ("unreachable", "it was never heard of here"),
        }
        assert applied.silent == ["n2", "n3", "n4"]

    play(scene)


def test_a_kernel_that_takes_its_time_is_waited_for_but_not_for_ever() -> None:
    async def scene(cluster: Cluster) -> None:
        for member in cluster.members.values():
            member.kernel.answer = None
        applying = asyncio.ensure_future(cluster["n1"].rollout.apply(sealed(2)))
        async with asyncio.timeout(LIMIT):
            while cluster["n2"].rollout.state().version != 2:
                await asyncio.sleep(0)
        cluster["n2"].kernel.end(True)
        found = told(await applying)
        assert found["n2"] == ("live", "")
        for node in ("n1", "n3"):
            assert found[node][0] == "accepted"
            assert "does not agree after" in found[node][1]

    play(scene)


def test_a_node_that_holds_another_version_is_stale_and_says_which() -> None:
    async def scene(cluster: Cluster) -> None:
        cluster["n2"].store.offer(sealed(7), NOW)
        applied = await cluster["n1"].rollout.apply(sealed(2))
        assert told(applied)["n2"] == ("stale", "it holds version 7")
        assert told(applied)["n3"] == ("live", "")

    play(scene)


def test_a_node_that_does_not_believe_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(cluster: Cluster) -> None:
        async def refuse(question: bytes) -> list[bytes]:
            return [records.encode_message(records.Ack("bad signature", "not signed by authority"))]

        monkeypatch.setattr(cluster["n3"].exchange, "on_ask", refuse)
        applied = await cluster["n1"].rollout.apply(sealed(2))
        assert told(applied)["n3"] == ("refused", "bad signature: not signed by authority")

    play(scene)


@pytest.mark.parametrize(
    ("word", "outcome"),
    [("accepted", "live"), ("known", "live"), ("not programmed yet", "accepted"),
     ("stale", "stale"), ("not entitled", "refused"), ("a word of 2030", "refused")],
)  # fmt: skip
def test_what_0_1_0_answers_is_understood(
    monkeypatch: pytest.MonkeyPatch, word: str, outcome: str
) -> None:
    """Release 0.1.0 sends the word alone."""

    async def scene(cluster: Cluster) -> None:
        async def answer(question: bytes) -> list[bytes]:
            return [msgspec.msgpack.encode({"type": "ack", "outcome": word})]

        monkeypatch.setattr(cluster["n3"].exchange, "on_ask", answer)
        applied = await cluster["n1"].rollout.apply(sealed(2))
        found, reason = told(applied)["n3"]
        assert found == outcome
        assert bool(reason) == (outcome != "live")

    play(scene)


def test_of_two_at_once_the_loser_learns_it_however_late_the_other_came() -> None:
    """The winner reaches n2 while n2's kernel still works on the loser: it never was live there."""

    async def scene(cluster: Cluster) -> None:
        loser, winner = rivals(2)
        cluster["n2"].kernel.answer = None
        applying = asyncio.ensure_future(cluster["n1"].rollout.apply(loser))
        async with asyncio.timeout(LIMIT):
            while cluster["n2"].store.envelope(KEYS.policy) != loser:
                await asyncio.sleep(0)
            cluster["n2"].exchange.on_record(KEYS.policy, winner)
            cluster["n2"].kernel.end(True)
            found = told(await applying)
        assert found["n1"] == ("live", "")
        assert found["n2"] == ("stale", "it holds version 2")

    play(scene)


def test_the_loser_is_refused_where_the_winner_is_already() -> None:
    async def scene(cluster: Cluster) -> None:
        loser, winner = rivals(2)
        await cluster["n1"].rollout.apply(winner)
        with pytest.raises(InvalidConfig, match="another version won; this node holds policy 2"):
            await cluster["n3"].rollout.apply(loser)

    play(scene)


def test_not_to_wait_asks_nobody() -> None:
    async def scene(cluster: Cluster) -> None:
        for member in cluster.members.values():
            member.kernel.answer = None
        applied = await cluster["n1"].rollout.apply(sealed(2), wait=False)
        assert (applied.version, applied.live, applied.silent, applied.nodes) == (2, {}, [], [])
        async with asyncio.timeout(LIMIT):
            while cluster["n3"].rollout.state().version != 2:
                await asyncio.sleep(0)

    play(scene)


# --- noctulectl against a daemon's own parts

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may use the socket")


def serve(tmp_path: Path, scene: Callable[[Cluster, Callable[..., Any]], Awaitable[None]]) -> None:
    """Play `scene` with the API of n1 at a socket, and a way to call ``policy apply``."""
    (tmp_path / "policy.yaml").write_text(PINNED)
    key = key_folder(tmp_path) / "authority.key"

    async def main(cluster: Cluster) -> None:
        async def apply(*options: str) -> tuple[int, str, str]:
            words = ("policy", "apply", tmp_path / "policy.yaml", "--key", key, *options)
            return await asyncio.to_thread(run, "--socket", tmp_path / "sock", *words)

        api = Api(cast(Service, cluster["n1"]), tmp_path / "sock", Journal())
        await api.open()
        try:
            await scene(cluster, apply)
        finally:
            await api.close()

    play(main)


@needs_root
def test_an_operator_sees_success_and_then_what_falls_short(tmp_path: Path) -> None:
    async def scene(cluster: Cluster, apply: Callable[..., Any]) -> None:
        status, out, _ = await apply()
        assert (status, out.count("\n")) == (0, 1)
        assert out.startswith("policy 2 is live on 3 of 3 nodes after ")
        cluster["n3"].kernel.answer = False
        status, out, _ = await apply()
        first, second = out.splitlines()
        assert (status, first[:32]) == (3, "policy 3 is live on 2 of 3 nodes")
        assert second.startswith("n3: accepted, and not in its kernel yet: its kernel could not")
        status, out, _ = await apply("--no-wait")
        assert (status, out) == (0, "policy 4 is published; no node was asked\n")

    serve(tmp_path, scene)


@needs_root
def test_an_operator_who_lost_against_another_is_told(tmp_path: Path) -> None:
    async def scene(cluster: Cluster, apply: Callable[..., Any]) -> None:
        cluster["n2"].store.offer(sealed(9), NOW)
        status, out, _ = await apply()
        assert status == 3
        assert "n2: stale: it holds version 9" in out
        assert out.endswith("another version won; apply again to sign the one after it\n")

    serve(tmp_path, scene)


@needs_root
def test_a_daemon_that_serves_an_older_policy_moves_nothing(tmp_path: Path) -> None:
    async def scene(cluster: Cluster, apply: Callable[..., Any]) -> None:
        old = cluster["n1"].rollout.state()
        await apply()
        status, _, _ = await apply()
        assert status == 0
        before = cluster["n1"].store.policy()
        cluster["n1"].rollout.state = lambda: old  # type: ignore[method-assign]
        status, _, error = await apply()
        assert status == 0
        assert "this daemon holds policy 1; went on from policy 3, signed here last" in error
        after = cluster["n1"].store.policy()
        assert before is not None
        assert after is not None
        assert (before.version, after.version) == (3, 4)
        assert {s.vip for s in before.services.values()} == {s.vip for s in after.services.values()}
        assert base64.b64decode(old.envelope) == sealed(1, TEXT)

    serve(tmp_path, scene)
