"""The daemon's programmer: real plans of changes, on containers and a host filter in memory."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from daemon.reconcile import audit as audit_module
from daemon.reconcile import reconciler as module
from daemon.reconcile.entry import RETRY_FIRST, RETRY_MOST
from daemon.reconcile.reconciler import Reconciler
from netconf import names
from netconf.attach.attachment import Attachment
from netconf.errors import KernelFailure
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


def test_hold_cuts_nobody_off_and_opens_nothing(stage: Stage) -> None:
    one, two = stage.add(1), stage.add(2)
    del stage.attachments[two.id]  # it comes later

    async def scene(made: Reconciler) -> None:
        stage.views[one.id] = view(*PEERS)
        await made.request()
        old = stage.kernel.pairs()
        stage.kernel.log.clear()
        # A successor that knows less, and may hold an older policy than its peers.
        made.hold = True
        made.policy_version = 0
        made.removed(one)
        made.added(one, fresh=False)
        made.adopt_pairs(old)
        stage.registry.add(two, fresh=True)
        stage.views = {one.id: EMPTY, two.id: view(PEERS[0])}
        assert await made.request() is False
        assert await made.request_for(two.id) is False
        assert stage.kernel.log == []
        assert stage.kernel.pairs() == old == pairs(one, *PEERS)
        assert made.policy_version == 0
        made.hold = False
        assert await made.request() is True
        assert agrees(stage, one, EMPTY)
        assert agrees(stage, two, view(PEERS[0]))
        assert stage.kernel.pairs() == pairs(two, PEERS[0])
        assert made.policy_version == 1

    stage.run(scene)


def test_a_hold_with_nothing_to_hold_agrees_with_any_policy(stage: Stage) -> None:
    async def scene(made: Reconciler) -> None:
        assert await made.request(strict=True) is True
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
        stage.now += RETRY_FIRST
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
        stage.now += RETRY_FIRST
        assert await made.request() is True
        assert stage.kernel.pairs() == set()

    stage.run(scene)


def test_a_slow_attachment_keeps_nobody_else_waiting(stage: Stage) -> None:
    slow, other = stage.add(1), stage.add(2)

    async def scene(made: Reconciler) -> None:
        stage.kernel.stuck.add("eth1")
        stage.views = {slow.id: view(*PEERS), other.id: view(*PEERS)}
        everything = made.request()
        assert await made.request_for(other.id) is True
        stage.views = {slow.id: view(*PEERS), other.id: EMPTY}
        assert await made.request_for(other.id) is True  # a revocation, in a later pass
        assert agrees(stage, other, EMPTY)
        assert not everything.done()
        stage.kernel.stuck.clear()
        assert await everything is True
        assert await made.request_for(slow.id) is True
        assert stage.kernel.pairs() == pairs(slow, *PEERS)

    stage.run(scene)


def test_trouble_is_one_attachments_own_and_is_tried_again_ever_more_rarely(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = stage.add(1), stage.add(2)
    stage.kernel.errors["eth1"] = OSError(1, "no")

    def lines() -> int:
        return sum(r.message == "attachment not programmed" for r in caplog.records)

    async def scene(made: Reconciler) -> None:
        stage.views = {one.id: view(*PEERS), two.id: view(*PEERS)}
        assert await made.request() is False
        assert list(made.trouble()) == [one.id]
        tried = stage.kernel.tried["eth1"]
        # What peers ask for later is confirmed without it; what a policy means is not.
        stage.views[two.id] = view(PEERS[0])
        assert await made.request() is True
        assert await made.request(strict=True) is False
        assert await made.request_for(one.id) is False
        assert (stage.kernel.tried["eth1"], lines()) == (tried, 1)
        pause = RETRY_FIRST
        for again in range(2, 12):
            stage.now += pause
            await made.request()
            assert lines() == again
            pause = min(2 * pause, RETRY_MOST)
            await made.request()  # not yet due
            assert lines() == again
        stage.kernel.errors.clear()
        stage.now += pause
        assert await made.request(strict=True) is True
        assert made.trouble() == {}

    stage.run(scene)


def test_what_is_tried_again_later_is_tried_at_once_when_something_else_is_wanted(
    stage: Stage,
) -> None:
    one = stage.add(1)

    async def scene(made: Reconciler) -> None:
        stage.views[one.id] = view(*PEERS)
        await made.request()
        stage.kernel.errors["eth1"] = OSError(1, "no")
        stage.views[one.id] = view(PEERS[0])
        assert await made.request() is False
        stage.kernel.errors.clear()
        stage.views[one.id] = EMPTY  # a revocation waits for no back-off
        assert await made.request(strict=True) is True
        assert agrees(stage, one, EMPTY)

    stage.run(scene)


def test_without_the_secret_revocations_are_made_all_the_same(stage: Stage) -> None:
    one = stage.add(1)
    stage.views[one.id] = view(PEERS[0])

    async def scene(made: Reconciler) -> None:
        assert await made.request() is True
        stage.key.unlink()
        wanted = view(PEERS[1])  # the one peer goes; the other's key cannot be derived
        stage.views[one.id] = wanted
        assert await made.request() is False
        assert "key" in made.trouble()[one.id]
        assert agrees(stage, one, msgspec.structs.replace(wanted, peers={}))
        stage.write_key()
        stage.now += RETRY_FIRST
        assert await made.request() is True
        assert agrees(stage, one, wanted)

    stage.run(scene)


def test_a_slow_attachment_keeps_neither_others_pairs_nor_lenient_answers(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLOW_AFTER", 0.01)
    slow, other = stage.add(1), stage.add(2)

    async def scene(made: Reconciler) -> None:
        stage.views[other.id] = view(*PEERS)
        await made.request()
        stage.kernel.stuck.add("eth1")
        stage.views = {slow.id: view(*PEERS), other.id: EMPTY}  # other's peers are revoked
        strict = made.request(strict=True)
        assert await made.request() is True
        assert stage.kernel.pairs() == pairs(slow, *PEERS)
        assert not strict.done()
        stage.kernel.stuck.clear()
        assert await strict is True

    stage.run(scene)


def test_pairs_that_could_not_be_removed_are_removed_later(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PASS_AGAIN", 0.01)
    one = stage.add(1)

    async def scene(made: Reconciler) -> None:
        stage.views[one.id] = view(*PEERS)
        await made.request()
        stage.kernel.pairs_error = KernelFailure("the table is gone")
        stage.views[one.id] = EMPTY
        assert await made.request() is False
        assert stage.kernel.pairs() == pairs(one, *PEERS)
        stage.kernel.pairs_error = None
        while stage.kernel.pairs():  # nobody asks for a pass
            await asyncio.sleep(0)

    stage.run(scene)


def test_pairs_that_cannot_be_added_delay_no_revocation(stage: Stage) -> None:
    one, two = stage.add(1), stage.add(2)

    async def scene(made: Reconciler) -> None:
        stage.views[one.id] = view(*PEERS)
        await made.request()
        stage.kernel.pairs_error = KernelFailure("the table is gone")
        stage.views = {one.id: EMPTY, two.id: view(*PEERS)}
        assert await made.request() is False
        assert agrees(stage, one, EMPTY)
        assert stage.passed == 2

    stage.run(scene)


def test_an_attachment_that_cannot_be_programmed_keeps_a_policy_from_being_live(
    stage: Stage,
) -> None:
    one, opaque = stage.add(1), stage.add(2)
    del stage.attachments[opaque.id]

    async def scene(made: Reconciler) -> None:
        stage.opaque = {opaque.id: opaque}
        stage.views[one.id] = view(*PEERS)
        assert await made.request() is True
        assert await made.request(strict=True) is False
        assert made.policy_version == 0
        stage.opaque = {}
        assert await made.request(strict=True) is True

    stage.run(scene)


def test_another_network_that_comes_amid_a_change_is_not_forgotten(stage: Stage) -> None:
    one = stage.add(1)
    stage.views[one.id] = view(*PEERS)

    async def scene(made: Reconciler) -> None:
        stage.kernel.stuck.add("eth1")
        asked = made.request()
        while not stage.kernel.tried["eth1"]:
            await asyncio.sleep(0)
        later = msgspec.structs.replace(one, netns=one.netns)
        made.changed(later)
        stage.kernel.stuck.clear()
        await asked
        await made.request()
        assert stage.kernel.observed["eth1"] == 1  # it was read back, as an unknown state is
        assert made.programmed(one.id) == view(*PEERS)

    stage.run(scene)


def test_what_is_released_late_is_not_a_successors(stage: Stage) -> None:
    one = stage.add(1)
    stage.views[one.id] = view(*PEERS)

    async def scene(made: Reconciler) -> None:
        await made.request()
        stage.registry.remove(one.id)
        stage.registry.add(one, fresh=True)  # an ADD came before the release
        await stage.registry.release(one.id)
        stage.views[one.id] = view(PEERS[0])
        assert await made.request(strict=True) is True
        assert agrees(stage, one, view(PEERS[0]))

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
        stage.registry.remove(one.id)
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
        assert await stage.audit.full() == []

    stage.run(scene)


def test_a_kernel_that_agrees_has_no_differences(stage: Stage) -> None:
    one = stage.add(1)
    stage.views[one.id] = view(*PEERS)

    async def scene(made: Reconciler) -> None:
        await made.request()
        assert await stage.audit.full() == []
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
        found = await stage.audit.full()
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
        assert await stage.audit.full() == []

    stage.run(scene)


def test_a_round_reads_some_in_turn_and_all_that_others_changed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "AUDIT_AT_ONCE", 2)
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
        said = await stage.audit.round()
        assert found_in(said) == {all_of[number].id for number in (0, 1, 4)}
        assert found_in(await stage.audit.round()) == {one.id for one in all_of[2:4]}
        await made.request()
        assert await stage.audit.round() == []
        assert await stage.audit.full() == []
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
        made.removed(one)  # a DEL began after the audit had asked what there is

        def meanwhile(port: str, mac: str) -> None:
            made.removed(two)  # ... and another amid it
            add_port(port, mac)

        monkeypatch.setattr(kernel, "add_port", meanwhile)
        await stage.audit.full()
        assert kernel.ports() == set()

    stage.run(scene)


def test_a_port_that_no_attachment_has_is_closed(stage: Stage) -> None:
    one, two = stage.add(1), stage.add(2)
    kernel = stage.kernel
    strays = [("vh0000000000ff", one.mac), (one.vh, two.mac), ("eth0", one.mac)]
    unreadable = stage.add(3)
    (damaged,) = (path for path in stage.folder.rglob(f"*{unreadable.id}*") if path.is_file())
    damaged.write_text("{")

    async def scene(made: Reconciler) -> None:
        await made.request()
        assert await stage.audit.full() == []
        kernel._ports |= set(strays)
        assert await stage.audit.full() == [
            f"host filter: port {port} of {mac} should not be there" for port, mac in sorted(strays)
        ]
        assert kernel.ports() == {(a.vh, a.mac) for a in (one, two, unreadable)}
        kernel.add_port(*strays[0])
        with stage.state.holding(strays[0][0].removeprefix("vh")):  # an ADD is at work
            assert await stage.audit.full() == []

    stage.run(scene)


def test_a_ruleset_removed_by_hand_comes_back(stage: Stage) -> None:
    one = stage.add(1)
    stage.views[one.id] = view(*PEERS)

    async def scene(made: Reconciler) -> None:
        await made.request()
        container = stage.kernel.containers["eth1"]
        sets = container.tables.sets
        stage.kernel.wrong = ["table inet noctule is missing"]
        container.tables.sets = {name: {} for name in sets}  # as the new one is
        assert await stage.audit.full() == [f"{one.id} (web): table inet noctule is missing"]
        assert stage.kernel.mended == [("10.80.0.0/16", ULA)]
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
        assert await stage.audit.full() == []
        where = f"{one.id} (web): "
        (said,) = stage.audit.outdated()
        assert said == f"{where}addresses.ula was absent and is {ULA}; recreate the container"

    stage.run(scene)


def test_a_ruleset_of_another_release_is_replaced_once_and_programmed_anew(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = stage.add(1), stage.add(2)
    for attachment in (one, two):
        stage.views[attachment.id] = view(*PEERS)

    async def scene(made: Reconciler) -> None:
        await made.request()
        stage.kernel.wrong = ["table inet noctule: chain input: a rule is missing: jump stray"]
        del stage.kernel.containers["eth1"].tables.sets[EGRESS.name][(2, "tcp", 80)]
        await stage.audit.upgrade()
        assert stage.kernel.mended == [("10.80.0.0/16", ULA)]
        assert await made.request() is True
        assert agrees(stage, one, view(*PEERS))
        await stage.audit.upgrade()
        assert len(stage.kernel.mended) == 1

    with caplog.at_level("INFO", "noctule"):
        stage.run(scene)
    (logged,) = (one for one in caplog.records if one.message == "ruleset replaced")
    assert "jump stray" in logged.__dict__["fields"]["was"]


def test_a_pass_beside_an_audit_is_remembered_as_it_was(stage: Stage) -> None:
    one = stage.add(1)
    stage.views[one.id] = view(*PEERS)

    async def scene(made: Reconciler) -> None:
        await made.request()
        stage.kernel.told.clear()
        stage.kernel.tell.clear()
        audit = asyncio.ensure_future(stage.audit.full())
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
        (found,) = await stage.audit.full()
        assert found.startswith(f"{one.id} (web): ")
        assert "not permitted" in found
        stage.kernel.deaf = False
        assert await made.request() is True
        assert await stage.audit.full() == []

    stage.run(scene)
