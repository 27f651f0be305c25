"""The values that describe an attachment: the request, the node's settings, and the result.

Values only: ``netconf.attach.state`` writes them to files, and ``netconf.attach.operations`` makes
the kernel agree with them.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from netconf import names
from netconf.netlink.shaping import Bandwidth

VC_EXTRA = 8
"""Bytes by which the lower device's MTU exceeds the bridge path's. The macsec driver reserves 32
bytes, as much as the form with an SCI takes (drivers/net/macsec.c); the form that we use takes only
24 (MACSEC_OVERHEAD), so the other 8 would be lost to the container."""

Phase = Literal["adding", "ready", "deleting", "unreadable"]
"""``unreadable``: the state file is damaged, so only the id and address in its name are known."""


class NodeNet(msgspec.Struct, frozen=True, kw_only=True):
    """What attaching needs to know of the node; the daemon writes it to ``node.json``."""

    cluster: str
    node: str
    pool: str
    """CIDR of all replicas of the cluster; each container has this network on link."""
    slice: str
    """CIDR within `pool` from which this node gives out addresses."""
    vips: str
    """CIDR of the services' addresses."""
    mtu: int
    """MTU of the path over the bridge in bytes of Ethernet payload, which is bat0's MTU."""
    bridge: str = names.BRIDGE
    ula: str = ""
    """CIDR of the cluster's IPv6 network (`names`, rule 4); empty where there is none."""

    def addresses(self, address: str) -> list[str]:
        """Return a replica's addresses in CIDR notation, from its dotted IPv4 `address`."""
        prefix = int(self.pool.partition("/")[2])
        found = [f"{address}/{prefix}"]
        if self.ula:
            found.append(f"{names.address6_of(address, self.ula)}/{96 + prefix}")
        return found

    def routes(self) -> list[str]:
        """Return the networks of the VIPs, IPv4 first, in CIDR notation."""
        return [self.vips, names.network6_of(self.vips, self.ula)] if self.ula else [self.vips]


class Candidate(msgspec.Struct, frozen=True, rename={"origin": "from"}):
    """A name that the runtime gave for the replica's service, and where it was found.

    A request lists several; whoever attaches takes the first one that applies.
    """

    name: str
    origin: str


class AttachRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One ADD, DEL or CHECK as the runtime gave it; also the body of the daemon's API."""

    container: str
    ifname: str
    netns: str
    """Path; may be empty for DEL."""
    network: str
    services: list[Candidate] = []
    """The names that may be the replica's service, the most explicit first."""
    service: str = ""
    """The name chosen from `services`; whoever attaches sets it."""
    key_file: str = ""
    address: str | None = None
    """A requested IPv4 address of the node's slice."""
    address6: str | None = None
    """A requested IPv6 address; it must be the one that follows from the address."""
    mac: str | None = None
    """A requested MAC; it must be the one that follows from the address."""
    runtime: str = ""
    """The runtime that asked, empty if unknown. GC collects only attachments of its own runtime."""
    bandwidth: Bandwidth | None = None
    requires: tuple[str, ...] = ()
    """Names of fields of this request that narrow what is asked for.

    A daemon that does not know one of them must refuse the request: ignoring the field would give
    the container more than was asked for.
    """

    @property
    def id(self) -> str:
        """The attachment's id."""
        return names.attachment_id(self.network, self.container, self.ifname)


class HostInterface(msgspec.Struct, frozen=True, kw_only=True):
    """What an attachment has in the node's namespace, as a CNI result lists it."""

    name: str
    mac: str
    mtu: int


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """One attachment as it was made."""

    id: str
    network: str
    container: str
    ifname: str
    netns: str
    netns_id: tuple[int, int]
    """(device, inode) of the namespace, because the path may later lead to another namespace."""
    service: str
    key_file: str
    address: str
    salt: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    """The 32-byte salt, as hex digits, from which the SAK under `an` was derived."""
    an: Annotated[int, Meta(ge=0, le=3)]
    """The association number (0–3) of the SA that transmits."""
    mtu: int
    """MTU of the bridge path when the attachment was made or last resized, in bytes of payload."""
    phase: Phase
    runtime: str = ""
    """The runtime that asked for it; empty if unknown, and then no GC collects it."""
    bandwidth: Bandwidth | None = None
    ula: str = ""
    """The IPv6 network (CIDR) of which it has an address; empty if it has none.

    It stays the same when the cluster's own network changes.
    """

    @property
    def mac(self) -> str:
        """The replica's MAC."""
        return names.mac_of(self.address)

    @property
    def sci(self) -> bytes:
        """The replica's SCI."""
        return names.sci_of(self.mac)

    @property
    def vh(self) -> str:
        """The bridge port's name."""
        return names.host_end(self.id)

    @property
    def vc(self) -> str:
        """The lower device's name."""
        return names.lower_end(self.id)

    def collectable(self, network: str, runtime: str, wanted: set[str]) -> bool:
        """Tell whether a GC of `network` by `runtime` may remove this attachment.

        `wanted` are the ids that the runtime still uses. Several runtimes may share a node and a
        network, and each lists only its own attachments; so the runtime must be the one that made
        this attachment, and an attachment of an unknown runtime is kept.
        """
        return self.network == network and self.runtime == runtime != "" and self.id not in wanted
