"""The daemon's programmer: real plans of changes, on containers and a host filter in memory."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from daemon.reconcile import reconciler as module
from daemon.reconcile.reconciler import Reconciler
from netconf import names
from netconf.attach.attachment import Attachment
from netconf.nft.elements import EGRESS, PEER
from netconf.nft.wire import Batch
from netconf.program import actual, programmer
from netconf.program.desired import EMPTY, Desired, Peer
from tests.unit.reconciler_kit import LIMIT, Pair, Stage
from tests.unit.test_program import ULA

PEERS = ("10.64.32.5", "10.64.32.6")


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def view(*addresses: str) -> Desired:
    """What a client of service 2 sees when it has these replicas."""
    return Desired(
        peers={a: Peer(address=a, service=2, salts={0: b"s" * 32}) for a in addresses},
        egress=frozenset({(2, "tcp", 80)}),
    )


def pairs(attachment: Attachment, *addresses: str) -> set[Pair]:
    macs = [names.mac_of(address) for address in addresses]
    return {p for m in macs for p in ((attachment.mac, m), (m, attachment.mac))}


def agrees(stage: Stage, attachment: Attachment, wanted: Desired) -> bool:
    container = stage.kernel.containers[attachment.ifname]
    found = programmer.observe(container, attachment.ula)
    return actual.differences(found, wanted, attachment.ula) == []


def test_a_pass_brings_the_view_about(stage: Stage) -> None:
    one = stage.add(1)
    stage.views[one.id] = view(*PEERS)

    async def scene(made: Reconciler) -> None:
        assert await made.request() is True
        assert agrees(stage, one, view(*PEERS))
        assert stage.kernel.pairs() == pairs(one, *PEERS)
        assert made.policy_version == 1
        stage.kernel.log.clear()
        assert await made.request() is True
        assert stage.kernel.log == []  # nothing differs, nothing is sent

    stage.run(scene)


def test_pairs_come_before_the_change_and_go_after_it(stage: Stage) -> None:
    one = stage.add(1)

    async def scene(made: Reconciler) -> None:
        stage.views[one.id] = view(PEERS[0])
        await made.request()
        assert stage.kernel.log[0] == ("pairs", 2, 0)
        assert set(stage.kernel.log[1:]) == {"eth1"}
        stage.kernel.log.clear()
        stage.views[one.id] = EMPTY
        await made.request()
        assert stage.kernel.log[-1] == ("pairs", 0, 2)
        assert set(stage.kernel.log[:-1]) == {"eth1"}
        assert stage.kernel.pairs() == set()

    stage.run(scene)


def test_a_burst_costs_one_pass_and_one_more_for_what_came_during_it(stage: Stage) -> None:
    one = stage.add(1)
    stage.views[one.id] = view(*PEERS)

    async def scene(made: Reconciler) -> None:
        stage.kernel.go.clear()
        first = [made.request() for _ in range(100)]
        while not stage.plans:
            await asyncio.sleep(0)
        second = [made.request() for _ in range(100)]
        assert not any(future.done() for future in first)
        stage.kernel.go.set()
        await asyncio.gather(*first)
        await asyncio.gather(*second)
        assert (stage.plans, stage.passed) == (2, 2)

    stage.run(scene)


def test_a_plan_that_fails_ends_nothing(stage: Stage) -> None:
    one = stage.add(1)
    stage.views[one.id] = view(*PEERS)
    stage.broken = True

    async def scene(made: Reconciler) -> None:
        assert await made.request() is False
        stage.broken = False
        assert await made.request() is True

    stage.run(scene)


def test_hold_leaves_what_was_adopted_alone(stage: Stage) -> None:
    one, two = stage.add(1), stage.add(2)
    old = pairs(one, *PEERS)

    async def scene(made: Reconciler) -> None:
        stage.views[one.id] = view(*PEERS)
        await made.request()
        stage.kernel.log.clear()
        # A successor that knows less: nobody is cut off, but a new attachment is served.
        made.adopt([one.id], stage.kernel.pairs())
        made.introduce(two.id)
        stage.views = {one.id: EMPTY, two.id: view(PEERS[0])}
        assert await made.request() is False
        assert agrees(stage, one, view(*PEERS))
        assert agrees(stage, two, view(PEERS[0]))
        assert stage.kernel.pairs() == old | pairs(two, PEERS[0])
        assert made.policy_version == 0
        made.hold = False
        assert await made.request() is True
        assert agrees(stage, one, EMPTY)
        assert stage.kernel.pairs() == pairs(two, PEERS[0])
        assert made.policy_version == 1

    stage.run(scene, hold=True)


@pytest.mark.parametrize("error", [OSError(1, "no"), KeyError("a bug")])
def test_a_change_that_fails_is_made_again_from_what_the_kernel_says(
    stage: Stage, error: Exception
) -> None:
    one, two = stage.add(1), stage.add(2)
    stage.views = {one.id: view(*PEERS), two.id: view(PEERS[0])}
    stage.kernel.errors["eth1"] = error

    async def scene(made: Reconciler) -> None:
        assert await made.request() is False
        assert agrees(stage, two, view(PEERS[0]))  # the others' changes are not its business
        assert made.policy_version == 0
        stage.kernel.errors.clear()
        # Its keys are in already: only who reads that can go on.
        assert stage.kernel.containers["eth1"].rx
        assert await made.request() is True
        assert agrees(stage, one, view(*PEERS))

    stage.run(scene)


def test_only_the_pairs_of_a_failed_change_stay(stage: Stage) -> None:
    one, two = stage.add(1), stage.add(2)

    async def scene(made: Reconciler) -> None:
        stage.views = {one.id: view(*PEERS), two.id: view(*PEERS)}
        await made.request()
        stage.kernel.errors["eth1"] = OSError(1, "no")
        stage.views = {one.id: EMPTY, two.id: EMPTY}
        assert await made.request() is False
        assert stage.kernel.pairs() == pairs(one, *PEERS)
        stage.kernel.errors.clear()
        assert await made.request() is True
        assert stage.kernel.pairs() == set()

    stage.run(scene)


def test_an_attachment_that_vanishes_during_a_pass_is_no_failure(stage: Stage) -> None:
    one = stage.add(1)
    stage.views[one.id] = view(*PEERS)

    async def scene(made: Reconciler) -> None:
        stage.kernel.go.clear()
        asked = made.request()
        while ("pairs", 4, 0) not in stage.kernel.log:
            await asyncio.sleep(0)
        stage.kernel.errors["eth1"] = OSError(19, "gone")
        made.forget(one.id)
        del stage.attachments[one.id]
        stage.kernel.go.set()
        assert await asked is True
        assert await made.request() is True
        assert stage.kernel.pairs() == set()

    stage.run(scene)


def test_a_namespace_that_is_gone_is_no_failure(stage: Stage, tmp_path: Path) -> None:
    one = stage.add(1)
    stage.views[one.id] = view(*PEERS)
    gone = msgspec.structs.replace(one, netns=str(tmp_path / "gone"))
    stage.attachments[one.id] = gone

    async def scene(made: Reconciler) -> None:
        assert await made.request() is True
        assert await made.audit([gone]) == []

    stage.run(scene)


def test_a_kernel_that_agrees_has_no_differences(stage: Stage) -> None:
    one = stage.add(1)
    stage.views[one.id] = view(*PEERS)

    async def scene(made: Reconciler) -> None:
        await made.request()
        assert await made.audit([one]) == []
        assert stage.plans == 1  # nor is a pass asked for

    stage.run(scene)


def test_drift_is_named_and_mended(stage: Stage) -> None:
    one = stage.add(1)
    stage.views[one.id] = view(*PEERS)
    kernel = stage.kernel

    async def scene(made: Reconciler) -> None:
        await made.request()
        tables = kernel.containers["eth1"].tables.sets
        del tables[PEER.name][(PEERS[0],)]
        tables[EGRESS.name][(9, "tcp", 22)] = ()
        kernel._pairs.remove((one.mac, names.mac_of(PEERS[0])))
        kernel._pairs.add(("02:00:00:00:00:01", "02:00:00:00:00:02"))
        kernel._ports.clear()
        found = await made.audit([one])
        said = "\n".join(found)
        assert f"{one.id} (web): peer {PEERS[0]} is missing" in said
        assert f"{one.id} (web): egress 9 tcp 22 should not be there" in said
        assert f"pair {one.mac} → {names.mac_of(PEERS[0])} is missing" in said
        assert "pair 02:00:00:00:00:01 → 02:00:00:00:00:02 should not be there" in said
        assert f"host filter: port {one.vh} is missing" in said
        assert len(found) == 5
        assert await made.request() is True
        assert agrees(stage, one, view(*PEERS))
        assert kernel.pairs() == pairs(one, *PEERS)
        assert await made.audit([one]) == []

    stage.run(scene)


def test_a_round_reads_some_in_turn_and_all_that_others_changed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AUDIT_AT_ONCE", 2)
    all_of = [stage.add(number) for number in range(1, 6)]
    for one in all_of:
        stage.views[one.id] = view(*PEERS)
    containers = stage.kernel.containers

    def found_in(said: list[str]) -> set[str]:
        return {line.partition(" ")[0] for line in said}

    async def scene(made: Reconciler) -> None:
        await made.request()
        for one in all_of:
            del containers[one.ifname].arp[PEERS[0]]  # of which no generation tells
        tampered = containers[all_of[4].ifname]
        tampered.tables.send(Batch().delete(PEER, [(PEERS[0],)]))
        said = await made.audit_round(all_of)
        assert found_in(said) == {all_of[number].id for number in (0, 1, 4)}
        assert found_in(await made.audit_round(all_of)) == {one.id for one in all_of[2:4]}
        await made.request()
        assert await made.audit_round(all_of) == []
        assert await made.audit(all_of) == []
        assert agrees(stage, all_of[4], view(*PEERS))

    stage.run(scene)


def test_an_audit_does_not_bring_a_port_back_that_is_going(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = stage.add(1), stage.add(2)
    kernel = stage.kernel
    add_port = kernel.add_port

    async def scene(made: Reconciler) -> None:
        await made.request()
        kernel._ports.clear()
        made.forget(one.id)  # a DEL began after the audit had asked what there is

        def meanwhile(port: str, mac: str) -> None:
            made.forget(two.id)  # ... and another amid it
            add_port(port, mac)

        monkeypatch.setattr(kernel, "add_port", meanwhile)
        await made.audit([one, two])
        assert kernel.ports() == set()

    stage.run(scene)


def test_a_ruleset_removed_by_hand_comes_back(stage: Stage) -> None:
    one = stage.add(1)
    stage.views[one.id] = view(*PEERS)

    async def scene(made: Reconciler) -> None:
        await made.request()
        container = stage.kernel.containers["eth1"]
        sets = container.tables.sets
        container.tables.sets = {}
        stage.kernel.present = False
        assert await made.audit([one]) == [f"{one.id} (web): table inet noctule is missing"]
        assert stage.kernel.loaded == [("10.80.0.0/16", ULA)]
        container.tables.sets = {name: {} for name in sets}
        assert await made.request() is True
        assert agrees(stage, one, view(*PEERS))

    stage.run(scene)


def test_what_was_attached_before_an_ipv6_network_stays_ipv4_and_is_programmed(
    stage: Stage,
) -> None:
    stage.kernel.ula = ""  # nor does its ruleset have the sets
    one = stage.add(1)
    stage.views[one.id] = view(*PEERS)

    async def scene(made: Reconciler) -> None:
        assert await made.request() is True
        assert agrees(stage, one, view(*PEERS))
        assert await made.audit([one]) == []
        where = f"{one.id} (web): "
        (said,) = await made.outdated([one], ULA)
        assert said == f"{where}addresses.ula was absent and is {ULA}; recreate the container"
        stage.kernel.current = False
        (said,) = await made.outdated([one], "")
        assert said == f"{where}its ruleset is of another version; recreate the container"
        stage.kernel.current = True
        assert await made.outdated([one], "") == []

    stage.run(scene)


def test_a_pass_beside_an_audit_is_remembered_as_it_was(stage: Stage) -> None:
    one = stage.add(1)
    stage.views[one.id] = view(*PEERS)

    async def scene(made: Reconciler) -> None:
        await made.request()
        stage.kernel.told.clear()
        stage.kernel.tell.clear()
        audit = asyncio.ensure_future(made.audit([one]))
        await asyncio.to_thread(stage.kernel.told.wait, LIMIT)  # it has read the pairs
        stage.views[one.id] = EMPTY
        asked = made.request()
        await asyncio.wait([asked], timeout=0.05)  # as far as the pass gets by itself
        stage.kernel.tell.set()
        assert await audit == []
        await asked
        stage.views[one.id] = view(*PEERS)
        await made.request()
        assert stage.kernel.pairs() == pairs(one, *PEERS)

    stage.run(scene)


def test_what_the_kernel_refuses_to_tell_is_a_difference(stage: Stage) -> None:
    one = stage.add(1)
    stage.views[one.id] = view(*PEERS)

    async def scene(made: Reconciler) -> None:
        await made.request()
        stage.kernel.deaf = True
        (found,) = await made.audit([one])
        assert found.startswith(f"{one.id} (web): ")
        assert "not permitted" in found
        stage.kernel.deaf = False
        assert await made.request() is True
        assert await made.audit([one]) == []

    stage.run(scene)
