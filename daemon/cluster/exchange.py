"""Other nodes: hearing them, answering them, and telling a dead daemon from a dead node.

1. Records are offered to the store, which alone judges them. What it accepts asks for a pass.
2. A node that appears is asked for everything (`Sync`), and again when its manifest names
   what is not here: a lost record is found by that, whatever lost it.
3. `Confirm` brings a record and is answered when this node's kernel agrees with it, or, with
   `LATE`, when that takes too long or fails.
4. A token that vanished means that the daemon is gone. Only when the node's kernel does not
   answer either (`probe`: not even with a reset) is the node lost and its replicas leave;
   a daemon that crashed or is being upgraded costs nobody a connection.
5. A lost node comes back with its daemon, not with its kernel: after a reboot its replicas are
   gone, and nobody but its daemon can say so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from daemon.cluster.probe import Probe, probe
from daemon.fabric.interface import Fabric, FabricError
from daemon.journal import Journal
from daemon.model import records
from daemon.model.store import Outcome, Store, Verdict
from netconf.errors import DecodeFailure, InvalidConfig

SYNC_WITHIN = 5.0
"""Seconds for a whole Sync; a thousand records take well under one."""
PROBE_WITHIN = 0.4
"""Seconds a kernel has to answer a SYN, retransmission not included: slow radio included."""
PROBE_TRIES = 2
"""A single lost SYN is no death."""
PROBE_EVERY = 2.0
"""Seconds between looks at a node whose daemon is gone and whose kernel answered."""
BELIEVED = (Outcome.ACCEPTED, Outcome.KNOWN)
LATE = "not programmed yet"
"""The outcome of a Confirm whose record was believed."""
CONFIRM_WITHIN = 1.0
"""Seconds after which a Confirm is answered without waiting for the kernel any longer."""


class Exchange:
    """The listener of the fabric, and what this node believes about who lives."""

    def __init__(
        self,
        node: str,
        store: Store,
        fabric: Fabric,
        *,
        program: Callable[[], asyncio.Future[bool]],
        answer: Callable[[], list[bytes]],
        remembered: Callable[[int], None],
        changed: Callable[[bool], None],
        journal: Journal,
    ) -> None:
        """`program` asks for a pass, `answer` gives the records that answer a `Sync`,
        `remembered` hears the highest version that a peer knows of this node's own, and
        `changed` hears that the store holds something new; True when that is the policy."""
        self._node = node
        self._store = store
        self._fabric = fabric
        self._program = program
        self._answer = answer
        self._remembered = remembered
        self._changed = changed
        self._journal = journal
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching: dict[str, asyncio.Task[None]] = {}
        self._syncing: dict[str, bool] = {}
        """By node that is being asked for everything: whether to ask once more afterwards."""
        self.alive: set[str] = {node}
        """Nodes whose daemon's token is present, this one included."""
        self.lost: set[str] = set()
        """Nodes whose replicas count no more."""
        self.judged: set[str] = set()
        """Nodes that were heard in full, or found without a daemon, since this one started."""

    def present(self, node: str) -> bool:
        """Tell whether replicas of `node` count: it was not found dead."""
        return node not in self.lost

    # --- the listener's part

    def on_record(self, key: str, value: bytes) -> None:
        """Offer what was published."""
        verdict = self.take(value)
        # A record may overtake the info whose (new) certificate it needs.
        missing = verdict.outcome in (Outcome.UNKNOWN_SIGNER, Outcome.BAD_SIGNATURE) or (
            verdict.changed
            and verdict.key == self._store.keys.manifest(verdict.node)
            and self._store.behind(verdict.node)
        )
        if missing and verdict.node in self.alive:
            self._sync(verdict.node)

    def on_alive(self, node: str, alive: bool) -> None:
        """Note that a token came or went."""
        if alive:
            self.alive.add(node)
            if watching := self._watching.pop(node, None):
                watching.cancel()
            self._found(node)
            self._sync(node)
            self._journal.info("peer alive", peer=node)
        else:
            self.alive.discard(node)
            self._journal.warning("peer silent", peer=node)
            self.watch(node)

    async def on_ask(self, question: bytes) -> list[bytes]:
        """Answer `Sync` with all that is ours and the policy; `Confirm` when programmed."""
        asked = records.decode_question(question)
        if isinstance(asked, records.Sync):
            yours = self._store.highest(asked.node)
            return [records.encode_message(p) for p in records.parts(self._answer(), yours)]
        outcome = self.take(asked.envelope).outcome
        if outcome not in BELIEVED:
            return [records.encode_message(records.Ack(outcome.value))]
        # A record that the publication brought first may still be on its way to the kernel.
        done, _ = await asyncio.wait([self._program()], timeout=CONFIRM_WITHIN)
        agreed = any(future.result() for future in done)
        return [records.encode_message(records.Ack(outcome.value if agreed else LATE))]

    # --- what the rest of the daemon asks

    def take(self, envelope: bytes) -> Verdict:
        """Offer one record to the store; act on what it says."""
        verdict = self._store.offer(envelope, time.time())
        if verdict.changed:
            self._changed(verdict.key == self._store.keys.policy)
            self._program()
        elif verdict.outcome not in (Outcome.KNOWN, Outcome.STALE, Outcome.UNKNOWN_SIGNER):
            self._journal.warning(
                "record refused", key=verdict.key, outcome=verdict.outcome, reason=verdict.reason
            )
        return verdict

    async def confirm(
        self, envelope: bytes, nodes: Iterable[str], within: float
    ) -> dict[str, float | None]:
        """Bring `envelope` to `nodes`; return the seconds each took, None for no answer."""
        question = records.encode_message(records.Confirm(envelope))
        began = time.monotonic()

        async def one(node: str) -> float | None:
            try:
                replies = await self._fabric.ask(node, question, within)
                answers = [records.decode_answer(reply) for reply in replies]
            except (FabricError, DecodeFailure):
                return None
            if any(isinstance(a, records.Ack) and a.outcome in BELIEVED for a in answers):
                return time.monotonic() - began
            return None

        names = [node for node in nodes if node != self._node and node in self.alive]
        return dict(zip(names, await asyncio.gather(*map(one, names)), strict=True))

    def watch(self, node: str) -> None:
        """`node` has no token: find out whether its kernel lives, until its token returns."""
        if node not in self._watching and node != self._node:
            task = asyncio.get_running_loop().create_task(self._watch(node))
            self._watching[node] = task

    async def close(self) -> None:
        """End all that runs."""
        tasks = [*self._tasks, *self._watching.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- how

    def _sync(self, node: str) -> None:
        """Ask `node` for everything, or once more when it has answered: a burst costs two."""
        again = node in self._syncing
        self._syncing[node] = again
        if not again:
            task = asyncio.get_running_loop().create_task(self._sync_all(node))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _sync_all(self, node: str) -> None:
        try:
            await self._ask_all(node)
            while self._syncing[node] and node in self.alive:
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
        self._remembered(max((answer.yours for answer in told), default=0))
        envelopes = [envelope for answer in told for envelope in answer.envelopes]
        verdicts = [v for v in self._store.sync(envelopes, time.time()) if v.changed]
        if verdicts:
            self._changed(any(v.key == self._store.keys.policy for v in verdicts))
            self._program()
        self.judged.add(node)

    async def _watch(self, node: str) -> None:
        while True:
            if node not in self.lost and not await self._answers(node):
                self.lost.add(node)
                self._journal.warning("node lost", peer=node)
                self._program()
            self.judged.add(node)
            await asyncio.sleep(PROBE_EVERY)

    async def _answers(self, node: str) -> bool:
        """Tell whether the kernel of `node` answers at any endpoint of its record."""
        info = self._store.infos().get(node)
        endpoints = info.endpoints if info is not None else ()
        for _ in range(PROBE_TRIES):
            found = await asyncio.gather(*map(_probe, endpoints))
            if any(answer is not Probe.SILENT for answer in found):
                return True
        return False

    def _found(self, node: str) -> None:
        if node in self.lost:
            self.lost.discard(node)
            self._journal.info("node back", peer=node)
            self._program()


async def _probe(endpoint: str) -> Probe:
    try:
        return await probe(endpoint, PROBE_WITHIN)
    except (InvalidConfig, ValueError):  # what a node says of itself need not make sense
        return Probe.SILENT
