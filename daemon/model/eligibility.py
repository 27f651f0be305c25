"""Which of the replicas in the store are eligible, kept up to date as records come and go.

1. If policy lists nodes, a node's slice is eligible if it is the one that policy gives it. If
   policy lists none, a slice is eligible if it overlaps neither with the VIPs nor with the slice of
   a node whose id sorts lower. So without a list any node with a valid certificate can push out
   the slices of others; list the nodes where that matters.
2. A replica is eligible if policy knows its service and lets its node host it, and if its address
   lies in its node's slice. If two have the same address, the newer one is eligible: the address
   was reused.
3. A replica that comes or goes can change the result at its own address only, so only that address
   is judged again. After a new policy or a new slice all are judged again.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from socket import inet_aton

import msgspec

from daemon.model.keys import Keys
from daemon.model.policy import Policy
from daemon.model.records import NodeInfo, Replica


class Refusal(msgspec.Struct, frozen=True):
    """Why a record that is held is not eligible."""

    key: str
    node: str
    reason: str


class _Claim(msgspec.Struct, frozen=True):
    version: int
    key: str
    replica: Replica


class Eligibility:
    """Judges the replicas in the store by the policy and by the nodes' slices."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._policy: Policy | None = None
        self._slices: dict[str, IPv4Network] = {}
        self._slice_refusals: list[Refusal] = []
        self._claims: dict[str, dict[str, _Claim]] = {}
        """By address, then by key."""
        self._places: dict[str, str] = {}
        """Address by key."""
        self._winners: dict[str, Replica] = {}
        """By address."""
        self._refusals: dict[str, Refusal] = {}
        """By key."""
        self._doubtful: set[str] = set()
        """Addresses to be judged again."""
        self._replicas: tuple[Replica, ...] | None = None

    def put(self, key: str, version: int, replica: Replica) -> None:
        """The record under `key` is now this `replica`."""
        self.drop(key)
        self._places[key] = replica.address
        self._claims.setdefault(replica.address, {})[key] = _Claim(version, key, replica)
        self._doubtful.add(replica.address)

    def drop(self, key: str) -> None:
        """Remove the replica under `key`, if there is one."""
        address = self._places.pop(key, None)
        if address is not None:
            self._refusals.pop(key, None)
            del self._claims[address][key]
            self._doubtful.add(address)

    def govern(self, policy: Policy | None, infos: Mapping[str, NodeInfo]) -> None:
        """Judge all slices and replicas by this `policy` and by the nodes' `infos`."""
        self._policy = policy
        self._slices, self._slice_refusals = _slices(self._keys, policy, infos)
        self._doubtful.update(self._claims)

    def replicas(self) -> tuple[Replica, ...]:
        """Return the eligible replicas, in the order of their addresses."""
        self._settle()
        if self._replicas is None:
            winners = self._winners
            self._replicas = tuple(winners[a] for a in sorted(winners, key=inet_aton))
        return self._replicas

    def refusals(self) -> tuple[Refusal, ...]:
        """Return why each other replica, and each other slice, is not eligible, ordered by key."""
        self._settle()
        found = [*self._refusals.values(), *self._slice_refusals]
        return tuple(sorted(found, key=lambda refusal: refusal.key))

    def _settle(self) -> None:
        while self._doubtful:
            self._judge(self._doubtful.pop())
            self._replicas = None

    def _judge(self, address: str) -> None:
        claims = self._claims[address]
        winner: Replica | None = None
        for claim in sorted(claims.values(), key=lambda claim: (-claim.version, claim.key)):
            replica = claim.replica
            reason = _objection(replica, self._policy, self._slices)
            if not reason and winner is not None:
                reason = f"{address} is {winner.attachment}'s by a newer record"
            if reason:
                self._refusals[claim.key] = Refusal(claim.key, replica.node, reason)
            else:
                self._refusals.pop(claim.key, None)
                winner = replica
        if winner is not None:
            self._winners[address] = winner
        else:
            self._winners.pop(address, None)
        if not claims:
            del self._claims[address]


def _slices(
    keys: Keys, policy: Policy | None, infos: Mapping[str, NodeInfo]
) -> tuple[dict[str, IPv4Network], list[Refusal]]:
    """Return the eligible slices, and why others are not (rule 1)."""
    slices: dict[str, IPv4Network] = {}
    refusals: list[Refusal] = []
    for node, info in sorted(infos.items()):
        slice = IPv4Network(info.slice)
        reason = _slice_objection(node, slice, slices, policy)
        if reason:
            refusals.append(Refusal(keys.info(node), node, reason))
        else:
            slices[node] = slice
    return slices, refusals


def _slice_objection(
    node: str, slice: IPv4Network, slices: dict[str, IPv4Network], policy: Policy | None
) -> str:
    if policy is not None and policy.nodes is not None:
        pinned = policy.nodes.get(node)
        if pinned is None:
            return "policy does not list this node; add it to nodes in policy.yaml"
        if IPv4Network(pinned) != slice:
            return f"slice {slice} is not {pinned}, which policy gives to {node}"
    if policy is not None and slice.overlaps(IPv4Network(policy.vips)):
        return f"slice {slice} overlaps with the VIPs {policy.vips}"
    for other, taken in slices.items():
        if slice.overlaps(taken):
            return f"slice {slice} overlaps with {taken} of {other}; give each node its own"
    return ""


def _objection(replica: Replica, policy: Policy | None, slices: dict[str, IPv4Network]) -> str:
    if policy is None:
        return "there is no policy yet; publish one with `noctulectl policy apply`"
    if replica.service in policy.closed:
        return policy.closed[replica.service]
    if replica.service not in policy.services:
        return f'policy knows no service "{replica.service}"; add it to policy.yaml'
    if not policy.may_host(replica.service, replica.node):
        return f"policy does not let {replica.node} host {replica.service}"
    if replica.node not in slices:
        return f"the slice of {replica.node} does not count"
    if IPv4Address(replica.address) not in slices[replica.node]:
        return f"{replica.address} is not in {slices[replica.node]}, the slice of {replica.node}"
    return ""
