"""Collects what a plan is made from, and keeps the last plan for the next one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from daemon.attachments.registry import Registry
from daemon.cluster.membership import Membership
from daemon.liveness.liveness import Liveness
from daemon.model.plan import NOTHING, Group, plan
from daemon.model.store import Store
from netconf.attach.attachment import Attachment
from netconf.program.desired import Desired


class Work(msgspec.Struct):
    """What one pass is to program into the kernel."""

    attachments: Mapping[str, Attachment]
    desired: Mapping[str, Desired]
    policy_version: int


class Planner:
    """Makes plans from the store, the registry, liveness and the mesh."""

    def __init__(
        self,
        node: str,
        store: Store,
        registry: Registry,
        membership: Membership,
        liveness: Liveness,
        quality: Callable[[], Mapping[str, float]],
    ) -> None:
        """`quality` returns the quality of the mesh path to each other node, 0 to 1."""
        self._node = node
        self._store = store
        self._registry = registry
        self._membership = membership
        self._liveness = liveness
        self._quality = quality
        self._last = NOTHING

    def plan(self) -> Work:
        """Make a plan from what is known now; it becomes the last plan."""
        policy = self._store.policy()
        attachments = self._opaque() | dict(self._registry)
        self._last = plan(
            policy,
            self._store.replicas(),
            attachments.values(),
            node=self._node,
            alive=self._membership.infos().keys() - self._liveness.lost,
            suspect=self._liveness.suspect,
            quality=self._quality(),
            previous=self._last,
        )
        return Work(
            attachments=attachments,
            desired=self._last.views,
            policy_version=policy.version if policy else 0,
        )

    def _opaque(self) -> dict[str, Attachment]:
        """Return the opaque attachments as this node last described them.

        They take part in the plan only for their pairs in the host filter, without which the frames
        of a container that still runs would be dropped.
        """
        found = {}
        for opaque in self._registry.opaque.values():
            said = self._store.replica(self._node, opaque.id)
            if said is not None and said.address == opaque.address:
                found[opaque.id] = msgspec.structs.replace(
                    opaque, service=said.service, network=said.network
                )
        return found

    def slots(self) -> Mapping[Group, tuple[str, ...]]:
        """Return the slots of the last plan, by network and service."""
        return self._last.slots
