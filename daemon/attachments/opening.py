"""The last part of an ADD: opening a closed attachment towards its neighbours.

1. This node's own kernel sets are changed first. The replica's record is put into the store, a
   pass programs it, and only then it is published. So nobody dials a replica whose own node would
   still refuse the connection.
2. The record is then sent to each node that has replicas of neighbouring services, and each
   answers when its own kernel agrees. ADD waits for them at most `confirm_ms`: a container usually
   starts when its peers already accept it, but a slow peer never keeps it from starting.
3. At the same time the resolver opens its sockets in the container's namespace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from daemon.attachments.registry import Registry
from daemon.cluster.exchange import Exchange
from daemon.cluster.publisher import Publisher
from daemon.model.store import Store
from daemon.reconcile.reconciler import Reconciler
from daemon.resolver.client import Resolver
from netconf.attach.attachment import Attachment


class Opening:
    """Opens attachments."""

    def __init__(
        self,
        store: Store,
        publisher: Publisher,
        reconciler: Reconciler,
        exchange: Exchange,
        resolver: Resolver,
        registry: Registry,
        *,
        confirm_ms: int,
    ) -> None:
        """`confirm_ms` is how long to wait for neighbours and resolver, in milliseconds."""
        self._store = store
        self._publisher = publisher
        self._reconciler = reconciler
        self._exchange = exchange
        self._resolver = resolver
        self._registry = registry
        self._within = confirm_ms / 1e3

    def open(self, attachment: Attachment) -> Coroutine[Any, Any, str]:
        """Open `attachment`; the result says, in words for the log, who confirmed it or why it is
        closed.

        The record is made at once, before anything is awaited: whoever holds the attachment's turn
        thus knows that a later withdrawal has a higher version.
        """
        sealed = self._publisher.prepare(attachment)
        return self._open(attachment, sealed, self._reconciler.request_for(attachment.id))

    async def _open(
        self, attachment: Attachment, sealed: bytes, programming: asyncio.Future[bool]
    ) -> str:
        outcome, _ = await asyncio.gather(
            self._tell(attachment, sealed, programming),
            self._resolver.serve(attachment, self._within),
        )
        return outcome

    async def _tell(
        self, attachment: Attachment, sealed: bytes, programming: asyncio.Future[bool]
    ) -> str:
        programmed = await programming
        present = self._registry.get(attachment.id)
        if present is None or present.salt != attachment.salt:
            return "taken down meanwhile"  # and withdrawn: do not publish its record after that
        self._publisher.publish(sealed)
        policy = self._store.policy()
        service = policy.services.get(attachment.service) if policy else None
        if policy is None or service is None:
            why = policy.closed.get(attachment.service, "") if policy else ""
            return f"closed: {why or 'policy does not know the service'}"
        near = {policy.by_id[number].name for number in policy.neighbours(service.id)}
        nodes = {replica.node for replica in self._store.replicas() if replica.service in near}
        answers = await self._exchange.confirm(sealed, sorted(nodes), self._within)
        missing = sorted(node for node, answer in answers.items() if not answer.live)
        if not programmed:
            return "closed: this node's own sets could not be programmed yet"
        return f"gave up on {', '.join(missing)}" if missing else f"{len(answers)} confirmed"
