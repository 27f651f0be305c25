"""A fabric in memory that keeps the contract of ``daemon.fabric.interface``, and can fail.

1. Nothing happens by itself: deliveries run from the loop in the order they were sent, or,
   while the network is slow, when `Network.advance` says that time has passed. No clock, no
   threads; loss comes from a seeded generator. The same test gives the same run.
2. Two nodes are connected when both are open, one lists the other's endpoint, neither is
   cut off from the other, and each allows the other.
3. A listed node speaks only for itself, as zenoh's access control has it.
4. In chaos every message, questions, answers and tokens included, may be lost, come twice,
   late, or after those sent later. When it ends, what is under way still comes, but for
   tokens: of these each node is then told the truth, as the contract has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import heapq
import itertools
import random
from collections.abc import Callable, Iterable, Sequence

import msgspec

from daemon.fabric import (
    MAX_PAYLOAD,
    Counters,
    FabricError,
    FabricRefusedError,
    FabricTimeoutError,
    Listener,
    NotOpenError,
    Settings,
)
from daemon.model.keys import Keys
from netconf.errors import NoctuleError


class Chaos(msgspec.Struct, frozen=True):
    """What becomes of each message, as shares and seconds."""

    lost: float
    doubled: float
    late: float
    """Seconds at most; each message draws its own."""


class Network:
    """What lies between the nodes of a test."""

    def __init__(self, seed: int = 0) -> None:
        self.loss = 0.0
        """The share of records that vanish; questions and tokens are repeated below."""
        self.delay = 0.0
        """Seconds each message takes; above 0 messages wait for `advance`."""
        self.chaos: Chaos | None = None
        self._epoch = 0
        """Grows when chaos ends: tokens of an earlier one come no more."""
        self._random = random.Random(seed)
        self._members: dict[str, MemoryFabric] = {}
        self._cuts: set[frozenset[str]] = set()
        self._now = 0.0
        self._order = itertools.count()
        self._waiting: list[tuple[float, int, Callable[[], None]]] = []

    def join(self, settings: Settings) -> MemoryFabric:
        """Return the fabric of one node; it is not open yet."""
        return MemoryFabric(self, settings)

    def partition(self, *sides: Iterable[str]) -> None:
        """Cut all links between nodes of different `sides`."""
        for one, other in itertools.combinations([set(side) for side in sides], 2):
            self._cuts |= {frozenset((a, b)) for a in one for b in other}
        self.settle()

    def heal(self) -> None:
        """Mend all links."""
        self._cuts.clear()
        self.settle()

    def calm(self) -> None:
        """End the chaos, mend all links, and tell each node again who is there."""
        self.chaos = None
        self._epoch += 1
        self._cuts.clear()
        for fabric in self._members.values():
            fabric.remind({other.settings.node for other in self.neighbours(fabric)})

    def advance(self, seconds: float) -> None:
        """Let time pass: messages whose time has come are delivered."""
        self._now += seconds
        while self._waiting and self._waiting[0][0] <= self._now:
            asyncio.get_running_loop().call_soon(heapq.heappop(self._waiting)[2])

    def connected(self, one: MemoryFabric, other: MemoryFabric) -> bool:
        """Tell whether the two can exchange anything now."""
        a, b = one.settings, other.settings
        return (
            one is not other
            and self._members.get(a.node) is one
            and self._members.get(b.node) is other
            and frozenset((a.node, b.node)) not in self._cuts
            and bool(set(a.connect) & set(b.listen) or set(b.connect) & set(a.listen))
            and (a.nodes is None or b.node in a.nodes)
            and (b.nodes is None or a.node in b.nodes)
        )

    def neighbours(self, fabric: MemoryFabric) -> list[MemoryFabric]:
        """The nodes that `fabric` is connected with, by name."""
        members = sorted(self._members.items())
        return [other for _, other in members if self.connected(fabric, other)]

    def send(self, deliver: Callable[[], None], *, droppable: bool = False) -> None:
        """Have `deliver` called when the message arrives, if it does."""
        if self.chaos is not None:
            self._scatter(self.chaos, deliver)
            return
        if droppable and self._random.random() < self.loss:
            return
        if self.delay:
            heapq.heappush(self._waiting, (self._now + self.delay, next(self._order), deliver))
        else:
            asyncio.get_running_loop().call_soon(deliver)

    def token(self, deliver: Callable[[], None]) -> None:
        """Have a token's change told, unless the truth has been told meanwhile (rule 4)."""
        epoch = self._epoch
        self.send(lambda: deliver() if epoch == self._epoch else None)

    def _scatter(self, chaos: Chaos, deliver: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(2 if self._random.random() < chaos.doubled else 1):
            if self._random.random() >= chaos.lost:
                loop.call_later(self._random.random() * chaos.late, deliver)

    def enter(self, fabric: MemoryFabric) -> None:
        """A node opened its session."""
        self._members[fabric.settings.node] = fabric
        self.settle()

    def leave(self, fabric: MemoryFabric) -> None:
        """A node closed its session, or died."""
        if self._members.get(fabric.settings.node) is fabric:
            del self._members[fabric.settings.node]
        self.settle()

    def settle(self) -> None:
        """Tell every node who is there now."""
        for fabric in self._members.values():
            fabric.see({other.settings.node for other in self.neighbours(fabric)})


class MemoryFabric:
    """`daemon.fabric.Fabric` over a `Network`."""

    def __init__(self, network: Network, settings: Settings) -> None:
        self.settings = settings
        self.counters = Counters()
        self.keys = Keys(settings.cluster)
        self.listener: Listener | None = None
        self._network = network
        self._alive: set[str] = set()
        self._told: dict[str, bool] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, listener: Listener) -> None:
        if self.listener is not None:
            raise FabricError("the fabric is open already")
        self.listener = listener
        self._network.enter(self)

    def publish(self, key: str, value: bytes) -> None:
        if not self.keys.is_record(key):
            raise FabricError(f"key {key!r} is not a record's key under {self.keys.root}")
        if len(value) > MAX_PAYLOAD:
            raise FabricError(f"{key}: {len(value)} bytes are more than {MAX_PAYLOAD}")
        if self.listener is None:
            self.counters.unsent += 1
            return
        self.counters.published += 1
        for other in self._network.neighbours(self):
            self._network.send(functools.partial(other.hear, self, key, value), droppable=True)

    async def ask(self, node: str, question: bytes, timeout: float) -> list[bytes]:
        target = next((n for n in self._network.neighbours(self) if n.settings.node == node), None)
        if target is None:
            raise FabricError(f"no answer from {node}: it is not connected")
        answer: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
        self._network.send(lambda: target.asked(self, question, answer))
        try:
            return await asyncio.wait_for(answer, timeout)
        except TimeoutError:
            raise FabricTimeoutError(f"{node} did not answer within {timeout:g} s") from None

    async def reconfigure(self, endpoints: Sequence[str], nodes: frozenset[str] | None) -> bool:
        if self.listener is None:
            raise NotOpenError("the fabric is not open")
        if set(endpoints) == set(self.settings.connect) and nodes == self.settings.nodes:
            return False
        self.settings = msgspec.structs.replace(
            self.settings, connect=tuple(endpoints), nodes=nodes
        )
        self.counters.reopened += 1
        stayed = self._alive
        self._network.settle()
        for other in self._network.neighbours(self):
            if other.settings.node in stayed:
                for one, two in ((self, other), (other, self)):
                    self._network.token(functools.partial(one._tell_returned, two))
        return True

    async def close(self) -> None:
        self.listener = None
        for task in self._tasks:
            task.cancel()
        self._network.leave(self)

    # -- called by the network ----------------------------------------------------------------

    def see(self, present: set[str]) -> None:
        """Learn who is there; each change is told once, when the message arrives."""
        for node in sorted(present ^ self._alive):
            alive = node in present
            self._network.token(functools.partial(self._tell_alive, node, alive))
        self._alive = present

    def remind(self, present: set[str]) -> None:
        """Be told of everyone whose last word was another than the truth."""
        for node in sorted(present | self._told.keys()):
            if self._told.get(node, False) != (node in present):
                self._network.token(functools.partial(self._tell_alive, node, node in present))
        self._alive = present

    def hear(self, sender: MemoryFabric, key: str, value: bytes) -> None:
        """A record arrives from `sender`, unless the link was cut meanwhile."""
        if self.listener is None or not self._network.connected(self, sender):
            return
        own = key == self.keys.policy or key.startswith(self.keys.record(sender.settings.node, ""))
        if self.settings.nodes is not None and not own:
            self.counters.rejected += 1
            return
        self.counters.received += 1
        # As the real one: a listener's mistake is its own, the next record is still told.
        with contextlib.suppress(Exception):
            self.listener.on_record(key, value)

    def asked(
        self, asker: MemoryFabric, question: bytes, answer: asyncio.Future[list[bytes]]
    ) -> None:
        """A question arrives; the answer travels back when it is ready."""
        task = asyncio.get_running_loop().create_task(self._answer(asker, question, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(
        self, asker: MemoryFabric, question: bytes, answer: asyncio.Future[list[bytes]]
    ) -> None:
        if self.listener is None or not self._network.connected(self, asker):
            return  # lost on the way: the asker's time limit ends it
        error: FabricError | None = None
        replies: list[bytes] = []
        try:
            replies = await self.listener.on_ask(question)
            if any(len(reply) > MAX_PAYLOAD for reply in replies):
                raise ValueError("a reply is too long")
        except NoctuleError as failure:
            error = FabricRefusedError(f"no answer from {self.settings.node}: {failure.message}")
        except Exception:
            error = FabricRefusedError(
                f"no answer from {self.settings.node}: the answer failed there"
            )

        def arrive() -> None:
            if answer.done() or not self._network.connected(self, asker):
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(list(replies))

        self._network.send(arrive)

    def _tell_alive(self, node: str, alive: bool) -> None:
        self._told[node] = alive
        if self.listener is not None:
            with contextlib.suppress(Exception):
                self.listener.on_alive(node, alive)

    def _tell_returned(self, other: MemoryFabric) -> None:
        if self.listener is not None and self._network.connected(self, other):
            with contextlib.suppress(Exception):
                self.listener.on_returned(other.settings.node)
