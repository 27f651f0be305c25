"""Who lives, as a node finds out, hour by hour of a played clock."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator

import pytest

from daemon.fabric import FabricError
from daemon.liveness.liveness import MUTE_FOR
from daemon.liveness.suspicion import FLOWS_AFTER, SLOTS_AFTER
from tests.unit import clock_kit
from tests.unit.fabric_kit import free_ports
from tests.unit.liveness_kit import Member, World, until
from tests.unit.model_kit import NOW, info, policy, record

NOBODY = "tls/255.255.255.255:7447"
"""No address to connect to: the kernel says at once that there is no way."""
BEFORE_LONG = 2 * (SLOTS_AFTER + FLOWS_AFTER)
"""Seconds after which whatever is to happen to a silent node has happened."""


Scene = Callable[[World, Member], Awaitable[None]]


def play(scene: Scene, endpoint: str, nodes: str = "n1 n2") -> None:
    """Run `scene` with nodes that have met; n2 listens at `endpoint`."""

    async def main() -> None:
        world = World(endpoint, nodes)
        try:
            await world.meet()
            await scene(world, world.members["n1"])
        finally:
            await world.close()

    clock_kit.play(main())


@pytest.fixture
def refusing() -> str:
    """An endpoint of which the kernel says that nobody listens."""
    return f"tls/127.0.0.1:{free_ports(1)[0]}"


@pytest.fixture
def dropping() -> Iterator[str]:
    """An endpoint that answers nothing, as behind a filter: its queue is full."""
    with socket.socket() as server, socket.socket() as first, socket.socket() as second:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        yield f"tls/127.0.0.1:{server.getsockname()[1]}"


def test_a_dead_daemon_costs_nobody_a_connection(refusing: str) -> None:
    async def scene(world: World, one: Member) -> None:
        await world.members["n2"].fabric.close()
        await until(lambda: "n2" in one.liveness.judged)
        await asyncio.sleep(3600)
        assert "n2" not in one.liveness.alive
        assert one.changes == []

    play(scene, refusing)


def test_without_fabric_and_mesh_a_node_is_suspect_and_then_lost(dropping: str) -> None:
    async def scene(world: World, one: Member) -> None:
        began = clock_kit.loop().time()
        await world.unplug("n2")
        await until(lambda: one.liveness.lost)
        (suspected, suspects, nobody), (lost, none, gone) = one.changes
        assert (suspects, nobody, none, gone) == ({"n2"}, set(), set(), {"n2"})
        assert suspected - began == pytest.approx(SLOTS_AFTER, abs=0.05)
        assert lost - began == pytest.approx(2.5, abs=0.3)  # as long as the mesh may be silent
        assert one.liveness.judged == {"n2"}
        assert one.asked_again == {"127.0.0.1"}

    play(scene, dropping)


def test_a_filter_on_the_fabric_moves_slots_for_a_second_and_cuts_nothing(dropping: str) -> None:
    async def scene(world: World, one: Member) -> None:
        await world.members["n2"].fabric.close()
        await asyncio.sleep(3600)
        (began, suspects, _), (ended, nobody, lost) = one.changes
        assert (suspects, nobody, lost) == ({"n2"}, set(), set())
        assert ended - began < 1.5

    play(scene, dropping)


def test_a_filter_on_the_fabric_seen_by_all_cuts_nothing(dropping: str) -> None:
    """What the mesh says here outweighs the word of any number of others."""

    async def scene(world: World, one: Member) -> None:
        await world.members["n2"].fabric.close()
        await asyncio.sleep(60)
        assert (one.liveness.lost, one.liveness.suspect) == (set(), set())

    play(scene, dropping, "n1 n2 n3 n4")


def test_a_mesh_that_cannot_be_read_is_no_witness(dropping: str) -> None:
    async def scene(world: World, one: Member) -> None:
        one.mesh_fails = True
        await world.unplug("n2")
        await asyncio.sleep(3600)
        assert (one.liveness.suspect, one.liveness.lost) == ({"n2"}, set())

    play(scene, dropping)


@pytest.mark.parametrize("part", ["_mesh", "_ask_again"])
def test_a_mistake_ends_no_watch(dropping: str, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    real, failed = getattr(Member, part), set[str]()

    async def fails_once(self: Member, *words: Iterable[str]) -> object:
        if self.name not in failed:
            failed.add(self.name)
            raise ZeroDivisionError
        return await real(self, *words)

    monkeypatch.setattr(Member, part, fails_once)

    async def scene(world: World, one: Member) -> None:
        await world.unplug("n2")
        await until(lambda: one.liveness.lost)
        assert "n1" in failed

    play(scene, dropping)


def test_then_another_node_is_the_second_witness(dropping: str) -> None:
    async def scene(world: World, one: Member) -> None:
        one.mesh_fails = True
        await world.unplug("n2")
        await until(lambda: one.liveness.lost)
        assert len(one.changes) == 2

    play(scene, dropping, "n1 n2 n3")


def test_a_node_that_another_one_reaches_is_not_lost(dropping: str) -> None:
    async def scene(world: World, one: Member) -> None:
        world.silent_on_mesh["n2"] = clock_kit.loop().time()
        world.network.partition(["n1"], ["n2"])
        await asyncio.sleep(60)
        assert (one.liveness.suspect, one.liveness.lost) == ({"n2"}, set())
        await world.members["n2"].fabric.close()
        await until(lambda: one.liveness.lost)

    play(scene, dropping, "n1 n2 n3")


@pytest.mark.parametrize("release", ["0.1.0", "another"])
def test_who_does_not_know_the_question_is_asked_once(dropping: str, release: str) -> None:
    async def scene(world: World, one: Member) -> None:
        one.mesh_fails = True
        world.members["n3"].release = release
        await world.unplug("n2")
        await asyncio.sleep(60)
        assert (one.liveness.suspect, world.members["n3"].asked) == ({"n2"}, 1)

    play(scene, dropping, "n1 n2 n3")


def test_who_does_not_know_the_question_is_asked_again_at_last(dropping: str) -> None:
    async def scene(world: World, one: Member) -> None:
        one.mesh_fails = True
        world.members["n3"].release = "0.1.0"
        await world.unplug("n2")
        await until(lambda: world.members["n3"].asked)
        world.members["n3"].release = ""  # it had refused for another reason
        await asyncio.sleep(MUTE_FOR)
        await until(lambda: one.liveness.lost)

    play(scene, dropping, "n1 n2 n3")


def test_a_question_that_could_not_be_sent_silences_no_witness(dropping: str) -> None:
    """For example because this node's own session was just being replaced."""

    async def scene(world: World, one: Member) -> None:
        ask, failed = one.ask, asyncio.Event()

        async def fails_once(node: str, question: bytes, timeout: float) -> list[bytes]:
            if not failed.is_set():
                failed.set()
                raise FabricError(f"cannot ask {node}: the fabric is not open")
            return await ask(node, question, timeout)

        one.ask = fails_once
        # n3 still reaches n2, so n2 must not be lost here.
        world.silent_on_mesh["n2"] = clock_kit.loop().time()
        world.network.partition(["n1"], ["n2"])
        await failed.wait()
        await asyncio.sleep(60)
        assert (one.liveness.suspect, one.liveness.lost) == ({"n2"}, set())

    play(scene, dropping, "n1 n2 n3")


def test_a_token_that_comes_and_goes_does_not_fill_the_log(
    dropping: str, caplog: pytest.LogCaptureFixture
) -> None:
    def lines() -> list[str]:
        said = {"peer silent", "peer alive", "node suspect", "node heard again"}
        return [record.getMessage() for record in caplog.records if record.getMessage() in said]

    async def scene(world: World, one: Member) -> None:
        world.silent_on_mesh["n2"] = 0.0
        caplog.clear()
        caplog.set_level("INFO")
        for _ in range(50):
            one.on_alive("n2", False)
            await until(lambda: one.liveness.suspect)
            one.on_alive("n2", True)
        assert sorted(lines()) == sorted(
            ["peer silent", "peer alive", "node suspect", "node heard again"]
        )
        await asyncio.sleep(60)
        one.on_alive("n2", False)
        assert lines()[4:] == ["peer silent"]

    play(scene, dropping)


def test_a_node_that_policy_dropped_is_forgotten(dropping: str) -> None:
    async def scene(world: World, one: Member) -> None:
        names = asyncio.ensure_future(one.liveness.follow_names())
        await world.unplug("n2")
        await until(lambda: one.liveness.lost)
        text = "services: {}\nnodes: {n1: {slice: 10.64.16.0/20}}\n"
        one.store.offer(record("authority", 2, policy(text, version=2)), NOW)
        await until(lambda: not one.liveness.lost)
        assert (one.liveness.judged, one.liveness.reached(["n2"])) == (set(), {})
        names.cancel()

    play(scene, dropping)


def test_each_side_of_a_partition_keeps_what_it_reaches(dropping: str) -> None:
    async def scene(world: World, one: Member) -> None:
        # The mesh is played as n1 and n3 hear it.
        for name in ("n2", "n4"):
            world.silent_on_mesh[name] = clock_kit.loop().time()
        world.network.partition(["n1", "n3"], ["n2", "n4"])
        await until(lambda: one.liveness.lost == {"n2", "n4"})
        await until(lambda: world.members["n3"].liveness.lost == {"n2", "n4"})
        assert one.liveness.alive == {"n1", "n3"}
        world.network.heal()
        await until(lambda: one.liveness.alive == {"n1", "n2", "n3", "n4"})
        assert one.liveness.lost == set()

    play(scene, dropping, "n1 n2 n3 n4")


def test_a_hundred_blinks_of_two_seconds_cut_nothing(dropping: str) -> None:
    """A daemon that hears nothing of a node for 2 s, and then a little later hears it again."""

    async def scene(world: World, one: Member) -> None:
        for number in range(100):
            world.silent_on_mesh["n2"] = clock_kit.loop().time()
            await asyncio.sleep(0.43 + number / 800)  # the lease
            world.network.partition(["n1"], ["n2"])
            await asyncio.sleep(1.57 - number / 800)
            del world.silent_on_mesh["n2"]
            await asyncio.sleep(0.5 + number / 500)  # a dial that is repeated
            world.network.heal()
            await until(lambda: "n2" in one.liveness.alive)
            await asyncio.sleep(1.0 + number / 100)
        assert len(one.changes) == 200  # suspect, and no longer
        assert not any(lost for _, _, lost in one.changes)

    play(scene, dropping)


def test_a_daemon_that_was_stopped_cuts_nobody_off(dropping: str) -> None:
    async def scene(world: World, one: Member) -> None:
        await world.members["n2"].fabric.close()
        world.silent_on_mesh["n2"] = 0.0
        await until(lambda: one.liveness.suspect)
        clock_kit.loop().stop_for(60)
        await asyncio.sleep(0)
        began = clock_kit.loop().time()
        await asyncio.sleep(1.0)
        assert one.liveness.lost == set()
        await until(lambda: one.liveness.lost)
        assert clock_kit.loop().time() - began < BEFORE_LONG

    play(scene, dropping)


def test_a_daemon_that_is_stopped_again_and_again_cuts_nobody_off(dropping: str) -> None:
    """A probe that was not waited for in time says nothing, however many there are."""

    async def scene(world: World, one: Member) -> None:
        await world.unplug("n2")
        for _ in range(100):
            clock_kit.loop().stop_for(1.0)
            await asyncio.sleep(0.05)
        assert one.liveness.lost == set()

    play(scene, dropping)


def test_a_lost_node_stays_lost_when_only_its_kernel_is_back(refusing: str) -> None:
    async def scene(world: World, one: Member) -> None:
        await world.unplug("n2")
        await until(lambda: one.liveness.lost)
        # Its kernel answers before its daemon does, on the mesh too: it may have been rebooted.
        del world.silent_on_mesh["n2"]
        one.store.offer(record("n2", 4, info("n2", endpoints=(refusing,))), NOW)
        await asyncio.sleep(60)
        assert one.liveness.lost == {"n2"}

    play(scene, NOBODY)


def test_a_token_that_returns_ends_the_loss() -> None:
    async def scene(world: World, one: Member) -> None:
        two = world.members["n2"]
        await world.unplug("n2")
        await until(lambda: one.liveness.lost)
        await two.fabric.open(two)
        await until(lambda: "n2" in one.liveness.alive)
        assert one.liveness.lost == set()
        # And it is watched anew when it goes once more.
        await two.fabric.close()
        await until(lambda: one.liveness.lost)

    play(scene, NOBODY)


@pytest.mark.parametrize(
    "endpoint", ["tcp/127.0.0.1:1", "tls/[::1:7447", "tls/a..b:1", "tls/127.0.0.1:99999"]
)
def test_an_endpoint_that_makes_no_sense_hides_no_death(endpoint: str) -> None:
    async def scene(world: World, one: Member) -> None:
        await world.unplug("n2")
        await until(lambda: one.liveness.lost)

    play(scene, endpoint)


def test_one_endpoint_that_answers_is_enough(refusing: str) -> None:
    async def scene(world: World, one: Member) -> None:
        both = record("n2", 4, info("n2", endpoints=(NOBODY, refusing)))
        one.store.offer(both, NOW)
        await world.unplug("n2")
        await asyncio.sleep(60)
        assert one.changes == []

    play(scene, NOBODY)


def test_a_node_known_from_before_is_watched_though_it_never_came() -> None:
    async def scene(world: World, one: Member) -> None:
        one.store.offer(record("n3", 4, info("n3", endpoints=(NOBODY,))), NOW)
        one.liveness.watch("n3")
        one.liveness.watch("n1")  # never oneself
        await until(lambda: "n3" in one.liveness.judged)
        assert one.liveness.lost == {"n3"}

    play(scene, NOBODY)


def test_a_lost_name_server_costs_nothing(refusing: str) -> None:
    port = refusing.rpartition(":")[2]

    async def scene(world: World, one: Member) -> None:
        world.silent_on_mesh["n2"] = 0.0
        endpoints = [e for i in one.store.infos().values() for e in i.endpoints]
        await one.addresses.learn(endpoints, 0.0)
        await one.addresses.learn(endpoints, 100.0)  # the name server is gone by now
        await world.members["n2"].fabric.close()
        await asyncio.sleep(60)
        assert set(one.lookups) == {"n2.example"}
        assert one.changes == []

    play(scene, f"tls/n2.example:{port}")


def test_after_close_nothing_runs(dropping: str) -> None:
    async def scene(world: World, one: Member) -> None:
        await world.members["n2"].fabric.close()
        await until(lambda: one.liveness.suspect)
        await one.liveness.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        changes = list(one.changes)
        await asyncio.sleep(60)
        assert one.changes == changes

    play(scene, dropping)
