"""What an attachment is: what was asked, what the node gave, and what follows from both.

Values only. ``netconf.attach.state`` keeps them, ``netconf.attach.operations`` makes them true.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from netconf import names
from netconf.netlink.shaping import Bandwidth

VC_EXTRA = 8
"""The lower device's MTU above the path's: the driver reserves the 32 bytes of the long
form (drivers/net/macsec.c), the short form takes 24 (MACSEC_OVERHEAD)."""

Phase = Literal["adding", "ready", "deleting", "unreadable"]
"""``unreadable``: its file is damaged, and only what the file's name says is known."""


class NodeNet(msgspec.Struct, frozen=True, kw_only=True):
    """What an attachment needs to know of its node; the daemon writes it."""

    cluster: str
    node: str
    pool: str
    """CIDR of all replicas: on link for each of them."""
    slice: str
    """CIDR within `pool` that this node gives out."""
    vips: str
    """CIDR of the services' addresses."""
    mtu: int
    """Bytes of payload of the bridge path: bat0's MTU."""
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
        """Return, in CIDR notation, the networks of the VIPs."""
        return [self.vips, names.network6_of(self.vips, self.ula)] if self.ula else [self.vips]


class Candidate(msgspec.Struct, frozen=True, rename={"origin": "from"}):
    """One way the runtime named the replica's service; the first that applies is taken."""

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
    """The one that was chosen of them; whoever attaches sets it."""
    key_file: str = ""
    address: str | None = None
    """A requested IPv4 address of the node's slice."""
    address6: str | None = None
    """A requested IPv6 address; it must be the one that follows from the address."""
    mac: str | None = None
    """A requested MAC; it must be the one that follows from the address."""
    runtime: str = ""
    """Who asked, empty if nobody knows; GC collects only what the same runtime asked for."""
    bandwidth: Bandwidth | None = None
    requires: tuple[str, ...] = ()
    """Fields of this request that narrow what is asked for: who does not know them all, refuses."""

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
    """(device, inode) of the namespace: a path may come to mean another one."""
    service: str
    key_file: str
    address: str
    salt: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    """Hex digits of the 32-byte salt of the SAK under `an`."""
    an: Annotated[int, Meta(ge=0, le=3)]
    """The association number that transmits, 0–3."""
    mtu: int
    """Bytes of payload of the bridge path when it was made."""
    phase: Phase
    runtime: str = ""
    """The runtime that asked for it; empty if nobody knows, and then no GC collects it."""
    bandwidth: Bandwidth | None = None
    ula: str = ""
    """The cluster's IPv6 network when it was made, which it keeps; empty without one."""

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
        """Tell whether a GC of `network` by `runtime`, which wants the ids `wanted`, means this.

        Runtimes share nodes and networks, and each lists its own attachments only. What
        nobody can tell whose it is stays.
        """
        return self.network == network and self.runtime == runtime != "" and self.id not in wanted
