"""Whatever is lost, doubled, late or out of order: two manifest periods later all agree.

Five nodes with their real stores, publishers and exchanges over a fabric in memory, in an event
loop whose time is virtual. For a minute everything goes wrong that can: messages of all kinds
get lost, come twice, late or in another order; policies are applied, two of one version among
them; containers come and go; sessions are reopened; nodes restart, with their snapshot, with
the policy alone or with nothing, some with a clock that has gone back. Then the network heals.
"""

from __future__ import annotations

import asyncio
import functools
import random
import tempfile
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

import msgspec
import pytest

from daemon.cluster.exchange import Exchange
from daemon.cluster.publisher import MANIFEST_EVERY, Publisher
from daemon.ctl import pki
from daemon.fabric import Settings
from daemon.journal import Journal
from daemon.liveness.liveness import Liveness
from daemon.model import records
from daemon.model.identity import Identity
from daemon.model.keys import Keys
from daemon.model.records import NodeInfo
from daemon.model.store import Store
from daemon.model.trust import Trust
from netconf.attach.attachment import Attachment
from tests.unit.memory_fabric import Chaos, MemoryFabric, Network
from tests.unit.model_kit import NOW, attachment, policy
from tests.unit.virtual_time import run

NAMES = ("n1", "n2", "n3", "n4", "n5")
KEYS = Keys("lab")
TROUBLE = 60.0
"""Seconds for which everything goes wrong."""
CHAOS = Chaos(lost=0.3, doubled=0.2, late=3.0)
POLICIES = ("services: {web: {}}\n", "services: {web: {}, api: {}}\n")


class Certificates:
    """The cluster's certificates, made once."""

    def __init__(self, folder: Path) -> None:
        pki.init(folder, "lab", NOW - 10_000_000)  # so that clocks may go back
        for name in NAMES:
            pki.issue(folder, name, ["192.0.2.1"], NOW - 10_000_000)
        self._folder = folder

    def identity(self, name: str) -> Identity:
        return Identity.load(self._folder / f"{name}.crt", self._folder / f"{name}.key")

    def trust(self) -> Trust:
        return Trust.load(self._folder / "ca.crt", self._folder / "authority.crt")


@pytest.fixture(scope="module")
def certificates() -> Iterator[Certificates]:
    with tempfile.TemporaryDirectory() as folder:
        yield Certificates(Path(folder))


class Unwatched(Liveness):
    """Knows tokens; no kernel is asked."""

    def watch(self, node: str) -> None:
        """There is no kernel to ask."""


class Member:
    """One node through all of its daemons' lives; what `daemon.node` does of it."""

    def __init__(self, network: Network, certificates: Certificates, name: str) -> None:
        self.name = name
        self.containers: dict[str, Attachment] = {}
        self.skew = 0.0
        self._network = network
        self._identity = certificates.identity(name)
        self._trust = certificates.trust
        self._number = int(name[1:])
        self._salts = 0
        self._random = random.Random(name)
        self._life: list[asyncio.Task[None]] = []
        self.store: Store
        self.exchange: Exchange
        self.fabric: MemoryFabric

    def _clock(self) -> float:
        return NOW + self.skew + asyncio.get_running_loop().time()

    async def start(self, snapshot: bytes = b"", policy: bytes | None = None) -> None:
        """Begin a daemon's life with what an earlier one left."""
        self.store = Store("lab", self._trust())
        if snapshot:
            self.store.load(snapshot)
        if policy is not None:
            self.store.offer(policy, NOW)
        endpoints = {name: f"tls/10.0.0.{name[1:]}:1" for name in NAMES}
        others = tuple(endpoints[name] for name in NAMES if name != self.name)
        self.fabric = self._network.join(
            Settings(
                cluster="lab", node=self.name, listen=(endpoints[self.name],), connect=others,
                ca="", certificate="", key="",
            )
        )  # fmt: skip
        self.publisher = Publisher(
            self._identity,
            self.store,
            self.fabric.publish,
            Journal(),
            self._clock,
            functools.partial(self._random.getrandbits, 40),
        )
        self.publisher.resume()
        liveness = Unwatched(self.name, self.store, changed=lambda: None, journal=Journal())
        self.exchange = Exchange(
            self.name, self.store, self.fabric, self.publisher, liveness,
            program=_programmed, journal=Journal(), clock=lambda: NOW,
        )  # fmt: skip
        self.publisher.info(
            NodeInfo(
                node=self.name, certificate=self._identity.pem, mtu=1468,
                endpoints=(endpoints[self.name],), slice=f"10.64.{16 * self._number}.0/20",
            )
        )  # fmt: skip
        self.publisher.align(self.containers.values(), ())
        await self.fabric.open(self.exchange)
        self.publisher.again()
        self._life = [asyncio.ensure_future(self.publisher.keep_telling())]

    async def stop(self) -> None:
        """End it as a crash does: nothing is said, nothing is saved."""
        for task in self._life:
            task.cancel()
        await self.exchange.close()
        await self.fabric.close()

    def attach(self) -> None:
        self._salts += 1
        number = 1_000 * self._number + self._salts
        made = Attachment(
            id=attachment(number), network="mesh", container=str(number), ifname="eth0",
            netns="/run/netns/x", netns_id=(1, number), service="web", key_file="/run/key",
            address=str(IPv4Network(f"10.64.{16 * self._number}.0/20")[self._salts]),
            salt=f"{number:064x}", an=0, mtu=1468, phase="ready",
        )  # fmt: skip
        self.containers[made.id] = made
        self.publisher.replica(made)

    def rekey(self, which: str) -> None:
        """A container that exists says something new of itself."""
        self._salts += 1
        changed = msgspec.structs.replace(self.containers[which], salt=f"{self._salts:064x}")
        self.containers[which] = changed
        self.publisher.replica(changed)

    def detach(self, which: str) -> None:
        del self.containers[which]
        self.publisher.withdraw(which)

    def apply(self, sealed: bytes) -> None:
        if self.exchange.offer(sealed).changed:
            self.fabric.publish(KEYS.policy, sealed)

    def state(self) -> dict[str, bytes]:
        """Return all that is held, without manifests: those say it again under new versions."""
        held = {records.decode(data).key: data for data in self.store.records()}
        return {key: data for key, data in held.items() if not key.endswith("/manifest")}


def _programmed(*, strict: bool = False) -> asyncio.Future[bool]:
    done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    done.set_result(True)
    return done


class Trouble:
    """What happens to five nodes until it ends, the same for each seed."""

    def __init__(self, seed: int, certificates: Certificates, *, restarts: bool) -> None:
        """With `restarts`, daemons and sessions end as well; each has to be told all anew, which
        hides what is not mended otherwise."""
        self._restarts = restarts
        self.random = random.Random(seed)
        self.network = Network(seed)
        self.nodes = [Member(self.network, certificates, name) for name in NAMES]
        self.version = 0
        self._authority = certificates.identity("authority")

    async def live(self) -> None:
        """Let everything go wrong, then let the network heal and two periods pass."""
        for node in self.nodes:
            await node.start()
            node.attach()
        self.apply()
        self.network.chaos = CHAOS
        loop = asyncio.get_running_loop()
        happening = (self.apply, self.disagree, self.attach, self.attach, self.change, self.detach)
        while loop.time() < TROUBLE:
            await asyncio.sleep(self.random.expovariate(1.0))
            if self._restarts and self.random.random() < 0.2:
                await self.random.choice((self.reopen, self.restart))(self.node())
            else:
                self.random.choice(happening)()
        self.network.calm()
        await asyncio.sleep(2 * MANIFEST_EVERY)

    async def end(self) -> None:
        for node in self.nodes:
            await node.stop()

    def node(self) -> Member:
        return self.random.choice(self.nodes)

    def sealed(self, text: str) -> bytes:
        body = policy(text, self.version)
        return records.seal(KEYS, KEYS.policy, self.version, body, self._authority)

    def apply(self) -> None:
        self.version += 1
        self.node().apply(self.sealed(POLICIES[0]))

    def disagree(self) -> None:
        """Two signers use the same version, at two nodes."""
        self.version += 1
        for text in POLICIES:
            self.node().apply(self.sealed(text))

    def attach(self) -> None:
        self.node().attach()

    def change(self) -> None:
        node = self.node()
        if node.containers:
            node.rekey(self.random.choice(sorted(node.containers)))

    def detach(self) -> None:
        node = self.node()
        if node.containers:
            node.detach(self.random.choice(sorted(node.containers)))

    async def reopen(self, node: Member) -> None:
        """Replace the session, as new endpoints or certificates make a node do."""
        connect = node.fabric.settings.connect
        other = "tls/192.0.2.99:1"
        changed = set(connect) ^ {other}
        await node.fabric.reconfigure(sorted(changed), None)

    async def restart(self, node: Member) -> None:
        """A daemon dies and comes back with all it knew, the policy alone, or nothing."""
        snapshot, held = node.store.dump(), node.store.envelope(KEYS.policy)
        await node.stop()
        if node.containers and self.random.random() < 0.5:  # gone while nobody looked
            del node.containers[self.random.choice(sorted(node.containers))]
        await asyncio.sleep(self.random.random() * 5)
        if self.random.random() < 0.3:
            node.skew -= 1_000_000.0
        left = self.random.choice(((snapshot, held), (b"", held), (b"", None)))
        await node.start(*left)


@pytest.mark.parametrize("restarts", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_two_periods_after_the_network_heals_all_hold_the_same(
    seed: int, restarts: bool, certificates: Certificates
) -> None:
    async def main() -> None:
        trouble = Trouble(seed, certificates, restarts=restarts)
        await trouble.live()
        try:
            held = max(records.decode(s).version for s in policies(trouble))
            assert held > 1
            first, *others = (node.state() for node in trouble.nodes)
            for other in others:
                assert named(other, first) == {}
            for node in trouble.nodes:
                for owner in trouble.nodes:
                    salts = {
                        replica.attachment: replica.salts[0].hex()
                        for replica in node.store.held_replicas()
                        if replica.node == owner.name
                    }
                    assert salts == {c.id: c.salt for c in owner.containers.values()}
        finally:
            await trouble.end()

    run(main())


def policies(trouble: Trouble) -> list[bytes]:
    """Return the policy of each node that has one."""
    found = (node.store.envelope(KEYS.policy) for node in trouble.nodes)
    return [sealed for sealed in found if sealed is not None]


def named(one: dict[str, bytes], other: dict[str, bytes]) -> dict[str, tuple[int, int]]:
    """Return the keys at which two states differ, and the versions there, 0 for none."""

    def version(state: dict[str, bytes], key: str) -> int:
        return records.decode(state[key]).version if key in state else 0

    return {
        key: (version(one, key), version(other, key))
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key)
    }
