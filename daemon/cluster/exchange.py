"""Records in and out: hearing other nodes, answering them, and asking for what was missed.

1. Records are offered to the store, which alone judges them and tells whoever subscribed.
2. A node that appears is asked for everything (`Sync`), and again when its manifest names
   what is not here: a lost record is found by that, whatever lost it.
3. `Confirm` brings a record and is answered when this node's kernel agrees with it, or, with
   `LATE`, when that takes too long or fails.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from daemon.cluster.confirmation import BELIEVED, LATE, Confirmation, read
from daemon.cluster.liveness import Liveness
from daemon.cluster.publisher import Publisher
from daemon.fabric.interface import Fabric, FabricError
from daemon.journal import Journal
from daemon.model import records
from daemon.model.store import Outcome, Store, Verdict
from daemon.tasks import Tasks
from netconf.errors import DecodeFailure

SYNC_WITHIN = 5.0
"""Seconds for a whole Sync; a thousand records take well under one."""
UNKNOWN_QUESTION = "unknown question"
"""The outcome in the answer to what is no question here."""
CONFIRM_WITHIN = 1.0
"""Seconds after which a Confirm is answered without waiting for the kernel any longer."""


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
        self._syncing: dict[str, bool] = {}
        """By node that is being asked for everything: whether to ask once more afterwards."""
        self.heard: set[str] = set()
        """Nodes that answered a `Sync` since this daemon started."""

    # --- the listener's part

    def on_record(self, key: str, value: bytes) -> None:
        """Offer what was published."""
        verdict = self.offer(value)
        # A record may overtake the info whose (new) certificate it needs.
        missing = verdict.outcome in (Outcome.UNKNOWN_SIGNER, Outcome.BAD_SIGNATURE) or (
            verdict.changed
            and verdict.key == self._store.keys.manifest(verdict.node)
            and self._store.behind(verdict.node)
        )
        if missing and verdict.node in self._liveness.alive:
            self._sync(verdict.node)

    def on_alive(self, node: str, alive: bool) -> None:
        """Note that a token came or went."""
        if alive:
            self._liveness.appeared(node)
            self._sync(node)
        else:
            self._liveness.vanished(node)

    async def on_ask(self, question: bytes) -> list[bytes]:
        """Answer `Sync` with all that is ours and the policy; `Confirm` when programmed."""
        try:
            asked = records.decode_question(question)
        except DecodeFailure as error:  # A later release may ask what is not known here.
            return [records.encode_message(records.Ack(UNKNOWN_QUESTION, error.message))]
        if isinstance(asked, records.Sync):
            yours = self._store.highest(asked.node)
            envelopes = self._publisher.everything()
            return [records.encode_message(part) for part in records.parts(envelopes, yours)]
        return [records.encode_message(await self.accept(asked.envelope, CONFIRM_WITHIN))]

    # --- what the rest of the daemon asks

    def offer(self, envelope: bytes) -> Verdict:
        """Offer one record to the store; log it if it is refused."""
        verdict = self._store.offer(envelope, self._clock())
        if not verdict.changed and verdict.outcome not in (
            Outcome.KNOWN,
            Outcome.STALE,
            Outcome.UNKNOWN_SIGNER,
            Outcome.UNKNOWN_KIND,
        ):
            self._journal.warning(
                "record refused", key=verdict.key, outcome=verdict.outcome, reason=verdict.reason
            )
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

    def _sync(self, node: str) -> None:
        """Ask `node` for everything, or once more when it has answered: a burst costs two."""
        again = node in self._syncing
        self._syncing[node] = again
        if not again:
            self._tasks.start(f"sync {node}", self._sync_all(node))

    async def _sync_all(self, node: str) -> None:
        try:
            await self._ask_all(node)
            while self._syncing[node] and node in self._liveness.alive:
                self._syncing[node] = False
                await self._ask_all(node)
        finally:
            del self._syncing[node]

    async def _ask_all(self, node: str) -> None:
        try:
            question = records.encode_message(records.Sync(self._node))
            replies = await self._fabric.ask(node, question, SYNC_WITHIN)
            answers = [records.decode_answer(reply) for reply in replies]
        except (FabricError, DecodeFailure) as error:
            self._journal.warning("sync failed", peer=node, error=error.message)
            return
        told = [answer for answer in answers if isinstance(answer, records.Records)]
        self._publisher.overtake(max((answer.yours for answer in told), default=0))
        envelopes = [envelope for answer in told for envelope in answer.envelopes]
        self._store.sync(envelopes, self._clock())
        self.heard.add(node)
