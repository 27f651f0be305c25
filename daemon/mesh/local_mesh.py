"""The mesh on this node: follows its paths and devices, and adapts containers and the node's info.

1. Paths are read every `LOOK_EVERY` seconds, because batman-adv sends no events about its tables.
2. Devices are looked at when the kernel reports a change of one of them, and every `REPAIR_EVERY`
   seconds in any case: batman-adv sends no events about its own flags, and events may be lost.
   What differs is set right, so that everything is back within 5 seconds.
3. When this node's MTU or the MACs of its mesh links change, its info is published again.
4. All nodes derive the same IPv6 addresses only if ``addresses.ula`` is the same on all of them. If
   it differs on a node, the log and ``status`` name that node.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable

from daemon.attachments.registry import Registry
from daemon.config import Config
from daemon.journal import Journal
from daemon.mesh import mtu, paths
from daemon.mesh.attachment_links import PATIENCE, AttachmentLinks
from daemon.mesh.links import Links, replaced
from daemon.model.records import NodeInfo
from daemon.news import News
from daemon.process.workers import Pool
from netconf import names
from netconf.attach import operations
from netconf.attach.attachment import Attachment, NodeNet
from netconf.attach.state import State
from netconf.errors import NoctuleError
from netconf.mesh.devices import MeshFacts
from netconf.netlink import batadv
from netconf.netlink.batadv import Originator
from netconf.netlink.events import LinkEvents

ENDS = (names.host_end(""), names.lower_end(""))
"""The prefixes of the names of the containers' links on the node."""

LOOK_EVERY = 1.0
"""Seconds between readings of the paths: the interval of batman-adv's OGMs."""

REPAIR_EVERY = 3.0
"""Seconds between looks at the devices without an event; each takes some milliseconds."""

REPAIR_AFTER = 0.2
"""Seconds from an event to the look, because one change is often followed by others."""


class LocalMesh:
    """The devices and paths of the mesh on this node."""

    def __init__(
        self,
        config: Config,
        state: State,
        pool: Pool,
        journal: Journal,
        registry: Registry,
        *,
        infos: Callable[[], Iterable[NodeInfo]],
        changed: Callable[[], None],
        announce: Callable[[], None],
    ) -> None:
        """`changed` is called when the quality of paths to other nodes has changed; `announce` when
        this node's info must be published again (rule 3)."""
        self._config = config
        self._state = state
        self._pool = pool
        self._journal = journal
        self._infos = infos
        self._registry = registry
        self._changed = changed
        self._announce = announce
        self._links = Links(config.mesh, config.addresses.ula, state, journal)
        self.attachment_links = AttachmentLinks(lambda: self.facts, state)
        self._originators: list[Originator] = []
        self._other_ulas: set[tuple[str, str]] = set()
        self._looking = asyncio.Lock()
        """Held while devices are looked at: `watch` and ``verify`` may do so at the same time."""
        self._disturbed = asyncio.Event()
        """Set when the kernel reported a change that is to be looked at."""
        self._names = {names.MESH, names.BRIDGE, *(link.name for link in config.mesh.links)}
        """The devices whose changes are looked at without waiting for `REPAIR_EVERY`."""
        self._off: set[str] = set()
        """Attachments of which the kernel reported a link as down or no bridge port any more."""
        self._news = News()
        self._instance = secrets.token_hex(8)
        """A random string that tells this run of the daemon from others."""
        self._renew = False
        """Whether bat0 or the bridge was made anew and does not know the containers yet."""

    # --- what others ask

    @property
    def up(self) -> MeshFacts:
        """What the last look at the devices found or made."""
        return self._links.facts

    @property
    def announced(self) -> int:
        """The MTU, in bytes, that this node announces: as configured, or what its links carry."""
        return self._links.announced

    @property
    def trouble(self) -> tuple[str, ...]:
        """Sentences about what is wrong with the mesh now and was not mended at once."""
        return self._links.trouble

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
        """Return this node's info; `certificate` is the node's own, PEM."""
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

    def quality(self) -> dict[str, float]:
        """Return the quality, 0 to 1, of the best path to each other node that has one."""
        return paths.quality(self._originators, paths.owners(self._infos()))

    def via(self) -> dict[str, str]:
        """Return the next hop, as a node, on the best path to each other node."""
        return paths.via(self._originators, paths.owners(self._infos()))

    async def verify(self) -> list[str]:
        """Look at the devices now; return sentences about what differed or is still wrong."""
        try:
            found = await self._repair()
        except NoctuleError:
            found = []  # it is `trouble` now
        except OSError as error:
            found = [f"mesh: {error}"]
        return [*found, *self.trouble]

    async def heard(self) -> dict[str, float]:
        """Return when the mesh heard each node last, in seconds of the monotonic clock.

        Reads the originator table. Nodes that are not in it are left out. NoctuleError or OSError
        if it cannot be read.
        """

        def read() -> tuple[list[Originator], float]:
            # Take the time in the worker, because the loop may get the result only later.
            return self._read(), time.monotonic()

        originators, now = await self._pool.run(read)
        return paths.heard(originators, paths.owners(self._infos()), now)

    # --- life

    async def start(self) -> None:
        """Bring the mesh up, with the MTU of the nodes known so far."""
        await self._pool.run(self._links.start, self._least())
        await self._pool.run(self._state.write_node, self.facts)

    async def watch(self) -> None:
        """Follow paths and devices; runs until cancelled."""
        events = await self._pool.run(LinkEvents)
        loop = asyncio.get_running_loop()
        loop.add_reader(events, self._hear, events)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_paths())
                group.create_task(self._follow_devices())
        finally:
            loop.remove_reader(events)
            events.close()

    def _hear(self, events: LinkEvents) -> None:
        """Read the kernel's events, and have looked at what they are about."""
        changes = events.read()
        wrong = changes.off | {name for name in changes.free if name[:2] == names.host_end("")}
        if ends := {name[2:] for name in wrong if name[:2] in ENDS}:
            self._off |= ends & self._registry.keys()
        if (
            changes.lost
            or changes.addresses
            or self._off
            or not self._names.isdisjoint(changes.links)
        ):
            self._disturbed.set()

    async def _follow_paths(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            await self._logged(self._look())

    async def _follow_devices(self) -> None:
        while True:
            try:
                async with asyncio.timeout(REPAIR_EVERY):
                    await self._disturbed.wait()
                await asyncio.sleep(REPAIR_AFTER)
            except TimeoutError:
                pass
            self._disturbed.clear()
            await self._logged(self._repair())
            await self._logged(self._mend_attachments())

    async def _logged(self, look: Awaitable[object]) -> None:
        """Await `look`; log its failure, and go on."""
        try:
            await look
        except NoctuleError as error:
            self._links.stumble(error.message, error.details)
        except OSError as error:
            self._links.stumble(str(error))

    # --- paths

    async def _look(self) -> None:
        before = {node: round(quality, 1) for node, quality in self.quality().items()}
        self._originators = await self._pool.run(self._read)
        self._compare_ula()
        if before != {node: round(quality, 1) for node, quality in self.quality().items()}:
            self._changed()
        least = self._least()
        if self._config.mesh.mtu == "auto" and least is not None and least < self.up.mtu:
            await self._repair()
        for attachment in list(self._registry.values()):
            # This includes one that was made while the MTU fell, or could not be resized before.
            if attachment.mtu > self.up.mtu:
                await self._logged(self._resize(attachment))

    async def _resize(self, attachment: Attachment) -> None:
        made = await self._pool.run(operations.resize, self._state, attachment.id, self.up.mtu)
        if made is not None:
            self._registry.update(made)

    def _compare_ula(self) -> None:
        """Log once each node whose ``addresses.ula`` differs from ours."""
        ours = self._config.addresses.ula
        told = {(i.node, i.ula) for i in self._infos() if i.ula != ours}
        for node, theirs in sorted(told - self._other_ulas):
            self._journal.error("addresses.ula differs", peer=node, there=theirs, here=ours)
        self._other_ulas = told

    def _read(self) -> list[Originator]:
        with batadv.open() as genl:
            return batadv.originators(genl, self.up.mesh_index)

    def _least(self) -> int | None:
        config = self._config
        return mtu.least(self._infos(), config.node, mtu.floor(config.addresses.ula))

    # --- devices

    async def _repair(self) -> list[str]:
        """Look at the devices and set right what differs; return sentences about it.

        Also adapts to it what depends on the devices: state, info and containers. Raises
        NoctuleError or OSError.
        """
        async with self._looking:
            before, announced = self.up, self.announced
            mended = await self._pool.run(self._links.look, self._least())
            found = [f"mesh: {one}; set right" for one in mended]
            if self.up.mtu < before.mtu:
                self._journal.info("mtu lowered", mtu=self.up.mtu, before=before.mtu)
            if self.up.mtu != before.mtu:
                await self._pool.run(self._state.write_node, self.facts)
            if (announced, before.hard) != (self.announced, self.up.hard):
                self._announce()
            self._renew = self._renew or replaced(before, self.up)
            if self._renew:
                attachments = list(self._registry.values())
                found += await self._mend(attachments)
                await self._pool.run(self.attachment_links.announce, attachments)
                self._renew = False
            return found

    async def _mend_attachments(self) -> None:
        """Mend the attachments whose links the kernel reported as down or no bridge port."""
        if self._off:
            await asyncio.sleep(PATIENCE)
            off, self._off = self._off, set()
            await self._mend([self._registry[each] for each in off if each in self._registry])

    async def _mend(self, attachments: Iterable[Attachment]) -> list[str]:
        """Set the links of attachments right; return and log what differed."""
        found = await self._pool.run(self.attachment_links.mend, attachments)
        for difference in self._news.tell(time.monotonic(), found):
            self._journal.warning("drift", difference=difference)
        return found
