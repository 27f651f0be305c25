"""Programs the plan into the kernel: it changes only what differs and never flushes anything.

1. A pass makes one plan, and starts a task for each attachment whose desired state differs. It
   waits for none of these tasks: an attachment that is slow or in trouble (``entry``) must not
   delay a grant or a revocation of another one.
2. All requests that come before a pass begins are served by that pass. So a burst of records costs
   one or two passes.
3. Host pairs are added before the attachments change that need them, and removed after those have
   changed that used them.
4. Nothing is changed during the hold (``hold``): this daemon may not know all that the former one
   knew, so it must cut nobody off; its policy may be older than its peers', so it must open
   nothing. After the hold, what the former daemon left is read back and corrected.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Iterable

import msgspec

from daemon.journal import Journal
from daemon.process.tasks import Tasks
from daemon.process.workers import Pool
from daemon.reconcile.entry import Entry
from daemon.reconcile.host_pairs import HostPairs, Pair
from daemon.reconcile.planning import Work
from netconf import keys
from netconf.attach.attachment import Attachment
from netconf.errors import NoctuleError, UnknownContainer
from netconf.nft import host
from netconf.program.desired import EMPTY, Desired
from netconf.program.programmer import Programmer

PASS_AGAIN = 5.0
"""Seconds after which a pass is repeated that failed as a whole, not for one attachment."""


SLOW_AFTER = 1.0
"""Seconds after which a change that still runs delays no answer but those to strict requests. As
long as another node waits for its Confirm at most (``daemon.cluster.exchange``)."""


class _Asked(msgspec.Struct):
    """A request for a pass whose result somebody waits for."""

    answer: asyncio.Future[bool]
    attachment: str | None = None
    """The result is about this attachment only; None for all."""
    strict: bool = False
    """Whether attachments that were in trouble before count too."""


class _Planned(msgspec.Struct):
    """What a pass has to remember until its tasks have ended."""

    version: int
    """Of the policy."""
    troubled: frozenset[str]
    """The attachments that were in trouble before the pass."""
    opaque: bool
    """Some attachments have a plan but cannot be programmed."""
    paired: bool = True
    """The host filter's pairs could be changed."""


class Reconciler:
    """Makes passes, and remembers what each attachment was last programmed with."""

    def __init__(
        self,
        plan: Callable[[], Work],
        pool: Pool,
        journal: Journal,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`plan` is called in the loop's thread at the start of each pass; `clock` returns
        seconds and never goes back."""
        self._plan = plan
        self._pool = pool
        self._journal = journal
        self._clock = clock
        self._tasks = Tasks(journal)
        self._entries: dict[str, Entry] = {}
        self._pairs = HostPairs()
        self._pairing = asyncio.Lock()
        """Held while the kernel's pairs are changed or read, so that what is remembered is true."""
        self._asked: list[_Asked] = []
        self._wanted = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._pass_again = 0.0
        """When to repeat a pass that failed as a whole, by the clock."""
        self.kernel = Programmer()
        self.hold = True
        self.policy_version = 0
        """The last version with which the kernel agreed for all attachments after a pass."""
        self.passed: Callable[[], None] = lambda: None
        """Called in the loop's thread whenever the tasks of a pass have ended."""

    # --- attachments come and go (daemon.attachments.registry.Subscriber)

    def added(self, attachment: Attachment, *, fresh: bool) -> None:
        """Program `attachment` from the next pass on."""
        self.kernel.admit(attachment.id)
        self._entries[attachment.id] = Entry(attachment, EMPTY if fresh else None)

    def removed(self, attachment: Attachment) -> None:
        """Stop programming `attachment`."""
        self._entries.pop(attachment.id, None)

    def changed(self, attachment: Attachment) -> None:
        """Replace an `attachment` whose IPv6 network changed: read it back and program it anew."""
        if (entry := self._entries.get(attachment.id)) is not None:
            entry.attachment, entry.programmed = attachment, None
            self.wake()

    async def released(self, attachment_id: str) -> None:
        """Close the sockets in the attachment's namespace, once a change under way has ended.

        If another attachment of that id was added meanwhile, its sockets replace the old ones.
        """
        if attachment_id not in self._entries:
            await self._pool.run(self.kernel.forget, attachment_id)

    def adopt_pairs(self, pairs: Iterable[Pair]) -> None:
        """Take over the host filter's pairs that a former daemon left in the kernel."""
        self._pairs.found(pairs)

    # --- passes

    def wake(self) -> None:
        """Have a pass made that takes all into account that is known now."""
        self._wanted.set()

    def request(self, *, strict: bool = False) -> asyncio.Future[bool]:
        """Have a pass made; the result tells whether the kernel then agrees with the plan.

        Attachments that were in trouble before do not count, unless `strict`.
        """
        return self._ask(_Asked(asyncio.get_running_loop().create_future(), strict=strict))

    def request_for(self, attachment_id: str) -> asyncio.Future[bool]:
        """Have a pass made; the result tells whether the kernel then agrees with its plan for
        this attachment, and comes without waiting for others."""
        asked = _Asked(asyncio.get_running_loop().create_future(), attachment_id)
        return self._ask(asked)

    def trouble(self) -> dict[str, str]:
        """Return the last error of each attachment that is in trouble, by attachment id."""
        return {name: entry.error for name, entry in self._entries.items() if entry.failures}

    async def run(self) -> None:
        """Make passes until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            asked, self._asked = self._asked, []
            try:
                await self._pass(asked)
            except Exception as error:  # a pass that dies must not end programming for good
                known = isinstance(error, NoctuleError)
                self._journal.error("pass failed", exc=None if known else error, error=str(error))
                _answer(asked, lambda _: False)
                self._pass_again = self._clock() + PASS_AGAIN
                self._arm()

    async def close(self) -> None:
        """Cancel all tasks; the kernel stays as it is."""
        if self._timer is not None:
            self._timer.cancel()
        await self._tasks.close()

    def _ask(self, asked: _Asked) -> asyncio.Future[bool]:
        self._asked.append(asked)
        self._wanted.set()
        return asked.answer

    async def _pass(self, asked: list[_Asked]) -> None:
        work = self._plan()
        for gone in self._pairs.known() - work.attachments.keys():
            self._pairs.forget(gone)
        for attachment in work.attachments.values():
            desired = work.desired.get(attachment.id, EMPTY)
            self._pairs.want(attachment.id, attachment.address, desired.peers)
            if (entry := self._entries.get(attachment.id)) is not None:
                entry.desired = desired
        planned = _Planned(
            version=work.policy_version,
            troubled=frozenset(self.trouble()),
            # Nothing can be programmed of an attachment whose state file cannot be read.
            opaque=bool(work.attachments.keys() - self._entries.keys()),
        )
        if not self.hold:
            # Without its pairs an attachment is closed, which must not delay what others lose.
            planned.paired = await self._change_pairs(self._pairs.lacking(), frozenset())
        for entry in self._entries.values():
            if entry.task is None and self._due(entry):
                name = f"program {entry.attachment.id}"
                entry.task = self._tasks.start(name, self._bring(entry))
        self._tasks.start("settle", self._settle(planned, asked))

    async def _settle(self, planned: _Planned, asked: list[_Asked]) -> None:
        """Remove surplus pairs and answer the requests, while and after the tasks of a pass run."""
        entries = list(self._entries.values())
        for one in asked:
            if one.attachment is not None:
                self._tasks.start("answer", self._answer_alone(one))
        together = [one for one in asked if one.attachment is None]
        try:
            running = [entry.task for entry in entries if entry.task is not None]
            planned.paired &= await self._remove_pairs()
            if running:
                await asyncio.wait(running, timeout=SLOW_AFTER)
                planned.paired &= await self._remove_pairs()
            slow = {entry.attachment.id for entry in entries if entry.task is not None}
            wrong = self._wrong(entries) - planned.troubled - slow
            _answer(
                [one for one in together if not one.strict], lambda _: not wrong and planned.paired
            )
            if still := [task for task in running if not task.done()]:
                await asyncio.wait(still)
                planned.paired &= await self._remove_pairs()
            held = self.hold and bool(entries)
            agreed = not self._wrong(entries) and not held and planned.paired
            if agreed and not planned.opaque:
                self.policy_version = planned.version
            _answer(together, lambda _: agreed and not planned.opaque)
        finally:
            _answer(together, lambda _: False)  # those that an exception left unanswered
        self.passed()

    def _wrong(self, entries: Iterable[Entry]) -> set[str]:
        return {e.attachment.id for e in entries if self._present(e) and not e.agrees}

    async def _answer_alone(self, asked: _Asked) -> None:
        entry = self._entries.get(asked.attachment or "")
        if entry is not None and entry.task is not None:
            await asyncio.wait([entry.task])
        _answer([asked], lambda _: entry is not None and entry.agrees)

    def _present(self, entry: Entry) -> bool:
        return self._entries.get(entry.attachment.id) is entry

    def _due(self, entry: Entry) -> bool:
        return not self.hold and self._present(entry) and entry.due(self._clock())

    async def _bring(self, entry: Entry) -> None:
        """Change one attachment until it is as desired, in trouble, or gone."""
        try:
            while self._due(entry):
                attachment, before, wanted = entry.attachment, entry.programmed, entry.desired
                try:
                    await self._pool.run(
                        self.kernel.apply,
                        attachment,
                        before,
                        wanted,
                        functools.partial(keys.read_key, attachment.key_file),
                    )
                except UnknownContainer:
                    entry.done(wanted)  # the collector takes it down; nothing can be programmed
                except Exception as error:  # whatever failed, other attachments must go on
                    self._fail(entry, wanted, error)
                else:
                    if entry.attachment is not attachment:
                        continue  # its IPv6 network changed meanwhile (`changed`)
                    if entry.done(wanted):
                        self._journal.info("attachment programmed again", attachment=attachment.id)
        finally:
            entry.task = None

    def _fail(self, entry: Entry, wanted: Desired, error: Exception) -> None:
        if not self._present(entry):
            return  # It was taken down meanwhile.
        known = isinstance(error, NoctuleError)
        if entry.failed(wanted, str(error), self._clock()):
            self._journal.error(
                "attachment not programmed",
                exc=None if known else error,
                attachment=entry.attachment.id,
                service=entry.attachment.service,
                error=str(error),
                details=error.details if isinstance(error, NoctuleError) else "",
                again_in_s=round(entry.retry_at - self._clock()),
            )
        self._arm()

    def _arm(self) -> None:
        """Set the one timer to the earliest time at which something is to be tried again."""
        now = self._clock()
        times = [entry.retry_at for entry in self._entries.values() if entry.failures]
        due = [when for when in (*times, self._pass_again) if when > now]
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due:
            self._timer = asyncio.get_running_loop().call_later(min(due) - now, self._retry)

    def _retry(self) -> None:
        self._timer = None
        self._arm()
        self.wake()

    # --- host pairs

    async def _remove_pairs(self) -> bool:
        """Remove the pairs that nobody needs, except those of attachments not yet as desired.

        Returns False, as `_change_pairs` does, if that failed.
        """
        if self.hold:
            return True
        busy = {entry.attachment.mac for entry in self._entries.values() if not entry.agrees}
        return await self._change_pairs(frozenset(), self._pairs.surplus(busy))

    async def _change_pairs(self, new: frozenset[Pair], gone: frozenset[Pair]) -> bool:
        """Add and remove pairs; log a failure, try again later, and return False."""
        if not new and not gone:
            return True
        try:
            async with self._pairing:
                # Another change, or an audit, may have come first.
                new, gone = new & self._pairs.lacking(), gone & self._pairs.surplus()
                if new or gone:
                    await self._pool.run(host.change_pairs, new, gone)
                    self._pairs.changed(new, gone)
        except NoctuleError as error:
            self._journal.error("pairs not changed", error=error.message, details=error.details)
            self._pass_again = self._clock() + PASS_AGAIN
            self._arm()
            return False
        return True

    # --- what audits ask

    def programmed(self, attachment_id: str) -> Desired | None:
        """Return what an attachment was last programmed with; None if that is not known or is just
        being changed."""
        entry = self._entries.get(attachment_id)
        return entry.programmed if entry is not None and entry.task is None else None

    def distrust(self, attachment_id: str, programmed: Desired | None) -> bool:
        """Have the next pass read an attachment back, because the kernel differs from `programmed`.

        One in trouble (`programmed` None) is tried again in that pass: what was mended may have
        been the reason. Returns False if the attachment has been programmed otherwise meanwhile;
        the difference then proves nothing.
        """
        entry = self._entries.get(attachment_id)
        if entry is None or entry.task is not None or entry.programmed != programmed:
            return False
        entry.programmed, entry.retry_at = None, 0.0
        return True

    def knows(self, attachment_id: str) -> bool:
        """Tell whether an attachment is there and not being taken down."""
        return attachment_id in self._entries

    async def compare_pairs(self) -> tuple[frozenset[Pair], frozenset[Pair]]:
        """Read the host filter's pairs; return those that are missing, and those in excess."""
        async with self._pairing:
            differing = self._pairs.found(await self._pool.run(host.pairs))
            surplus = frozenset(pair for pair in differing if self._pairs.holds(pair))
        return differing - surplus, surplus


def _answer(asked: Iterable[_Asked], result: Callable[[_Asked], bool]) -> None:
    for one in asked:
        if not one.answer.done():
            one.answer.set_result(result(one))
