"""What the fabric's tests share: a listener that remembers, certificates, free ports."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from daemon.ctl import pki
from daemon.fabric import Fabric, Settings
from daemon.fabric.identity_files import Contents
from daemon.fabric.zenoh_config import session_config
from daemon.fabric.zenoh_fabric import ZenohFabric
from tests.unit.memory_fabric import Network

LIMIT = 10.0
"""Seconds that a condition may take; a busy machine needs a tenth."""


class Recorder:
    """A listener that writes down what it hears and wakes who waits for it."""

    def __init__(self, answer: Callable[[bytes], Awaitable[list[bytes]]] | None = None) -> None:
        self.records: list[tuple[str, bytes]] = []
        self.changes: list[tuple[str, bool]] = []
        self.returned: list[str] = []
        self.questions: list[bytes] = []
        self.fail = False
        self._answer = answer
        self._heard = asyncio.Event()

    def on_record(self, key: str, value: bytes) -> None:
        self.records.append((key, value))
        self._heard.set()
        if self.fail:
            raise RuntimeError("a listener's mistake")

    def on_alive(self, node: str, alive: bool) -> None:
        self.changes.append((node, alive))
        self._heard.set()

    def on_returned(self, node: str) -> None:
        self.returned.append(node)
        self._heard.set()

    async def on_ask(self, question: bytes) -> list[bytes]:
        self.questions.append(question)
        self._heard.set()
        return [question] if self._answer is None else await self._answer(question)

    @property
    def alive(self) -> set[str]:
        """The nodes that are alive after all changes heard."""
        return {node for node, alive in dict(self.changes).items() if alive}

    async def until_alive(self, nodes: set[str]) -> None:
        """Wait until exactly `nodes` are alive."""
        await self.until(lambda: self.alive == nodes)

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until `condition` holds; it is looked at after everything heard."""
        async with asyncio.timeout(LIMIT):
            while not condition():
                self._heard.clear()
                await self._heard.wait()


def free_ports(count: int) -> list[int]:
    """Return TCP ports of 127.0.0.1 that nobody used a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Authority:
    """A certificate authority of one test, and the certificates of its nodes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        pki.init(folder, "test", time.time())
        self.ca = folder / "ca.crt"

    def issue(self, node: str, address: str = "127.0.0.1") -> tuple[Path, Path]:
        """Write and return certificate and key of `node`, new each time, valid at `address`."""
        paths = self._folder / f"{node}.crt", self._folder / f"{node}.key"
        for path in paths:
            path.unlink(missing_ok=True)
        pki.issue(self._folder, node, [address], time.time())
        return paths

    def settings(
        self, node: str, port: int, others: list[int], nodes: frozenset[str] | None = None
    ) -> Settings:
        """Return settings of `node`, with a certificate made for it."""
        certificate, key = self.issue(node)
        return Settings(
            cluster="test",
            node=node,
            listen=(f"tls/127.0.0.1:{port}",),
            connect=tuple(f"tls/127.0.0.1:{other}" for other in others),
            ca=str(self.ca),
            certificate=str(certificate),
            key=str(key),
            nodes=nodes,
        )


def config(settings: Settings) -> str:
    """Return the configuration of a zenoh session with the files that `settings` name."""
    identity = Contents.read(settings.ca, settings.certificate, settings.key)
    return session_config(settings, identity)


class World:
    """Nodes n1, n2 and n3 on one kind of fabric, each with its listener."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.network = Network()
        self.authority = Authority(folder)
        self.ports = free_ports(4)
        self.fabrics: dict[str, Fabric] = {}
        self.heard: dict[str, Recorder] = {}

    def settings(self, node: str, nodes: frozenset[str] | None = None) -> Settings:
        """Return the settings of ``n<i>``, which knows the endpoints of all others."""
        own = self.ports[int(node[1:]) - 1]
        return self.authority.settings(node, own, [p for p in self.ports if p != own], nodes)

    async def join(
        self,
        node: str,
        *,
        nodes: frozenset[str] | None = None,
        listener: Recorder | None = None,
        connect: tuple[str, ...] | None = None,
    ) -> Fabric:
        """Open the fabric of `node`."""
        settings = self.settings(node, nodes)
        if connect is not None:
            settings = msgspec.structs.replace(settings, connect=connect)
        fabric: Fabric
        fabric = self.network.join(settings) if self.kind == "memory" else ZenohFabric(settings)
        self.heard[node] = listener or Recorder()
        await fabric.open(self.heard[node])
        self.fabrics[node] = fabric
        return fabric

    async def join_all(self, *names: str, nodes: frozenset[str] | None = None) -> None:
        """Open the fabrics of `names` and wait until all know each other."""
        for name in names:
            await self.join(name, nodes=nodes)
        for name in names:
            await self.heard[name].until_alive(set(names) - {name})

    async def close(self) -> None:
        """Close all fabrics."""
        for fabric in self.fabrics.values():
            await fabric.close()


@contextlib.asynccontextmanager
async def world(kind: str, folder: Path) -> AsyncIterator[World]:
    """A world that is closed whatever happens."""
    made = World(kind, folder)
    try:
        yield made
    finally:
        await made.close()
