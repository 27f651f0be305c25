"""What the daemon does with an attachment: ADD, DEL, CHECK, GC, and adopting it after a restart.

1. The state files say which attachments exist. The registry in memory follows them.
2. ADD first makes the attachment in the kernel, closed, and then opens it (`Opening`). It answers
   when this node's own kernel sets are in force and the neighbours have confirmed, or the time
   for them is over.
3. DEL withdraws the record before it touches the kernel, so that peers stop dialling first.
4. At its start the daemon takes down what a crash left half made, and adopts complete attachments
   without changing them.
5. A state file that cannot be read was written by another release, or is damaged. Its container
   may be in order, so neither its record nor anything of it in the kernel is changed. Only a DEL
   removes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import msgspec

from daemon.api.messages import AttachAnswer, GCRequest
from daemon.attachments.opening import Opening
from daemon.attachments.registry import Registry
from daemon.attachments.turns import Turns
from daemon.journal import Journal
from daemon.model.policy import Policy
from daemon.naming import NAME
from daemon.process.workers import Pool
from netconf import names
from netconf.attach import operations
from netconf.attach.attachment import Attachment, AttachRequest, Candidate, NodeNet
from netconf.attach.operations import host_interfaces
from netconf.attach.state import State
from netconf.errors import CheckFailure, InvalidConfig, NoctuleError


class Lifecycle:
    """Makes the attachments of this node and takes them down."""

    def __init__(
        self,
        node: Callable[[], NodeNet],
        state: State,
        pool: Pool,
        registry: Registry,
        turns: Turns,
        opening: Opening,
        *,
        policy: Callable[[], Policy | None],
        journal: Journal,
    ) -> None:
        self._node = node
        self._state = state
        self._pool = pool
        self._registry = registry
        self._turns = turns
        self._opening = opening
        self._policy = policy
        self._journal = journal

    # --- what the API asks

    async def attach(self, request: AttachRequest) -> AttachAnswer:
        """ADD. If it raises NoctuleError, nothing of the attachment is left."""
        began = time.monotonic()
        service = self.service_of(request.services)
        for field, name in (("name", request.network), ("service", service)):
            if NAME.fullmatch(name) is None:  # a record cannot carry it, so peers would stay closed
                raise InvalidConfig(
                    f'{field}: "{name}" cannot be used; use at most 64 letters, digits, "_", '
                    '"." and "-", a letter or digit first'
                )
        wanted = msgspec.structs.replace(request, service=service)
        attachment_id = request.id
        async with self._turns.only(attachment_id):
            made = await self._pool.run(self._attach, wanted)
            self._registry.add(made, fresh=True)
            built = time.monotonic()
            try:
                outcome = await self._opening.open(made)
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
        """DEL. Succeeds also if the attachment is not there. Raises NoctuleError."""
        await self.remove(request.id, "asked")

    async def undo(self, request: AttachRequest, answer: AttachAnswer) -> None:
        """Undo an ADD whose `answer` could not be delivered.

        A newer ADD of the same attachment has other addresses than `answer`, and is left alone.
        """
        attachment_id = request.id
        made = self._registry.get(attachment_id)
        if made is not None and self._node().addresses(made.address) == answer.addresses:
            await self.remove(made.id, "caller gone", made)

    async def check(self, request: AttachRequest) -> None:
        """CHECK. Raises CheckFailure naming what differs."""
        attachment_id = request.id
        await self._pool.run(operations.check, self._node(), self._state, attachment_id)
        known = self._registry.get(attachment_id)
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

        Goes on past failures, and then raises a NoctuleError that names them all.
        """
        wanted = {
            names.attachment_id(request.network, valid.container, valid.ifname)
            for valid in request.valid
        }
        failures: list[str] = []
        for attachment in await self._pool.run(self._state.all):
            if attachment.collectable(request.network, request.runtime, wanted):
                try:
                    await self.remove(attachment.id, "collected")
                except NoctuleError as error:
                    failures.append(f"{attachment.container}: {error.message}")
        if failures:
            raise NoctuleError("GC could not remove everything", details="; ".join(failures))

    async def adopt(self) -> None:
        """Adopt the complete attachments that a former daemon left, and take down the others."""
        for attachment in await self._pool.run(self._settled):
            if attachment.phase == "ready" and await self._pool.run(operations.alive, attachment):
                self._registry.add(attachment, fresh=False)
            elif attachment.phase == "unreadable":
                self.keep_opaque(attachment)
            else:
                await self.try_remove(attachment, "incomplete")

    def keep_opaque(self, attachment: Attachment) -> None:
        """Keep an attachment whose state file cannot be read, with its record (rule 5)."""
        if attachment.id not in self._registry.opaque:
            self._registry.opaque[attachment.id] = attachment
            self._journal.error(
                "state file unreadable",
                attachment=attachment.id,
                address=attachment.address,
                remedy="upgrade noctule on this node, or recreate the container",
            )

    # --- how

    async def remove(self, attachment_id: str, why: str, seen: Attachment | None = None) -> None:
        """Withdraw and take down one attachment; if it is not there, do nothing.

        With `seen`, only if no newer attachment has replaced it. `why` goes into the log.
        """
        async with self._turns.only(attachment_id):
            began = time.monotonic()
            if seen is not None and self._registry.get(attachment_id, seen) is not seen:
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
        known = self._registry.remove(attachment_id)
        try:
            gone = await self._pool.run(self._detach, attachment_id, seen)
        finally:
            # Also after a failure: open sockets would keep the namespace from ending.
            await self._registry.release(attachment_id)
        return known or gone

    async def try_remove(self, seen: Attachment, why: str) -> bool:
        """Take down the attachment `seen`, unless a newer one replaced it.

        Returns False, and logs why, if that failed.
        """
        try:
            await self.remove(seen.id, why, seen)
        except NoctuleError as error:
            self._journal.error("not removed", attachment=seen.id, error=error.message, why=why)
            return False
        return True

    def service_of(self, candidates: Iterable[Candidate]) -> str:
        """Return the name of the first candidate; an alias is skipped unless policy knows it.

        Raises InvalidConfig if there is none, or if policy does not let this node host it.
        """
        policy = self._policy()
        for candidate in candidates:
            known = policy is not None and policy.names(candidate.name)
            if candidate.origin == "alias" and not known:
                continue
            node = self._node().node
            named = policy is not None and candidate.name in policy.services
            if named and policy is not None and not policy.may_host(candidate.name, node):
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
        """Return all attachments, read while no executable is changing one of them."""
        with self._state.shared():
            return self._state.all()


def _replaced(seen: Attachment, now: Attachment | None) -> bool:
    """Tell whether `now` was made after `seen`, with the same id (``collector``, rule 3)."""
    return (
        now is not None
        and now.phase == "ready"
        and (now.netns_id, now.salt, now.phase) != (seen.netns_id, seen.salt, seen.phase)
    )
