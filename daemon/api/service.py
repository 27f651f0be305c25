"""The API's requests, each passed on to the part of the daemon that serves it."""

from __future__ import annotations

from daemon.api.messages import (
    AttachAnswer,
    GCRequest,
    PolicyApplied,
    PolicyState,
    ReadyRequest,
    Status,
    Verification,
)
from daemon.api.status import Reporter
from daemon.attachments.lifecycle import Lifecycle
from daemon.cluster.rollout import Rollout
from daemon.cluster.saver import Saver
from daemon.mesh.local_mesh import LocalMesh
from daemon.process.workers import Pool
from daemon.reconcile.audit import Audit
from netconf.attach import cni_status
from netconf.attach.attachment import AttachRequest
from netconf.attach.state import State


class NodeService:
    """Implements `daemon.api.server.Service` with the parts of one node."""

    def __init__(
        self,
        node: str,
        lifecycle: Lifecycle,
        audit: Audit,
        rollout: Rollout,
        saver: Saver,
        reporter: Reporter,
        mesh: LocalMesh,
        state: State,
        audit_pool: Pool,
        look_pool: Pool,
    ) -> None:
        """`audit_pool` has the threads in which the kernel is read, which may take long;
        `look_pool` those for STATUS."""
        self._node = node
        self._lifecycle = lifecycle
        self._audit = audit
        self._rollout = rollout
        self._saver = saver
        self._reporter = reporter
        self._mesh = mesh
        self._state = state
        self._audit_pool = audit_pool
        self._look_pool = look_pool

    async def attach(self, request: AttachRequest) -> AttachAnswer:
        """ADD."""
        return await self._lifecycle.attach(request)

    async def undo(self, request: AttachRequest, answer: AttachAnswer) -> None:
        """Undo an ADD whose answer could not be delivered."""
        await self._lifecycle.undo(request, answer)

    async def detach(self, request: AttachRequest) -> None:
        """DEL."""
        await self._lifecycle.detach(request)

    async def check(self, request: AttachRequest) -> None:
        """CHECK."""
        await self._lifecycle.check(request)

    async def collect(self, request: GCRequest) -> None:
        """GC."""
        await self._lifecycle.collect(request)

    async def can_attach(self, request: ReadyRequest) -> None:
        """STATUS."""
        await self._look_pool.run(cni_status.check, self._mesh.facts, self._state, request.key_file)

    async def status(self) -> Status:
        """Return what this node knows of itself, its peers and their replicas."""
        return self._reporter.status(await self._audit_pool.run(self._reporter.counters))

    async def verify(self) -> Verification:
        """Read the kernel back and return what differs; the next pass mends that."""
        attachments = self._reporter.attachments()
        return Verification(
            node=self._node,
            attachments=attachments,
            differences=await self._mesh.verify() + await self._audit.full(),
            outdated=self._audit.outdated(),
        )

    def policy_state(self) -> PolicyState:
        """Return the policy in force, as a signer needs it."""
        return self._rollout.state()

    async def apply_policy(self, envelope: bytes, *, wait: bool) -> PolicyApplied:
        """Accept, publish and save a policy record; with `wait`, wait for the nodes' kernels."""
        applied = await self._rollout.apply(envelope, wait=wait)
        await self._saver.write()
        return applied
