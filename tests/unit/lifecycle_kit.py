"""What the replicas' tests share: a real state folder, and a kernel in memory behind `attach`."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from daemon.attachments.collector import Collector
from daemon.attachments.lifecycle import Lifecycle
from daemon.attachments.registry import Registry
from daemon.attachments.turns import Turns
from daemon.journal import Journal
from daemon.model.policy import Policy
from daemon.process.tasks import Tasks
from daemon.process.workers import Pool
from netconf.attach.attachment import Attachment, AttachRequest, Candidate, NodeNet
from netconf.attach.state import State
from netconf.errors import CheckFailure, NoctuleError
from netconf.namespace import identity
from tests.unit.model_kit import policy

LIMIT = 10.0
NODE = NodeNet(
    cluster="lab", node="n1", pool="10.64.0.0/12", slice="10.64.16.0/20", vips="10.80.0.0/16",
    mtu=1468,
)  # fmt: skip


class Kernel:
    """`netconf.attach.operations` without links: its state files, and who has a SecY."""

    def __init__(self) -> None:
        self.up: dict[str, Attachment] = {}
        self.error: NoctuleError | None = None
        self.began = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def attach(self, node: NodeNet, state: State, request: AttachRequest) -> Attachment:
        with state.holding(request.id):
            found = identity(request.netns)
            assert found is not None
            if (old := state.get(request.id)) is not None:
                state.remove(old)
            made = state.allocate(request, node, netns_id=found, salt=os.urandom(32))
            self.began.set()
            self.go.wait(LIMIT)
            if self.error is not None:
                state.remove(made)
                raise self.error
            made = msgspec.structs.replace(made, phase="ready")
            state.save(made)
            self.up[made.id] = made
            return made

    def detach(self, state: State, attachment_id: str) -> Attachment | None:
        with state.holding(attachment_id):
            if self.error is not None:
                raise self.error
            found = state.get(attachment_id)
            self.up.pop(attachment_id, None)  # the file goes last, as in the real one
            if found is not None:
                state.remove(found)
            return found

    def alive(self, attachment: Attachment) -> bool:
        same = identity(attachment.netns) == attachment.netns_id
        return same and self.up.get(attachment.id) == attachment

    def check(self, node: NodeNet, state: State, attachment_id: str) -> None:
        if attachment_id not in self.up:
            raise CheckFailure("it is not there; add it anew")


@dataclass
class Node:
    """The parts under test."""

    lifecycle: Lifecycle
    collector: Collector
    registry: Registry


class Stage:
    """Replicas with a folder of namespaces, and what they tell the rest of the daemon."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kernel = Kernel()
        self.state = State(folder / "state")
        self.policy: Policy | None = policy()
        self.told: list[tuple[str, str]] = []
        self.fresh: list[bool] = []
        """Of each attachment that was added: whether its sets are empty for certain."""
        self.opening: Exception | None = None

    def netns(self, name: str) -> str:
        """Return the path of a namespace that is new, whatever was at that path."""
        path, fresh = self.folder / name, self.folder / f"{name}.new"
        fresh.touch()
        fresh.replace(path)
        return str(path)

    def request(self, name: str, **changes: object) -> AttachRequest:
        fields: dict[str, object] = {
            "container": name, "ifname": "eth0", "netns": str(self.folder / name),
            "network": "mesh", "services": [Candidate("web", "service")], "key_file": "/run/key",
        }  # fmt: skip
        return AttachRequest(**(fields | changes))  # type: ignore[arg-type]

    def alone(self, name: str) -> Attachment:
        """Attach as an executable does that finds no daemon."""
        wanted = AttachRequest(
            container=name, ifname="eth0", netns=str(self.folder / name), network="mesh",
            service="web", key_file="/run/key",
        )  # fmt: skip
        with self.state.exclusive():
            return self.kernel.attach(NODE, self.state, wanted)

    def run(self, scene: Callable[[Node], Awaitable[None]]) -> None:
        async def main() -> None:
            pool, tasks, turns = Pool("test", 4), Tasks(Journal()), Turns()
            registry, opening = Registry(), Opening(self)
            registry.subscribe(Follower(self))
            lifecycle = Lifecycle(
                lambda: NODE, self.state, pool, registry, turns, opening,
                policy=lambda: self.policy, journal=Journal(),
            )  # fmt: skip
            collector = Collector(
                self.state, pool, registry, turns, lifecycle, opening, tasks, Journal()
            )
            try:
                async with asyncio.timeout(LIMIT):
                    await scene(Node(lifecycle, collector, registry))
            finally:
                await tasks.close()
                pool.close()

        asyncio.run(main())

    def told_of(self, word: str) -> list[str]:
        return [what for said, what in self.told if said == word]


class Opening:
    """Says that it opened what it was given, or fails as it was told to."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def open(self, attachment: Attachment) -> Coroutine[Any, Any, str]:
        self._stage.told.append(("opened", attachment.salt))
        return self._open()

    async def _open(self) -> str:
        if self._stage.opening is not None:
            raise self._stage.opening
        return "1 confirmed"


class Follower:
    """Notes what the registry tells its subscribers."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def added(self, attachment: Attachment, *, fresh: bool) -> None:
        """Whoever opens it notes that."""
        self._stage.fresh.append(fresh)

    def removed(self, attachment: Attachment) -> None:
        self._stage.told.append(("closed", attachment.salt))

    async def released(self, attachment_id: str) -> None:
        self._stage.told.append(("released", attachment_id))
