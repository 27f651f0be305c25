"""Audits: read the kernel back, compare it with what was programmed, and mend what differs.

1. Each difference is reported in a sentence. The audit itself sets links and tables right, while
   traffic passes; where a person is needed the sentence says so. The next pass mends the rest.
2. An audit runs beside passes. So a difference in an attachment that a pass is changing at the same
   time is not reported.
3. A round of the standing audit reads back the next `AUDIT_AT_ONCE` attachments, and each
   attachment whose nftables somebody else has changed since (the kernel counts changes). So a
   round over a thousand attachments costs little more than one over fifty.
4. Whatever fails at one attachment is a difference of that attachment: containers may make their
   namespaces unreadable, and all others are compared and mended all the same.
5. An attachment that could not be programmed gets its ruleset compared and mended too: what is in
   its sets may be the reason. It is then programmed again at once.
6. Once the hold has ended, each container whose ruleset another release made gets the present
   ruleset, and each that was attached before ``addresses.ula`` was set gets an IPv6 address. What
   fails is tried again by each round of the standing audit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import msgspec

from daemon.attachments.registry import Registry
from daemon.journal import Journal
from daemon.process.workers import Pool
from daemon.reconcile.reconciler import Reconciler
from netconf.attach import host_ports, readdress
from netconf.attach.attachment import Attachment, NodeNet
from netconf.attach.state import State
from netconf.errors import NoctuleError, UnknownContainer
from netconf.nft import host
from netconf.program import actual
from netconf.program.desired import Desired

LOOK_EVERY = 1.0
"""Seconds between looks at whether the hold has ended."""
AUDIT_EVERY = 30.0
"""Seconds between rounds of the standing audit."""
AUDIT_AT_ONCE = 50
"""Attachments; reading one back takes some milliseconds of processor time."""


class Audit:
    """Compares what the reconciler has programmed with what the kernel has."""

    def __init__(
        self,
        registry: Registry,
        reconciler: Reconciler,
        pool: Pool,
        state: State,
        net: Callable[[], NodeNet],
        mend: Callable[[Iterable[Attachment]], list[str]],
        journal: Journal,
    ) -> None:
        """`net` returns what attachments need to know of this node; the mesh must be up. `mend`
        sets the links of attachments right and returns what differed; it is called in a worker
        thread."""
        self._registry = registry
        self._reconciler = reconciler
        self._pool = pool
        self._state = state
        self._net = net
        self._mend = mend
        self._journal = journal
        self._turn = 0
        """Where the next round of the standing audit begins."""
        self._behind: dict[str, str] = {}
        """Why an attachment could not be brought up to date (rule 6), by its id."""

    async def watch(self) -> None:
        """Do round after round, and log what differs; runs until cancelled."""
        while self._reconciler.hold:
            await asyncio.sleep(LOOK_EVERY)
        await self.upgrade()
        while True:
            await asyncio.sleep(AUDIT_EVERY)
            try:
                for difference in await self.round():
                    self._journal.warning("drift", difference=difference)
            except NoctuleError as error:
                self._journal.error("audit", error=error.message, details=error.details)
            except Exception as error:  # a round that dies must not end auditing for good
                self._journal.error("audit", exc=error, error=str(error))

    async def round(self) -> list[str]:
        """Do one round of the standing audit (rules 3 and 6); return the differences."""
        behind = [made for made in self._registry.values() if made.id in self._behind]
        self._behind = {made.id: self._behind[made.id] for made in behind}
        await self._bring_up_to_date(behind)
        present = sorted(self._registry.values(), key=lambda attachment: attachment.id)
        if self._turn >= len(present):
            self._turn = 0
        turn = present[self._turn : self._turn + AUDIT_AT_ONCE]
        self._turn += AUDIT_AT_ONCE
        changed = await self._pool.run(self._disturbed, present)
        return await self._of({a.id: a for a in (*turn, *changed)}.values())

    async def full(self) -> list[str]:
        """Audit all attachments; return the differences."""
        return await self._of(list(self._registry.values()))

    async def upgrade(self) -> None:
        """Bring each attachment up to date (rule 6), and log it."""
        await self._bring_up_to_date(list(self._registry.values()))
        for one in self.outdated():
            self._journal.warning("outdated", attachment=one)

    async def _bring_up_to_date(self, attachments: Iterable[Attachment]) -> None:
        """Do that one after the other; log each failure once."""
        for attachment in attachments:
            if attachment.id not in self._registry:
                continue
            programmed = self._reconciler.programmed(attachment.id)
            try:
                made, said = await self._pool.run(self._upgrade, attachment)
            except UnknownContainer:
                self._behind.pop(attachment.id, None)
                continue  # the collector takes it down
            except Exception as error:  # rule 4
                if self._behind.get(attachment.id) == str(error):
                    continue
                self._behind[attachment.id] = str(error)
                self._journal.error(
                    "ruleset not replaced",
                    exc=None if isinstance(error, NoctuleError) else error,
                    attachment=attachment.id,
                    service=attachment.service,
                    error=str(error),
                    details=error.details if isinstance(error, NoctuleError) else "",
                )
                continue
            self._behind.pop(attachment.id, None)
            if made != attachment:
                self._registry.update(made)
                self._reconciler.changed(made)
                self._journal.info(
                    "IPv6 network added", attachment=made.id, service=made.service, ula=made.ula
                )
            if said:
                self._journal.info(
                    "ruleset replaced",
                    attachment=attachment.id,
                    service=attachment.service,
                    was="; ".join(said),
                )
                # The new ruleset may have sets that the old one lacked: the next pass fills them.
                if programmed is not None and self._reconciler.distrust(attachment.id, programmed):
                    self._reconciler.wake()

    def outdated(self) -> list[str]:
        """Return sentences about containers that have another IPv6 network than the node, and about
        those whose state file cannot be read. Only recreating them mends either."""
        ula = self._net().ula
        opaque = [
            f"{one.id} ({one.address}): its state file cannot be read, so nothing in the container "
            "follows policy; upgrade noctule on this node, or recreate the container"
            for one in self._registry.opaque.values()
        ]
        return opaque + [
            f"{made.id} ({made.service}): addresses.ula was {made.ula or 'absent'} and is "
            f"{ula or 'absent'}; recreate the container"
            for made in self._registry.values()
            if made.ula != ula
        ]

    async def _of(self, due: Iterable[Attachment]) -> list[str]:
        """Audit the host filter, and the attachments that are `due`."""
        found = await self._pool.run(self._restore_host, list(self._registry.values()))
        for attachment in due:
            # Links come first: one that was down has lost its neighbour entries, which are compared
            # with the keys and sets below.
            try:
                found += await self._pool.run(self._mend, [attachment])
            except Exception as error:  # rule 4
                found.append(self._failed(attachment, "its links were not compared", error))
            programmed = self._reconciler.programmed(attachment.id)
            if programmed is None and attachment.id not in self._reconciler.trouble():
                continue
            said = await self._pool.run(self._compare, attachment, programmed)
            if said and self._reconciler.distrust(attachment.id, programmed):
                found.extend(f"{attachment.id} ({attachment.service}): {one}" for one in said)
        missing, surplus = await self._reconciler.compare_pairs()
        for pairs, what in ((missing, "is missing"), (surplus, "should not be there")):
            found += [f"host filter: pair {one} → {other} {what}" for one, other in sorted(pairs)]
        if found:
            self._reconciler.wake()
        return found

    def _failed(self, attachment: Attachment, what: str, error: Exception) -> str:
        """Return the difference that `error` is (rule 4)."""
        if not isinstance(error, NoctuleError):
            self._journal.error("audit", exc=error, attachment=attachment.id, error=str(error))
        return f"{attachment.id} ({attachment.service}): {what}: {error!s}"

    # --- in a worker thread

    def _upgrade(self, attachment: Attachment) -> tuple[Attachment, list[str]]:
        """Return the attachment as it is now, and what was wrong with its ruleset."""
        net = self._net()
        if attachment.ula or not net.ula:
            return attachment, self._reconciler.kernel.mend(attachment, net.vips)
        # Change the ruleset before the addresses, so that no address is there without its rules.
        said = self._reconciler.kernel.mend(_with_ula(attachment, net), net.vips)
        return readdress.add_ipv6(net, self._state, attachment.id) or attachment, said

    def _disturbed(self, attachments: Iterable[Attachment]) -> list[Attachment]:
        """Return the attachments whose nftables changed since last programmed or read back."""
        found = []
        for attachment in attachments:
            try:
                if self._reconciler.kernel.disturbed(attachment):
                    found.append(attachment)
            except UnknownContainer:
                continue  # the collector takes it down
            except Exception:  # rule 4; comparing it tells why
                found.append(attachment)
        return found

    def _compare(self, attachment: Attachment, programmed: Desired | None) -> list[str]:
        """Mend the ruleset, and compare the rest with `programmed`, unless that is not known."""
        kernel, net = self._reconciler.kernel, self._net()
        # One that is to get an IPv6 address keeps the ruleset for it.
        behind = attachment.id in self._behind
        try:
            if said := kernel.mend(_with_ula(attachment, net) if behind else attachment, net.vips):
                return said
            if programmed is None:
                return []
            return actual.differences(kernel.observe(attachment), programmed, attachment.ula)
        except UnknownContainer:
            return []
        except Exception as error:  # rule 4
            if programmed is None:
                return []  # the attachment is in trouble, and that is told already
            if isinstance(error, NoctuleError):
                return [error.message]
            self._journal.error("audit", exc=error, attachment=attachment.id, error=str(error))
            return [f"not compared: {error!r}"]

    def _restore_host(self, attachments: Iterable[Attachment]) -> list[str]:
        """Mend the host filter except for its pairs; return sentences about what was wrong."""
        found = host_ports.mend_filter(self._state) + host_ports.close_surplus(self._state)
        present = host.ports()
        for attachment in attachments:
            port = (attachment.vh, attachment.mac)
            if port in present or not self._reconciler.knows(attachment.id):
                continue
            host.add_port(*port)
            # Do not re-add the port of an attachment that is being detached. A DEL removes the
            # attachment from the registry before it touches the kernel: either that is seen
            # here, or its own removal of the port is yet to come.
            if self._reconciler.knows(attachment.id):
                found.append(f"host filter: port {attachment.vh} is missing")
            else:
                host.del_port(*port)
        return found


def _with_ula(attachment: Attachment, net: NodeNet) -> Attachment:
    """Return the attachment as it is once it has its part of the node's IPv6 network."""
    return msgspec.structs.replace(attachment, ula=attachment.ula or net.ula)
