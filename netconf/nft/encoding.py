"""Encoding changes as nfnetlink messages, and decoding elements from them. No I/O.

1. A batch is BATCH_BEGIN, messages, BATCH_END in one datagram.
2. A list of elements is one attribute, whose length is a number of 16 bits. A longer list becomes
   several messages of the same batch.
3. Adding an element that is there already succeeds; a map key that is there with other data gives
   EEXIST; deleting an element that is not there gives ENOENT. To change data, delete and add in one
   batch: then no packet finds the element missing.
4. Families, message types and attributes are named as in linux/netlink.h,
   linux/netfilter/nf_tables.h, nfnetlink.h and nfnetlink_conntrack.h. Headers are host
   order, numbers inside attributes network order.
5. Flows are deleted by their ct mark, and where asked by protocol and service port too
   (`Flows`). One mark means both families, and ``icmp`` both families' echo.
6. The socket of a TCP flow is that of its original tuple (`TcpConnection`): NAT is below it.
7. Who rules a namespace may put other elements into its sets than we write (a catch-all one has no
   key), or declare the sets otherwise. All such is a `ForeignElementError`.
"""

from __future__ import annotations

import errno
import functools
import socket
import struct
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import Final, Literal, NamedTuple

import msgspec

from netconf.nft.elements import Element, Key, Set, pack, protocol_number, unpack
from netconf.uapi import nf_tables as nf

NLM_F_REQUEST: Final = 0x1
NLM_F_DUMP: Final = 0x300
NLM_F_CREATE: Final = 0x400
NLA_F_NESTED: Final = 0x8000
NLA_TYPE_MASK: Final = 0x3FFF

NFNL_SUBSYS_CTNETLINK: Final = 1
NFNL_SUBSYS_NFTABLES: Final = 10
NFNL_MSG_BATCH_BEGIN: Final = 0x10
NFNL_MSG_BATCH_END: Final = 0x11


IPCTNL_MSG_CT_GET: Final = 1
IPCTNL_MSG_CT_DELETE: Final = 2
CTA_TUPLE_ORIG: Final = 1
CTA_TUPLE_REPLY: Final = 2
CTA_MARK: Final = 8
CTA_ID: Final = 12
CTA_MARK_MASK: Final = 21
CTA_TUPLE_IP: Final = 1
CTA_IP_V4_SRC: Final = 1
CTA_IP_V4_DST: Final = 2
CTA_IP_V6_SRC: Final = 3
CTA_IP_V6_DST: Final = 4
CTA_TUPLE_PROTO: Final = 2
CTA_PROTO_NUM: Final = 1
CTA_PROTO_SRC_PORT: Final = 2
CTA_PROTO_DST_PORT: Final = 3

ELEMENTS_LIMIT: Final = 0xFFFF - 3
"""Bytes of elements in one attribute: nla_len is 16 bits and counts its own 4-byte header."""

HEADER = struct.Struct("=IHHII")
NFGEN = struct.Struct("!BBH")
_ATTRIBUTE = struct.Struct("=HH")


class Change(msgspec.Struct, frozen=True):
    """Elements to add to, or keys to delete from, one set or map."""

    verb: Literal["add", "delete"]
    set: Set
    elements: tuple[Element, ...]


class ForeignElementError(OSError):
    """A set holds what this module never writes there (rule 7); EBADMSG."""

    def __init__(self, target: Set) -> None:
        super().__init__(errno.EBADMSG, f"set {target.name} holds an element that nobody wrote")


class Batch:
    """Changes that the kernel makes in this order, and either all of them or none."""

    def __init__(self) -> None:
        self.changes: list[Change] = []

    def add(self, into: Set, elements: Iterable[Element]) -> Batch:
        """Add `elements` (key, data; data ``()`` in a set)."""
        return self._change("add", into, tuple(elements))

    def delete(self, out_of: Set, keys: Iterable[Key]) -> Batch:
        """Delete the elements with these `keys`."""
        return self._change("delete", out_of, tuple((key, ()) for key in keys))

    def _change(
        self, verb: Literal["add", "delete"], target: Set, elements: tuple[Element, ...]
    ) -> Batch:
        if elements:
            self.changes.append(Change(verb, target, elements))
        return self


class Flows(msgspec.Struct, frozen=True):
    """Selects conntrack entries: all flows with one replica, or those that one grant covers."""

    mark: int
    direction: Literal["out", "in"] | None = None
    """``out``: flows dialled by this container; ``in``: flows dialled by the replica. None: all
    flows with the replica; protocol and port are ignored then."""
    protocol: str = ""
    port: int = 0
    """The dialled replica's own port; 0 for a protocol without ports."""


class TcpConnection(NamedTuple):
    """Who dialled whom: packed addresses (4 bytes or 16) and ports, as the socket in the
    namespace of the conntrack entry has them, at whichever end it is."""

    source: bytes
    source_port: int
    destination: bytes
    destination_port: int


class Message(msgspec.Struct, frozen=True):
    """One encoded message of a batch, and the offset in it at which each element begins."""

    raw: bytes
    change: Change
    elements: tuple[Element, ...]
    offsets: tuple[int, ...]

    def element_at(self, offset: int) -> Element | None:
        """Return the element whose attribute covers byte `offset` of the message."""
        found = None
        for start, element in zip(self.offsets, self.elements, strict=True):
            if start > offset:
                break
            found = element
        return found if self.offsets and offset >= self.offsets[0] else None


def attribute(kind: int, payload: bytes) -> bytes:
    """Return one netlink attribute, padded to 4 bytes."""
    return _ATTRIBUTE.pack(len(payload) + 4, kind) + payload + bytes(-len(payload) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def tagged_attributes(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (type with its flags, payload) of each attribute; stop at a malformed one."""
    offset = 0
    while offset + 4 <= len(raw):
        length, kind = _ATTRIBUTE.unpack_from(raw, offset)
        if length < 4 or offset + length > len(raw):
            return
        yield kind, raw[offset + 4 : offset + length]
        offset += length + -length % 4


def attributes(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (type without flags, payload) of each attribute in `raw`; stop at a malformed one."""
    return ((kind & NLA_TYPE_MASK, payload) for kind, payload in tagged_attributes(raw))


def raw_attributes(raw: bytes) -> dict[int, bytes]:
    """Return, by type, each attribute in `raw` as it is there, with header and padding."""
    found = {}
    offset = 0
    for kind, payload in attributes(raw):
        length = 4 + len(payload) + -len(payload) % 4
        found[kind] = raw[offset : offset + length].ljust(length, b"\0")
        offset += length
    return found


def message(
    kind: int,
    flags: int,
    sequence: int,
    family: int,
    body: bytes,
    *,
    resource: int = 0,
    version: int = 0,
) -> bytes:
    """Return one nfnetlink message; `resource` is nfgenmsg.res_id (the subsystem of a batch)."""
    payload = NFGEN.pack(family, version, resource) + body
    return HEADER.pack(HEADER.size + len(payload), kind, flags, sequence, 0) + payload


def string(kind: int, text: str) -> bytes:
    """Return a NUL-terminated string attribute."""
    return attribute(kind, text.encode() + b"\0")


def nftables(message_type: int) -> int:
    """Return nlmsg_type of an nf_tables message."""
    return NFNL_SUBSYS_NFTABLES << 8 | message_type


# Cached, because many containers get the same elements: all clients of a service have the same
# slots, and all containers that may talk to a replica have the same peer.
@functools.lru_cache(maxsize=8192)
def encode_element(target: Set, element: Element) -> bytes:
    """Return one NFTA_LIST_ELEM."""
    key, data = element
    body = nested(nf.NFTA_SET_ELEM_KEY, attribute(nf.NFTA_DATA_VALUE, pack(target.key, key)))
    if data:
        body += nested(
            nf.NFTA_SET_ELEM_DATA, attribute(nf.NFTA_DATA_VALUE, pack(target.data, data))
        )
    return nested(nf.NFTA_LIST_ELEM, body)


def encode_change(change: Change, sequence: int) -> list[Message]:
    """Return the messages of one change, numbered from `sequence`, each short enough (rule 2)."""
    target = change.set
    kind, flags = (
        (nf.NFT_MSG_NEWSETELEM, NLM_F_REQUEST | NLM_F_CREATE)
        if change.verb == "add"
        else (nf.NFT_MSG_DELSETELEM, NLM_F_REQUEST)
    )
    prefix = string(nf.NFTA_SET_ELEM_LIST_TABLE, target.table)
    prefix += string(nf.NFTA_SET_ELEM_LIST_SET, target.name)
    first = HEADER.size + NFGEN.size + len(prefix) + 4
    messages: list[Message] = []
    encoded: list[bytes] = []
    starts: list[int] = []
    size = begun = 0

    def flush(end: int) -> None:
        body = prefix + nested(nf.NFTA_SET_ELEM_LIST_ELEMENTS, *encoded)
        raw = message(nftables(kind), flags, sequence + len(messages), target.family, body)
        messages.append(Message(raw, change, change.elements[begun:end], tuple(starts)))

    for index, element in enumerate(change.elements):
        piece = encode_element(target, element)
        if size + len(piece) > ELEMENTS_LIMIT - 4:
            flush(index)
            encoded, starts, size, begun = [], [], 0, index
        starts.append(first + size)
        encoded.append(piece)
        size += len(piece)
    flush(len(change.elements))
    return messages


def envelope(messages: Iterable[bytes], sequence: int) -> bytes:
    """Return a batch of nf_tables `messages`; `sequence` is the number of its begin and end."""
    begin, end = (
        message(kind, NLM_F_REQUEST, sequence, 0, b"", resource=NFNL_SUBSYS_NFTABLES)
        for kind in (NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END)
    )
    return b"".join((begin, *messages, end))


def encode_flows(kind: int, flags: int, sequence: int, mark: int | None) -> bytes:
    """Return the message about all conntrack entries with `mark`, or all (get or delete them)."""
    body = b""
    if mark is not None:
        body += attribute(CTA_MARK, struct.pack("!I", mark))
        body += attribute(CTA_MARK_MASK, struct.pack("!I", 0xFFFFFFFF))
    return message(NFNL_SUBSYS_CTNETLINK << 8 | kind, flags, sequence, 0, body)


def encode_flow_delete(flow: bytes, sequence: int) -> bytes:
    """Return the message that deletes the one conntrack entry with attributes `flow`."""
    parts = dict(attributes(flow))
    body = nested(CTA_TUPLE_ORIG, parts[CTA_TUPLE_ORIG]) + attribute(CTA_ID, parts[CTA_ID])
    addresses = dict(attributes(dict(attributes(parts[CTA_TUPLE_ORIG]))[CTA_TUPLE_IP]))
    family = socket.AF_INET6 if CTA_IP_V6_SRC in addresses else socket.AF_INET
    kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE
    return message(kind, NLM_F_REQUEST, sequence, family, body)


def matches(flow: bytes, wanted: Flows) -> bool:
    """Tell whether a conntrack entry's attributes, its mark apart, are those in `wanted`.

    The port is the dialled replica's own. For a flow dialled here it is the source port of the
    replies, for one dialled by the replica the destination port of the original direction. So it
    is found in both cases without regard to DNAT.
    """
    if wanted.direction is None:
        return True
    parts = dict(attributes(flow))
    side, port = (
        (CTA_TUPLE_REPLY, CTA_PROTO_SRC_PORT)
        if wanted.direction == "out"
        else (CTA_TUPLE_ORIG, CTA_PROTO_DST_PORT)
    )
    protocol = dict(attributes(dict(attributes(parts[side]))[CTA_TUPLE_PROTO]))
    numbers = {protocol_number(wanted.protocol)}
    if wanted.protocol == "icmp":
        numbers.add(protocol_number("icmpv6"))
    if protocol[CTA_PROTO_NUM][0] not in numbers:
        return False
    return not wanted.port or int.from_bytes(protocol.get(port, b""), "big") == wanted.port


def mark_in(flow: bytes) -> int:
    """Return the mark in a conntrack entry's attributes; 0 if it has none."""
    return int.from_bytes(dict(attributes(flow)).get(CTA_MARK, b""), "big")


def tcp_connection(flow: bytes) -> TcpConnection | None:
    """Return the connection of a conntrack entry's attributes; None if it is not of TCP."""
    dialled = dict(attributes(dict(attributes(flow))[CTA_TUPLE_ORIG]))
    addresses = dict(attributes(dialled[CTA_TUPLE_IP]))
    protocol = dict(attributes(dialled[CTA_TUPLE_PROTO]))
    if protocol[CTA_PROTO_NUM][0] != socket.IPPROTO_TCP:
        return None
    source, destination = (
        (CTA_IP_V6_SRC, CTA_IP_V6_DST)
        if CTA_IP_V6_SRC in addresses
        else (CTA_IP_V4_SRC, CTA_IP_V4_DST)
    )
    return TcpConnection(
        addresses[source],
        int.from_bytes(protocol[CTA_PROTO_SRC_PORT], "big"),
        addresses[destination],
        int.from_bytes(protocol[CTA_PROTO_DST_PORT], "big"),
    )


def decode_element(target: Set, raw: bytes) -> tuple[Element, int]:
    """Return the element in the payload of an NFTA_LIST_ELEM, and its counter's packets.

    ForeignElementError if it is none that `target` may hold.
    """
    parts = dict(attributes(raw))
    try:
        key = unpack(target.key, dict(attributes(parts[nf.NFTA_SET_ELEM_KEY]))[nf.NFTA_DATA_VALUE])
        data: Key = ()
        if target.data:
            value = dict(attributes(parts[nf.NFTA_SET_ELEM_DATA]))[nf.NFTA_DATA_VALUE]
            data = unpack(target.data, value)
        packets = 0
        if nf.NFTA_SET_ELEM_EXPR in parts:
            counted = dict(attributes(parts[nf.NFTA_SET_ELEM_EXPR]))
            packets = decode_counter(counted[nf.NFTA_EXPR_DATA])
    except (KeyError, ValueError) as error:
        raise ForeignElementError(target) from error
    return (key, data), packets


def decode_elements(target: Set, body: bytes) -> Iterator[tuple[Element, int]]:
    """Yield the elements, with their counters' packets, of one message of a dump."""
    for kind, payload in attributes(body):
        if kind == nf.NFTA_SET_ELEM_LIST_ELEMENTS:
            for _, element in attributes(payload):
                yield decode_element(target, element)


def decode_counter(raw: bytes) -> int:
    """Return the packets in a counter expression's or object's data."""
    return int.from_bytes(dict(attributes(raw))[nf.NFTA_COUNTER_PACKETS], "big")


def mark_of(address: str) -> int:
    """Return the ct mark of flows with the replica at `address`, as conntrack tools show it.

    The ruleset copies the bytes of the address, or the last 4 bytes of an IPv6 address, from the
    packet into the mark (`container_ruleset`, rule 3). So the number is these bytes read in host
    order.
    """
    return struct.unpack("=I", ip_address(address).packed[-4:])[0]  # type: ignore[no-any-return]
