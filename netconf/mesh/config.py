"""The ``mesh`` section of node.yaml, and the checks of it that need not look at the kernel.

1. A link is an interface that exists, or one GENEVE tunnel ``gnv<id>`` to one peer.
2. Addresses are spelled as the kernel spells them, whatever the file says, so that they can be
   compared as text: with what the kernel gives back, and with each other.
3. An error is an InvalidConfig that names the field and the fix.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import Literal

import msgspec

from netconf.errors import InvalidConfig
from netconf.netlink import batadv

MTU_MAX = 1500
"""Bytes (ETH_DATA_LEN): the kernel refuses a larger MTU of bat0 (batadv_hardif_min_mtu)."""
MTU_MIN = 576
"""Bytes. Every IPv4 host must accept packets of 576 bytes (RFC 791), so less is a mistake."""
GENEVE_ID_MAX = (1 << 24) - 1


class Geneve(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A static tunnel to one peer; both ends give the same id."""

    remote: str
    """The peer's underlay address, IPv4 or IPv6."""
    id: int
    """Virtual network identifier, 0–16777215, one per tunnel of this node."""
    local: str = ""
    """This node's underlay address; the peer must have the same one as its `remote`. If empty, the
    kernel chooses, which is right where the node has only one address."""

    def __post_init__(self) -> None:
        """Spell the addresses as the kernel does (rule 2)."""
        for field in ("remote", "local"):
            msgspec.structs.force_setattr(self, field, _spelled(getattr(self, field)))

    @property
    def name(self) -> str:
        """The device's name."""
        return f"gnv{self.id}"


def _spelled(address: str) -> str:
    """Return an address as the kernel's tools print it; `validate` names what is none."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_ntop(family, socket.inet_pton(family, address))
        except (OSError, ValueError):
            continue
    return address


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One link of the mesh: either an interface or a GENEVE tunnel."""

    interface: str | None = None
    geneve: Geneve | None = None
    throughput: int | None = None
    """kbit/s; BATMAN_V uses it in place of what it learns from the driver."""

    @property
    def name(self) -> str:
        """The hard interface's name; empty if neither field is set, which `validate` refuses."""
        return self.interface or (self.geneve.name if self.geneve else "")


class MeshConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole ``mesh`` section."""

    links: list[Link]
    algorithm: Literal["BATMAN_IV", "BATMAN_V"] = "BATMAN_IV"
    mtu: int | Literal["auto"] = "auto"


def validate(mesh: MeshConfig) -> None:
    """Raise InvalidConfig for anything that is wrong on every node, whatever devices it has."""
    if not mesh.links:
        raise InvalidConfig("mesh.links: there is none; name an interface or a GENEVE peer")
    seen: dict[str, int] = {}
    for number, link in enumerate(mesh.links):
        field = f"mesh.links[{number}]"
        if (link.interface is None) == (link.geneve is None):
            raise InvalidConfig(f"{field}: give either interface or geneve")
        if link.geneve is not None:
            _validate_geneve(f"{field}.geneve", link.geneve)
        if link.name in seen:
            raise InvalidConfig(
                f"{field}: {link.name} is link {seen[link.name]} already; leave one out"
            )
        seen[link.name] = number
        _validate_source(field, link, mesh.links[:number])
        if link.throughput is not None and link.throughput < batadv.KBIT_PER_UNIT:
            raise InvalidConfig(f"{field}.throughput: give kbit/s, at least 100")
    if mesh.mtu != "auto" and not MTU_MIN <= mesh.mtu <= MTU_MAX:
        raise InvalidConfig(f"mesh.mtu: {mesh.mtu} is not between {MTU_MIN} and {MTU_MAX}")


def _validate_source(field: str, link: Link, others: list[Link]) -> None:
    """Refuse two tunnels to one peer address with different `local`.

    The source address is chosen by a route to the peer (``netconf.mesh.source``), which both
    tunnels share.
    """
    for number, other in enumerate(others):
        if link.geneve is None or other.geneve is None:
            continue
        if link.geneve.remote == other.geneve.remote and link.geneve.local != other.geneve.local:
            raise InvalidConfig(
                f"{field}.geneve.local: link {number} goes to {link.geneve.remote} as well, from "
                "another address; give both the same"
            )


def _validate_geneve(field: str, geneve: Geneve) -> None:
    versions = {}
    for name, whose in (("remote", "the peer's"), ("local", "this node's")):
        address = getattr(geneve, name)
        if not address and name == "local":
            continue
        try:
            versions[name] = ip_address(address).version
        except ValueError as error:
            raise InvalidConfig(f"{field}.{name}: {error}; give {whose} address") from error
    if len(set(versions.values())) > 1:
        raise InvalidConfig(
            f"{field}.local: {geneve.local} and {geneve.remote} are of two IP versions; "
            "give the address that the peer sends to"
        )
    if not 0 <= geneve.id <= GENEVE_ID_MAX:
        raise InvalidConfig(f"{field}.id: {geneve.id} is not between 0 and {GENEVE_ID_MAX}")
