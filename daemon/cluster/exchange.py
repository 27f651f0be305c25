"""Records in and out: hearing other nodes, answering them, and asking for what was missed.

1. Records are offered to the store, which alone judges them and tells whoever subscribed.
2. A node that appears is asked for everything (`Sync`), and for what its manifest names and is
   not here, its own records and the policy alike: whatever was lost is found by that, whatever
   lost it. When and how often a peer is asked is decided by ``daemon.cluster.asking``.
   A node of release 0.1.0 neither says which policy it holds nor reads that of others: each
   policy is brought to it once, until it has answered.
3. `Confirm` brings a record and is answered when this node's kernel agrees with it, or, with
   `LATE`, when that takes too long or fails.
4. An answer is judged in slices, so that a long one holds nobody else up.
5. Who asks too often is refused, and whose records are refused is logged, both by name; a name
   in a question is the asker's own word, since the fabric does not tell who asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from daemon.cluster.asking import Asking, Reason
from daemon.cluster.confirmation import BELIEVED, LATE, Confirmation, read
from daemon.cluster.freshness import Freshness
from daemon.cluster.publisher import Publisher
from daemon.cluster.quotas import Complaints, Quotas
from daemon.fabric.interface import Fabric, FabricError
from daemon.journal import Journal
from daemon.liveness.liveness import Liveness
from daemon.model import records
from daemon.model.store import HARMLESS, Outcome, Store, Verdict, ranked
from daemon.process.tasks import Tasks
from netconf.errors import DecodeFailure, TryAgain

SYNC_WITHIN = 5.0
"""Seconds for a whole Sync; a thousand records take well under one."""
UNKNOWN_QUESTION = "unknown question"
"""The outcome in the answer to what is no question here."""
CONFIRM_WITHIN = 1.0
"""Seconds after which a Confirm is answered without waiting for the kernel any longer."""
SLICE = 16
"""Records judged before the loop may do something else; each takes a tenth of a millisecond."""
KEYS_MAX = 400
"""Keys that one question names; their longest form is 110 bytes. Above, everything is asked."""
SYNCS = (8, 1.0)
"""Syncs that one asker may send at once, and seconds for one more: four times what an honest
one needs (``daemon.cluster.asking``)."""
CONFIRMS = (256, 0.01)
"""Confirms likewise: a node brings one for each container it attaches."""


class Program(Protocol):
    """Asks for a pass (`daemon.reconcile.reconciler.Reconciler.request`)."""

    def __call__(self, *, strict: bool = False) -> asyncio.Future[bool]:
        """Return whether the kernel agrees with all that was known when the pass began; without
        `strict`, attachments that were in trouble before do not count."""


class Exchange:
    """The listener of the fabric."""

    def __init__(
        self,
        node: str,
        store: Store,
        fabric: Fabric,
        publisher: Publisher,
        liveness: Liveness,
        *,
        program: Program,
        journal: Journal,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`node` is this one; `clock` returns the seconds since the epoch by which certificates
        are judged."""
        self._node = node
        self._store = store
        self._fabric = fabric
        self._publisher = publisher
        self._liveness = liveness
        self._program = program
        self._journal = journal
        self._clock = clock
        self._tasks = Tasks(journal)
        self._asking: dict[str, Asking] = {}
        self._woken: dict[str, asyncio.Event] = {}
        """By peer that is asked: there is another reason, which need not wait as long."""
        self._brought: dict[str, bytes] = {}
        """The policy that was last brought to a node which does not say what it holds."""
        self._complaints = Complaints()
        self._syncs = Quotas(*SYNCS)
        self._confirms = Quotas(*CONFIRMS)
        self.freshness = Freshness(self._now)
        """Whether anything may be opened yet."""
        self.heard: set[str] = set()
        """Nodes that answered a `Sync` since this daemon started."""

    # --- the listener's part

    def on_record(self, key: str, value: bytes) -> None:
        """Offer what was published."""
        speaker = self._store.keys.owner(key)
        verdict = self.offer(value, speaker)
        # A record may overtake the info whose (new) certificate it needs.
        if verdict.outcome in (Outcome.UNKNOWN_SIGNER, Outcome.BAD_SIGNATURE):
            if verdict.node == speaker:
                self._ask(speaker, Reason.PUZZLING)
        elif verdict.key == self._store.keys.manifest(verdict.node):
            self._ask(verdict.node)
            self._bring(verdict.node)

    def on_alive(self, node: str, alive: bool) -> None:
        """Note that a token came or went."""
        if alive:
            self._liveness.appeared(node)
            self._ask(node, Reason.OWED)
        else:
            self._liveness.vanished(node)

    def on_returned(self, node: str) -> None:
        """What `node` published while the link was being replaced may be lost."""
        self._ask(node, Reason.RETURNED)

    async def on_ask(self, question: bytes) -> list[bytes]:
        """Answer `Sync` with all that is ours and the policy, `Reach` with what liveness knows,
        `Confirm` when programmed.

        TryAgain for one question too many.
        """
        try:
            asked = records.decode_question(question)
        except DecodeFailure as error:  # A later release may ask what is not known here.
            return [records.encode_message(records.Ack(UNKNOWN_QUESTION, error.message))]
        if isinstance(asked, records.Sync):
            self._admit(self._syncs, asked.node)
            yours = self._store.highest(asked.node)
            envelopes = self._publisher.everything(asked.keys)
            return [records.encode_message(part) for part in records.parts(envelopes, yours)]
        if isinstance(asked, records.Reach):
            reached = self._liveness.reached(asked.nodes)
            return [records.encode_message(records.Reached(reached))]
        self._admit(self._confirms, self._owner(asked.envelope))
        return [records.encode_message(await self.accept(asked.envelope, CONFIRM_WITHIN))]

    # --- what the rest of the daemon asks

    def offer(self, envelope: bytes, speaker: str = "") -> Verdict:
        """Offer one record, which `speaker` brought, to the store; log it if it is refused."""
        verdict = self._store.offer(envelope, self._clock())
        if verdict.outcome not in HARMLESS:
            peer = speaker or verdict.node
            count = self._complaints.note(peer, verdict.outcome, time.monotonic())
            if count:
                self._journal.warning(
                    "records refused",
                    peer=peer,
                    count=count,
                    key=verdict.key,
                    outcome=verdict.outcome,
                    reason=verdict.reason,
                )
        if verdict.key == self._store.keys.manifest(verdict.node):
            self._hear_claim(verdict.node)
        return verdict

    async def accept(self, envelope: bytes, within: float) -> records.Ack:
        """Offer one record, and wait at most `within` seconds until the kernel agrees with it."""
        verdict = self.offer(envelope)
        if verdict.outcome not in BELIEVED:
            return self._ack(verdict)
        # A record that the publication brought first may still be on its way to the kernel.
        # A policy is in the kernel only where every attachment is as it says.
        strict = verdict.key == self._store.keys.policy
        done, _ = await asyncio.wait([self._program(strict=strict)], timeout=within)
        after = self.offer(envelope)
        if after.outcome not in BELIEVED:
            return self._ack(after)
        if not done:
            return records.Ack(LATE, f"its kernel does not agree after {within:g} s")
        if not any(future.result() for future in done):
            return records.Ack(LATE, "its kernel could not be changed; its log says why")
        return records.Ack(verdict.outcome.value)

    async def confirm(
        self, envelope: bytes, nodes: Iterable[str], within: float
    ) -> dict[str, Confirmation]:
        """Bring `envelope` to `nodes`, but for this one; return what each made of it.

        Whoever has not answered after `within` seconds is unreachable.
        """
        question = records.encode_message(records.Confirm(envelope))
        began = time.monotonic()

        async def one(node: str) -> Confirmation:
            if node not in self._liveness.alive:
                return Confirmation("unreachable", "its daemon is not there")
            try:
                replies = await self._fabric.ask(node, question, within)
                answers = [records.decode_answer(reply) for reply in replies]
            except (FabricError, DecodeFailure) as error:
                return Confirmation("unreachable", error.message)
            return read(answers, time.monotonic() - began)

        names = [node for node in nodes if node != self._node]
        return dict(zip(names, await asyncio.gather(*map(one, names)), strict=True))

    async def close(self) -> None:
        """End all that runs."""
        await self._tasks.close()

    # --- how

    def _ack(self, verdict: Verdict) -> records.Ack:
        """Return the answer to a Confirm whose record is not held here."""
        reason = verdict.reason
        held = self._store.envelope(verdict.key) if verdict.outcome is Outcome.STALE else None
        if held is not None:
            reason = f"it holds version {records.decode(held).version}"
        return records.Ack(verdict.outcome.value, reason)

    def _hear_claim(self, node: str) -> None:
        """Note which policy `node` says that it holds."""
        manifest = self._store.manifest_of(node)
        if manifest is not None and (copy := manifest.shared.get("policy")) is not None:
            self.freshness.claimed(node, copy.version)

    def _admit(self, quotas: Quotas, asker: str) -> None:
        """Raises TryAgain if `asker` asked too often; names of nobody share one quota."""
        name = asker if asker in self._store.infos() else ""
        if quotas.take(name, self._now()):
            return
        if count := self._complaints.note(name, "questions", time.monotonic()):
            self._journal.warning("questions refused", peer=name, count=count)
        raise TryAgain(f"too many questions of {name or 'nodes that are not known'}")

    def _owner(self, envelope: bytes) -> str:
        """Return whose record `envelope` claims to be; "" for nobody's."""
        try:
            return self._store.keys.owner(records.decode(envelope).key)
        except DecodeFailure:
            return ""

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _ask(self, node: str, reason: Reason | None = None) -> None:
        """Ask `node` for `reason`, or for what its manifest names, as soon as it may be asked."""
        if node not in self._liveness.alive or node == self._node:
            return
        asking = self._asking.setdefault(node, Asking())
        if reason in asking.reasons:
            return
        if reason is not None:
            asking.reasons.add(reason)
        if woken := self._woken.get(node):
            woken.set()
        elif asking.reasons or self._store.behind(node):
            self._woken[node] = asyncio.Event()
            self._tasks.start(f"ask {node}", self._ask_all(node, asking, self._woken[node]))

    async def _ask_all(self, node: str, asking: Asking, woken: asyncio.Event) -> None:
        """Ask `node` until there is no reason left, or nobody to ask."""
        try:
            while node in self._liveness.alive:
                woken.clear()
                missing = self._store.behind(node)
                asking.reasons.discard(Reason.LISTED)
                asking.reasons |= {Reason.LISTED} if missing else set()
                if not asking.reasons:
                    return
                if wait := asking.wait(self._now()):
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(woken.wait(), wait)
                    continue
                reason = asking.begin(self._now())
                news = await self._ask_once(node, _keys(reason, node, missing))
                if news is None:
                    asking.reasons.add(reason)
                    continue
                # What was missing may have come by another way meanwhile.
                mended = reason is Reason.LISTED and not {*missing} & {*self._store.behind(node)}
                asking.answered(reason, useful=news or mended)
                if reason is Reason.OWED:
                    self.heard.add(node)
                    self.freshness.answered(node)
        finally:
            del self._woken[node]

    def _bring(self, node: str) -> None:
        """Bring the policy to `node`, unless its manifest says that it has one, or was told."""
        manifest, policy = (
            self._store.manifest_of(node),
            self._store.envelope(self._store.keys.policy),
        )
        if manifest is None or manifest.shared or policy is None:
            return
        if node in self._liveness.alive and self._brought.get(node) != policy:
            self._brought[node] = policy
            self._tasks.start(f"bring {node}", self._bring_policy(node, policy))

    async def _bring_policy(self, node: str, policy: bytes) -> None:
        question = records.encode_message(records.Confirm(policy))
        try:
            await self._fabric.ask(node, question, SYNC_WITHIN)
        except FabricError:  # its next manifest is a reason to try again
            if self._brought.get(node) == policy:
                del self._brought[node]

    async def _ask_once(self, node: str, keys: tuple[str, ...]) -> bool | None:
        """Ask `node` for `keys` or everything; tell whether that was news, None if no answer."""
        try:
            question = records.encode_message(records.Sync(self._node, keys))
            replies = await self._fabric.ask(node, question, SYNC_WITHIN)
            answers = [records.decode_answer(reply) for reply in replies]
        except (FabricError, DecodeFailure) as error:
            if count := self._complaints.note(node, "sync", time.monotonic()):
                self._journal.warning("sync failed", peer=node, error=error.message, count=count)
            return None
        told = [answer for answer in answers if isinstance(answer, records.Records)]
        if not told:
            return None
        self._publisher.overtake(max((answer.yours for answer in told), default=0))
        news = False
        for number, envelope in enumerate(ranked(e for answer in told for e in answer.envelopes)):
            news |= self.offer(envelope, node).news
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
        return news


def _keys(reason: Reason, node: str, missing: list[str]) -> tuple[str, ...]:
    """Return what to ask `node` for, below the cluster's root; nothing for everything."""
    if reason is Reason.RETURNED:
        return (f"node/{node}/manifest",)
    if reason is Reason.LISTED and len(missing) <= KEYS_MAX:
        return tuple(missing)
    return ()
