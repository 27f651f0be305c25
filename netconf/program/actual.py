"""The state that the kernel actually has, in both families, and its differences from a `Desired`.

1. A `Desired` contains IPv4 addresses only. If the attachment has IPv6 too, the kernel has a second
   entry for each address, for the IPv6 address that follows from it (`names`, rule 4). Only this
   module derives those entries.
2. Grants, keys and the marks of flows hold for both families, so they need no second entry.
3. No I/O: `netconf.program.programmer` reads and writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

from netconf import keys, names
from netconf.program.desired import Desired, Grant, Slot, Target

Genuine: TypeAlias = tuple[str, str]
"""(MAC, IPv6 address): the sender with this MAC may use this IPv6 source address."""


class Actual(msgspec.Struct, frozen=True, kw_only=True):
    """The kernel's form of a `Desired`.

    It has key ids in place of salts, and what belongs to a peer is spread over several tables.
    """

    keys: dict[bytes, dict[int, bytes]] = {}
    """By the peer's SCI, then by association number: the 16-byte key id."""
    services: dict[str, int] = {}
    """Service id by replica address, of both families."""
    neighbours: dict[str, str] = {}
    """MAC by replica address, of both families."""
    genuine: frozenset[Genuine] = frozenset()
    egress: frozenset[Grant] = frozenset()
    ingress: frozenset[Grant] = frozenset()
    slots: dict[Slot, Target] = {}
    """Load-balancing slots of both families."""


def expected(view: Desired, ula: str) -> Actual:
    """Return the state that the kernel has when it agrees with `view`.

    `ula` is the attachment's IPv6 network (CIDR), or empty if it has none.
    """
    four = Actual(
        keys={
            sci: {an: keys.key_id(salt, sci) for an, salt in peer.salts.items()}
            for sci, peer in ((sci_at(address), peer) for address, peer in view.peers.items())
        },
        services={address: peer.service for address, peer in view.peers.items()},
        neighbours={address: names.mac_of(address) for address in view.peers},
        egress=view.egress,
        ingress=view.ingress,
        slots=view.slots,
    )
    if not ula:
        return four
    known = {vip for vip, *_ in view.slots} | {target for target, _ in view.slots.values()}
    six = {address: names.address6_of(address, ula) for address in known | view.peers.keys()}
    return msgspec.structs.replace(
        four,
        services=four.services | {six[a]: service for a, service in four.services.items()},
        neighbours=four.neighbours | {six[a]: mac for a, mac in four.neighbours.items()},
        genuine=frozenset((mac, six[a]) for a, mac in four.neighbours.items()),
        slots=four.slots
        | {(six[vip], *rest): (six[a], port) for (vip, *rest), (a, port) in view.slots.items()},
    )


def differences(observed: Actual, view: Desired, ula: str) -> list[str]:
    """Return a sentence for each difference between `observed` and `view`, sorted.

    `ula` is the attachment's IPv6 network (CIDR), or empty if it has none.
    """
    wanted = expected(view, ula)
    said: list[str] = []
    for what, there, should in (
        ("channel", _flat(observed.keys), _flat(wanted.keys)),
        ("peer", observed.services, wanted.services),
        ("neighbour", observed.neighbours, wanted.neighbours),
        ("genuine", dict.fromkeys(observed.genuine, ""), dict.fromkeys(wanted.genuine, "")),
        ("egress", dict.fromkeys(observed.egress, ""), dict.fromkeys(wanted.egress, "")),
        ("ingress", dict.fromkeys(observed.ingress, ""), dict.fromkeys(wanted.ingress, "")),
        ("slot", observed.slots, wanted.slots),
    ):
        said += _compare(what, there, should)
    return sorted(said)


def sci_at(address: str) -> bytes:
    """Return the SCI of the replica at a dotted IPv4 `address`."""
    return names.sci_of(names.mac_of(address))


def _flat(channels: dict[bytes, dict[int, bytes]]) -> dict[str, str]:
    """Return one entry for each channel and each of its keys, named as in ``ip macsec show``."""
    found = {}
    for sci, sas in channels.items():
        found[sci.hex()] = "accepted"
        found |= {f"{sci.hex()} key {an}": key_id.hex() for an, key_id in sas.items()}
    return found


def _compare(what: str, there: Mapping[Any, Any], should: Mapping[Any, Any]) -> list[str]:
    said = [f"{what} {_text(key)} is missing" for key in should if key not in there]
    said += [f"{what} {_text(key)} should not be there" for key in there if key not in should]
    said += [
        f"{what} {_text(key)} is {_text(there[key])}, not {_text(should[key])}"
        for key in should
        if key in there and there[key] != should[key]
    ]
    return said


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
