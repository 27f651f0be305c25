"""Puts the parts of one node together, and starts and stops them in order.

The order of the start: records and policy from disk, the lock, the mesh, the host filter,
attachments, passes, the fabric, the socket. Nothing in the kernel is flushed on the way, and until
the peers were heard nothing is revoked either (``daemon.reconcile.hold``). "Ready" means that this
node serves its runtimes. Missing mesh links, or a missing address of the fabric, do not delay that:
they are waited for in the background, and named in the log. When the daemon stops it closes the
socket and the fabric, and leaves the kernel as it is.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from daemon.api.server import Api
from daemon.api.service import NodeService
from daemon.api.status import Reporter
from daemon.attachments.collector import Collector
from daemon.attachments.keep_alive import KeepAlive
from daemon.attachments.lifecycle import Lifecycle
from daemon.attachments.opening import Opening
from daemon.attachments.registry import Registry
from daemon.attachments.turns import Turns
from daemon.cluster.credentials import Credentials, Renewal
from daemon.cluster.exchange import Exchange
from daemon.cluster.membership import Membership
from daemon.cluster.publisher import Publisher
from daemon.cluster.rollout import Rollout
from daemon.cluster.saver import Saver
from daemon.cluster.snapshot import Snapshot
from daemon.config import Config, fabric_settings, trust_of
from daemon.fabric.join import join
from daemon.fabric.zenoh_fabric import ZenohFabric
from daemon.journal import Journal
from daemon.liveness.liveness import Liveness
from daemon.mesh.local_mesh import LocalMesh
from daemon.model.store import Store
from daemon.process import lock
from daemon.process.tasks import Tasks
from daemon.process.watchdog import Watchdog
from daemon.process.workers import Workers
from daemon.reconcile.audit import Audit
from daemon.reconcile.hold import Hold
from daemon.reconcile.planning import Planner
from daemon.reconcile.reconciler import Reconciler
from daemon.resolver.client import Resolver
from netconf.attach import host_ports
from netconf.attach.state import State, lead
from netconf.kernel_probe import probe_kernel
from netconf.nft import host


class Node:
    """The daemon of one node."""

    def __init__(self, config: Config, journal: Journal) -> None:
        """Only reads files. InvalidConfig or IOFailure if the identity or authority is unusable."""
        files = config.fabric.identity
        credentials = self._credentials = Credentials(
            (files.ca, files.certificate, files.key), config.node, journal
        )
        folder = Path(config.paths.state)
        self._config, self._journal = config, journal
        self._workers, self._tasks = Workers(), Tasks(journal)
        self._lock: int | None = None
        store = self._store = Store(config.cluster, trust_of(config, credentials.credential.roots))
        self._snapshot = Snapshot(folder, Path(config.paths.cache), store)
        for problem in self._snapshot.load():
            journal.warning("saved records", problem=problem)
        self._state, turns = State(folder), Turns()
        self._registry = Registry()
        self._membership = Membership(config.node, config.fabric.connect, store)
        credentials.peers = self._membership.certificates
        self._mesh = LocalMesh(
            config, self._state, self._workers.mesh, journal, self._registry,
            infos=lambda: self._membership.infos().values(),
            changed=lambda: self._reconciler.wake(), announce=self._introduce,
        )  # fmt: skip
        self._fabric = ZenohFabric(fabric_settings(
            config, self._membership.endpoints(), self._membership.speakers(),
        ), journal, self._workers)  # fmt: skip
        self._publisher = Publisher(credentials.identity, store, self._fabric.publish, journal)
        self._renewal = Renewal(store, self._publisher, self._mesh.info, self._registry)
        self._liveness = Liveness(
            config.node, store, mesh=self._mesh.heard, ask=self._fabric.ask,
            changed=lambda: self._reconciler.wake(), journal=journal, pool=self._workers.liveness,
        )  # fmt: skip
        planner = Planner(
            config.node, store, self._registry, self._membership, self._liveness,
            self._mesh.quality,
        )  # fmt: skip
        self._reconciler = Reconciler(planner.plan, self._workers.program, journal)
        self._exchange = Exchange(
            config.node, store, self._fabric, self._publisher, self._liveness,
            program=self._reconciler.request, journal=journal,
        )  # fmt: skip
        resolver = Resolver(folder, journal)
        self._saver = Saver(
            store, self._snapshot, resolver, self._membership, self._fabric, self._workers.disk,
            config.addresses.ula, journal,
        )  # fmt: skip
        rollout = Rollout(
            config, store, self._membership, self._exchange, self._reconciler,
            self._fabric.publish, journal,
        )  # fmt: skip
        opening = Opening(
            store, self._publisher, self._reconciler, self._exchange, resolver, self._registry,
            confirm_ms=config.fabric.confirm_ms,
        )  # fmt: skip
        self._lifecycle = Lifecycle(
            lambda: self._mesh.facts, self._state, self._workers.attach, self._registry, turns,
            opening, policy=store.policy, journal=journal,
        )  # fmt: skip
        self._collector = Collector(
            self._state, self._workers.attach, self._registry, turns, self._lifecycle, opening,
            self._tasks, journal,
        )  # fmt: skip
        self._keep_alive = KeepAlive(self._registry, self._workers.mesh, journal)
        self._audit = Audit(
            self._registry, self._reconciler, self._workers.audit, self._state,
            lambda: self._mesh.facts, self._mesh.attachment_links.mend, journal,
        )  # fmt: skip
        self._hold = Hold(
            store, self._membership, self._exchange, self._liveness, self._registry,
            self._reconciler, journal,
            dialled={*config.fabric.connect} - {*config.fabric.listen},
        )  # fmt: skip
        self._reporter = Reporter(
            config, store, self._membership, self._liveness, self._mesh, self._registry, planner,
            self._reconciler, rollout, credentials,
        )  # fmt: skip
        service = NodeService(
            config.node, self._lifecycle, self._audit, rollout, self._saver, self._reporter,
            self._mesh, self._state, self._workers.audit, self._workers.look,
        )  # fmt: skip
        self._api = Api(service, Path(config.paths.socket), journal)
        store.subscribe(lambda _: self._reconciler.wake())
        # Publisher first: it withdraws a removed attachment before anything else of it changes.
        self._registry.subscribe(self._publisher)
        self._registry.subscribe(self._reconciler)

    async def start(self) -> None:
        """Start all parts. If this raises, call `stop`, which releases what was taken."""
        began = time.monotonic()
        config = self._config
        self._lock = lock.take(Path(config.paths.state))
        lead(config.paths.socket, config.paths.state)
        self._tasks.forever("watchdog", Watchdog(self._workers, self._journal).watch)
        self._publisher.resume()
        await self._credentials.in_force()
        await self._mesh.start()
        await self._workers.program.run(host_ports.mend_filter, self._state)
        addresses = config.addresses
        for one in await self._workers.program.run(probe_kernel, addresses.vips, addresses.ula):
            self._journal.warning("not compared on this kernel", difference=one)
        self._introduce()
        await self._lifecycle.adopt()
        self._reconciler.adopt_pairs(await self._workers.program.run(host.pairs))
        self._publisher.align(self._registry.values(), self._registry.opaque)
        self._tasks.forever("passes", self._reconciler.run)
        await self._reconciler.request()
        await self._saver.name()
        await join(self._fabric, self._exchange, self._tasks, self._journal, self._joined)
        for node in self._membership.others() - self._liveness.alive:
            self._liveness.watch(node)
        for loop in (
            self._mesh.watch, self._collector.watch, self._keep_alive.watch, self._hold.run,
            self._audit.watch, self._saver.watch, self._publisher.keep_telling,
            self._liveness.follow_names,
        ):  # fmt: skip
            self._tasks.forever(loop.__qualname__, loop)
        self._tasks.forever("certificates", lambda: self._credentials.watch(self._renewal))
        await self._api.open()
        self._reporter.ready = True
        took = round((time.monotonic() - began) * 1e3)
        self._journal.info(
            "ready", attachments=len(self._registry), mtu=self._mesh.facts.mtu, duration_ms=took
        )

    async def stop(self) -> None:
        """Stop all parts. The kernel, and with it all traffic, stays as it is."""
        await self._api.close()
        for part in (self._exchange, self._liveness, self._tasks, self._fabric):
            await part.close()
        await self._reconciler.close()
        if self._lock is not None:
            await self._saver.save()
        self._workers.close()
        self._reconciler.kernel.close()
        if self._lock is not None:
            # Release the lock last, so that the next daemon does not start during a change.
            os.close(self._lock)
        self._journal.info("stopped")

    def _joined(self) -> None:
        """Publish all records and reconfigure the fabric, which has just been opened."""
        self._exchange.joined()
        self._saver.refresh()

    def _introduce(self) -> None:
        """Publish this node's info."""
        self._publisher.info(self._mesh.info(self._publisher.certificate))
