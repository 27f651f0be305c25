"""Names and addresses that are computed from one another, so that no node has to ask for them.

1. A replica's MAC is ``02:4e`` (locally administered, unicast) followed by its IPv4 address.
2. Its SCI is that MAC and port 1. IEEE 802.1AE 9.9 derives the same SCI for frames without an
   explicit one.
3. An attachment is identified by (network, container, interface); its id is the first 12 hex digits
   of a hash of these.
4. The IPv6 address of a replica or a VIP is the cluster's ULA network with the IPv4 address in the
   low 32 bits. So the IPv6 ranges of pool and VIPs overlap exactly if the IPv4 ranges do.
5. The two veth ends in the node's namespace are ``vh`` (bridge port) and ``vc`` (lower device of
   the SecY), each followed by the attachment id: 14 characters, and Linux allows 15.
"""

from __future__ import annotations

import functools
import hashlib
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

BRIDGE = "noctule0"
MESH = "bat0"
MAC_PREFIX = bytes((0x02, 0x4E))
SCI_PORT = 1

NAMESERVER = "127.0.0.78"
"""The address of every container's name server. It is a loopback address in the container's own
namespace, so all containers can use the same one. Taken already are 127.0.0.1, which belongs to the
container's own programs, 127.0.0.11 (Docker) and 127.0.0.53 (systemd)."""

MACSEC_OVERHEAD = 24
"""Bytes that MACsec adds to a frame without an explicit SCI: EtherType 2, SecTAG 6, ICV 16."""

MTU_MIN6 = 1280 + MACSEC_OVERHEAD
"""Bytes of payload that the mesh must carry for a container to have IPv6 (RFC 8200, 5)."""


@functools.lru_cache(maxsize=8192)
def mac_of(address: str) -> str:
    """Return the MAC (``02:4e:…``) of the replica at a dotted IPv4 `address`."""
    return ":".join(f"{octet:02x}" for octet in MAC_PREFIX + IPv4Address(address).packed)


def port_mac_of(address: str) -> str:
    """Return the MAC (``0a:4e:…``) of the bridge port of the replica at `address`.

    No frame carries it. The port is given one nevertheless, because udev replaces a MAC that the
    kernel chose at random a moment later, and ADD's result would then report a wrong MAC.
    """
    return "0a" + mac_of(address)[2:]


def address_of(mac: str) -> str:
    """Return the IPv4 address inside a replica's `mac`; ValueError for a foreign MAC."""
    octets = bytes.fromhex(mac.replace(":", ""))
    if len(octets) != 6 or octets[:2] != MAC_PREFIX:
        raise ValueError(f"{mac} is not a replica's MAC")
    return str(IPv4Address(octets[2:]))


@functools.lru_cache(maxsize=8192)
def address6_of(address: str, ula: str) -> str:
    """Return the IPv6 address of the replica or VIP at the dotted IPv4 `address` (rule 4).

    `ula` is the cluster's IPv6 network, in CIDR notation, of at most 96 bits.
    """
    return str(_base(ula) + int(IPv4Address(address)))


def network6_of(network: str, ula: str) -> str:
    """Return the IPv6 network that belongs to an IPv4 `network`, both in CIDR notation (rule 4)."""
    four = IPv4Network(network)
    return f"{address6_of(str(four.network_address), ula)}/{96 + four.prefixlen}"


@functools.lru_cache(maxsize=16)
def _base(ula: str) -> IPv6Address:
    return IPv6Network(ula).network_address


def sci_of(mac: str) -> bytes:
    """Return the 8-byte SCI of a `mac`, in network byte order (IEEE 802.1AE 9.9)."""
    return bytes.fromhex(mac.replace(":", "")) + SCI_PORT.to_bytes(2, "big")


def attachment_id(network: str, container: str, ifname: str) -> str:
    """Return the attachment's id: 12 hex digits (rule 3)."""
    return hashlib.sha256(f"{network}\0{container}\0{ifname}".encode()).hexdigest()[:12]


def host_end(attachment: str) -> str:
    """Return the name of the veth end that is the bridge port."""
    return f"vh{attachment}"


def lower_end(attachment: str) -> str:
    """Return the name of the veth end below the SecY; it stays in the node's namespace."""
    return f"vc{attachment}"
