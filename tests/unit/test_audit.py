"""Audits of attachments of which some cannot be read: the others' rounds go on."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from daemon.api import status
from daemon.api.status import Reporter
from daemon.reconcile import audit as audit_module
from daemon.reconcile.reconciler import Reconciler
from netconf.attach.attachment import Attachment, NodeNet
from netconf.errors import KernelFailure
from netconf.namespace import Namespace
from netconf.nft.elements import INGRESS, PEER, Key, Set
from netconf.nft.encoding import ForeignElementError
from netconf.nft.host import HostCounters
from netconf.nft.ruleset import Denial
from tests.unit.reconciler_kit import Container, Stage
from tests.unit.test_program import ULA
from tests.unit.test_reconciler import EMPTY, PEERS, agrees, view

SAID = "table inet noctule: set peer holds an element that nobody wrote"


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def unreadable(stage: Stage, ifname: str, error: Exception) -> None:
    """Have the sets of a container raise `error` when they are read."""

    def dump(target: Set) -> dict[Key, Key]:
        raise error

    stage.kernel.containers[ifname].dump = dump  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "error",
    [KeyError(1), IndexError("index out of range"), ForeignElementError(PEER)],
    ids=lambda error: type(error).__name__,
)
def test_one_attachment_that_cannot_be_read_leaves_the_others_their_audit(
    stage: Stage, error: Exception
) -> None:
    one, two = stage.add(1), stage.add(2)
    for attachment in (one, two):
        stage.views[attachment.id] = view(*PEERS)

    async def scene(made: Reconciler) -> None:
        await made.request()
        unreadable(stage, "eth1", error)
        del stage.kernel.containers["eth2"].arp[PEERS[0]]
        stray = ("02:00:00:00:00:01", "02:00:00:00:00:02")
        stage.kernel._pairs.add(stray)
        said = await stage.audit.full()
        assert len([line for line in said if line.startswith(f"{one.id} (web): ")]) == 1
        assert f"{two.id} (web): neighbour {PEERS[0]} is missing" in said
        assert f"host filter: pair {stray[0]} → {stray[1]} should not be there" in said
        assert await made.request() is False
        assert agrees(stage, two, view(*PEERS))
        assert await stage.audit.full() == []  # `trouble` tells of the first one
        assert made.trouble().keys() == {one.id}

    stage.run(scene)


def test_whatever_a_worker_raises_for_one_attachment_is_that_attachments(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = stage.add(1), stage.add(2)

    async def scene(made: Reconciler) -> None:
        await made.request()
        seen = []

        def links(attachments: list[object]) -> list[str]:
            seen.extend(attachments)
            if attachments == [one]:
                raise ZeroDivisionError("a bug in the links")
            return []

        def disturbed(attachment: object) -> bool:
            raise ZeroDivisionError("a bug in the programmer")

        monkeypatch.setattr(stage.audit, "_mend", links)
        monkeypatch.setattr(made.kernel, "disturbed", disturbed)
        (said,) = await stage.audit.round()
        assert said == f"{one.id} (web): its links were not compared: a bug in the links"
        assert seen == [one, two]

        def mend(attachment: object, vips: str) -> list[str]:
            if attachment == one:
                raise ZeroDivisionError("a bug in the rulesets")
            return ["table inet noctule is missing"]

        monkeypatch.setattr(made.kernel, "mend", mend)
        await stage.audit.upgrade()

    with caplog.at_level("INFO", "noctule"):
        stage.run(scene)
    logged = {r.message: r.__dict__["fields"] for r in caplog.records if "replaced" in r.message}
    assert logged["ruleset not replaced"]["attachment"] == one.id
    assert logged["ruleset replaced"]["attachment"] == two.id


def test_an_attachment_whose_sets_cannot_be_read_gets_its_revocations_after_the_mend(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = stage.add(1)
    stage.views[one.id] = view(*PEERS)

    async def scene(made: Reconciler) -> None:
        await made.request()
        unreadable(stage, "eth1", ForeignElementError(PEER))
        container = stage.kernel.containers["eth1"]
        # Its beginning is not known, as after a start of the daemon.
        made.changed(one)
        stage.views[one.id] = EMPTY
        assert await made.request() is False
        assert "nobody wrote" in made.trouble()[one.id]

        def mend(netns: object, vips: str, ula: str) -> list[str]:
            if "dump" not in vars(container):
                return []
            del vars(container)["dump"]
            container.tables.sets[PEER.name].clear()
            return [SAID]

        monkeypatch.setattr(stage.kernel, "mend_container", mend)
        assert f"{one.id} (web): {SAID}" in await stage.audit.full()
        assert await made.request() is True  # at once, though the clock stands still
        assert agrees(stage, one, EMPTY)
        assert not container.tables.sets[INGRESS.name]

    stage.run(scene)


def test_trouble_that_an_audit_cannot_mend_is_told_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = stage.add(1)
    stage.views[one.id] = view(*PEERS)
    stage.kernel.errors["eth1"] = OSError(errno.EPERM, "not permitted")

    async def scene(made: Reconciler) -> None:
        assert await made.request() is False

        def mend(attachment: object, vips: str) -> list[str]:
            raise KernelFailure("the table belongs to another program")

        monkeypatch.setattr(made.kernel, "mend", mend)
        tried = stage.kernel.tried["eth1"]
        assert await stage.audit.full() == []
        assert await made.request() is True  # nothing new failed
        assert stage.kernel.tried["eth1"] == tried

    stage.run(scene)


@pytest.mark.parametrize("error", [KeyError(1), KernelFailure("refused")], ids=["bug", "refused"])
def test_status_counts_the_others_where_one_cannot_be_read(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    one, two = stage.add(1), stage.add(2)
    asked = 0

    def denials(namespace: Namespace) -> list[Denial]:
        nonlocal asked
        asked += 1
        if asked % 2:
            raise error
        return [Denial("out", "10.64.0.9", "tcp", 22, 5)]

    monkeypatch.setattr(status.ruleset, "denials", denials)
    counted = HostCounters(plaintext=0, foreign=0, forbidden=0)
    monkeypatch.setattr(status.host, "counters", lambda: counted)
    for attachment in (one, two):
        stage.registry.add(attachment, fresh=True)
    store: Any = SimpleNamespace(counts={}, refused={})
    absent: Any = None
    reporter = Reporter(
        absent, store, absent, absent, absent, stage.registry, absent, absent, absent, absent
    )
    for _ in range(2):
        assert [denial.attachment for denial in reporter.counters().denied] == [two.id]
    (logged,) = caplog.records
    assert logged.__dict__["fields"]["attachment"] == one.id


def test_an_ipv6_network_that_could_not_be_added_is_added_by_a_later_round(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage.kernel.ula = ""
    one = stage.add(1)
    stage.views[one.id] = view(*PEERS)
    refused = True
    loaded = []

    def add_ipv6(net: NodeNet, state: object, attachment_id: str) -> Attachment | None:
        if refused:
            raise KernelFailure("no memory")
        stage.kernel.containers["eth1"] = Container(stage.kernel, "eth1", ULA)
        return msgspec.structs.replace(stage.registry[attachment_id], ula=net.ula)

    def mend(attachment: Attachment, vips: str) -> list[str]:
        loaded.append(attachment.ula)
        return []

    monkeypatch.setattr(audit_module.readdress, "add_ipv6", add_ipv6)

    async def scene(made: Reconciler) -> None:
        nonlocal refused
        await made.request()
        monkeypatch.setattr(made.kernel, "mend", mend)
        await stage.audit.upgrade()
        for _ in range(2):
            assert await stage.audit.round() == []
        assert stage.registry[one.id].ula == ""
        assert set(loaded) == {ULA}  # no round took the ruleset for it away again
        refused = False
        await stage.audit.round()
        assert stage.registry[one.id].ula == ULA

    with caplog.at_level("INFO", "noctule"):
        stage.run(scene)
    said = [record.message for record in caplog.records]
    assert said.count("ruleset not replaced") == 1
    assert said.count("IPv6 network added") == 1
