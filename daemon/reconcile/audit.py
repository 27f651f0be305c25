"""Reading the kernel back and comparing it with what it was told.

1. Each difference is reported in a sentence. Tables that somebody removed are loaded again here;
   the next pass mends the rest.
2. An audit runs beside passes. What one of them is changing just then proves nothing.
3. A round of the standing audit reads back `AUDIT_AT_ONCE` attachments in turn, and each whose
   nftables somebody else has changed since (the kernel counts): so a thousand attachments cost
   little more than fifty.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from daemon.attachments.registry import Registry
from daemon.journal import Journal
from daemon.reconcile.reconciler import Reconciler
from daemon.workers import Pool
from netconf.attach.attachment import Attachment
from netconf.errors import KernelFailure, NoctuleError, UnknownContainer
from netconf.namespace import Namespace
from netconf.nft import host, ruleset
from netconf.program import actual
from netconf.program.desired import Desired

AUDIT_EVERY = 30.0
"""Seconds between rounds of the standing audit."""
AUDIT_AT_ONCE = 50
"""Attachments; reading one back takes some milliseconds of processor time."""


class Audit:
    """Compares what the reconciler believes with what the kernel has."""

    def __init__(
        self,
        registry: Registry,
        reconciler: Reconciler,
        pool: Pool,
        vips: str,
        ula: str,
        journal: Journal,
    ) -> None:
        """`vips` is the CIDR of the VIPs, for a ruleset that must be loaded again; `ula` that of
        the IPv6 network, or empty."""
        self._registry = registry
        self._reconciler = reconciler
        self._pool = pool
        self._vips = vips
        self._ula = ula
        self._journal = journal
        self._turn = 0
        """Where the next round of the standing audit begins."""

    async def watch(self) -> None:
        """Do round after round, and log what differs; runs until cancelled."""
        while True:
            await asyncio.sleep(AUDIT_EVERY)
            try:
                for difference in await self.round():
                    self._journal.warning("drift", difference=difference)
            except NoctuleError as error:
                self._journal.error("audit", error=error.message, details=error.details)

    async def round(self) -> list[str]:
        """Do one round of the standing audit (rule 3); return the differences."""
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

    async def outdated(self) -> list[str]:
        """Say which containers were made otherwise than today's would be.

        They stay as they are, and what they have is programmed: their rulesets cannot be
        replaced without cutting their flows.
        """
        return await self._pool.run(
            lambda: [
                said
                for made in list(self._registry.values())
                for said in _outdated(made, self._vips, self._ula)
            ]
        )

    async def _of(self, due: Iterable[Attachment]) -> list[str]:
        """Audit the host filter, and the attachments that are `due`."""
        found = await self._pool.run(self._restore_host, list(self._registry.values()))
        for attachment in due:
            programmed = self._reconciler.programmed(attachment.id)
            if programmed is None:
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

    # --- in a worker thread

    def _disturbed(self, attachments: Iterable[Attachment]) -> list[Attachment]:
        """Return those whose nftables changed since they were last programmed or read."""
        found = []
        for attachment in attachments:
            try:
                if self._reconciler.kernel.disturbed(attachment):
                    found.append(attachment)
            except UnknownContainer:
                continue  # the collector takes it down
            except KernelFailure:
                found.append(attachment)
        return found

    def _compare(self, attachment: Attachment, programmed: Desired) -> list[str]:
        try:
            found = self._reconciler.kernel.observe(attachment)
            return actual.differences(found, programmed, attachment.ula)
        except UnknownContainer:
            return []
        except KernelFailure as error:
            try:
                return self._restore(attachment) or [error.message]
            except UnknownContainer:
                return []

    def _restore_host(self, attachments: Iterable[Attachment]) -> list[str]:
        """Put back what is missing of the host filter, its pairs excepted; say what was."""
        ruleset.ensure_host()
        present = host.ports()
        found = []
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

    def _restore(self, attachment: Attachment) -> list[str]:
        """Load a container's ruleset again if it is gone."""
        with Namespace.open(attachment.netns) as namespace:
            if ruleset.container_present(namespace):
                return []
            ruleset.load_container(namespace, self._vips, attachment.ula)
        return ["table inet noctule is missing"]


def _outdated(attachment: Attachment, vips: str, ula: str) -> list[str]:
    said = []
    try:
        with Namespace.open(attachment.netns) as namespace:
            if not ruleset.container_current(namespace, vips, attachment.ula):
                said.append("its ruleset is of another version")
    except NoctuleError:
        return []  # it is going, or the audit says what is wrong with it
    if attachment.ula != ula:
        said.append(f"addresses.ula was {attachment.ula or 'absent'} and is {ula or 'absent'}")
    where = f"{attachment.id} ({attachment.service})"
    return [f"{where}: {one}; recreate the container" for one in said]
