"""From the plan to the kernel: one pass at a time, only differences, never a flush.

1. A pass plans once and then changes each attachment whose view differs; attachments are
   independent of each other and are changed side by side, in worker threads.
2. Whatever asks for a pass while one runs gets the next one: a burst of a hundred records
   costs two passes.
3. Grant before use: host pairs are added before the attachments change and removed after.
4. What a predecessor left is not touched while `hold` lasts: a daemon that does not yet know
   what its predecessor knew must cut nobody off. After that it is read back and corrected.
5. A change that fails is logged, and made again a little later from what the kernel says.
   An audit also puts back tables that somebody removed by hand.
6. An audit runs beside passes. What one of them is changing just then proves nothing.
7. A round of the standing audit reads back `AUDIT_AT_ONCE` attachments in turn, and each whose
   nftables somebody else has changed since (the kernel counts): so a thousand attachments
   cost little more than fifty.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Set
from concurrent.futures import Executor
from typing import TypeVar

import msgspec

from daemon.journal import Journal
from daemon.reconcile.host_pairs import HostPairs, Pair
from netconf import keys
from netconf.attach.attachment import Attachment
from netconf.errors import KernelFailure, NoctuleError, UnknownContainer
from netconf.namespace import Namespace
from netconf.nft import host, ruleset
from netconf.program import actual, programmer
from netconf.program.desired import EMPTY, Desired

T = TypeVar("T")

RETRY_AFTER = 5.0
"""Seconds until what could not be programmed is tried again: a secret may have come back."""

AUDIT_AT_ONCE = 50
"""Attachments; reading one back takes some milliseconds of processor time."""


class Work(msgspec.Struct):
    """What one pass is to bring about."""

    attachments: Mapping[str, Attachment]
    views: Mapping[str, Desired]
    policy_version: int


class Reconciler:
    """Knows what the kernel was last told, and tells it the rest."""

    def __init__(
        self, plan: Callable[[], Work], vips: str, executor: Executor, journal: Journal
    ) -> None:
        """`plan` is called in the loop's thread at the start of each pass; `vips` is the CIDR
        of the VIPs, for a ruleset that must be loaded again."""
        self._plan = plan
        self._vips = vips
        self._executor = executor
        self._journal = journal
        self._kernel = programmer.Programmer()
        self._programmed: dict[str, Desired | None] = {}
        """By attachment; None where only the kernel knows."""
        self._changing: set[str] = set()
        self._pairs = HostPairs()
        self._pairing = asyncio.Lock()
        """Held while the kernel's pairs change or are read: what is remembered is then true."""
        self._turn = 0
        """Where the next round of the standing audit begins."""
        self._waiting: list[asyncio.Future[bool]] = []
        self._wanted = asyncio.Event()
        self.hold = True
        self.policy_version = 0
        """The version that every local set agreed with after the last pass."""
        self.passed: Callable[[], None] = lambda: None
        """Called after each pass, in the loop's thread."""

    def adopt(self, attachments: Iterable[str], pairs: Iterable[Pair]) -> None:
        """Take over from a predecessor: these attachments, and the host filter's pairs."""
        self._programmed = dict.fromkeys(attachments)
        self._pairs.found(pairs)

    def request(self) -> asyncio.Future[bool]:
        """Ask for a pass; the result comes when one that began later has ended: whether all
        that it planned is in the kernel."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._wanted.set()
        return future

    def introduce(self, attachment: str) -> None:
        """`attachment` was just made: its sets are empty."""
        self._programmed[attachment] = EMPTY

    def forget(self, attachment: str) -> None:
        """`attachment` is going: nothing of it is to be changed any more."""
        self._programmed.pop(attachment, None)

    def release(self, attachment: str) -> None:
        """`attachment` is gone: let go of its namespace. Waits for a change under way."""
        self._kernel.forget(attachment)

    def close(self) -> None:
        """Let go of all namespaces; the kernel stays as it is."""
        self._kernel.close()

    async def run(self) -> None:
        """Do passes until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            waiting, self._waiting = self._waiting, []
            agreed = False
            try:
                agreed = await self._pass()
            except NoctuleError as error:
                self._journal.error("pass failed", error=error.message, details=error.details)
            except Exception as error:  # a pass that dies must not end programming for good
                self._journal.error("pass failed", exc=error)
            for future in waiting:
                if not future.done():
                    future.set_result(agreed)
            self.passed()
            if not agreed:
                asyncio.get_running_loop().call_later(RETRY_AFTER, self._wanted.set)

    async def _pass(self) -> bool:
        work = self._plan()
        changes = []
        held = False
        for gone in self._pairs.known() - work.attachments.keys():
            self._pairs.forget(gone)
        for attachment in work.attachments.values():
            old = self._programmed.get(attachment.id)
            new = work.views.get(attachment.id, EMPTY)
            self._pairs.want(attachment.id, attachment.address, new.peers)
            if old is None and self.hold:
                held = True
            elif new is not old and new != old:
                changes.append((attachment, old, new))
        await self._change_pairs()
        done = await asyncio.gather(*(self._change(*change) for change in changes))
        if not self.hold:
            # A pair whose attachment could not be changed yet is still in use.
            busy = {a.mac for (a, _, _), agreed in zip(changes, done, strict=True) if not agreed}
            await self._change_pairs(busy)
        if all(done) and not self.hold:
            self.policy_version = work.policy_version
        return all(done) and not held

    async def _change_pairs(self, busy: Set[str] | None = None) -> None:
        """Allow what is lacking; or forbid what is too much, but for the MACs in `busy`."""
        async with self._pairing:
            new = self._pairs.lacking() if busy is None else frozenset()
            gone = self._pairs.surplus(busy) if busy is not None else frozenset()
            if new or gone:
                await self._blocking(host.change_pairs, new, gone)
                self._pairs.changed(new, gone)

    async def _change(self, attachment: Attachment, old: Desired | None, new: Desired) -> bool:
        """Change one attachment; False when it is to be tried again."""
        self._changing.add(attachment.id)
        try:
            await self._blocking(
                self._kernel.apply, attachment, old, new, lambda: keys.read_key(attachment.key_file)
            )
        except UnknownContainer:
            return True  # The collector takes it down; there is nothing to program.
        except Exception as error:  # whatever it is, the others' changes go on
            if attachment.id not in self._programmed:
                return True  # It was taken down meanwhile.
            self._programmed[attachment.id] = None
            known = isinstance(error, NoctuleError)
            self._journal.error(
                "attachment not programmed",
                exc=None if known else error,
                attachment=attachment.id,
                service=attachment.service,
                error=str(error),
                details=error.details if isinstance(error, NoctuleError) else "",
            )
            return False
        finally:
            self._changing.discard(attachment.id)
        if attachment.id in self._programmed:
            self._programmed[attachment.id] = new
        return True

    async def audit_round(self, attachments: Iterable[Attachment]) -> list[str]:
        """Do one round of the standing audit (rule 7); return the differences."""
        present = sorted(attachments, key=lambda attachment: attachment.id)
        if self._turn >= len(present):
            self._turn = 0
        turn = present[self._turn : self._turn + AUDIT_AT_ONCE]
        self._turn += AUDIT_AT_ONCE
        changed = await self._blocking(self._disturbed, present)
        return await self.audit(present, {a.id: a for a in (*turn, *changed)}.values())

    def _disturbed(self, attachments: Iterable[Attachment]) -> list[Attachment]:
        """Return those whose nftables changed since they were last programmed or read."""
        found = []
        for attachment in attachments:
            try:
                if self._kernel.disturbed(attachment):
                    found.append(attachment)
            except UnknownContainer:
                continue  # the collector takes it down
            except KernelFailure:
                found.append(attachment)
        return found

    async def audit(
        self, attachments: Iterable[Attachment], due: Iterable[Attachment] | None = None
    ) -> list[str]:
        """Read the kernel back; return the differences, and have the next pass mend them.

        All of the host filter, and of the containers those that are `due`, by default all.
        """
        attachments = list(attachments)
        found = await self._blocking(self._restore_host, attachments)
        for attachment in attachments if due is None else due:
            view = self._programmed.get(attachment.id)
            if view is None:
                continue
            said = await self._blocking(self._compare, attachment, view)
            if attachment.id in self._changing:
                continue
            # A pass that changed it meanwhile has answered the question already.
            if said and self._programmed.get(attachment.id) is view:
                self._programmed[attachment.id] = None
                found.extend(f"{attachment.id} ({attachment.service}): {one}" for one in said)
        async with self._pairing:
            differing = self._pairs.found(await self._blocking(host.pairs))
            surplus = {pair for pair in differing if self._pairs.holds(pair)}
        found.extend(
            f"host filter: pair {sender} → {receiver} "
            + ("should not be there" if (sender, receiver) in surplus else "is missing")
            for sender, receiver in sorted(differing)
        )
        if found or None in self._programmed.values():
            self.request()
        return found

    async def outdated(self, attachments: Iterable[Attachment], ula: str) -> list[str]:
        """Say which containers were made otherwise than today's would be.

        They stay as they are, and what they have is programmed: their rulesets cannot be
        replaced without cutting their flows.
        """
        return await self._blocking(
            lambda: [said for made in attachments for said in _outdated(made, ula)]
        )

    def _compare(self, attachment: Attachment, view: Desired) -> list[str]:
        try:
            found = self._kernel.observe(attachment)
            return actual.differences(found, view, attachment.ula)
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
            if port in present or attachment.id not in self._programmed:
                continue
            host.add_port(*port)
            # Whoever detaches says so (`forget`) before the kernel is touched: either we see it
            # here, or its own removal of the port is yet to come.
            if attachment.id not in self._programmed:
                host.del_port(*port)
            else:
                found.append(f"host filter: port {attachment.vh} is missing")
        return found

    def _restore(self, attachment: Attachment) -> list[str]:
        """Load a container's ruleset again if it is gone."""
        with Namespace.open(attachment.netns) as namespace:
            if ruleset.container_present(namespace):
                return []
            ruleset.load_container(namespace, self._vips, attachment.ula)
        return ["table inet noctule is missing"]

    async def _blocking(self, function: Callable[..., T], *arguments: object) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, function, *arguments)


def _outdated(attachment: Attachment, ula: str) -> list[str]:
    said = []
    try:
        with Namespace.open(attachment.netns) as namespace:
            if not ruleset.container_current(namespace):
                said.append("its ruleset is of another version")
    except NoctuleError:
        return []  # it is going, or the audit says what is wrong with it
    if attachment.ula != ula:
        said.append(f"addresses.ula was {attachment.ula or 'absent'} and is {ula or 'absent'}")
    where = f"{attachment.id} ({attachment.service})"
    return [f"{where}: {one}; recreate the container" for one in said]
