"""What the programmer's tests share: containers and a host filter in memory, under real code.

`netconf.program.programmer` runs as it is. Only its sockets, `netconf.nft.host` and ``ruleset``
are of memory; every container is in this process's own namespace, which is never entered.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest

from daemon.attachments.registry import Registry
from daemon.journal import Journal
from daemon.process.workers import Pool
from daemon.reconcile import audit as audit_module
from daemon.reconcile import reconciler as module
from daemon.reconcile.audit import Audit
from daemon.reconcile.planning import Work
from daemon.reconcile.reconciler import Reconciler
from netconf.attach import host_ports
from netconf.attach.attachment import Attachment, NodeNet
from netconf.attach.state import State
from netconf.namespace import Namespace, identity
from netconf.nft.elements import PEER, Key, Set
from netconf.program import programmer
from netconf.program.desired import Desired
from tests.unit.test_program import ULA, FakeContainer

LIMIT = 10.0
OWN = "/proc/self/ns/net"
Pair = tuple[str, str]
NET = NodeNet(
    cluster="lab", node="n1", pool="10.64.0.0/12", slice="10.64.16.0/20", vips="10.80.0.0/16",
    mtu=1468, ula=ULA,
)  # fmt: skip


class Container(FakeContainer):
    """Sockets into one container: they write into the kernel's log, and fail or wait if told."""

    def __init__(self, kernel: Kernel, name: str, ula: str) -> None:
        super().__init__(ula)
        self.lock = threading.Lock()
        self.ifindex = 2
        self.identity = identity(OWN)
        self.last_generation: int | None = None
        self._kernel = kernel
        self._name = name

    def send(self, batch: object) -> None:
        self._kernel.go.wait(LIMIT)
        self._kernel.tried[self._name] += 1
        with self._kernel.stuck.condition:
            self._kernel.stuck.condition.wait_for(
                lambda: self._name not in self._kernel.stuck, LIMIT
            )
        if error := self._kernel.errors.get(self._name):
            raise error
        self._kernel.log.append(self._name)
        super().send(batch)

    def dump(self, target: Set) -> dict[Key, Key]:
        self._kernel.observed[self._name] += target is PEER
        if self._kernel.deaf:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        return super().dump(target)

    def close(self) -> None:
        """Nothing is open."""


class Stuck(set[str]):
    """Interface names of containers in which nothing ends until they are taken out of here."""

    def __init__(self) -> None:
        super().__init__()
        self.condition = threading.Condition()

    def clear(self) -> None:
        with self.condition:
            super().clear()
            self.condition.notify_all()


class Kernel:
    """The containers by interface name, and what `netconf.nft.host` and ``ruleset`` offer."""

    def __init__(self) -> None:
        self.containers: dict[str, Container] = {}
        self.errors: dict[str, Exception] = {}
        self.pairs_error: Exception | None = None
        self.observed: Counter[str] = Counter()
        """Readings of all that a pass programs, by interface name."""
        self.stuck = Stuck()
        self.tried: Counter[str] = Counter()
        """Batches by interface name, those that failed included."""
        self.log: list[object] = []
        self.go = threading.Event()
        self.go.set()
        self.told = threading.Event()
        self.tell = threading.Event()
        self.tell.set()
        self._pairs: set[Pair] = set()
        self._ports: set[Pair] = set()
        self.ula = ULA
        self.wrong: list[str] = []
        """What is wrong with the rulesets of containers."""
        self.mended: list[tuple[str, str]] = []
        self.deaf = False

    def handles(self, netns: Namespace, ifname: str) -> Container:
        return self.containers.setdefault(ifname, Container(self, ifname, self.ula))

    def change_pairs(self, add: Iterable[Pair], remove: Iterable[Pair]) -> None:
        added, removed = set(add), set(remove)
        if self.pairs_error is not None:
            raise self.pairs_error
        self.log.append(("pairs", len(added), len(removed)))
        self._pairs = (self._pairs | added) - removed

    def pairs(self) -> set[Pair]:
        found = set(self._pairs)
        self.told.set()
        self.tell.wait(LIMIT)
        return found

    def ports(self) -> set[Pair]:
        return set(self._ports)

    def add_port(self, port: str, mac: str) -> None:
        self._ports.add((port, mac))

    def del_port(self, port: str, mac: str) -> None:
        self._ports.discard((port, mac))

    def ensure_host(self) -> list[str]:
        """It is always there."""
        return []

    def mend_container(self, netns: Namespace, vips: str, ula: str) -> list[str]:
        said, self.wrong = self.wrong, []
        if said:
            self.mended.append((vips, ula))
        return said


class Stage:
    """A programmer, its kernel, and what the next plan says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel = Kernel()
        monkeypatch.setattr(programmer, "NetnsSockets", self.kernel.handles)
        monkeypatch.setattr(programmer, "ruleset", self.kernel)
        monkeypatch.setattr(module, "host", self.kernel)
        monkeypatch.setattr(audit_module, "host", self.kernel)
        monkeypatch.setattr(host_ports, "ruleset", self.kernel)
        monkeypatch.setattr(host_ports, "host", self.kernel)
        self.key = folder / "key"
        self.write_key()
        self.attachments: dict[str, Attachment] = {}
        self.registry = Registry()
        self.opaque: dict[str, Attachment] = {}
        self.folder = folder
        self.state = State(folder / "state")
        self.now = 0.0
        """The reconciler's clock, in seconds."""
        self.views: dict[str, Desired] = {}
        self.plans = 0
        self.broken = False
        self.passed = 0
        self.version = 1

    def write_key(self) -> None:
        """Put the network's secret where it is looked for."""
        self.key.write_text("a secret of more than sixteen bytes")
        self.key.chmod(0o600)

    def add(self, number: int) -> Attachment:
        """Attach one replica, with an empty view."""
        found = identity(OWN)
        assert found is not None
        made = Attachment(
            id=f"{number:012x}", network="mesh", container="c", ifname=f"eth{number}", netns=OWN,
            netns_id=found, service="web", key_file=str(self.key), address=f"10.64.16.{number}",
            salt="11" * 32, an=0, mtu=1468, phase="ready", ula=self.kernel.ula,
        )  # fmt: skip
        self.attachments[made.id] = made
        self.state.save(made)
        self.kernel.add_port(made.vh, made.mac)
        return made

    def plan(self) -> Work:
        self.plans += 1
        if self.broken:
            raise ZeroDivisionError("a bug in planning")
        return Work(
            attachments=self.opaque | dict(self.registry),
            desired=dict(self.views),
            policy_version=self.version,
        )

    def run(self, scene: Callable[[Reconciler], Awaitable[None]], *, hold: bool = False) -> None:
        """Run `scene` while passes are done."""

        def count() -> None:
            self.passed += 1

        async def main() -> None:
            pool = Pool("test", 4)
            made = Reconciler(self.plan, pool, Journal(), clock=lambda: self.now)
            made.hold = hold
            made.passed = count
            self.registry.subscribe(made)
            self.audit = Audit(
                self.registry, made, pool, self.state, lambda: NET, lambda _: [], Journal()
            )
            for attachment in self.attachments.values():
                self.registry.add(attachment, fresh=True)
            running = asyncio.ensure_future(made.run())
            try:
                async with asyncio.timeout(LIMIT):
                    await scene(made)
            finally:
                self.kernel.go.set()
                self.kernel.tell.set()
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                await made.close()
                pool.close()
                made.kernel.close()

        asyncio.run(main())
