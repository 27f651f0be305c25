"""The mesh as this node has it: its devices, its paths, and what follows for its containers.

1. Paths are read every `LOOK_EVERY`: batman-adv's tables send no events.
2. Devices are looked at when the kernel tells that one of them changed, and every
   `REPAIR_EVERY` in any case: batman-adv's own flags send no events either, and events may be
   lost. What differs is set right, so that everything is back within 5 seconds.
3. What others know of this node (MTU, MAC addresses) is announced anew when it changes.
4. All nodes derive the same IPv6 addresses only if all were told the same network: one that
   was told another is named in the log, and in ``status``.
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
"""How the names of the containers' links on the node begin."""

LOOK_EVERY = 1.0
"""Seconds; an OGM interval of batman-adv."""

REPAIR_EVERY = 3.0
"""Seconds between looks at the devices that nobody asked for; each takes some milliseconds."""

REPAIR_AFTER = 0.2
"""Seconds from an event to the look: whoever changes one thing often changes the next."""


class LocalMesh:
    """The mesh as this node has it."""

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
        """`changed` is called when the paths to other nodes became better or worse, `announce`
        when this node's MTU or MAC addresses are others than it said."""
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
        """Held while devices are looked at: the watch and a person may ask at once."""
        self._disturbed = asyncio.Event()
        self._names = {names.MESH, names.BRIDGE, *(link.name for link in config.mesh.links)}
        """The devices of which a change is looked at at once."""
        self._off: set[str] = set()
        """Attachments of which a link is down or free, as the kernel told: to be looked at."""
        self._news = News()
        self._instance = secrets.token_hex(8)
        """Tells this run of the daemon from others."""
        self._renew = False
        """bat0 or the bridge is another device, and does not know the containers yet."""

    # --- what others ask

    @property
    def up(self) -> MeshFacts:
        """What the last look at the devices found or made."""
        return self._links.facts

    @property
    def announced(self) -> int:
        """The most that this node will carry: what its links can, or the MTU it was told."""
        return self._links.announced

    @property
    def trouble(self) -> tuple[str, ...]:
        """What is wrong with the mesh now and needs time or a person, in sentences."""
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

    def quality(self) -> dict[str, float]:
        """Return the quality of the best path to each other node that has one."""
        return paths.quality(self._originators, paths.owners(self._infos()))

    def via(self) -> dict[str, str]:
        """Return the next hop, as a node, on the best path to each other node."""
        return paths.via(self._originators, paths.owners(self._infos()))

    async def verify(self) -> list[str]:
        """Look at the devices now; return what differed, and what is wrong still."""
        try:
            found = await self._repair()
        except NoctuleError:
            found = []  # it is `trouble` now
        except OSError as error:
            found = [f"mesh: {error}"]
        return [*found, *self.trouble]

    async def heard(self) -> dict[str, float]:
        """Return when the mesh heard each node last, in seconds of the monotonic clock.

        Reads the table anew. A node that is not in it is left out. NoctuleError or OSError when
        it cannot be read.
        """

        def read() -> tuple[list[Originator], float]:
            return self._read(), time.monotonic()  # now, since the answer may wait for the loop

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
        """Take in what the kernel tells."""
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
        """Have a look's failure said, and go on."""
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
            # Also one that was being made meanwhile, or could not be resized the last time.
            if attachment.mtu > self.up.mtu:
                await self._logged(self._resize(attachment))

    async def _resize(self, attachment: Attachment) -> None:
        made = await self._pool.run(operations.resize, self._state, attachment.id, self.up.mtu)
        if made is not None:
            self._registry.update(made)

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

    def _least(self) -> int | None:
        config = self._config
        return mtu.least(self._infos(), config.node, mtu.floor(config.addresses.ula))

    # --- devices

    async def _repair(self) -> list[str]:
        """Look at the devices, set right what differs, and do what follows; return what differed.

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
        """Look at the attachments of which the kernel told that a link is down or free."""
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
