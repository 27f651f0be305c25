"""What the replicas' tests share: a real state folder, and a kernel in memory behind `attach`."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from daemon.attachments.lifecycle import Attachments
from daemon.journal import Journal
from daemon.model.policy import Policy
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
            if found is not None:
                state.remove(found)
            self.up.pop(attachment_id, None)
            return found

    def alive(self, attachment: Attachment) -> bool:
        same = identity(attachment.netns) == attachment.netns_id
        return same and self.up.get(attachment.id) == attachment

    def check(self, node: NodeNet, state: State, attachment_id: str) -> None:
        if attachment_id not in self.up:
            raise CheckFailure("it is not there; add it anew")


class Stage:
    """Replicas with a folder of namespaces, and what they tell the rest of the daemon."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kernel = Kernel()
        self.state = State(folder / "state")
        self.policy: Policy | None = policy()
        self.told: list[tuple[str, str]] = []
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

    def _opened(self, attachment: Attachment) -> asyncio.Future[str]:
        self.told.append(("opened", attachment.salt))
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        if self.opening is None:
            future.set_result("1 confirmed")
        else:
            future.set_exception(self.opening)
        return future

    def run(self, scene: Callable[[Attachments], Awaitable[None]]) -> None:
        async def main() -> None:
            with ThreadPoolExecutor(4) as executor:
                made = Attachments(
                    lambda: NODE,
                    self.state,
                    executor,
                    policy=lambda: self.policy,
                    opened=self._opened,
                    closed=lambda attachment: self.told.append(("closed", attachment.salt)),
                    released=lambda name: self.told.append(("released", name)),
                    journal=Journal(),
                )
                async with asyncio.timeout(LIMIT):
                    await scene(made)

        asyncio.run(main())

    def told_of(self, word: str) -> list[str]:
        return [what for said, what in self.told if said == word]
