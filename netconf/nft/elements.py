"""What the sets and maps of the two templates hold, and how an element looks on the wire.

1. An element is a key and, in a map, data; both are tuples of one value per field.
2. A field's value is what people write: dotted address, MAC, protocol name, port, number.
3. Where several fields are concatenated each is padded to 4 bytes (NFT_REG32_SIZE); a
   field alone is not.
4. Addresses, ports and MACs are in network order; marks and slots are numbers in a register
   and so in host order (net/netfilter/nft_meta.c, nft_numgen.c).
"""

from __future__ import annotations

import socket
import sys
from enum import Enum
from typing import TypeAlias

import msgspec

Value: TypeAlias = str | int
Key: TypeAlias = tuple[Value, ...]
Element: TypeAlias = tuple[Key, Key]
"""(key, data); data is ``()`` in a set."""

REGISTER = 4
"""NFT_REG32_SIZE of linux/netfilter/nf_tables.h: what a concatenated field is padded to."""


class Field(Enum):
    """The nftables data types in use, by their names, with their lengths in bytes."""

    IPV4_ADDR = ("ipv4_addr", 4)
    ETHER_ADDR = ("ether_addr", 6)
    INET_PROTO = ("inet_proto", 1)
    INET_SERVICE = ("inet_service", 2)
    MARK = ("mark", 4)
    SLOT = ("numgen", 4)
    IFNAME = ("ifname", 16)

    @property
    def length(self) -> int:
        """Bytes on the wire, before padding."""
        return self.value[1]


class Set(msgspec.Struct, frozen=True):
    """A hash set or map of a template; it has data exactly if it is a map."""

    family: int
    table: str
    name: str
    key: tuple[Field, ...]
    data: tuple[Field, ...] = ()


NFPROTO_INET = 1
NFPROTO_BRIDGE = 7
TABLE = "noctule"

_GRANT = (Field.MARK, Field.INET_PROTO, Field.INET_SERVICE)
_DIALLED = (Field.IPV4_ADDR, Field.INET_PROTO, Field.INET_SERVICE)


def _inet(name: str, key: tuple[Field, ...], data: tuple[Field, ...] = ()) -> Set:
    return Set(NFPROTO_INET, TABLE, name, key, data)


LB = _inet("lb", (*_DIALLED, Field.SLOT), (Field.IPV4_ADDR, Field.INET_SERVICE))
PEER = _inet("peer", (Field.IPV4_ADDR,), (Field.MARK,))
EGRESS = _inet("egress", _GRANT)
INGRESS = _inet("ingress", _GRANT)
EGRESS_ICMP = _inet("egress_icmp", (Field.MARK,))
INGRESS_ICMP = _inet("ingress_icmp", (Field.MARK,))
DENIED_OUT = _inet("denied_out", _DIALLED)
DENIED_IN = _inet("denied_in", _DIALLED)
DENIED_OUT_OTHER = _inet("denied_out_other", (Field.IPV4_ADDR, Field.INET_PROTO))
DENIED_IN_OTHER = _inet("denied_in_other", (Field.IPV4_ADDR, Field.INET_PROTO))

PORT = Set(NFPROTO_BRIDGE, TABLE, "port", (Field.IFNAME, Field.ETHER_ADDR))
PAIR = Set(NFPROTO_BRIDGE, TABLE, "pair", (Field.ETHER_ADDR, Field.ETHER_ADDR))

_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17}
_PROTOCOL_NAMES = {number: name for name, number in _PROTOCOLS.items()}


def protocol_number(name: str) -> int:
    """Return the IANA number of a protocol `name`, or of its decimal digits."""
    return _PROTOCOLS[name] if name in _PROTOCOLS else int(name)


def pack(fields: tuple[Field, ...], values: Key) -> bytes:
    """Return the wire form of `values`; ValueError if their number is not the fields'."""
    if len(fields) == 1:
        return _pack(fields[0], values[0])
    return b"".join(
        raw + bytes(-len(raw) % REGISTER)
        for raw in (_pack(field, value) for field, value in zip(fields, values, strict=True))
    )


def unpack(fields: tuple[Field, ...], raw: bytes) -> Key:
    """Return the values in a key or data read from the kernel."""
    values = []
    offset = 0
    for field in fields:
        values.append(_unpack(field, raw[offset : offset + field.length]))
        offset += field.length + -field.length % REGISTER
    return tuple(values)


def _pack(field: Field, value: Value) -> bytes:
    match field, value:
        case Field.IPV4_ADDR, str():
            return socket.inet_aton(value)
        case Field.ETHER_ADDR, str():
            return bytes.fromhex(value.replace(":", ""))
        case Field.INET_PROTO, str():
            return bytes((protocol_number(value),))
        case Field.INET_SERVICE, int():
            return value.to_bytes(2, "big")
        case ((Field.MARK | Field.SLOT), int()):
            return value.to_bytes(4, sys.byteorder)
        case Field.IFNAME, str():
            return value.encode().ljust(Field.IFNAME.length, b"\0")
        case _:
            raise ValueError(f"{value!r} is no {field.value[0]}")


def _unpack(field: Field, raw: bytes) -> Value:
    match field:
        case Field.IPV4_ADDR:
            return socket.inet_ntoa(raw)
        case Field.ETHER_ADDR:
            return raw.hex(":")
        case Field.INET_PROTO:
            return _PROTOCOL_NAMES.get(raw[0], str(raw[0]))
        case Field.INET_SERVICE:
            return int.from_bytes(raw, "big")
        case Field.MARK | Field.SLOT:
            return int.from_bytes(raw, sys.byteorder)
        case Field.IFNAME:
            return raw.rstrip(b"\0").decode()
