"""Nodes that watch each other: real stores, real probes, a fabric in memory; the mesh is played.

1. A `Member` is the listener of its own fabric, and of the questions answers only `Reach`.
2. Each node's OGMs are sent at full seconds of the played clock, unless it is silent on the mesh.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from daemon.fabric import Settings
from daemon.journal import Journal
from daemon.liveness.liveness import Liveness
from daemon.liveness.probe import Addresses
from daemon.model import records
from netconf.errors import KernelFailure
from tests.unit import clock_kit
from tests.unit.memory_fabric import Network
from tests.unit.model_kit import filled, info, record


class World:
    """The nodes, and who can still hear whom."""

    def __init__(self, endpoint: str, nodes: str) -> None:
        self.network = Network()
        self.endpoint = endpoint
        self.silent_on_mesh: dict[str, float] = {}
        """By node: when its last OGM was sent."""
        self.members = {name: Member(self, name, nodes.split()) for name in nodes.split()}

    async def meet(self) -> None:
        for member in self.members.values():
            await member.fabric.open(member)
        for member in self.members.values():
            await until(lambda m=member: m.liveness.alive == set(self.members))

    async def close(self) -> None:
        for member in self.members.values():
            await member.liveness.close()
            await member.fabric.close()

    async def unplug(self, name: str) -> None:
        """The node is dead, or all ways to it are."""
        self.silent_on_mesh[name] = clock_kit.loop().time()
        await self.members[name].fabric.close()


class Member:
    """One node; the listener of its fabric."""

    def __init__(self, world: World, name: str, nodes: list[str]) -> None:
        self.name = name
        self.world = world
        others = tuple(f"tls/10.0.0.{other[1:]}:1" for other in nodes if other != name)
        settings = Settings(
            cluster="lab", node=name, listen=(f"tls/10.0.0.{name[1:]}:1",), connect=others,
            ca="", certificate="", key="",
        )  # fmt: skip
        self.fabric = world.network.join(settings)
        self.store = filled(record("n2", 3, info("n2", endpoints=(world.endpoint,))))
        self.changes: list[tuple[float, set[str], set[str]]] = []
        self.release = ""
        """The release that it answers like, if not this one."""
        self.asked = 0
        self.mesh_fails = False
        self.lookups: list[str] = []
        self.asked_again: set[str] = set()
        self.addresses = Addresses(self._look_up)
        self.ask = self.fabric.ask
        self.liveness = Liveness(
            name,
            self.store,
            mesh=self._mesh,
            ask=self._ask,
            changed=self._changed,
            journal=Journal(),
            addresses=self.addresses,
            ask_again=self._ask_again,
        )

    async def _ask(self, node: str, question: bytes, timeout: float) -> list[bytes]:
        return await self.ask(node, question, timeout)

    def _look_up(self, name: str) -> tuple[str, ...]:
        self.lookups.append(name)
        if len(self.lookups) > 1:
            raise OSError("no name server answers")
        return ("127.0.0.1",)

    async def _ask_again(self, addresses: Iterable[str]) -> None:
        self.asked_again.update(addresses)

    async def _mesh(self) -> dict[str, float]:
        if self.mesh_fails:
            raise KernelFailure("no mesh")
        now = clock_kit.loop().time()
        heard = {name: float(int(now)) for name in self.world.members}
        return heard | {
            name: min(heard[name], when) for name, when in self.world.silent_on_mesh.items()
        }

    def _changed(self) -> None:
        now = clock_kit.loop().time()
        self.changes.append((now, set(self.liveness.suspect), set(self.liveness.lost)))

    def on_record(self, key: str, value: bytes) -> None:
        raise AssertionError(key)

    def on_alive(self, node: str, alive: bool) -> None:
        (self.liveness.appeared if alive else self.liveness.vanished)(node)

    async def on_ask(self, question: bytes) -> list[bytes]:
        self.asked += 1
        if self.release == "0.1.0":  # does not know the question
            raise ValueError("question: Invalid value 'reach'")
        if self.release:  # nor what we ask, but how to say so
            return [records.encode_message(records.Ack("unknown question"))]
        asked = records.decode_question(question)
        assert isinstance(asked, records.Reach)
        return [records.encode_message(records.Reached(self.liveness.reached(asked.nodes)))]


async def until(condition: Callable[[], object]) -> None:
    """Wait until `condition` holds; the played clock soon ends what waits in vain."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)
