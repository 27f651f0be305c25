"""This node's place on the mesh: bringing it up, and how good the paths are.

1. Quality is 0–1: TQ/255 for BATMAN_IV, throughput over the best path's for BATMAN_V. It is
   read from batman-adv's own table, so it says what this node's frames will really meet.
2. One MTU for the whole mesh: the least that any known node can carry. It is lowered on
   running attachments when a poorer node appears, and never raised under them; never below
   what IPv4 needs, or IPv6 where there is an IPv6 network.
3. All nodes derive the same IPv6 addresses only if all were told the same network: one that
   was told another is named in the log, and in ``status``.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable

from daemon.config import Config
from daemon.journal import Journal
from daemon.model.records import NodeInfo
from daemon.workers import Pool
from netconf import mesh, names
from netconf.attach import operations
from netconf.attach.attachment import Attachment, NodeNet
from netconf.attach.state import State
from netconf.errors import InvalidConfig, NoctuleError
from netconf.netlink import batadv
from netconf.netlink.batadv import Originator

LOOK_EVERY = 1.0
"""Seconds; an OGM interval of batman-adv. Its tables send no events."""


class LocalMesh:
    """The mesh as this node has it."""

    def __init__(
        self,
        config: Config,
        state: State,
        pool: Pool,
        journal: Journal,
        *,
        infos: Callable[[], Iterable[NodeInfo]],
        attachments: Callable[[], Iterable[Attachment]],
        changed: Callable[[], None],
    ) -> None:
        """`changed` is called when the paths to other nodes became better or worse."""
        self._config = config
        self._state = state
        self._pool = pool
        self._journal = journal
        self._infos = infos
        self._attachments = attachments
        self._changed = changed
        self._originators: list[Originator] = []
        self._mesh: mesh.MeshFacts | None = None
        self._fitted: set[str] = set()
        """Attachments that were resized since the MTU was lowered last."""
        self._other_ulas: set[tuple[str, str]] = set()
        self._instance = secrets.token_hex(8)
        """Tells this run of the daemon from others."""

    @property
    def up(self) -> mesh.MeshFacts:
        """What `start` found or made."""
        assert self._mesh is not None, "start comes first"
        return self._mesh

    @property
    def announced(self) -> int:
        """The most that this node will carry: what its links can, or the MTU it was told."""
        told = self._config.mesh.mtu
        return self.up.limit if told == "auto" else told

    @property
    def facts(self) -> NodeNet:
        """What an attachment needs to know of this node."""
        config = self._config
        return NodeNet(
            cluster=config.cluster,
            node=config.node,
            pool=config.addresses.pool,
            slice=config.addresses.slice,
            vips=config.addresses.vips,
            mtu=self.up.mtu,
            ula=config.addresses.ula,
        )

    def info(self, certificate: str) -> NodeInfo:
        """Return what this node says of itself; `certificate` is its own, PEM."""
        return NodeInfo(
            node=self._config.node,
            certificate=certificate,
            endpoints=tuple(self._config.fabric.listen),
            slice=self._config.addresses.slice,
            mtu=self.announced,
            mesh_macs=tuple(self.up.hard.values()),
            instance=self._instance,
            ula=self._config.addresses.ula,
        )

    async def start(self) -> None:
        """Bring the mesh up, with the MTU of the nodes known so far."""
        self._mesh = await self._pool.run(self._bring_up, self._least())

    async def watch(self) -> None:
        """Follow the paths and the MTU; runs until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                await self._look()
            except NoctuleError as error:
                self._journal.error("mesh", error=error.message, details=error.details)
            except OSError as error:
                self._journal.error("mesh", error=str(error))

    def quality(self) -> dict[str, float]:
        """Return the quality of the best path to each other node that has one."""
        macs = self._macs()
        found: dict[str, float] = {}
        best = max((o.throughput or 0 for o in self._originators), default=0)
        for originator in self._originators:
            node = macs.get(originator.mac)
            if node is not None and originator.best:
                found[node] = (
                    originator.tq / 255
                    if originator.tq is not None
                    else (originator.throughput or 0) / max(best, 1)
                )
        return found

    def via(self) -> dict[str, str]:
        """Return the next hop, as a node, on the best path to each other node."""
        macs = self._macs()
        return {
            macs[o.mac]: macs.get(o.neighbour, "")
            for o in self._originators
            if o.best and o.mac in macs
        }

    def _macs(self) -> dict[str, str]:
        return {mac: info.node for info in self._infos() for mac in info.mesh_macs}

    def _least(self) -> int | None:
        # Less than IP needs is a mistake, and must not become everybody's.
        mtus = (i.mtu for i in self._infos() if i.node != self._config.node)
        return min((mtu for mtu in mtus if mtu >= self._floor), default=None)

    @property
    def _floor(self) -> int:
        return names.MTU_MIN6 if self._config.addresses.ula else mesh.MTU_MIN

    async def _look(self) -> None:
        before = {node: round(quality, 1) for node, quality in self.quality().items()}
        self._originators = await self._pool.run(self._read)
        self._compare_ula()
        if before != {node: round(quality, 1) for node, quality in self.quality().items()}:
            self._changed()
        least = self._least()
        if self._config.mesh.mtu == "auto" and least is not None and least < self.up.mtu:
            self._journal.info("mtu lowered", mtu=least, before=self.up.mtu)
            self._mesh = await self._pool.run(self._bring_up, least)
            self._fitted.clear()
        for attachment in self._attachments():
            # Also one that was being made meanwhile, or could not be resized the last time.
            if attachment.mtu > self.up.mtu and attachment.id not in self._fitted:
                await self._pool.run(operations.resize, self._state, attachment.id, self.up.mtu)
                self._fitted.add(attachment.id)

    def _compare_ula(self) -> None:
        """Log, once, each node that was told another IPv6 network."""
        ours = self._config.addresses.ula
        told = {(i.node, i.ula) for i in self._infos() if i.ula != ours}
        for node, theirs in sorted(told - self._other_ulas):
            self._journal.error("addresses.ula differs", peer=node, there=theirs, here=ours)
        self._other_ulas = told

    def _read(self) -> list[Originator]:
        with batadv.open() as genl:
            return batadv.originators(genl, self.up.mesh_index)

    def _bring_up(self, least: int | None) -> mesh.MeshFacts:
        # A lower MTU is for good: raising it again would need every container's consent.
        if self._mesh is not None and least is not None:
            least = min(least, self._mesh.mtu)
        self._mesh = mesh.bring_up(self._config.mesh, mesh_mtu=least)
        if self._mesh.mtu < self._floor:
            raise InvalidConfig(
                f"addresses.ula: IPv6 needs a mesh that carries {self._floor} bytes, and "
                f"mesh.links carry {self._mesh.mtu}; raise their MTU, or leave addresses.ula "
                "out on every node"
            )
        self._state.write_node(self.facts)
        return self._mesh
