"""What one replica may see: the whole desired state of one attachment, as values.

The planner makes a `Desired`; the programmer makes the kernel agree with it. Two views are
compared field by field, and only the difference is sent to the kernel.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

ICMP = "icmp"

Grant: TypeAlias = tuple[int, str, int]
"""(peer service id, protocol ``tcp``/``udp``/``icmp``, port; 0 for ``icmp``)."""

Slot: TypeAlias = tuple[str, str, int, int]
"""(VIP, protocol, the port a client dials, slot number 0–63)."""

Target: TypeAlias = tuple[str, int]
"""(replica address, the port it listens on)."""


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """One replica that this attachment may talk to or hear from."""

    address: str
    """Dotted IPv4; MAC and SCI follow from it."""
    service: int
    """Service id, 1 and up."""
    salts: dict[int, bytes]
    """The 32-byte salt of each SAK the peer transmits with, by association number 0–3."""


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that depends on peers and policy, for one attachment."""

    peers: dict[str, Peer] = {}
    """By address. Each has an RX SC, its SAs, a neighbour entry, a peer-map element and
    two elements (one per direction) in the host filter's pair set."""
    egress: frozenset[Grant] = frozenset()
    """What this replica may dial: peer service, protocol, the replica's (target) port."""
    ingress: frozenset[Grant] = frozenset()
    """What peers may dial here: their service, protocol, our (target) port."""
    slots: dict[Slot, Target] = {}
    """The load-balancing map."""


EMPTY = Desired()
"""Default deny: an attachment that no policy has opened."""


def differing(old: Desired, new: Desired) -> tuple[Desired, Desired]:
    """Return what must be known of both to get from one to the other, and no more.

    That is what differs; and where a grant goes, all peers of its service, because their flows
    go with it. A change then costs what it changes, among however many peers.
    """
    gone = {grant[0] for grant in (old.egress - new.egress) | (old.ingress - new.ingress)}

    def kept(peers: dict[str, Peer], others: dict[str, Peer]) -> dict[str, Peer]:
        return {
            address: peer
            for address, peer in peers.items()
            if peer.service in gone
            or ((other := others.get(address)) is not peer and other != peer)
        }

    return (
        Desired(
            peers=kept(old.peers, new.peers),
            egress=old.egress - new.egress,
            ingress=old.ingress - new.ingress,
            slots={k: t for k, t in old.slots.items() if new.slots.get(k) != t},
        ),
        Desired(
            peers=kept(new.peers, old.peers),
            egress=new.egress - old.egress,
            ingress=new.ingress - old.ingress,
            slots={k: t for k, t in new.slots.items() if old.slots.get(k) != t},
        ),
    )
