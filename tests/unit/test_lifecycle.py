"""The attachments of one node: a real state folder, and a kernel in memory behind `attach`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from daemon.api.messages import GCRequest, Valid
from daemon.attachments import collector as collector_module
from daemon.attachments import lifecycle as module
from daemon.model.policy import Guarded
from netconf import names
from netconf.attach.attachment import Candidate
from netconf.errors import CheckFailure, InvalidConfig, KernelFailure, NoctuleError, TryAgain
from tests.unit.lifecycle_kit import LIMIT, Node, Stage
from tests.unit.model_kit import policy


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = Stage(tmp_path)
    for one in (module, collector_module):
        monkeypatch.setattr(one, "operations", made.kernel)
    monkeypatch.setattr(collector_module, "COLLECT_EVERY", 0.001)
    monkeypatch.setattr(collector_module, "RETRY_AFTER", 0.0)
    return made


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0)


async def watching(node: Node, condition: Callable[[], object]) -> None:
    """Let the collector look until `condition` holds."""
    watch = asyncio.ensure_future(node.collector.watch())
    await until(lambda: condition() or watch.done())
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    assert condition()


# --- which service


@pytest.mark.parametrize(
    ("candidates", "service"),
    [
        ([("web", "args.cni.service"), ("api", "service")], "web"),
        ([("unheard", "alias"), ("api", "alias"), ("web", "service")], "api"),
        ([("unheard", "alias"), ("web", "service")], "web"),
        ([("unheard", "service")], "unheard"),
        ([("unheard", "CNI_ARGS NOCTULE_SERVICE"), ("api", "alias")], "unheard"),
    ],
)
def test_the_first_name_that_applies_is_the_service(
    stage: Stage, candidates: list[tuple[str, str]], service: str
) -> None:
    async def scene(node: Node) -> None:
        assert node.lifecycle.service_of(Candidate(*one) for one in candidates) == service

    stage.run(scene)


def test_a_guarded_services_name_is_not_passed_over(stage: Stage) -> None:
    """Its container stays closed; the next name's rights would be another service's."""
    assert stage.policy is not None
    vault = Guarded(id=9, name="vault", vip="10.80.0.9", requires=("hours",))
    stage.policy = msgspec.structs.replace(stage.policy, guarded=(vault,))

    async def scene(node: Node) -> None:
        named = [Candidate("vault", "alias"), Candidate("web", "alias"), Candidate("x", "service")]
        assert node.lifecycle.service_of(named) == "vault"

    stage.run(scene)


def test_without_a_policy_an_alias_is_nobodys_name(stage: Stage) -> None:
    stage.policy = None

    async def scene(node: Node) -> None:
        assert (
            node.lifecycle.service_of([Candidate("web", "alias"), Candidate("x", "service")]) == "x"
        )
        with pytest.raises(InvalidConfig, match=r"^service: none given"):
            node.lifecycle.service_of([Candidate("web", "alias")])

    stage.run(scene)


def test_a_service_that_policy_keeps_from_this_node_fails_before_anything_is_made(
    stage: Stage,
) -> None:
    text = "services: {db: {nodes: [n2]}}\nallow: []\n"
    stage.policy = policy(text)
    stage.netns("a")

    async def scene(node: Node) -> None:
        with pytest.raises(InvalidConfig, match=r'node "n1" host "db"; add it to .*services\.db'):
            await node.lifecycle.attach(stage.request("a", services=[Candidate("db", "service")]))
        assert stage.state.all() == []

    stage.run(scene)


@pytest.mark.parametrize("changes", [{"network": "n" * 65}, {"services": [Candidate("ä", "s")]}])
def test_a_name_that_no_record_can_carry_fails(stage: Stage, changes: dict[str, object]) -> None:
    async def scene(node: Node) -> None:
        with pytest.raises(InvalidConfig, match=r"^(name|service): .* cannot be used; use at most"):
            await node.lifecycle.attach(stage.request("a", **changes))

    stage.run(scene)


# --- ADD, CHECK, DEL, GC


def test_an_attachment_lives_from_add_to_del(stage: Stage) -> None:
    stage.netns("a")

    async def scene(node: Node) -> None:
        answer = await node.lifecycle.attach(stage.request("a"))
        ((name, made),) = node.registry.items()
        assert (answer.addresses, answer.service) == ([f"{made.address}/12"], "web")
        assert answer.mac == names.mac_of(made.address)
        assert answer.mtu == 1468 - names.MACSEC_OVERHEAD
        await node.lifecycle.check(stage.request("a", address=made.address, mac=answer.mac))
        with pytest.raises(CheckFailure, match=r"^prevResult\.ips: 10\.64\.16\.99 is not"):
            await node.lifecycle.check(stage.request("a", address="10.64.16.99"))
        await node.lifecycle.detach(stage.request("a"))
        assert (node.registry, stage.state.all(), stage.kernel.up) == ({}, [], {})
        # The record is withdrawn before the namespace is let go.
        assert stage.told == [("opened", made.salt), ("closed", made.salt), ("released", name)]
        await node.lifecycle.detach(stage.request("a"))  # nothing left to do is success
        with pytest.raises(CheckFailure):
            await node.lifecycle.check(stage.request("a"))

    stage.run(scene)


def test_an_add_that_fails_leaves_nothing(stage: Stage) -> None:
    stage.netns("a")

    async def scene(node: Node) -> None:
        stage.kernel.error = KernelFailure("no")
        with pytest.raises(KernelFailure):
            await node.lifecycle.attach(stage.request("a"))
        stage.kernel.error = None
        assert stage.told == []
        stage.opening = TryAgain("the fabric says no")
        with pytest.raises(TryAgain):
            await node.lifecycle.attach(stage.request("a"))
        assert (node.registry, stage.state.all(), stage.kernel.up) == ({}, [], {})
        assert len(stage.told_of("closed")) == 1

    stage.run(scene)


def test_a_del_during_an_add_waits_for_it_and_undoes_it(stage: Stage) -> None:
    stage.netns("a")

    async def scene(node: Node) -> None:
        stage.kernel.go.clear()
        adding = asyncio.ensure_future(node.lifecycle.attach(stage.request("a")))
        await asyncio.to_thread(stage.kernel.began.wait, LIMIT)
        deleting = asyncio.ensure_future(node.lifecycle.detach(stage.request("a")))
        stage.kernel.go.set()
        await adding
        await deleting
        assert (node.registry, stage.kernel.up) == ({}, {})

    stage.run(scene)


def test_an_unheard_add_is_undone_but_never_its_successor(stage: Stage) -> None:
    stage.netns("a")

    async def scene(node: Node) -> None:
        request = stage.request("a")
        unheard = await node.lifecycle.attach(request)
        await node.lifecycle.detach(request)
        heard = await node.lifecycle.attach(request)
        await node.lifecycle.undo(request, unheard)
        (kept,) = stage.state.all()
        assert heard.addresses == [f"{kept.address}/12"]
        await node.lifecycle.undo(request, heard)
        assert stage.state.all() == []

    stage.run(scene)


def test_the_collector_leaves_an_add_under_way_alone(stage: Stage) -> None:
    for name in "ab":
        stage.netns(name)

    async def scene(node: Node) -> None:
        await node.lifecycle.attach(stage.request("b"))
        stage.kernel.began.clear()
        stage.kernel.go.clear()
        adding = asyncio.ensure_future(node.lifecycle.attach(stage.request("a")))
        await asyncio.to_thread(stage.kernel.began.wait, LIMIT)
        (stage.folder / "b").unlink()
        await watching(node, lambda: not node.registry)  # it looked, and took b
        stage.kernel.go.set()
        await adding
        assert [a.container for a in node.registry.values()] == ["a"]
        assert len(stage.told_of("opened")) == 2

    stage.run(scene)


def test_gc_keeps_what_is_wanted_and_other_networks_and_runtimes(stage: Stage) -> None:
    for name in "abcdef":
        stage.netns(name)

    async def scene(node: Node) -> None:
        for name in "ab":
            await node.lifecycle.attach(stage.request(name, runtime="containerd"))
        await node.lifecycle.attach(stage.request("c", network="other", runtime="containerd"))
        await node.lifecycle.attach(stage.request("d", runtime="podman"))
        await node.lifecycle.attach(stage.request("e"))  # nobody knows by whom

        def left() -> str:
            return "".join(sorted(a.container for a in node.registry.values()))

        await node.lifecycle.collect(GCRequest("mesh", [Valid("a", "eth0")], "containerd"))
        assert left() == "acde"
        await node.lifecycle.collect(GCRequest("mesh", [], "crio"))
        await node.lifecycle.collect(GCRequest("mesh", [], ""))
        assert left() == "acde"
        stage.kernel.error = KernelFailure("the link is stuck")
        with pytest.raises(NoctuleError) as caught:
            await node.lifecycle.collect(GCRequest("mesh", [], "containerd"))
        assert caught.value.details == "a: the link is stuck"

    stage.run(scene)


def test_gc_goes_on_past_errors_and_containersthem_all(stage: Stage) -> None:
    for name in "abc":
        stage.netns(name)

    async def scene(node: Node) -> None:
        for name in "abc":
            await node.lifecycle.attach(stage.request(name, runtime="podman"))
        stage.kernel.error = KernelFailure("the link is stuck")
        with pytest.raises(NoctuleError) as caught:
            await node.lifecycle.collect(GCRequest("mesh", [Valid("b", "eth0")], "podman"))
        assert sorted(caught.value.details.split("; ")) == [
            "a: the link is stuck",
            "c: the link is stuck",
        ]

    stage.run(scene)


# --- adoption


def test_the_complete_is_adopted_and_the_rest_taken_down(stage: Stage) -> None:
    for name in "abc":
        stage.netns(name)
    whole, half = stage.alone("a"), stage.alone("b")
    stage.state.save(msgspec.structs.replace(half, phase="adding"))
    stage.alone("c")
    stage.netns("c")  # its namespace was replaced while nobody looked

    async def scene(node: Node) -> None:
        await node.lifecycle.adopt()
        assert list(node.registry.values()) == [whole]
        assert stage.state.all() == [whole]
        assert stage.told_of("opened") == []

    stage.run(scene)


def test_a_start_waits_for_an_executables_add_and_keeps_it(stage: Stage) -> None:
    stage.netns("a")
    stage.kernel.go.clear()
    executable = threading.Thread(target=stage.alone, args=("a",))
    executable.start()
    assert stage.kernel.began.wait(LIMIT)

    async def scene(node: Node) -> None:
        adopting = asyncio.ensure_future(node.lifecycle.adopt())
        await asyncio.wait([adopting], timeout=0.05)  # as far as it gets by itself
        stage.kernel.go.set()
        await adopting
        assert [a.container for a in node.registry.values()] == ["a"]
        assert len(stage.kernel.up) == 1

    stage.run(scene)
    executable.join()


def test_an_executables_own_add_is_found(stage: Stage) -> None:
    stage.netns("a")

    async def scene(node: Node) -> None:
        made = await asyncio.to_thread(stage.alone, "a")
        await watching(node, lambda: node.registry)
        assert stage.told_of("opened") == [made.salt]

    stage.run(scene)


def test_an_executables_own_del_is_noticed_and_its_namespace_let_go(stage: Stage) -> None:
    stage.netns("a")

    async def scene(node: Node) -> None:
        await node.lifecycle.attach(stage.request("a"))
        (name,) = node.registry
        await asyncio.to_thread(stage.kernel.detach, stage.state, name)
        await watching(node, lambda: stage.told_of("released"))
        assert node.registry == {}
        assert len(stage.told_of("closed")) == 1

    stage.run(scene)


def test_a_state_file_that_cannot_be_read_is_left_alone(stage: Stage) -> None:
    stage.netns("a")
    made = stage.alone("a")
    file = stage.folder / "state" / "attachments" / f"{made.id}@{made.address}.json"
    file.write_text('{"written by": "another version"}')

    async def scene(node: Node) -> None:
        await node.lifecycle.adopt()
        assert node.registry.opaque.keys() == {made.id}
        assert (node.registry, stage.kernel.up) == ({}, {made.id: made})
        assert file.exists()
        assert stage.told == []
        await node.lifecycle.detach(stage.request("a"))  # only DEL ends it
        assert (stage.state.all(), stage.kernel.up) == ([], {})
        assert [word for word, _ in stage.told] == ["closed", "released"]
        assert node.registry.opaque == {}

    stage.run(scene)


@pytest.mark.parametrize("ending", ["by DEL without the daemon", "by an ADD"])
def test_what_another_release_attached_beside_this_daemon(stage: Stage, ending: str) -> None:
    stage.netns("a")

    async def scene(node: Node) -> None:
        made = stage.alone("a")
        file = stage.folder / "state" / "attachments" / f"{made.id}@{made.address}.json"
        file.write_text('{"phase": "drained"}')
        await watching(node, lambda: node.registry.opaque)
        assert (node.registry, stage.told) == ({}, [])
        await asyncio.to_thread(stage.kernel.detach, stage.state, made.id)
        if ending == "by an ADD":
            stage.alone("a")
            await watching(node, lambda: node.registry)
            assert stage.told_of("opened")
        else:
            await watching(node, lambda: stage.told_of("released"))
            assert len(stage.told_of("closed")) == 1
        assert node.registry.opaque == {}

    stage.run(scene)


def test_what_the_collector_adopts_is_read_back(stage: Stage) -> None:
    """It may be one whose DEL failed, with sets that a policy filled."""
    stage.netns("a")

    async def scene(node: Node) -> None:
        await asyncio.to_thread(stage.alone, "a")
        await watching(node, lambda: node.registry)
        assert stage.fresh == [False]

    stage.run(scene)


def test_a_removal_that_fails_lets_go_of_the_namespace_and_is_tried_again(stage: Stage) -> None:
    stage.netns("a")

    async def scene(node: Node) -> None:
        await node.lifecycle.attach(stage.request("a"))
        stage.kernel.error = KernelFailure("the link is stuck")
        with pytest.raises(KernelFailure):
            await node.lifecycle.detach(stage.request("a"))
        assert len(stage.told_of("released")) == 1
        (left,) = stage.state.all()
        stage.state.save(msgspec.structs.replace(left, phase="deleting"))
        stage.kernel.error = None
        await watching(node, lambda: not stage.state.all())
        assert stage.kernel.up == {}

    stage.run(scene)


# --- the collector


@pytest.mark.parametrize("replaced", [False, True])
def test_a_namespace_that_went_takes_its_attachment_along(stage: Stage, replaced: bool) -> None:
    stage.netns("a")

    async def scene(node: Node) -> None:
        await node.lifecycle.attach(stage.request("a"))
        if replaced:
            stage.netns("a")
        else:
            (stage.folder / "a").unlink()
        await watching(node, lambda: not stage.kernel.up)
        assert (node.registry, stage.state.all()) == ({}, [])
        assert len(stage.told_of("closed")) == 1

    stage.run(scene)


def test_all_that_went_is_noticed_in_one_round_of_looks(stage: Stage) -> None:
    containers = [f"a{number}" for number in range(20)]
    looks = 0
    listed = stage.state.ids

    def counting() -> set[str]:
        nonlocal looks
        looks += 1
        return listed()

    async def scene(node: Node) -> None:
        for name in containers:
            stage.netns(name)
            await node.lifecycle.attach(stage.request(name))
        stage.state.ids = counting  # type: ignore[method-assign]
        for name in containers:
            (stage.folder / name).unlink()
        await watching(node, lambda: looks == collector_module.COLLECT_PARTS)
        assert (node.registry, stage.kernel.up) == ({}, {})

    stage.run(scene)


def test_a_successor_in_a_new_namespace_is_adopted_not_taken_down(stage: Stage) -> None:
    """A container restarted under its id, by an executable that found no daemon."""
    stage.netns("a")

    async def scene(node: Node) -> None:
        await node.lifecycle.attach(stage.request("a"))
        (old,) = node.registry.values()
        stage.netns("a")
        new = await asyncio.to_thread(stage.alone, "a")
        assert (new.id, new.salt == old.salt) == (old.id, False)
        await watching(node, lambda: node.registry.get(new.id) == new)
        assert stage.kernel.up == {new.id: new}
        assert stage.told_of("closed") == [old.salt]
        assert stage.told_of("opened") == [old.salt, new.salt]

    stage.run(scene)


def test_one_that_cannot_be_removed_does_not_keep_the_others(stage: Stage) -> None:
    stage.netns("a")

    async def scene(node: Node) -> None:
        await node.lifecycle.attach(stage.request("a"))
        (stage.folder / "a").unlink()
        stage.kernel.error = KernelFailure("the link is stuck")
        await watching(node, lambda: stage.told_of("closed"))
        stage.kernel.error = None
        await watching(node, lambda: not stage.state.all())

    stage.run(scene)
