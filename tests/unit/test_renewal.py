"""Renewed files are followed by everything that shows or judges a certificate: over real zenoh.

Two nodes of real parts, each with its store, publisher, exchange, saver and credentials.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from daemon.cluster import credentials as module
from daemon.cluster import publisher as publisher_module
from daemon.cluster.credentials import Credentials, Renewal
from daemon.cluster.exchange import Exchange
from daemon.cluster.membership import Membership
from daemon.cluster.publisher import Publisher
from daemon.cluster.saver import Saver
from daemon.cluster.snapshot import Snapshot
from daemon.ctl import pki
from daemon.fabric.zenoh_fabric import ZenohFabric
from daemon.journal import Journal
from daemon.liveness.liveness import Liveness
from daemon.model.records import NodeInfo
from daemon.model.store import Store
from daemon.model.trust import Trust
from daemon.process.tasks import Tasks
from daemon.process.workers import Pool
from daemon.resolver.client import Resolver
from netconf.attach.attachment import Attachment
from tests.unit.fabric_kit import Authority, free_ports
from tests.unit.model_kit import SLICES
from tests.unit.test_fabric_access import served_certificate
from tests.unit.test_publisher import ATTACHMENT

LIMIT = 20.0


class Member:
    """One node over real zenoh and real files."""

    def __init__(self, authority: Authority, place: Path, name: str, ports: list[int]) -> None:
        self.name, self.place = name, place
        own = ports[int(name[1:]) - 1]
        self.settings = authority.settings(name, own, [port for port in ports if port != own])
        journal = Journal()
        self.tasks = Tasks(journal)
        files = (self.settings.ca, self.settings.certificate, self.settings.key)
        self.credentials = Credentials(files, name, journal)
        self.store = Store("test", Trust.load(Path(files[0]), None))
        self.fabric = ZenohFabric(self.settings)
        membership = Membership(name, self.settings.connect, self.store)
        self.credentials.peers = membership.certificates
        self.publisher = Publisher(
            self.credentials.identity, self.store, self.fabric.publish, journal
        )
        self.liveness = Liveness(name, self.store, changed=lambda: None, journal=journal)
        self.exchange = Exchange(
            name, self.store, self.fabric, self.publisher, self.liveness,
            program=cast(Any, None), journal=journal,
        )  # fmt: skip
        self.disk = Pool("disk", 1)
        self.saver = Saver(
            self.store, Snapshot(place / "state", place / "cache", self.store),
            Resolver(place / "state", journal), membership, self.fabric, self.disk, "", journal,
        )  # fmt: skip
        self.attachments: dict[str, Attachment] = {}
        self.renewal = Renewal(self.store, self.publisher, self.info, self.attachments)

    def info(self, certificate: str) -> NodeInfo:
        return NodeInfo(
            node=self.name, certificate=certificate, endpoints=self.settings.listen,
            slice=SLICES[self.name], mtu=1468,
        )  # fmt: skip

    async def start(self) -> None:
        self.publisher.info(self.info(self.credentials.identity.pem))
        for attachment in self.attachments.values():
            self.publisher.replica(attachment)
        await self.fabric.open(self.exchange)
        self.tasks.forever("saver", self.saver.watch)
        self.tasks.forever("manifests", self.publisher.keep_telling)
        self.tasks.forever("certificates", lambda: self.credentials.watch(self.renewal))

    async def stop(self) -> None:
        for part in (self.tasks, self.exchange, self.liveness, self.fabric):
            await part.close()
        self.disk.close()


async def until(condition: Callable[[], object]) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.01)


def test_records_and_session_follow_renewed_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK", 0.05)
    monkeypatch.setattr(publisher_module, "MANIFEST_EVERY", 0.5)
    authority = Authority(tmp_path / "pki")

    async def run() -> None:
        ports = free_ports(2)
        n1, n2 = (Member(authority, tmp_path / name, name, ports) for name in ("n1", "n2"))
        n1.attachments[ATTACHMENT.id] = ATTACHMENT
        for member in (n1, n2):
            await member.start()
        try:
            await until(lambda: n2.store.replica("n1", ATTACHMENT.id) and "n1" in n2.exchange.heard)
            former = Path(n1.settings.certificate).read_text()
            new = tmp_path / "new"
            new.mkdir()
            for name in ("ca.crt", "ca.key"):
                shutil.copy(tmp_path / "pki" / name, new)
            made = pki.issue(new, "n1", ["127.0.0.1"], time.time())
            for path in made:
                shutil.copy(path, tmp_path / "pki" / path.name)

            # What it signs and says of itself, here and at the peer.
            await until(lambda: n2.store.infos()["n1"].certificate == made[0].read_text() != former)

            # What a peer would believe that restarts: all is signed with the new key. What was
            # lost while the session was reopened is asked for after the next manifest.
            def agrees() -> bool:
                restarted = Store("test", Trust.load(authority.ca, None))
                believed = all(verdict.changed for verdict in restarted.load(n2.store.dump()))
                return believed and restarted.replica("n1", ATTACHMENT.id) is not None

            await until(agrees)

            # What it shows in TLS, and that both are together again.
            def shown() -> bool:
                mine = n1.credentials.identity.certificate
                try:
                    return served_certificate(n1.settings) == mine.public_bytes(Encoding.DER)
                except OSError:  # the session is being reopened
                    return False

            async with asyncio.timeout(LIMIT):
                while not await asyncio.to_thread(shown):
                    await asyncio.sleep(0.05)
            await until(lambda: n2.liveness.alive == n1.liveness.alive == {"n1", "n2"})
        finally:
            for member in (n1, n2):
                await member.stop()

    asyncio.run(run())
