"""Takes records from other nodes, answers their questions, and asks them for what was missed.

1. Each record that arrives is offered to the store. The store alone judges it, and tells its
   subscribers if it is news.
2. A node that appears is asked for all of its records (`Sync`). Later it is asked for each record
   that its manifest lists and that is not held here: its own records, and the policy. So a record
   that was lost is found by the next manifest, however it was lost. ``daemon.cluster.asking``
   decides when and how often a peer is asked.
   The manifest of a node of release 0.1.0 does not say which policy it holds, and it does not read
   that of others. So each new policy is sent to it in a `Confirm`, until it has answered one.
3. A `Confirm` carries a record. It is answered when this node's kernel agrees with that record, or
   with `LATE` if that takes too long or fails.
4. The records of an answer are judged in slices, so that a long answer does not block the event
   loop.
5. A node that asks too often is refused, and the log names it. So is one that says too often that
   it remembers a higher version of our records, because each time all of them are signed anew. The
   log also names nodes whose records are refused. The asker's name is what the question says,
   because the fabric does not tell who asked.
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
from daemon.model.store import Store, ranked
from daemon.model.verdict import HARMLESS, Outcome, Verdict
from daemon.process.tasks import Tasks
from netconf.errors import DecodeFailure, TryAgain

SYNC_WITHIN = 5.0
"""Seconds for a whole Sync; a thousand records take well under one."""
CONFIRM_WITHIN = 1.0
"""Seconds after which a Confirm is answered without waiting for the kernel any longer."""
SLICE = 16
"""Records judged before the event loop may do something else; each takes 0.1 ms."""
KEYS_MAX = 400
"""Keys that one question may name; the longest has 110 bytes. If more are missing, everything is
asked for."""
SYNCS = (8, 1.0)
"""Syncs that one asker may send at once, and the seconds until it may send one more: four times
what an honest node needs (``daemon.cluster.asking``)."""
CONFIRMS = (256, 0.01)
"""The same for Confirms; a node sends one for each container that it attaches."""

OVERTAKES = (3, 60.0)
"""The same for the times that one peer makes this node sign all of its records anew. A peer has
reason to do so once after this node lost its state, unless it had not heard the last version."""


class Program(Protocol):
    """Asks for a pass (`daemon.reconcile.reconciler.Reconciler.request`)."""

    def __call__(self, *, strict: bool = False) -> asyncio.Future[bool]:
        """Return whether the kernel agrees with all that was known when the pass began.

        Without `strict`, attachments that were in trouble before do not count.
        """


class Exchange:
    """Implements the fabric's listener; what it learns goes into the store."""

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
        """`node` is this node's id; `clock` returns the time, in seconds since the epoch, at which
        certificates must be in force."""
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
        """By peer that is being asked; set when another reason came up, which may wait less."""
        self._brought: dict[str, bytes] = {}
        """By node of release 0.1.0: the policy that was last sent to it (rule 2)."""
        self._complaints = Complaints()
        self._syncs = Quotas(*SYNCS)
        self._confirms = Quotas(*CONFIRMS)
        self._overtakes = Quotas(*OVERTAKES)
        self.freshness = Freshness(self._now)
        """Whether anything may be opened yet."""
        self.heard: set[str] = set()
        """Nodes that answered a `Sync` since this daemon started."""

    def joined(self) -> None:
        """Publish all records, because the fabric was opened; from now on peers can be heard."""
        self.freshness.begin()
        self._publisher.again()

    # --- the listener's part

    def on_record(self, key: str, value: bytes) -> None:
        """Offer a published record to the store, and ask its node for more if that is needed."""
        speaker = self._store.keys.owner(key)
        verdict = self.offer(value, speaker)
        # A record may arrive before the info whose (new) certificate it needs: ask for both.
        if verdict.outcome in (Outcome.UNKNOWN_SIGNER, Outcome.BAD_SIGNATURE):
            if verdict.node == speaker:
                self._ask(speaker, Reason.PUZZLING)
        elif verdict.key == self._store.keys.manifest(verdict.node):
            self._ask(verdict.node)
            self._bring(verdict.node)

    def on_alive(self, node: str, alive: bool) -> None:
        """Tell liveness that a token came or went, and ask a node that came for everything."""
        if alive:
            self._liveness.appeared(node)
            self._ask(node, Reason.OWED)
        else:
            self._liveness.vanished(node)

    def on_returned(self, node: str) -> None:
        """Ask `node` for its manifest: what it published while its link was down may be lost."""
        self._ask(node, Reason.RETURNED)

    async def on_ask(self, question: bytes) -> list[bytes]:
        """Answer a question of another node.

        `Sync` is answered with this node's own records, the policy and the infos of other nodes;
        `Reach` with what liveness knows; `Confirm` when the kernel agrees with its record. Raises
        TryAgain if the asker has asked too often.
        """
        try:
            asked = records.decode_question(question)
        except DecodeFailure as error:  # a later release may ask a question that is not known here
            return [records.encode_message(records.Ack(records.UNKNOWN_QUESTION, error.message))]
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
        """Offer one record to the store; log it if it is refused.

        `speaker` is the node that published or sent it, "" if that is not known.
        """
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
        """Offer one record, and wait at most `within` seconds until the kernel agrees with it.

        Returns the answer to a `Confirm`.
        """
        verdict = self.offer(envelope)
        if verdict.outcome not in BELIEVED:
            return self._ack(verdict)
        # Request a pass even if the record was known: its publication may have come first, and
        # the kernel may not have it yet. A policy is in the kernel only if every attachment agrees.
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
        """Send `envelope` in a `Confirm` to all `nodes` but this one; return each one's answer.

        A node that has not answered within `within` seconds counts as unreachable.
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
        """Cancel all questions that are under way."""
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
        """Raise TryAgain if `asker` asked too often. All names of unknown nodes share one quota."""
        name = asker if asker in self._store.infos() else ""
        if quotas.take(name, self._now()):
            return
        if count := self._complaints.note(name, "questions", time.monotonic()):
            self._journal.warning("questions refused", peer=name, count=count)
        raise TryAgain(f"too many questions of {name or 'nodes that are not known'}")

    def _owner(self, envelope: bytes) -> str:
        """Return the node whose record `envelope` claims to be; "" if it names none."""
        try:
            return self._store.keys.owner(records.decode(envelope).key)
        except DecodeFailure:
            return ""

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _ask(self, node: str, reason: Reason | None = None) -> None:
        """Have `node` asked, for `reason` or for what its manifest lists, as soon as it may be."""
        if node not in self._liveness.alive or node == self._node:
            return
        asking = self._asking.setdefault(node, Asking())
        known = reason in asking.reasons
        if reason is not None:
            asking.reasons.add(reason)
        if woken := self._woken.get(node):
            if not known:
                woken.set()
        elif asking.reasons or self._store.behind(node):
            self._woken[node] = asyncio.Event()
            self._tasks.start(f"ask {node}", self._ask_all(node, asking, self._woken[node]))

    async def _ask_all(self, node: str, asking: Asking, woken: asyncio.Event) -> None:
        """Ask `node` until there is no reason left, or its token has gone."""
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
                # What was missing may have arrived in another way meanwhile.
                mended = reason is Reason.LISTED and not {*missing} & {*self._store.behind(node)}
                asking.answered(reason, useful=news or mended)
                if reason is Reason.OWED:
                    self.heard.add(node)
                    self.freshness.answered(node)
            asking.reasons.clear()  # whoever returns is asked for everything
        finally:
            del self._woken[node]

    def _bring(self, node: str) -> None:
        """Send the policy to a `node` of release 0.1.0, unless it has answered for it (rule 2)."""
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
        """Ask `node` for `keys`, or for everything if there are none.

        Returns whether the answer brought any news; None if there was no answer.
        """
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
        await self._overtake(node, max(answer.yours for answer in told))
        news = False
        for number, envelope in enumerate(ranked(e for answer in told for e in answer.envelopes)):
            news |= self.offer(envelope, node).news
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
        return news

    async def _overtake(self, node: str, version: int) -> None:
        """Go beyond the `version` of our records that `node` remembers (rule 5)."""
        if not self._publisher.is_behind(version):
            return
        if self._overtakes.take(node, self._now()):
            await self._publisher.overtake(version)
        elif count := self._complaints.note(node, "overtaking", time.monotonic()):
            self._journal.warning("versions not overtaken", peer=node, count=count)


def _keys(reason: Reason, node: str, missing: list[str]) -> tuple[str, ...]:
    """Return the keys, below the cluster's root, to ask `node` for; none means everything."""
    if reason is Reason.RETURNED:
        return (f"node/{node}/manifest",)
    if reason is Reason.LISTED and len(missing) <= KEYS_MAX:
        return tuple(missing)
    return ()
