"""The answer to ``status``, put together from what the other parts of the node know."""

from __future__ import annotations

from collections import Counter

from daemon.api.messages import (
    Counters,
    DenialStatus,
    NodeStatus,
    PolicyStatus,
    PortStatus,
    ReplicaStatus,
    ServiceStatus,
    Status,
)
from daemon.attachments.registry import Registry
from daemon.cluster.credentials import Credentials
from daemon.cluster.membership import Membership
from daemon.cluster.rollout import Rollout
from daemon.config import Config
from daemon.journal import Journal
from daemon.liveness.liveness import Liveness
from daemon.mesh.local_mesh import LocalMesh
from daemon.model.store import Store
from daemon.model.trust import moment
from daemon.model.verdict import HARMLESS
from daemon.reconcile.planning import Planner
from daemon.reconcile.reconciler import Reconciler
from daemon.version import VERSION
from netconf import names
from netconf.errors import NoctuleError, UnknownContainer
from netconf.namespace import Namespace
from netconf.nft import host, ruleset


class Reporter:
    """Collects the status from the parts of one node."""

    def __init__(
        self,
        config: Config,
        store: Store,
        membership: Membership,
        liveness: Liveness,
        mesh: LocalMesh,
        registry: Registry,
        planner: Planner,
        reconciler: Reconciler,
        rollout: Rollout,
        credentials: Credentials,
    ) -> None:
        self._config = config
        self._store = store
        self._membership = membership
        self._liveness = liveness
        self._mesh = mesh
        self._registry = registry
        self._planner = planner
        self._reconciler = reconciler
        self._rollout = rollout
        self._credentials = credentials
        self._journal = Journal()
        self._unread: dict[str, str] = {}
        """Why the denials of an attachment could not be read, by its id."""
        self.ready = False
        """Whether the mesh is up and attachments are adopted, so that ADD is served."""

    def attachments(self) -> int:
        """Return how many attachments this node has."""
        return len(self._registry)

    def counters(self) -> Counters:
        """Read the counters of what was refused. Blocks: call it in a worker thread.

        A namespace that is gone meanwhile counts as one without denials, and so does one that
        cannot be read; why it cannot is logged once.
        """
        denied: list[DenialStatus] = []
        unread: dict[str, str] = {}
        for attachment in list(self._registry.values()):
            try:
                with Namespace.open_known(attachment.netns, attachment.netns_id) as namespace:
                    found = ruleset.denials(namespace)
            except UnknownContainer:
                continue
            except Exception as error:  # whatever one container makes fail, the others are counted
                unread[attachment.id] = repr(error)
                if self._unread.get(attachment.id) != repr(error):
                    known = isinstance(error, NoctuleError)
                    self._journal.warning(
                        "denials not read",
                        attachment=attachment.id,
                        service=attachment.service,
                        error=str(error) if known else repr(error),
                        details=error.details if isinstance(error, NoctuleError) else "",
                    )
                continue
            denied.extend(
                DenialStatus(
                    attachment=attachment.id,
                    service=attachment.service,
                    direction=denial.direction,
                    peer=denial.peer,
                    protocol=denial.protocol,
                    port=denial.port,
                    packets=denial.packets,
                )
                for denial in found
            )
        self._unread = unread
        filtered = host.counters()
        return Counters(
            plaintext=filtered.plaintext,
            foreign=filtered.foreign,
            forbidden=filtered.forbidden,
            denied=denied,
            records={
                str(outcome): count
                for outcome, count in sorted(dict(self._store.counts).items())
                if outcome not in HARMLESS
            },
            peers={
                node: {str(outcome): count for outcome, count in sorted(dict(counts).items())}
                for node, counts in sorted(dict(self._store.refused).items())
            },
        )

    def status(self, counted: Counters) -> Status:
        """Return the status; `counted` is the result of `counters`."""
        policy = self._store.policy()
        return Status(
            node=self._config.node,
            cluster=self._config.cluster,
            version=VERSION,
            ready=self.ready,
            algorithm=self._config.mesh.algorithm,
            mtu=self._mesh.facts.mtu,
            mesh=list(self._mesh.trouble),
            policy=PolicyStatus(
                version=policy.version,
                received_ns=self._rollout.received_ns,
                programmed_ns=self._rollout.programmed_ns,
            )
            if policy
            else None,
            nodes=self._nodes(),
            services=self._services(),
            replicas=self._replicas(),
            counters=counted,
            trouble=self._reconciler.trouble(),
        )

    def _nodes(self) -> list[NodeStatus]:
        infos = self._membership.infos()
        ends = self._credentials.ends()
        quality = self._mesh.quality()
        via = self._mesh.via()
        return [
            NodeStatus(
                node=name,
                alive=name in self._liveness.alive,
                suspect=name in self._liveness.suspect,
                lost=name in self._liveness.lost,
                slice=info.slice,
                mtu=info.mtu,
                quality=1.0 if name == self._config.node else quality.get(name, 0.0),
                via=via.get(name, ""),
                ula=info.ula,
                certificate_until=moment(ends[name]) if name in ends else "",
            )
            for name, info in infos.items()
        ]

    def _services(self) -> list[ServiceStatus]:
        policy = self._store.policy()
        if policy is None:
            return []
        replicas = [r for r in self._store.replicas() if r.node not in self._liveness.lost]
        slots: dict[str, Counter[str]] = {}
        for (_, service), addresses in self._planner.slots().items():
            slots.setdefault(service, Counter()).update(addresses)
        return [
            ServiceStatus(
                name=service.name,
                id=service.id,
                vip=service.vip,
                vip6=self._six(service.vip),
                ports=[
                    PortStatus(protocol=p.protocol, port=p.port, target=p.target)
                    for p in service.ports
                ],
                replicas=[r.address for r in replicas if r.service == service.name],
                slots=dict(sorted(slots.get(service.name, Counter()).items())),
            )
            for service in policy.services.values()
        ] + [
            ServiceStatus(
                name=one.name,
                id=one.id,
                vip=one.vip,
                vip6=self._six(one.vip),
                ports=[],
                replicas=[],
                slots={},
                closed=policy.closed[one.name],
            )
            for one in policy.guarded
        ]

    def _six(self, address: str) -> str:
        ula = self._config.addresses.ula
        return names.address6_of(address, ula) if ula else ""

    def _replicas(self) -> list[ReplicaStatus]:
        keys = self._store.keys
        refused = {refusal.key: refusal.reason for refusal in self._store.refusals()}
        return [
            ReplicaStatus(
                attachment=replica.attachment,
                node=replica.node,
                service=replica.service,
                network=replica.network,
                address=replica.address,
                address6=self._six(replica.address),
                mac=names.mac_of(replica.address),
                refused=refused.get(keys.replica(replica.node, replica.attachment), "")
                or ("its node is lost" if replica.node in self._liveness.lost else ""),
            )
            for replica in self._store.held_replicas()
        ]
