"""Load balancing: the weight of each replica, and its share of the 64 slots.

1. weight = desired * health * quality^ALPHA; the strategy ``weighted`` leaves the quality out.
2. A replica with desired weight 0, or one that is not healthy, gets no slot.
3. If all these weights are 0 because no path has any quality, ignore quality and use the desired
   weights alone: quality may prefer a replica, but must not make a service unreachable.
4. With the strategy ``nearest`` all slots go to this node's own replicas, or if it has none, to
   the node with the best path. A node that has the slots keeps them until another path is better
   by NEAREST_MARGIN. Several replicas that are equally near share by desired weight.
5. Slots are shared out by largest remainder, so each count differs from the exact share by less
   than one. Ties go first to the replica that had more slots before, then by a hash with the
   node's name. So if there are more replicas than slots, different nodes leave out different
   replicas.
6. With those counts, as few slots as possible change their replica.
7. If fewer than HYSTERESIS slots would change, nothing does, unless a replica would gain its first
   slot or lose its last.
8. With ``sticky: client`` all slots of one client lead to one replica, chosen by rendezvous
   hashing weighted with the slot counts of rules 5 to 7. If those counts change, only the clients
   move that must.
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
"""Slots per service and port, as in the ruleset's ``numgen random mod 64``: steps of 1.6 %, and
maps that stay small."""
ALPHA = 2.0
"""TQ is about the probability that a frame is delivered one way; squared, that an answer comes
back too."""
HYSTERESIS = 4
"""Slots, 6 % of all: TQ varies by some units of 255 from one OGM to the next."""
NEAREST_MARGIN = 0.1
"""In quality (0 to 1): twice as much as TQ varies, so that two equal paths do not alternate."""

Slots: TypeAlias = tuple[str, ...]
"""The address of the replica that each slot leads to; empty when there is none."""


def weights(
    service: Service,
    replicas: Iterable[Replica],
    node: str,
    quality: Mapping[str, float],
    previous: Sequence[str] = (),
) -> dict[str, float]:
    """Return the weight of each replica, by its address; those without weight are left out.

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
    """Return `slots`, or `previous` if too few of them would change (rule 7)."""
    wanted = slots(weights, previous, seed)
    if len(previous) != SLOTS or set(wanted) != set(previous):
        return wanted
    moved = sum(old != new for old, new in zip(previous, wanted, strict=True))
    return tuple(previous) if moved < HYSTERESIS else wanted


def stick(shared: Sequence[str], client: str) -> Slots:
    """Return the slots of one `client` (its address) under ``sticky: client``.

    Each replica scores -w / ln(h), where w is its number of slots and h a hash of client and
    replica in (0, 1). So each wins with a probability in proportion to w, and if one goes away,
    only its own clients move.
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
