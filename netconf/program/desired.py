"""The desired state of one attachment: its peers, grants and load-balancing slots, as values.

The planner makes a `Desired`; the programmer makes the kernel agree with it. The programmer
compares the old one with the new one field by field and changes only what differs.
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
    """By association number (0–3): the 32-byte salt of each SAK with which the peer transmits."""


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that depends on peers and policy, for one attachment."""

    peers: dict[str, Peer] = {}
    """By IPv4 address. For each peer the kernel has an RX SC with its SAs, a neighbour entry, an
    element in the map of peers, and two elements (one per direction) in the host filter's pairs."""
    egress: frozenset[Grant] = frozenset()
    """What this replica may dial: the peer's service, the protocol, and the peer's own port."""
    ingress: frozenset[Grant] = frozenset()
    """What peers may dial here: the peer's service, the protocol, and this replica's own port."""
    slots: dict[Slot, Target] = {}
    """The load-balancing map."""


EMPTY = Desired()
"""The state of an attachment to which no policy gives anything: it may reach nobody."""


def differing(old: Desired, new: Desired) -> tuple[Desired, Desired]:
    """Return the parts of both states that the programmer needs to get from `old` to `new`.

    These are the entries that differ and, if a grant is removed, all peers of its service, because
    their flows have to be deleted too. So the cost of a change depends on its size and not on the
    number of peers.
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
