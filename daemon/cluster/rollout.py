"""Accepts a new policy on this node, publishes it, and finds out where it is in force.

1. A new version is first offered to this node's own store, by the rules for all records. If it is
   not accepted here, it is not published.
2. A node counts as live only when it has answered that its own kernel sets agree, not when the
   policy was sent to it.
3. The result names every node of the cluster with its outcome (``daemon.cluster.confirmation``).
   That includes nodes that policy lists and that were never heard of here, because an old policy
   may be in force on them.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable

import msgspec

from daemon.api.messages import PolicyApplied, PolicyState
from daemon.cluster.confirmation import Confirmation, read
from daemon.cluster.exchange import Exchange
from daemon.cluster.membership import Membership
from daemon.config import Config
from daemon.journal import Journal
from daemon.model.store import Store
from daemon.model.verdict import Outcome, Verdict
from daemon.reconcile.reconciler import Reconciler
from netconf.errors import InvalidConfig

CONFIRM_WITHIN = 5.0
"""Seconds ``policy apply`` waits for each node."""
AGAIN = 0.2
"""Seconds before a node whose kernel does not agree yet is asked again."""


class Rollout:
    """The policy in force on this node, when it was received and programmed, and `apply`."""

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
        """`publish` gives a record to the fabric. Subscribes to the store and to passes."""
        self._config = config
        self._store = store
        self._membership = membership
        self._exchange = exchange
        self._reconciler = reconciler
        self._publish = publish
        self._journal = journal
        self.received_ns = 0
        """When the policy in force was received, in CLOCK_MONOTONIC nanoseconds; 0 without one."""
        self.programmed_ns = 0
        """When the local kernel agreed with it for all attachments, likewise; 0 until then."""
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

    async def apply(self, envelope: bytes, *, wait: bool = True) -> PolicyApplied:
        """Accept a new version here and publish it; with `wait`, ask all nodes until it is live.

        Waits for at most `CONFIRM_WITHIN` seconds. Raises InvalidConfig if it is not accepted here.
        """
        began = time.monotonic()
        key = self._store.keys.policy
        verdict = self._exchange.offer(envelope)
        policy = self._store.policy()
        if not verdict.changed or verdict.key != key or policy is None:
            raise self._refusal(verdict)
        version = policy.version
        self._publish(key, envelope)
        if not wait:
            self._journal.info("policy accepted", version=version)
            return PolicyApplied(version=version, live={}, silent=[])
        others = self._membership.others()
        found = dict(
            await asyncio.gather(
                self._until_live(self._config.node, envelope, began),
                *(self._until_live(node, envelope, began) for node in others),
            )
        )
        for node in (self._membership.speakers() or frozenset()) - found.keys():
            found[node] = Confirmation("unreachable", "it was never heard of here")
        nodes = [found[node].of(node) for node in sorted(found)]
        live = {one.node: one.ms for one in nodes if one.ms is not None}
        silent = [one.node for one in nodes if one.outcome != "live"]
        self._journal.info("policy applied", version=version, live=live, silent=silent)
        return PolicyApplied(version=version, live=live, silent=silent, nodes=nodes)

    async def _until_live(
        self, node: str, envelope: bytes, began: float
    ) -> tuple[str, Confirmation]:
        """Ask `node` until its kernel agrees, it refuses, or `CONFIRM_WITHIN` seconds are over."""
        found = await self._ask(node, envelope, CONFIRM_WITHIN)
        while found.outcome == "accepted":
            await asyncio.sleep(AGAIN)
            left = began + CONFIRM_WITHIN - time.monotonic()
            if left <= 0:
                break
            again = await self._ask(node, envelope, left)
            if again.outcome == "unreachable":
                break  # the time ran out before the answer, so the answer before it stands
            found = again
        return node, msgspec.structs.replace(found, seconds=time.monotonic() - began)

    async def _ask(self, node: str, envelope: bytes, within: float) -> Confirmation:
        if node == self._config.node:
            return read([await self._exchange.accept(envelope, within)], within)
        return (await self._exchange.confirm(envelope, [node], within))[node]

    def _refusal(self, verdict: Verdict) -> InvalidConfig:
        """Return the error for a policy that is not accepted here."""
        held = self._store.policy()
        if verdict.outcome is Outcome.STALE and held is not None:
            return InvalidConfig(
                f"policy: not accepted: stale: another version won; this node holds policy "
                f"{held.version}; apply again to sign the one after it"
            )
        reason = f": {verdict.reason}" if verdict.reason else ""
        return InvalidConfig(
            f"policy: not accepted: {verdict.outcome}{reason}; sign the next version with the "
            "authority's key"
        )
