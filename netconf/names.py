"""Names and addresses that follow from one another, so that nothing needs resolving.

1. A replica's MAC is ``02:4e`` (locally administered, unicast) and its IPv4 address.
2. Its SCI is that MAC and port 1, as IEEE 802.1AE 9.9 builds it without an explicit SCI.
3. An attachment is (network, container, interface); its id is 12 hex digits of a hash.
4. A replica's IPv6 address is the cluster's ULA network and, in the low 32 bits, its IPv4
   address; so is a VIP's. Pool and VIPs are apart in both families, or in neither.
5. The two veth ends in the node's namespace are ``vh`` (bridge port) and ``vc`` (lower
   device of the SecY), each followed by the attachment id: 14 characters of 15 allowed.
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
"""Where every container asks for names. Inside its own namespace, so one address serves all;
not 127.0.0.1, which is the container's own, 127.0.0.11 (Docker) or 127.0.0.53 (systemd)."""

MACSEC_OVERHEAD = 24
"""Bytes that a 24-byte-form frame adds: EtherType 2, SecTAG 6, ICV 16."""

MTU_MIN6 = 1280 + MACSEC_OVERHEAD
"""Bytes of payload that the mesh must carry for a container to have IPv6 (RFC 8200, 5)."""


@functools.lru_cache(maxsize=8192)
def mac_of(address: str) -> str:
    """Return the MAC (``02:4e:…``) of the replica at a dotted IPv4 `address`."""
    return ":".join(f"{octet:02x}" for octet in MAC_PREFIX + IPv4Address(address).packed)


def port_mac_of(address: str) -> str:
    """Return the MAC (``0a:4e:…``) of the bridge port behind which a replica is; nobody uses it.

    Given, because udev would replace a random one a moment later, and the result would be wrong.
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
    """Return, in CIDR notation, where the IPv6 addresses of an IPv4 `network` lie (rule 4)."""
    four = IPv4Network(network)
    return f"{address6_of(str(four.network_address), ula)}/{96 + four.prefixlen}"


@functools.lru_cache(maxsize=16)
def _base(ula: str) -> IPv6Address:
    return IPv6Network(ula).network_address


def sci_of(mac: str) -> bytes:
    """Return the 8-byte SCI of a `mac`, in network byte order (IEEE 802.1AE 9.9)."""
    return bytes.fromhex(mac.replace(":", "")) + SCI_PORT.to_bytes(2, "big")


def attachment_id(network: str, container: str, ifname: str) -> str:
    """Return the 12 hex digits that name the attachment everywhere."""
    return hashlib.sha256(f"{network}\0{container}\0{ifname}".encode()).hexdigest()[:12]


def host_end(attachment: str) -> str:
    """Return the name of the veth end that is the bridge port."""
    return f"vh{attachment}"


def lower_end(attachment: str) -> str:
    """Return the name of the veth end below the SecY; it stays in the node's namespace."""
    return f"vc{attachment}"
