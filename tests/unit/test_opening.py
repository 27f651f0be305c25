"""From attached to open: who is ready first, and what a DEL amid it leaves."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from daemon.attachments.opening import Opening
from daemon.attachments.registry import Registry
from daemon.cluster.confirmation import Confirmation
from daemon.cluster.publisher import Publisher
from daemon.journal import Journal
from daemon.model import records
from tests.unit.model_kit import KEYS, NOW, filled, identity
from tests.unit.test_publisher import ATTACHMENT


class Parts:
    """The publisher and the store are real; passes and answers come when they are told to."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.store = filled()
        self.publisher = Publisher(
            identity("n1"), self.store, self._publish, Journal(), clock=lambda: NOW
        )
        self.publisher.resume()
        self.registry = Registry()
        self.registry.add(ATTACHMENT, fresh=True)
        self.registry.subscribe(self.publisher)
        self.programmed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.opening = Opening(
            self.store, self.publisher, self, self, self, self.registry,  # type: ignore[arg-type]
            confirm_ms=100,
        )  # fmt: skip

    def _publish(self, key: str, sealed: bytes) -> None:
        self.log.append(f"published {records.decode(sealed).version}")

    def request_for(self, attachment_id: str) -> asyncio.Future[bool]:
        """The reconciler's part."""
        self.log.append("pass")
        return self.programmed

    async def confirm(self, sealed: bytes, nodes: list[str], within: float) -> dict[str, Any]:
        """The exchange's part."""
        self.log.append("brought to neighbours")
        empty: dict[str, Confirmation] = {}
        return empty

    async def serve(self, attachment: object, within: float) -> None:
        """The resolver's part."""


def test_own_sets_are_ready_before_anybody_hears_of_a_replica() -> None:
    async def scene() -> None:
        parts = Parts()
        opening = asyncio.ensure_future(parts.opening.open(ATTACHMENT))
        assert parts.store.replica("n1", ATTACHMENT.id) is not None  # at once, for the pass
        await asyncio.sleep(0)
        assert parts.log == ["pass"]
        parts.programmed.set_result(True)
        await opening
        assert parts.log[1].startswith("published")
        assert parts.log[2:] in ([], ["brought to neighbours"])

    asyncio.run(scene())


def test_a_replica_that_was_taken_down_meanwhile_is_not_published() -> None:
    async def scene() -> None:
        parts = Parts()
        opening = asyncio.ensure_future(parts.opening.open(ATTACHMENT))
        await asyncio.sleep(0)
        parts.registry.remove(ATTACHMENT.id)  # a DEL: the record is withdrawn
        withdrawn = parts.log[-1]
        parts.programmed.set_result(True)
        assert await opening == "taken down meanwhile"
        assert parts.log[-1] == withdrawn
        assert parts.store.replica("n1", ATTACHMENT.id) is None
        (key,) = parts.store.withdrawn()
        assert key == KEYS.replica("n1", ATTACHMENT.id)

    asyncio.run(scene())


def test_a_successor_is_published_and_its_predecessor_not() -> None:
    async def scene() -> None:
        parts = Parts()
        opening = asyncio.ensure_future(parts.opening.open(ATTACHMENT))
        await asyncio.sleep(0)
        parts.registry.remove(ATTACHMENT.id)
        parts.registry.add(msgspec.structs.replace(ATTACHMENT, salt="22" * 32), fresh=True)
        parts.programmed.set_result(True)
        assert await opening == "taken down meanwhile"

    asyncio.run(scene())
