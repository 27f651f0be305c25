"""The content of ``names``: the addresses of services, and who may look them up.

1. A service may look up the services that an edge lets it dial; itself only if an edge joins it to
   itself. An edge that lets others dial it lets it look up nothing.
2. The name of a service leads to its VIP, in both address families if there are two.
3. DNS does not distinguish capital from small letters (RFC 4343). policy.yaml may not have services
   that differ in nothing else. A policy that was signed before that rule may have some; then the
   service with the lower id has the name.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

import msgspec

from netconf import names

if TYPE_CHECKING:  # the resolver imports this module, but needs no policy
    from daemon.model.policy import Policy


class Directory(msgspec.Struct, frozen=True, kw_only=True):
    """The content of ``names`` in the state folder, as JSON."""

    addresses: dict[str, tuple[str, ...]]
    """By service: its VIPs, without prefixes."""
    known: dict[str, tuple[str, ...]]
    """By service: the services whose names it may look up."""

    def __post_init__(self) -> None:
        """Raise ValueError for a damaged file: an invalid address, or a service without one."""
        for found in self.addresses.values():
            for address in found:
                ip_address(address)
        if not {name for names in self.known.values() for name in names} <= self.addresses.keys():
            raise ValueError("known: a service that is not among the addresses")

    def of(self, service: str) -> dict[str, tuple[str, ...]]:
        """Return the addresses, by name, that replicas of `service` may look up."""
        return {name: self.addresses[name] for name in self.known.get(service, ())}


def directory(policy: Policy, ula: str) -> Directory:
    """Return what `policy` lets each service look up.

    `ula` is the cluster's IPv6 network in CIDR notation, empty where there is none.
    """
    owners: dict[str, int] = {}
    for number in sorted(policy.by_id):
        owners.setdefault(policy.by_id[number].name.lower(), number)
    named = {number: policy.by_id[number] for number in owners.values()}
    return Directory(
        addresses={
            service.name: (
                service.vip,
                *([names.address6_of(service.vip, ula)] if ula else []),
            )
            for service in named.values()
        },
        known={
            policy.by_id[number].name: tuple(
                named[edge.to].name for edge in edges if edge.to in named
            )
            for number, edges in policy.outgoing.items()
        },
    )
