"""The sets and maps of the two rulesets: their fields, and how elements are encoded.

1. An element is a key and, in a map, data; both are tuples with one value per field.
2. A value is written as people write it: a dotted IPv4 address, an IPv6 address as in RFC 5952, a
   MAC, a protocol's name, a port, a number.
3. In a concatenation of several fields each field is padded to 4 bytes (NFT_REG32_SIZE); a single
   field is not padded.
4. Addresses, ports and MACs are in network order. Marks and slots are numbers in a register, and so
   in host order (net/netfilter/nft_meta.c, nft_numgen.c).
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

Value: TypeAlias = str | int
Key: TypeAlias = tuple[Value, ...]
Element: TypeAlias = tuple[Key, Key]
"""(key, data); data is ``()`` in a set."""

REGISTER = 4
"""NFT_REG32_SIZE of linux/netfilter/nf_tables.h: concatenated fields are padded to a multiple of
it, in bytes."""

_PADDING = [bytes(-length % REGISTER) for length in range(REGISTER)]


class Field(msgspec.Struct, frozen=True):
    """One nftables data type: its name and length, and how its values are encoded and decoded."""

    name: str
    number: int
    """nft's number of the type (include/datatype.h); the kernel only stores it, for nft to read."""
    length: int
    pack: Callable[[Any], bytes]
    unpack: Callable[[bytes], Value]


def _native(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)


def _from_native(raw: bytes) -> int:
    return int.from_bytes(raw, sys.byteorder)


_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58}
_PROTOCOL_NAMES = {number: name for name, number in _PROTOCOLS.items()}


def protocol_number(name: str) -> int:
    """Return the IANA number of a protocol `name`, or of its decimal digits."""
    return _PROTOCOLS[name] if name in _PROTOCOLS else int(name)


IPV4_ADDR = Field("ipv4_addr", 7, 4, socket.inet_aton, socket.inet_ntoa)
IPV6_ADDR = Field(
    "ipv6_addr",
    8,
    16,
    lambda address: socket.inet_pton(socket.AF_INET6, address),
    lambda raw: socket.inet_ntop(socket.AF_INET6, raw),
)
ETHER_ADDR = Field(
    "ether_addr", 9, 6, lambda mac: bytes.fromhex(mac.replace(":", "")), lambda raw: raw.hex(":")
)
INET_PROTO = Field(
    "inet_proto",
    12,
    1,
    lambda name: bytes((protocol_number(name),)),
    lambda raw: _PROTOCOL_NAMES.get(raw[0], str(raw[0])),
)
INET_SERVICE = Field(
    "inet_service",
    13,
    2,
    lambda port: port.to_bytes(2, "big"),
    lambda raw: int.from_bytes(raw, "big"),
)
MARK = Field("mark", 19, 4, _native, _from_native)
SLOT = Field("numgen", 4, 4, _native, _from_native)
IFNAME = Field(
    "ifname",
    41,
    16,
    lambda name: name.encode().ljust(16, b"\0"),
    lambda raw: raw.rstrip(b"\0").decode(),
)


def integer(length: int) -> Field:
    """Return the type of a number of `length` bytes, for comparisons in rules; no set has it."""
    return Field(
        "integer",
        4,
        length,
        lambda number: number.to_bytes(length, sys.byteorder),
        lambda raw: int.from_bytes(raw, sys.byteorder),
    )


class Set(msgspec.Struct, frozen=True):
    """A hash set or map of a ruleset; `data` is empty for a set."""

    family: int
    table: str
    name: str
    key: tuple[Field, ...]
    data: tuple[Field, ...] = ()


NFPROTO_INET = 1
NFPROTO_BRIDGE = 7
TABLE = "noctule"
NEXT = f"{TABLE}-next"
"""The table that is in force while `TABLE` is replaced (``replacement``)."""

WITH_PORTS = Set(NFPROTO_INET, TABLE, "with_ports", (INET_PROTO,))
"""The protocols that have ports, for which grants name a port; constant."""

_GRANT = (MARK, INET_PROTO, INET_SERVICE)
_DIALLED = (IPV4_ADDR, INET_PROTO, INET_SERVICE)
_DIALLED6 = (IPV6_ADDR, INET_PROTO, INET_SERVICE)


def _inet(name: str, key: tuple[Field, ...], data: tuple[Field, ...] = ()) -> Set:
    return Set(NFPROTO_INET, TABLE, name, key, data)


LB = _inet("lb", (*_DIALLED, SLOT), (IPV4_ADDR, INET_SERVICE))
LB6 = _inet("lb6", (*_DIALLED6, SLOT), (IPV6_ADDR, INET_SERVICE))
PEER = _inet("peer", (IPV4_ADDR,), (MARK,))
PEER6 = _inet("peer6", (IPV6_ADDR,), (MARK,))
GENUINE6 = _inet("genuine6", (ETHER_ADDR, IPV6_ADDR))
EGRESS = _inet("egress", _GRANT)
INGRESS = _inet("ingress", _GRANT)
EGRESS_ICMP = _inet("egress_icmp", (MARK,))
INGRESS_ICMP = _inet("ingress_icmp", (MARK,))
DENIED_OUT = _inet("denied_out", _DIALLED)
DENIED_IN = _inet("denied_in", _DIALLED)
DENIED_OUT_OTHER = _inet("denied_out_other", (IPV4_ADDR, INET_PROTO))
DENIED_IN_OTHER = _inet("denied_in_other", (IPV4_ADDR, INET_PROTO))
DENIED_OUT6 = _inet("denied_out6", _DIALLED6)
DENIED_IN6 = _inet("denied_in6", _DIALLED6)
DENIED_OUT6_OTHER = _inet("denied_out6_other", (IPV6_ADDR, INET_PROTO))
DENIED_IN6_OTHER = _inet("denied_in6_other", (IPV6_ADDR, INET_PROTO))
FORGED = _inet("forged", (ETHER_ADDR, INET_PROTO))

PORT = Set(NFPROTO_BRIDGE, TABLE, "port", (IFNAME, ETHER_ADDR))
PAIR = Set(NFPROTO_BRIDGE, TABLE, "pair", (ETHER_ADDR, ETHER_ADDR))


def pack(fields: tuple[Field, ...], values: Key) -> bytes:
    """Return `values` encoded; ValueError if they do not fit the `fields`."""
    try:
        if len(fields) == 1:
            (value,) = values
            return fields[0].pack(value)
        return b"".join(
            [
                field.pack(value) + _PADDING[field.length % REGISTER]
                for field, value in zip(fields, values, strict=True)
            ]
        )
    except (TypeError, AttributeError, OverflowError, OSError) as error:
        held = " . ".join(field.name for field in fields)
        raise ValueError(f"{values!r} is no {held}: {error}") from error


def unpack(fields: tuple[Field, ...], raw: bytes) -> Key:
    """Return the values in a key or data read from the kernel; ValueError if `pack` does not make
    such bytes."""
    if len(fields) == 1:
        (field,) = fields
        if len(raw) != field.length:
            raise ValueError(f"{len(raw)} bytes are no {field.name}")
        return (field.unpack(raw),)
    values = []
    offset = 0
    for field in fields:
        end = offset + field.length
        if len(raw) < end:
            break
        values.append(field.unpack(raw[offset:end]))
        offset = end + -field.length % REGISTER
        if any(raw[end:offset]):
            raise ValueError(f"{field.name} is not padded with zeros")
    if len(raw) != offset or len(values) < len(fields):
        raise ValueError(f"{len(raw)} bytes are no {' . '.join(one.name for one in fields)}")
    return tuple(values)
