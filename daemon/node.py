"""One node, put together: the only place where all the parts meet.

Start: lock → mesh → host filter → what the predecessor knew (records, policy, the kernel's
sets) → attachments → socket → fabric. Nothing is flushed on the way; until the peers were
heard, nothing is revoked either. Stop: the fabric and the socket close; the kernel stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from daemon.api import status
from daemon.api.messages import (
    AttachAnswer,
    GCRequest,
    PolicyApplied,
    PolicyState,
    ReadyRequest,
    Status,
    Verification,
)
from daemon.api.server import Api
from daemon.attachments.lifecycle import Attachments
from daemon.cluster.exchange import Exchange
from daemon.cluster.liveness import Liveness
from daemon.cluster.membership import Membership
from daemon.cluster.publisher import Publisher
from daemon.cluster.rollout import Rollout
from daemon.cluster.snapshot import Snapshot
from daemon.config import Config
from daemon.fabric import Settings
from daemon.fabric.zenoh_fabric import ZenohFabric
from daemon.journal import Journal
from daemon.mesh.local_mesh import LocalMesh
from daemon.model import plan
from daemon.model.identity import Identity, Trust
from daemon.model.records import NodeInfo
from daemon.model.store import Store, Verdict
from daemon.reconcile.reconciler import Reconciler, Work
from daemon.resolver.client import Resolver
from netconf.attach import cni_status
from netconf.attach.attachment import Attachment, AttachRequest
from netconf.attach.state import State, lead
from netconf.errors import InvalidConfig, NoctuleError, TryAgain
from netconf.kernel_probe import probe_kernel
from netconf.nft import host, ruleset

T = TypeVar("T")

WORKERS = 8
"""Threads for the kernel; most of an ADD is waiting for the kernel's own locks."""
HOLD_FOR = 10.0
"""Seconds after a start in which nothing is revoked while known nodes were not yet heard."""
AUDIT_EVERY = 30.0
"""Seconds between rounds of reading the kernel back."""
SAVE_EVERY = 1.0
"""Seconds between writings of all records while they keep changing; one that comes alone, and
a policy, is written at once. What a crash loses is said again, by this node or by its peers."""
MANIFEST_EVERY = 10.0
"""Seconds between manifests: how long a record that was lost stays unnoticed at most."""
LOOP_AGAIN = 1.0
"""Seconds before a loop that failed begins again: often enough to cope, too seldom to flood."""


class Node:
    """The daemon of one node; what the API serves."""

    def __init__(self, config: Config, journal: Journal) -> None:
        """Raises InvalidConfig when the identity is unusable; reads, and changes nothing yet."""
        self._config = config
        self._journal = journal
        paths = config.fabric.identity
        self._identity = Identity.load(Path(paths.certificate), Path(paths.key))
        if self._identity.name != config.node:
            raise InvalidConfig(
                f'fabric.identity.certificate: it is of "{self._identity.name}", and this node '
                f'is "{config.node}"; issue one for this node'
            )
        trust = Trust.load(Path(paths.ca), Path(config.policy.authority))
        trust.verify_node(self._identity.pem, config.node, time.time())
        self.store = Store(config.cluster, trust)
        self._saved = Snapshot(Path(config.paths.state), Path(config.paths.cache), self.store)
        for problem in self._saved.load(time.time()):
            journal.warning("saved records", problem=problem)
        self.membership = Membership(config.node, config.fabric.connect, self.store)
        self._executor = ThreadPoolExecutor(WORKERS, "kernel")
        self._state = State(Path(config.paths.state))
        self.links = LocalMesh(
            config,
            self._state,
            self._executor,
            journal,
            infos=lambda: self.membership.infos().values(),
            attachments=lambda: list(self.replicas.attachments.values()),
            changed=self._replan,
        )
        self.programmer = Reconciler(self._plan, config.addresses.vips, self._executor, journal)
        self._fabric = ZenohFabric(
            Settings(
                cluster=config.cluster,
                node=config.node,
                listen=tuple(config.fabric.listen),
                connect=tuple(self.membership.endpoints()),
                nodes=self.membership.speakers(),
                ca=paths.ca,
                certificate=paths.certificate,
                key=paths.key,
                lease_ms=config.fabric.lease_ms,
            )
        )
        self._statements = Publisher(self._identity, self.store, self._fabric.publish, journal)
        self.liveness = Liveness(config.node, self.store, changed=self._replan, journal=journal)
        self.peers = Exchange(
            config.node,
            self.store,
            self._fabric,
            self._statements,
            self.liveness,
            program=self.programmer.request,
            journal=journal,
        )
        self.ruling = Rollout(
            config,
            self.store,
            self.membership,
            self.peers,
            self.programmer,
            self._fabric.publish,
            journal,
        )
        self.replicas = Attachments(
            lambda: self.links.facts,
            self._state,
            self._executor,
            policy=self.store.policy,
            opened=self._opened,
            closed=self._closed,
            released=self.programmer.release,
            journal=journal,
        )
        self._resolver = Resolver(Path(config.paths.state), journal)
        self._api = Api(self, Path(config.paths.socket), journal)
        self._planned = plan.NOTHING
        self._changed = asyncio.Event()
        self._ruled = asyncio.Event()
        """The policy is another one: what it forbids must not be allowed again by a crash."""
        self._saving = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._lock: int | None = None
        self.ready = False

    @property
    def config(self) -> Config:
        """What this node was told."""
        return self._config

    # --- life

    async def start(self) -> None:
        """Bring everything up; on failure `stop` undoes what would be in the way."""
        began = time.monotonic()
        self._take_lock()
        lead(self._config.paths.socket, self._config.paths.state)
        self._statements.resume()
        self.store.subscribe(self._store_changed)
        await self.links.start()
        await self._blocking(ruleset.ensure_host)
        addresses = self._config.addresses
        await self._blocking(probe_kernel, addresses.vips, addresses.ula)
        self._statements.info(self._info())
        await self._adopt()
        self._start(self.programmer.run)
        if self.store.policy() is not None:
            self.ruling.heard()
        await self.programmer.request()
        await self._name()
        await self._fabric.open(self.peers)
        self._statements.again()
        for node in self.membership.others() - self.liveness.alive:
            self.liveness.watch(node)
        for loop in (
            self.links.watch,
            self.replicas.watch,
            self.replicas.keep_alive,
            self._let_go,
            self._audit,
            self._save,
            self._tell,
        ):
            self._start(loop)
        await self._api.open()
        self.ready = True
        self._journal.info(
            "ready",
            attachments=len(self.replicas.attachments),
            mtu=self.links.facts.mtu,
            duration_ms=round((time.monotonic() - began) * 1e3),
        )

    async def stop(self) -> None:
        """Close what is ours alone. The kernel, and with it all traffic, stays as it is."""
        await self._api.close()
        await self.peers.close()
        await self.liveness.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._fabric.close()
        # The lock goes last: until then a successor must not meet a change under way.
        self._executor.shutdown(cancel_futures=True)
        self.programmer.close()
        if self._lock is not None:
            try:
                self._saved.write(self.store.dump(), self.store.envelope(self.store.keys.policy))
            except NoctuleError as error:
                self._journal.error("not saved", error=error.message, details=error.details)
            os.close(self._lock)
        self._journal.info("stopped")

    def _take_lock(self) -> None:
        folder = Path(self._config.paths.state)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(folder / "noctuled.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            self._lock = None
            raise TryAgain(
                f"paths.state: another noctuled runs on {folder}; stop it, or give this one its own"
            ) from error

    async def _adopt(self) -> None:
        """Take over attachments, and set straight what this node says of them."""
        await self.replicas.adopt()
        self.programmer.adopt(self.replicas.attachments, await self._blocking(host.pairs))
        adopted = list(self.replicas.attachments.values())
        for said in await self.programmer.outdated(adopted, self._config.addresses.ula):
            self._journal.warning("outdated", attachment=said)
        for attachment in self.replicas.attachments.values():
            if not self._statements.said(attachment):
                self._statements.replica(attachment)
        for gone in self._statements.replicas() - self.replicas.attachments.keys():
            self._statements.withdraw(gone)

    # --- what the API asks

    async def attach(self, request: AttachRequest) -> AttachAnswer:
        """ADD."""
        return await self.replicas.attach(request)

    async def undo(self, request: AttachRequest, answer: AttachAnswer) -> None:
        """An ADD whose answer nobody heard."""
        await self.replicas.undo(request, answer)

    async def detach(self, request: AttachRequest) -> None:
        """DEL."""
        await self.replicas.detach(request)

    async def check(self, request: AttachRequest) -> None:
        """CHECK."""
        await self.replicas.check(request)

    async def collect(self, request: GCRequest) -> None:
        """GC."""
        await self.replicas.collect(request)

    async def can_attach(self, request: ReadyRequest) -> None:
        """STATUS."""
        await self._blocking(cni_status.check, self.links.facts, self._state, request.key_file)

    async def status(self) -> Status:
        """Everything this node knows."""
        counters = await self._blocking(
            status.counters, list(self.replicas.attachments.values()), dict(self.store.counts)
        )
        return status.status(self, counters)

    async def verify(self) -> Verification:
        """Read the kernel back and compare; what differs is mended by the next pass."""
        attachments = list(self.replicas.attachments.values())
        return Verification(
            node=self._config.node,
            attachments=len(attachments),
            differences=await self.programmer.audit(attachments),
            outdated=await self.programmer.outdated(attachments, self._config.addresses.ula),
        )

    def policy_state(self) -> PolicyState:
        """The policy in force."""
        return self.ruling.state()

    async def apply_policy(self, envelope: bytes) -> PolicyApplied:
        """Accept a new version, and wait until the nodes that live have it in their kernels."""
        applied = await self.ruling.apply(envelope)
        await self._write()
        return applied

    # --- planning

    def _plan(self) -> Work:
        policy = self.store.policy()
        attachments = dict(self.replicas.attachments)
        made = plan.plan(
            policy,
            self.store.replicas(),
            attachments.values(),
            node=self._config.node,
            alive=self.membership.infos().keys() - self.liveness.lost,
            quality=self.links.quality(),
            previous=self._planned,
        )
        self._planned = made
        return Work(
            attachments=attachments,
            views=made.views,
            policy_version=policy.version if policy else 0,
        )

    def slots(self) -> dict[plan.Group, tuple[str, ...]]:
        """The slots of the last plan, by network and service."""
        return self._planned.slots

    def _replan(self) -> None:
        self.programmer.request()

    def _info(self) -> NodeInfo:
        return NodeInfo(
            node=self._config.node,
            certificate=self._identity.pem,
            endpoints=tuple(self._config.fabric.listen),
            slice=self._config.addresses.slice,
            mtu=self.links.announced,
            mesh_macs=tuple(self.links.up.hard.values()),
            instance=secrets.token_hex(8),
            ula=self._config.addresses.ula,
        )

    # --- attachments that come and go

    def _opened(self, attachment: Attachment) -> asyncio.Future[str]:
        """Tell everyone of a new attachment; the result says what the neighbours answered."""
        self.programmer.introduce(attachment.id)
        sealed = self._statements.replica(attachment)
        # Now, and not a moment later, when the pass that the record asked for has begun.
        programmed = self.programmer.request()
        return asyncio.ensure_future(self._usable(sealed, attachment, programmed))

    async def _usable(
        self, sealed: bytes, attachment: Attachment, programmed: asyncio.Future[bool]
    ) -> str:
        """Wait until peers can be reached, and asked for by name."""
        within = self._config.fabric.confirm_ms / 1e3
        outcome, _ = await asyncio.gather(
            self._in_use(sealed, attachment, programmed),
            self._resolver.serve(attachment, within),
        )
        return outcome

    async def _in_use(
        self, sealed: bytes, attachment: Attachment, programmed: asyncio.Future[bool]
    ) -> str:
        """Wait until our sets and, for a while, the neighbours' know the attachment."""
        policy = self.store.policy()
        service = policy.services.get(attachment.service) if policy else None
        if policy is None or service is None:
            await programmed
            return "closed: policy does not know the service"
        near = {policy.by_id[number].name for number in policy.neighbours(service.id)}
        nodes = {replica.node for replica in self.store.replicas() if replica.service in near}
        within = self._config.fabric.confirm_ms / 1e3
        answers = await self.peers.confirm(sealed, sorted(nodes), within)
        await programmed
        missing = sorted(node for node, seconds in answers.items() if seconds is None)
        if missing:
            return f"gave up on {', '.join(missing)}"
        return f"{len(answers)} confirmed"

    def _closed(self, attachment: Attachment) -> None:
        """Tell everyone that an attachment is gone."""
        self.programmer.forget(attachment.id)
        self._statements.withdraw(attachment.id)

    def _store_changed(self, verdict: Verdict) -> None:
        if verdict.key == self.store.keys.policy:
            self.ruling.heard()
            self._ruled.set()
        self._changed.set()
        self.programmer.request()

    # --- loops

    async def _let_go(self) -> None:
        """End the hold when all nodes that live were heard, or when waiting is enough."""
        until = time.monotonic() + HOLD_FOR
        known = self.membership.others()
        # Where what the predecessor knew was lost, whom we dial is all there is to go by.
        expected = len(known or self._config.fabric.connect)
        while (
            self.replicas.attachments
            and time.monotonic() < until
            and (
                self.store.policy() is None
                or len(self.liveness.judged | self.peers.heard) < expected
                or not known <= (self.liveness.judged | self.peers.heard)
            )
        ):
            await asyncio.sleep(0.1)
        self.programmer.hold = False
        await self.programmer.request()

    async def _audit(self) -> None:
        while True:
            await asyncio.sleep(AUDIT_EVERY)
            try:
                for difference in await self.programmer.audit_round(
                    list(self.replicas.attachments.values())
                ):
                    self._journal.warning("drift", difference=difference)
            except NoctuleError as error:
                self._journal.error("audit", error=error.message, details=error.details)

    async def _save(self) -> None:
        """Save what was learned, and let the fabric follow it."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            self._ruled.clear()
            try:
                await self._write()
            except NoctuleError as error:
                self._journal.error("not saved", error=error.message, details=error.details)
            try:
                await self._fabric.reconfigure(
                    self.membership.endpoints(), self.membership.speakers()
                )
            except NoctuleError as error:
                self._journal.error("fabric", error=error.message, details=error.details)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ruled.wait(), SAVE_EVERY)

    async def _write(self) -> None:
        async with self._saving:
            policy = self.store.envelope(self.store.keys.policy)
            await self._blocking(self._saved.write, self.store.dump(), policy)
            await self._name()

    async def _name(self) -> None:
        """Let the resolver know the names of the policy in force."""
        await self._blocking(self._resolver.write, self.store.policy(), self.links.facts.ula)

    async def _tell(self) -> None:
        """Publish the manifest now and then, so that a record that was lost is missed."""
        while True:
            await asyncio.sleep(MANIFEST_EVERY)
            self._statements.manifest()

    # --- how

    def _start(self, loop: Callable[[], Coroutine[None, None, None]]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(self._forever(loop)))

    async def _forever(self, loop: Callable[[], Coroutine[None, None, None]]) -> None:
        """A loop that dies of a bug is an error in the log, and begins again."""
        while True:
            try:
                return await loop()
            except Exception as error:
                self._journal.error("loop ended", exc=error)
                await asyncio.sleep(LOOP_AGAIN)

    async def _blocking(self, function: Callable[..., T], *arguments: object) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, function, *arguments)
