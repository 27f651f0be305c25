"""The policy on this node: what is in force, how a new version gets there, and when it did.

1. A new version is held here first, by the rules for records; what this node does not accept it
   tells nobody.
2. Where it is live is what kernels say, not what was sent: each node answers when its own sets
   agree.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable

from daemon.api.messages import PolicyApplied, PolicyState
from daemon.cluster.exchange import Exchange
from daemon.cluster.membership import Membership
from daemon.config import Config
from daemon.journal import Journal
from daemon.model.store import Store, Verdict
from daemon.reconcile.reconciler import Reconciler
from netconf.errors import InvalidConfig

CONFIRM_WITHIN = 5.0
"""Seconds ``policy apply`` waits for each node."""


class Rollout:
    """Asks and tells the other parts of a node about its policy."""

    def __init__(
        self,
        config: Config,
        store: Store,
        membership: Membership,
        exchange: Exchange,
        reconciler: Reconciler,
        publish: Callable[[str, bytes], None],
        journal: Journal,
    ) -> None:
        """`publish` gives a record to the fabric; passes and the store are listened to."""
        self._config = config
        self._store = store
        self._membership = membership
        self._exchange = exchange
        self._reconciler = reconciler
        self._publish = publish
        self._journal = journal
        self.received_ns = 0
        """When the policy in force was heard, by CLOCK_MONOTONIC; 0 without one."""
        self.programmed_ns = 0
        """When every local set agreed with it; 0 while not yet."""
        reconciler.passed = self._passed
        store.subscribe(self._heard)
        if store.policy() is not None:
            self.received_ns = time.monotonic_ns()

    def _heard(self, verdict: Verdict) -> None:
        if verdict.key == self._store.keys.policy:
            self.received_ns = time.monotonic_ns()
            self.programmed_ns = 0
            policy = self._store.policy()
            for service, why in policy.closed.items() if policy else ():
                self._journal.warning("service closed", service=service, reason=why)

    def _passed(self) -> None:
        policy = self._store.policy()
        if policy and self._reconciler.policy_version == policy.version:
            self.programmed_ns = self.programmed_ns or time.monotonic_ns()

    def state(self) -> PolicyState:
        """Return what a signer needs to make the next version."""
        policy, envelope = self._store.policy(), self._store.envelope(self._store.keys.policy)
        return PolicyState(
            cluster=self._config.cluster,
            vips=self._config.addresses.vips,
            version=policy.version if policy else 0,
            envelope=base64.b64encode(envelope).decode() if envelope else "",
        )

    async def apply(self, envelope: bytes) -> PolicyApplied:
        """Accept a new version, and wait until the nodes that live have it in their kernels.

        Raises InvalidConfig when it is not accepted here.
        """
        began = time.monotonic()
        key = self._store.keys.policy
        verdict = self._exchange.offer(envelope)
        policy = self._store.policy()
        if not verdict.changed or verdict.key != key or policy is None:
            raise InvalidConfig(
                f"policy: not accepted: {verdict.outcome}"
                + (f": {verdict.reason}" if verdict.reason else "")
                + "; sign the next version with the authority's key"
            )
        self._publish(key, envelope)
        others = sorted(self._membership.others())
        programmed = self._reconciler.request(strict=True)
        confirming = asyncio.ensure_future(self._exchange.confirm(envelope, others, CONFIRM_WITHIN))
        agreed = await programmed
        live = {self._config.node: (time.monotonic() - began) * 1e3} if agreed else {}
        confirmed = (await confirming).items()
        live |= {node: seconds * 1e3 for node, seconds in confirmed if seconds is not None}
        silent = sorted({self._config.node, *others} - live.keys())
        self._journal.info("policy applied", version=policy.version, live=live, silent=silent)
        return PolicyApplied(version=policy.version, live=live, silent=silent)
