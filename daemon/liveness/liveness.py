"""Collects signs of life of other nodes, and keeps the sets of alive, suspect and lost nodes.

1. The state of another node is decided by its `Suspicion` alone. This module passes on to it what
   is heard of the node: the fabric's tokens, probes of the node's kernel, the mesh's originator
   table, and what other nodes say.
2. A node without a token is probed until it is lost: without a pause while nothing is heard of it,
   otherwise every `PROBE_EVERY` seconds.
3. While any node has no token, the mesh is read. While any node is suspect, `WITNESSES` other nodes
   at a time are asked whether they reach it. A node that answers that it does not know the question
   (release 0.1.0) is not asked again for `MUTE_FOR` seconds, or until its token returns. Whatever
   else goes wrong with a question says nothing about the node, so it is asked again at its turn.
4. A round of probes that took much longer than its time limit does not count: this daemon did not
   run meanwhile, and could not have received an answer.
5. A token or a suspicion that comes and goes gets lines in the log as `daemon.news` decides. The
   end of what got no line gets none either. A node that is lost gets a line each time.
6. A node that policy dropped is forgotten once its token has gone.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Awaitable, Callable, Iterable, Mapping

from daemon.fabric.interface import FabricError, FabricRefusedError
from daemon.journal import Journal
from daemon.liveness import probe as probing
from daemon.liveness.probe import Addresses, Probe, probe
from daemon.liveness.suspicion import State, Suspicion
from daemon.model import records
from daemon.model.store import Store
from daemon.news import News
from daemon.process.tasks import Tasks
from daemon.process.workers import Pool
from netconf.errors import DecodeFailure, NoctuleError

PROBE_WITHIN = 0.4
"""Seconds that a kernel has to answer a SYN: enough for a slow radio link, but not for a
retransmission."""
PROBE_EVERY = 1.0
"""Seconds between probes of a node whose daemon is gone and of which something was heard."""
TARGETS = 16
"""Addresses of one node that are probed at most: as many as an info has endpoints."""
LOOK_EVERY = 0.25
"""Seconds between readings of the mesh, and between questions, while a node is suspect: an OGM that
has arrived should be noticed well before `FLOWS_AFTER` ends."""
ASK_WITHIN = 0.5
"""Seconds for another node's answer, which it gives from memory."""
WITNESSES = 3
"""Nodes that are asked at a time (memberlist's IndirectChecks); each time the next ones."""
MUTE_FOR = 120.0
"""Seconds for which a node that does not know the question is not asked: longer than a suspicion
lasts, and short enough that a node which refused for another reason is a witness again."""
NAMES_EVERY = 5.0
"""Seconds between looks for endpoints whose names have not been looked up."""

Mesh = Callable[[], Awaitable[Mapping[str, float]]]
"""Returns when the mesh heard each node last, in seconds of the monotonic clock."""
Ask = Callable[[str, bytes, float], Awaitable[list[bytes]]]
"""The fabric's `ask`: node, question, seconds."""


class Liveness:
    """The states of all other nodes, and the probes, readings and questions that decide them."""

    def __init__(
        self,
        node: str,
        store: Store,
        *,
        changed: Callable[[], object],
        journal: Journal,
        mesh: Mesh | None = None,
        ask: Ask | None = None,
        addresses: Addresses | None = None,
        ask_again: Callable[[Iterable[str]], Awaitable[None]] | None = None,
        pool: Pool | None = None,
    ) -> None:
        """`node` is this node's id. `changed` is called when a node becomes suspect or lost, or
        ceases to be. `mesh` may raise NoctuleError or OSError; without it, or without `ask`, there
        is one witness less. `ask_again` is called with a suspect's addresses before each probe;
        by default it is `daemon.liveness.probe.ask_again` in a thread of `pool`."""
        self._node = node
        self._store = store
        self._mesh = mesh
        self._ask = ask
        self._changed = changed
        self._journal = journal
        self._addresses = addresses or Addresses()
        self._ask_again = ask_again or functools.partial(
            probing.ask_again, pool or Pool("liveness", 1)
        )
        self._tasks = Tasks(journal)
        self._nodes: dict[str, Suspicion] = {}
        self._probing: dict[str, asyncio.Task[None]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._listening: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()
        """Set when a token vanished: the mesh is to be read at once."""
        self._mesh_failed = False
        """Whether the last reading failed, so that only the first failure is logged."""
        self._mute: dict[str, float] = {}
        """By node that answered that it does not know the question: when to ask it again."""
        self._news = News()
        self._told: set[str] = set()
        """What the log said last of nodes, as far as it has not said yet that it is over."""
        self._turn = 0
        """Which of the other nodes to ask first the next time."""
        self.alive: set[str] = {node}
        """Nodes whose daemon's token is present, this one included."""
        self.suspect: set[str] = set()
        """Nodes to which no new connection should be sent."""
        self.lost: set[str] = set()
        """Nodes whose replicas count no more."""
        self.judged: set[str] = set()
        """Nodes without a token that gave a sign of life, or were lost, since this daemon
        started."""

    def appeared(self, node: str) -> None:
        """Note that the token of `node` is there: its daemon runs."""
        self.alive.add(node)
        self._mute.pop(node, None)
        if task := self._probing.pop(node, None):
            task.cancel()
        if node not in self._nodes or self._over(f"{node} silent"):
            self._journal.info("peer alive", peer=node)
        self._follow(node, self._nodes.setdefault(node, Suspicion()).token_back)

    def vanished(self, node: str) -> None:
        """Note that the token of `node` is gone, and find out whether the node lives."""
        self.alive.discard(node)
        if self._begins(f"{node} silent"):
            self._journal.warning("peer silent", peer=node)
        self.watch(node)

    def watch(self, node: str) -> None:
        """Find out whether `node`, which has no token, lives; until its token returns."""
        if node == self._node or node in self._probing:
            return
        self._follow(node, self._nodes.setdefault(node, Suspicion()).token_gone)
        self._probing[node] = self._tasks.forever(
            f"probe {node}", functools.partial(self._probe, node)
        )
        self._wanted.set()
        if self._listening is None or self._listening.done():
            self._listening = self._tasks.forever("witnesses", self._listen)

    def reached(self, nodes: Iterable[str]) -> dict[str, bool]:
        """Return whether each of `nodes` can be reached from here, for another node that asks.

        Nodes of which that is not known are left out.
        """
        found = {
            node: True if node == self._node else self._nodes[node].reached
            for node in nodes
            if node == self._node or node in self._nodes
        }
        return {node: reached for node, reached in found.items() if reached is not None}

    async def follow_names(self) -> None:
        """Keep looking up the names in the nodes' endpoints, for later probes, and forgetting
        nodes (rule 6); until cancelled."""
        while True:
            self._forget()
            infos = self._store.infos().values()
            endpoints = [endpoint for info in infos for endpoint in info.endpoints]
            await self._addresses.learn(endpoints, _now())
            await asyncio.sleep(NAMES_EVERY)

    async def close(self) -> None:
        """Cancel all tasks and timers."""
        await self._tasks.close()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    # --- what is heard

    async def _probe(self, node: str) -> None:
        """Probe `node` until it is lost (rule 2); `appeared` cancels this."""
        suspicion = self._nodes[node]
        while suspicion.state is not State.LOST:
            began = _now()
            if await self._answers(node):
                self._follow(node, suspicion.answered)
            elif _now() - began <= 2 * PROBE_WITHIN:  # rule 4
                self._follow(node, suspicion.silent)
            quiet = suspicion.state is State.SUSPECT or not suspicion.signed
            pause = PROBE_WITHIN if quiet else PROBE_EVERY
            # Sleep for the rest: if there is no route, the kernel fails a probe at once.
            await asyncio.sleep(max(began + pause - _now(), 0))

    async def _answers(self, node: str) -> bool:
        """Tell whether the kernel of `node` answers at any endpoint of its record."""
        info = self._store.infos().get(node)
        endpoints = info.endpoints if info is not None else ()
        found = dict.fromkeys(target for one in endpoints for target in self._addresses.of(one))
        targets = tuple(itertools.islice(found, TARGETS))
        if node in self.suspect:
            await self._ask_again(address for address, _ in targets)
        probes = [asyncio.ensure_future(probe(*target, PROBE_WITHIN)) for target in targets]
        try:
            for answer in asyncio.as_completed(probes):
                if await answer is not Probe.SILENT:
                    return True
            return False
        finally:
            for one in probes:
                one.cancel()

    async def _listen(self) -> None:
        """Read the mesh and ask other nodes while any node has no token (rule 3)."""
        while watched := [node for node in self._probing if node not in self.lost]:
            self._wanted.clear()
            await asyncio.gather(self._read_mesh(watched), self._ask_others())
            known = [self._nodes[node] for node in watched if node in self._nodes]
            calm = all(one.signed and one.state is not State.SUSPECT for one in known)
            try:
                async with asyncio.timeout(PROBE_EVERY if calm else LOOK_EVERY):
                    await self._wanted.wait()
            except TimeoutError:
                continue

    async def _read_mesh(self, nodes: Iterable[str]) -> None:
        if self._mesh is None:
            return
        try:
            heard = await self._mesh()
        except (NoctuleError, OSError) as error:
            if not self._mesh_failed:
                self._journal.error("mesh not read: it is no witness", error=str(error))
            self._mesh_failed = True
            return
        self._mesh_failed = False
        for node in nodes:
            if node in self._nodes:  # it may have been forgotten meanwhile
                self._follow(node, functools.partial(self._nodes[node].mesh, heard.get(node)))

    async def _ask_others(self) -> None:
        suspects = tuple(sorted(self.suspect))[: records.REACH_LIMIT]
        mute = {node for node, until in self._mute.items() if _now() < until}
        able = sorted(self.alive - mute - {self._node})
        ask = self._ask
        if not suspects or not able or ask is None:
            return
        start = self._turn % len(able)
        self._turn += WITNESSES
        chosen = (able[start:] + able[:start])[:WITNESSES]
        await asyncio.gather(*(self._ask_one(ask, witness, suspects) for witness in chosen))

    async def _ask_one(self, ask: Ask, witness: str, suspects: tuple[str, ...]) -> None:
        question = records.encode_message(records.Reach(suspects))
        try:
            replies = await ask(witness, question, ASK_WITHIN)
            answers = [records.decode_answer(reply) for reply in replies]
        except FabricRefusedError as error:
            self._silence(witness, error.message)
            return
        except (FabricError, DecodeFailure):  # it is asked again at its next turn
            return
        acks = [answer for answer in answers if isinstance(answer, records.Ack)]
        if any(ack.outcome == records.UNKNOWN_QUESTION for ack in acks):
            self._silence(witness, records.UNKNOWN_QUESTION)
        reached = [answer.reached for answer in answers if isinstance(answer, records.Reached)]
        for node, says in ((n, s) for one in reached for n, s in one.items() if n in suspects):
            if node not in self._nodes:
                continue
            self._follow(node, functools.partial(self._nodes[node].told, witness, says))

    def _silence(self, witness: str, why: str) -> None:
        self._mute[witness] = _now() + MUTE_FOR
        self._journal.info("no witness", peer=witness, error=why)

    # --- what follows

    def _follow(self, node: str, event: Callable[[float], State]) -> None:
        """Apply `event` to the suspicion of `node` now, and follow its change of state."""
        suspicion = self._nodes[node]
        before, now = suspicion.state, _now()
        after = event(now)
        if suspicion.signed:
            self.judged.add(node)
        if after is not before:
            self._moved(node, before, after, now)
        if timer := self._timers.pop(node, None):
            timer.cancel()
        if (due := suspicion.next()) is not None and due > now:
            loop = asyncio.get_running_loop()
            self._timers[node] = loop.call_at(due, self._follow, node, suspicion.passes)

    def _moved(self, node: str, before: State, after: State, now: float) -> None:
        for state, nodes in ((State.SUSPECT, self.suspect), (State.LOST, self.lost)):
            (nodes.add if after is state else nodes.discard)(node)
        if after is State.LOST:
            self._told.discard(f"{node} suspect")
            self.judged.add(node)
            witnesses = ", ".join(self._nodes[node].witnesses(now))
            self._journal.warning("node lost", peer=node, witnesses=witnesses)
        elif after is State.SUSPECT:
            if self._begins(f"{node} suspect"):
                self._journal.warning("node suspect", peer=node)
        elif before is State.LOST:
            self._journal.info("node back", peer=node)
        elif before is State.SUSPECT and self._over(f"{node} suspect"):
            self._journal.info("node heard again", peer=node)
        if {before, after} & {State.SUSPECT, State.LOST}:
            self._changed()

    def _begins(self, trouble: str) -> bool:
        """Tell whether `trouble`, which begins now, gets a line in the log (rule 5)."""
        told = bool(self._news.tell(_now(), [trouble]))
        if told:
            self._told.add(trouble)
        return told

    def _over(self, trouble: str) -> bool:
        """Tell whether the end of `trouble` gets a line in the log."""
        told = trouble in self._told
        self._told.discard(trouble)
        return told

    def _forget(self) -> None:
        policy = self._store.policy()
        if policy is None or policy.nodes is None:
            return
        for node in self._nodes.keys() - policy.nodes.keys() - self.alive:
            del self._nodes[node]
            if probing := self._probing.pop(node, None):
                probing.cancel()
            if timer := self._timers.pop(node, None):
                timer.cancel()
            self._mute.pop(node, None)
            self._told -= {f"{node} silent", f"{node} suspect"}
            for nodes in (self.suspect, self.lost, self.judged):
                nodes.discard(node)


def _now() -> float:
    """Return the event loop's time, which is of the monotonic clock, as the mesh's times are."""
    return asyncio.get_running_loop().time()
