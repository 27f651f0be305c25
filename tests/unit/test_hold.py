"""The end of the hold, with real stores and exchanges over a fabric in memory, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from daemon.attachments.registry import Registry
from daemon.cluster.freshness import HEAR_WITHIN
from daemon.cluster.membership import Membership
from daemon.journal import Journal
from daemon.liveness.absence import SILENT_FOR, Absence
from daemon.liveness.probe import Probe
from daemon.model.store import Store
from daemon.process.tasks import LOOP_AGAIN
from daemon.reconcile.hold import LOOK_EVERY, Hold
from tests.unit.memory_fabric import Network
from tests.unit.model_kit import NOW, TEXT, info, policy, record, store
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


class Kernels:
    """What probes find, by endpoint; nothing answers where nothing is said."""

    def __init__(self, found: dict[str, Probe]) -> None:
        self.found = found

    async def probe(self, endpoint: str) -> Probe:
        await asyncio.sleep(0.4 if endpoint not in self.found else 0.01)
        return self.found.get(endpoint, Probe.SILENT)


def holding(member: Member, dialled: tuple[str, ...], kernels: Kernels) -> tuple[Hold, Reconciler]:
    made = Reconciler(member.store)
    hold = Hold(
        member.store, Membership(member.name, (), member.store), member.peers, member.liveness,
        Registry(), made, Journal(), dialled=dialled,  # type: ignore[arg-type]
        absence=Absence(asyncio.get_running_loop().time, kernels.probe),
    )  # fmt: skip
    return hold, made


def two_nodes() -> Store:
    """What n1 remembers: n2, and a policy."""
    known = store()
    known.offer(record("authority", 1, policy()), NOW)
    for node in ("n1", "n2"):
        known.offer(record(node, 1, info(node)), NOW)
    return known


SAID = "tls/192.0.2.1:7447"
"""Where the nodes of these tests say that they are."""
DIALLED = "tls/10.0.0.2:1"
"""Where n1 dials n2."""
PINNED = "services: {}\nnodes: {n1: {slice: 10.64.16.0/20}, n2: {slice: 10.64.32.0/20}}\n"


def rebooted(text: str = TEXT) -> Store:
    """What is left to n1 after a reboot: a policy."""
    known = store()
    known.offer(record("authority", 1, policy(text)), NOW)
    return known


def ended(
    joins_after: float,
    known: Store,
    dialled: tuple[str, ...] = (),
    found: Probe | None = Probe.ANSWERS,
) -> tuple[float, int]:
    """Return when n1's hold ended, and its policy then.

    n2 has version 2, and is connected only after `joins_after` seconds; until then probes find
    what is `found` where it is, None for no answer.
    """

    async def main() -> tuple[float, int]:
        network = Network()
        one, two = Member(network, "n1", known), Member(network, "n2", two_nodes())
        two.store.offer(record("authority", 2, policy(version=2)), NOW)
        kernels = Kernels({} if found is None else {SAID: found, DIALLED: found})
        hold, reconciler = holding(one, dialled, kernels)
        await one.fabric.open(one.peers)
        one.peers.freshness.begin()
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


def test_a_link_that_is_slow_to_come_up_is_waited_for() -> None:
    # This node's own: nothing answers in the first two seconds.
    assert ended(2.0, two_nodes(), found=None)[1] == 2


@pytest.mark.parametrize("text", [TEXT, PINNED])
def test_after_a_reboot_whom_we_dial_has_to_answer(text: str) -> None:
    when, version = ended(4.0, rebooted(text), (DIALLED,))
    assert (version, when >= 4.0) == (2, True)


@pytest.mark.parametrize("known", [two_nodes, rebooted, lambda: rebooted(PINNED)])
def test_whoever_has_no_daemon_is_not_waited_for(known: Callable[[], Store]) -> None:
    when, version = ended(60.0, known(), (DIALLED,), found=Probe.REFUSED)
    assert version == 1
    assert when <= 2 * LOOK_EVERY
    when, _ = ended(60.0, known(), (DIALLED,), found=None)
    assert SILENT_FOR <= when <= SILENT_FOR + 1.0


def test_who_listens_and_says_nothing_is_waited_for_ten_seconds() -> None:
    when, version = ended(60.0, two_nodes())
    assert version == 1
    assert HEAR_WITHIN <= when <= HEAR_WITHIN + 2 * LOOK_EVERY


@pytest.mark.parametrize("known", [two_nodes, rebooted, lambda: rebooted(PINNED)])
@pytest.mark.parametrize("found", [Probe.REFUSED, None])
def test_time_does_not_pass_before_the_fabric_is_open(
    known: Callable[[], Store], found: Probe | None
) -> None:
    async def main() -> tuple[float, int]:
        network = Network()
        one, two = Member(network, "n1", known()), Member(network, "n2", two_nodes())
        two.store.offer(record("authority", 2, policy(version=2)), NOW)
        await two.fabric.open(two.peers)
        kernels = Kernels({} if found is None else {SAID: found, DIALLED: found})
        hold, reconciler = holding(one, (DIALLED,), kernels)
        holds = asyncio.ensure_future(hold.run())
        await asyncio.sleep(3600)  # n1 has no address yet
        assert reconciler.ended is None
        await one.fabric.open(one.peers)
        one.peers.freshness.begin()
        await holds
        for member in (one, two):
            await member.peers.close()
            await member.fabric.close()
        assert reconciler.ended is not None
        return reconciler.ended

    when, version = run(main())
    assert version == 2
    assert 3600 <= when <= 3600 + SILENT_FOR


def test_a_probe_that_fails_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    probe, failed = Kernels.probe, False

    async def fails_once(self: Kernels, endpoint: str) -> Probe:
        nonlocal failed
        if not failed:
            failed = True
            raise ZeroDivisionError
        return await probe(self, endpoint)

    monkeypatch.setattr(Kernels, "probe", fails_once)
    when, _ = ended(60.0, two_nodes(), (DIALLED,), found=Probe.REFUSED)
    assert when <= LOOP_AGAIN + 2 * LOOK_EVERY


def test_whoever_is_alone_waits_for_nobody() -> None:
    alone = store()
    alone.offer(record("n1", 1, info("n1")), NOW)
    assert ended(60.0, alone) == (0.0, 0)
