"""The replicas on this node: made, taken down, adopted, collected, kept alive on the mesh.

1. The state files are the truth about what exists; memory follows them, also when the
   executable made or removed an attachment while this daemon was away.
2. ADD: kernel first (closed), then our record, then our sets and the neighbours' at the same
   time. It answers when its own sets are true and the neighbours confirmed, or gave up.
3. DEL: the record is withdrawn before the kernel is touched, so peers stop dialling first.
4. A namespace that vanished without DEL is noticed by its identity, and taken down.
5. What a crash left half made is taken down; what was complete is adopted untouched.
6. An executable that works alone may put a new attachment in the place of one seen here. Its
   file is read again under the lock that excludes executables, and the new one stays.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec

from daemon.api.messages import AttachAnswer, GCRequest
from daemon.journal import Journal
from daemon.model.policy import Policy
from daemon.model.policy_file import NAME
from netconf import frames, names
from netconf.attach import operations
from netconf.attach.attachment import Attachment, AttachRequest, Candidate, NodeNet
from netconf.attach.operations import host_interfaces
from netconf.attach.state import State
from netconf.errors import CheckFailure, InvalidConfig, NoctuleError
from netconf.namespace import identity

T = TypeVar("T")

COLLECT_EVERY = 0.25
"""Seconds between looks at the state folder and at a part of the namespaces."""
COLLECT_PARTS = 4
"""Looks in which every namespace is looked at once, within a second that is: one stat of each,
2 ms for a thousand, which every ADD of a busy node would pay four times a second."""
KEEP_ALIVE_EVERY = 200.0
"""Seconds; batman-adv forgets a silent client after 600 (BATADV_TT_LOCAL_TIMEOUT)."""


class Attachments:
    """The attachments of this node."""

    def __init__(
        self,
        node: Callable[[], NodeNet],
        state: State,
        executor: Executor,
        *,
        policy: Callable[[], Policy | None],
        opened: Callable[[Attachment], asyncio.Future[str]],
        closed: Callable[[Attachment], None],
        released: Callable[[str], None],
        journal: Journal,
    ) -> None:
        """`opened` publishes a new attachment and resolves when it can be used, with a word
        on how that went; `closed` withdraws one; `released` lets go of its namespace."""
        self._node = node
        self._state = state
        self._executor = executor
        self._policy = policy
        self._opened = opened
        self._closed = closed
        self._released = released
        self._journal = journal
        self._turns: dict[str, tuple[asyncio.Lock, int]] = {}
        """By attachment that something is being done with: whose turn, and how many wait."""
        self.attachments: dict[str, Attachment] = {}

    # --- what the API asks

    async def attach(self, request: AttachRequest) -> AttachAnswer:
        """ADD. Raises NoctuleError and leaves nothing behind."""
        began = time.monotonic()
        service = self.service_of(request.services)
        for field, name in (("name", request.network), ("service", service)):
            if NAME.fullmatch(name) is None:  # no record could say it, so no peer would open
                raise InvalidConfig(
                    f'{field}: "{name}" cannot be used; use at most 64 letters, digits, "_", '
                    '"." and "-", a letter or digit first'
                )
        wanted = msgspec.structs.replace(request, service=service)
        attachment_id = request.id
        async with self._only(attachment_id):
            made = await self._blocking(self._attach, wanted)
            self.attachments[made.id] = made
            built = time.monotonic()
            try:
                outcome = await self._opened(made)
            except BaseException:
                await self._take_down(made.id)
                raise
        node = self._node()
        self._journal.info(
            "attached",
            attachment=made.id,
            container=made.container,
            service=made.service,
            address=made.address,
            neighbours=outcome,
            kernel_ms=round((built - began) * 1e3, 1),
            duration_ms=round((time.monotonic() - began) * 1e3, 1),
        )
        return AttachAnswer(
            addresses=node.addresses(made.address),
            routes=node.routes(),
            mac=made.mac,
            mtu=made.mtu - names.MACSEC_OVERHEAD,
            nameserver=names.NAMESERVER,
            service=made.service,
            host=host_interfaces(made),
        )

    async def detach(self, request: AttachRequest) -> None:
        """DEL. Succeeds when there is nothing left to do."""
        await self.remove(request.id, "asked")

    async def undo(self, request: AttachRequest, answer: AttachAnswer) -> None:
        """Take back an ADD whose answer nobody heard; a later one has another address."""
        attachment_id = request.id
        made = self.attachments.get(attachment_id)
        if made is not None and self._node().addresses(made.address) == answer.addresses:
            await self.remove(made.id, "caller gone", made)

    async def check(self, request: AttachRequest) -> None:
        """CHECK. Raises CheckFailure naming what differs."""
        attachment_id = request.id
        await self._blocking(operations.check, self._node(), self._state, attachment_id)
        known = self.attachments.get(attachment_id)
        for field, wanted, have in (
            ("ips", request.address, known and known.address),
            ("mac", request.mac, known and known.mac),
        ):
            if wanted is not None and wanted != have:
                raise CheckFailure(
                    f"prevResult.{field}: {wanted} is not this attachment's {have}; add it anew"
                )

    async def collect(self, request: GCRequest) -> None:
        """GC: remove what this runtime attached to the network and no longer wants.

        NoctuleError names, at the end, what could not be removed.
        """
        wanted = {
            names.attachment_id(request.network, valid.container, valid.ifname)
            for valid in request.valid
        }
        failures: list[str] = []
        for attachment in await self._blocking(self._state.all):
            if attachment.collectable(request.network, request.runtime, wanted):
                try:
                    await self.remove(attachment.id, "collected")
                except NoctuleError as error:
                    failures.append(f"{attachment.container}: {error.message}")
        if failures:
            raise NoctuleError("GC could not remove everything", details="; ".join(failures))

    # --- what happens without being asked

    async def adopt(self) -> None:
        """Take over what a predecessor left: the complete untouched, the rest away."""
        for attachment in await self._blocking(self._settled):
            if attachment.phase == "ready" and await self._blocking(operations.alive, attachment):
                self.attachments[attachment.id] = attachment
            elif attachment.phase == "unreadable":
                # Of another version or damaged: its container may be well, so only DEL may end it.
                self._journal.error("state file unreadable", attachment=attachment.id)
            else:
                await self._try_remove(attachment, "incomplete")

    async def watch(self) -> None:
        """Notice what vanished or appeared without this daemon; runs until cancelled."""
        for part in itertools.cycle(range(COLLECT_PARTS)):
            await asyncio.sleep(COLLECT_EVERY)
            try:
                await self._look(part)
            except NoctuleError as error:
                self._journal.error("collector", error=error.message, details=error.details)

    async def _look(self, part: int) -> None:
        gone = [
            attachment
            for attachment in self.attachments.values()
            if int(attachment.id, 16) % COLLECT_PARTS == part
            and identity(attachment.netns) != attachment.netns_id
            and not self._busy(attachment)
        ]
        # Side by side, for most of a removal is waiting for the kernel.
        await asyncio.gather(*(self._try_remove(one, "namespace gone") for one in gone))
        found = self._state.ids()
        vanished = self.attachments.keys() - found - self._turns.keys()
        for attachment_id in vanished:
            self._forget(attachment_id)
        for attachment_id in vanished:
            await self._blocking(self._released, attachment_id)
        for attachment_id in found - self.attachments.keys() - self._turns.keys():
            await self._discover(attachment_id)

    def _busy(self, attachment: Attachment) -> bool:
        """Tell whether something is being done with `attachment`, or was while others were."""
        return attachment.id in self._turns or self.attachments.get(attachment.id) is not attachment

    async def _discover(self, attachment_id: str) -> None:
        """Adopt the executable's own ADD, made while this daemon did not answer."""
        async with self._only(attachment_id):
            attachment = await self._blocking(self._state.get, attachment_id)
            if attachment is None or attachment.phase != "ready":
                return
            if attachment_id in self.attachments:
                return  # an ADD had its turn first
            alive = await self._blocking(operations.alive, attachment)
            if alive:
                self.attachments[attachment_id] = attachment
                self._opened(attachment)
                self._journal.info("adopted", attachment=attachment_id, service=attachment.service)
        if not alive:
            await self._try_remove(attachment, "namespace gone")

    async def keep_alive(self) -> None:
        """Keep the mesh from forgetting silent replicas; runs until cancelled."""
        while True:
            await asyncio.sleep(KEEP_ALIVE_EVERY)
            for attachment in list(self.attachments.values()):
                try:
                    await self._blocking(frames.keep_alive, attachment.mac)
                except (NoctuleError, OSError) as error:
                    self._journal.warning("keep-alive", attachment=attachment.id, error=str(error))

    # --- how

    async def remove(self, attachment_id: str, why: str, seen: Attachment | None = None) -> None:
        """Withdraw and take down one attachment; nothing to do is success.

        With `seen`, only if no other has taken its place meanwhile.
        """
        async with self._only(attachment_id):
            began = time.monotonic()
            if seen is not None and self.attachments.get(attachment_id, seen) is not seen:
                return
            removed = await self._take_down(attachment_id, seen)
            if removed is not None:
                self._journal.info(
                    "detached",
                    attachment=attachment_id,
                    service=removed.service,
                    why=why,
                    duration_ms=round((time.monotonic() - began) * 1e3, 1),
                )

    async def _take_down(
        self, attachment_id: str, seen: Attachment | None = None
    ) -> Attachment | None:
        known = self._forget(attachment_id)
        gone = await self._blocking(self._detach, attachment_id, seen)
        await self._blocking(self._released, attachment_id)
        return known or gone

    async def _try_remove(self, seen: Attachment, why: str) -> None:
        try:
            await self.remove(seen.id, why, seen)
        except NoctuleError as error:
            self._journal.error("not removed", attachment=seen.id, error=error.message, why=why)

    def _forget(self, attachment_id: str) -> Attachment | None:
        known = self.attachments.pop(attachment_id, None)
        if known is not None:
            self._closed(known)
        return known

    def service_of(self, candidates: Iterable[Candidate]) -> str:
        """Return the first candidate that applies: an alias only if policy knows it."""
        policy = self._policy()
        for candidate in candidates:
            known = policy is not None and candidate.name in policy.services
            if candidate.origin == "alias" and not known:
                continue
            node = self._node().node
            if known and policy is not None and not policy.may_host(candidate.name, node):
                raise InvalidConfig(
                    f'service: policy does not let node "{node}" host "{candidate.name}"; '
                    f"add it to nodes and to services.{candidate.name}.nodes in policy.yaml"
                )
            return candidate.name
        raise InvalidConfig(
            'service: none given, and no alias is a service of the policy; set "service" in the '
            "network configuration, args.cni.service or NOCTULE_SERVICE in CNI_ARGS"
        )

    def _attach(self, wanted: AttachRequest) -> Attachment:
        with self._state.shared():
            return operations.attach(self._node(), self._state, wanted)

    def _detach(self, attachment_id: str, seen: Attachment | None) -> Attachment | None:
        with self._state.shared():
            if seen is not None and _replaced(seen, self._state.get(attachment_id)):
                return None
            return operations.detach(self._state, attachment_id)

    def _settled(self) -> list[Attachment]:
        """Return all attachments, none of them with an executable's work under way."""
        with self._state.shared():
            return self._state.all()

    async def _blocking(self, function: Callable[..., T], *arguments: object) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, function, *arguments)

    @asynccontextmanager
    async def _only(self, attachment_id: str) -> AsyncIterator[None]:
        """Do one thing at a time with one attachment."""
        lock, users = self._turns.get(attachment_id, (asyncio.Lock(), 0))
        self._turns[attachment_id] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._turns.pop(attachment_id)
            if users > 1:
                self._turns[attachment_id] = (lock, users - 1)


def _replaced(seen: Attachment, now: Attachment | None) -> bool:
    """Tell whether `now` was made after `seen`, under the same id (rule 6)."""
    return (
        now is not None
        and now.phase == "ready"
        and (now.netns_id, now.salt, now.phase) != (seen.netns_id, seen.salt, seen.phase)
    )
