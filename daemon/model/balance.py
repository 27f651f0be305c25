"""Which replica suits best: weights, and the 64 slots they become.

1. weight = desired * health * quality^ALPHA; ``weighted`` leaves the quality out.
2. Desired weight 0, or a replica that is not healthy: no slot, ever.
3. Quality chooses, it never refuses: when it leaves nobody, desired weights alone count.
4. ``nearest``: all to this node's own replicas, else to the node with the best path. Who
   holds the slots keeps them until another path is better by NEAREST_MARGIN. Several
   replicas that are equally near share by desired weight.
5. Slots by largest remainder, so within one of the exact share. Ties go first to who had
   more slots before, then by a hash with the node's name, so that with more replicas than
   slots different nodes leave out different replicas.
6. With those counts, no slot moves that need not.
7. Fewer than HYSTERESIS moves wait, unless a replica gains its first slot or loses its last.
8. ``sticky: client``: all slots of one client to one replica, by rendezvous hashing weighted
   with the slots of 5 to 7: when those shift, only the clients that must move do.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from daemon.model.policy import Service
from daemon.model.records import Replica

SLOTS = 64
"""As the ``numgen random mod 64`` of the ruleset: 1.6 % steps, and small maps."""
ALPHA = 2.0
"""TQ is about the probability of delivery one way; an answer has to come back too."""
HYSTERESIS = 4
"""Slots, 6 %: TQ wobbles by some units of 255 from one OGM to the next."""
NEAREST_MARGIN = 0.1
"""Twice what TQ wobbles by, so that two equal paths do not take turns."""

Slots: TypeAlias = tuple[str, ...]
"""The address of the replica that each slot leads to; empty when there is none."""


def weights(
    service: Service,
    replicas: Iterable[Replica],
    node: str,
    quality: Mapping[str, float],
    previous: Sequence[str] = (),
) -> dict[str, float]:
    """Return the weight of each replica's address; only those above 0.

    `quality` is that of the path to each node, 0 to 1; this `node`'s own is 1, one that is not
    listed has 0. `previous` are the slots in use (rule 4).
    """
    usable = [
        (replica, desired)
        for replica in replicas
        if replica.healthy and (desired := service.weights.get(replica.node, 1.0)) > 0
    ]
    desired_only = {replica.address: desired for replica, desired in usable}
    if service.strategy == "weighted":
        return desired_only
    paths = {
        replica.address: 1.0 if replica.node == node else _clamp(quality.get(replica.node, 0.0))
        for replica, _ in usable
    }
    if service.strategy == "nearest":
        own = {replica.address for replica, _ in usable if replica.node == node}
        hosts = {replica.address: replica.node for replica, _ in usable}
        near = own or _nearest(hosts, paths, previous, node)
        return {address: w for address, w in desired_only.items() if address in near}
    weighed = {address: w * paths[address] ** ALPHA for address, w in desired_only.items()}
    return {address: w for address, w in weighed.items() if w > 0} or desired_only


def _clamp(quality: float) -> float:
    return min(max(quality, 0.0), 1.0) if math.isfinite(quality) else 0.0


def _nearest(
    nodes: Mapping[str, str], paths: Mapping[str, float], previous: Sequence[str], seed: str
) -> set[str]:
    """Return the addresses on the best node, or on the one in use if that is good enough."""
    if not nodes:
        return set()
    best = max(paths.values())
    in_use = {nodes[address] for address in previous if address in nodes}
    good = [
        (nodes[a] in in_use and q > 0, q, _hash(seed, nodes[a]), nodes[a])
        for a, q in paths.items()
        if q == best or (nodes[a] in in_use and q > best - NEAREST_MARGIN)
    ]
    chosen = max(good)[-1]
    return {address for address, node in nodes.items() if node == chosen}


def slots(weights: Mapping[str, float], previous: Sequence[str] = (), seed: str = "") -> Slots:
    """Share SLOTS slots out in proportion to `weights`, moving as few of `previous` as can be.

    `seed` breaks ties (rule 5): the node's name. Weights that are not above 0 get nothing.
    """
    counts = _counts(weights, Counter(previous), seed)
    if not counts:
        return ()
    left = Counter(counts)
    assigned: list[str | None] = [None] * SLOTS
    for number, address in enumerate(previous[:SLOTS]):
        if left[address] > 0:
            assigned[number] = address
            left[address] -= 1
    rest = iter(sorted(left.elements()))
    return tuple(address if address is not None else next(rest) for address in assigned)


def _counts(weights: Mapping[str, float], before: Counter[str], seed: str) -> dict[str, int]:
    """Return how many slots each address gets, by largest remainder."""
    positive = {address: w for address, w in weights.items() if w > 0 and math.isfinite(w)}
    if not positive:
        return {}
    top = max(positive.values())
    scaled = {address: w / top for address, w in positive.items()}
    total = math.fsum(scaled.values())
    exact = {address: SLOTS * w / total for address, w in scaled.items()}
    counts = {address: math.floor(share) for address, share in exact.items()}

    def claim(address: str) -> tuple[float, bool, bytes]:
        remainder = round(exact[address] - counts[address], 9)
        return (-remainder, before[address] <= counts[address], _hash(seed, address))

    for address in sorted(counts, key=claim)[: SLOTS - sum(counts.values())]:
        counts[address] += 1
    return counts


def settle(weights: Mapping[str, float], previous: Sequence[str] = (), seed: str = "") -> Slots:
    """Return `slots`, or `previous` where the change is too small to be worth it (rule 7)."""
    wanted = slots(weights, previous, seed)
    if len(previous) != SLOTS or set(wanted) != set(previous):
        return wanted
    moved = sum(old != new for old, new in zip(previous, wanted, strict=True))
    return tuple(previous) if moved < HYSTERESIS else wanted


def stick(shared: Sequence[str], client: str) -> Slots:
    """Return the slots of one `client` (its address) under ``sticky: client``.

    Each replica scores -w / ln(h), h being a hash of client and replica in (0, 1): so each
    wins with a probability in proportion to w, and one that goes takes only its own clients.
    """
    counts = Counter(shared)
    if not counts:
        return ()

    def score(address: str) -> tuple[float, str]:
        number = int.from_bytes(_hash(client, address), "big")
        return (-counts[address] / math.log((number + 1) / (2**64 + 2)), address)

    return (max(counts, key=score),) * SLOTS


def _hash(first: str, second: str) -> bytes:
    return hashlib.blake2b(f"{first}\0{second}".encode(), digest_size=8).digest()
