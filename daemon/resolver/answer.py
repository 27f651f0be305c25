"""Answers one DNS query: a pure function of its bytes and of the names the asker may look up.

1. Bytes that are not a query (too short for a header, or an answer themselves) are not answered.
   Everything else is, because a client that is refused is better off than one that waits.
2. A query must have exactly one question, and nothing before the additional section (RFC 9619);
   otherwise the answer is FORMERR. So it is for a compressed name in the question, which has
   nothing to point at, and for a second OPT.
3. Another opcode: NOTIMP. Another class, or a transfer: REFUSED (RFC 8906).
4. No directory was ever read: SERVFAIL, because it is not known which names there are.
5. A name that the asker may know: its addresses, or NODATA for any type it has none of.
   The reverse names of those addresses: PTR. A name above one that exists: NODATA, since
   NXDOMAIN would deny what is below it too (RFC 8020). ANY is answered with addresses
   (RFC 8482). All else: NXDOMAIN, at once and with authority, so that libc goes on to its
   next search domain, and finally tells its caller, without a wait.
6. The zone is the root, because a container has no other name server to ask. Negative answers
   carry its SOA (RFC 2308).
7. EDNS (RFC 6891): an OPT is answered with one, a version above 0 with BADVERS; options and
   flags that mean nothing here are not repeated, except DO (RFC 3225).
8. An answer has at most 512 bytes, which every client accepts: one question, at most two
   addresses. So nothing is ever truncated.

Messages are written with dnslib but read with code of our own. dnslib's reader follows pointers
by recursion, without end if they form a ring, and refuses labels that are not UTF-8.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Mapping
from ipaddress import ip_address

import dnslib

from daemon.naming import LABEL_MAX, carried

TTL = 5
"""Seconds for which a client may cache an address. A VIP stays the same while replicas come and
go; only a change of policy moves it, and clients should follow that soon."""
NEGATIVE_TTL = 1
"""Seconds for which a client may cache that there is no such name: clients that wait for a new
service ask for it again and again."""
UDP_SIZE = 1232
"""Bytes of the largest datagram that fits every path (DNS flag day 2020). No query that we can
answer is longer."""

HEADER = struct.Struct("!6H")
"""ID, flags, and the number of entries in each of four sections (RFC 1035 4.1.1)."""
QUESTION = struct.Struct("!HH")
"""Type and class, after the name."""
RECORD = struct.Struct("!HHIH")
"""Type, class, TTL and length of the data, after the name."""
RESPONSE, RECURSE, CHECKING_DISABLED = 0x8000, 0x0100, 0x0010
NAME_MAX = 255
"""Octets of a whole name, RFC 1035 section 2.3.4."""

A, SOA, PTR, AAAA, OPT, IXFR, AXFR, ANY = 1, 6, 12, 28, 41, 251, 252, 255
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
BADVERS = 16

Labels = tuple[bytes, ...]


class Malformed(ValueError):
    """The query is not well formed; the message says how."""


_SOA = dnslib.SOA("noctule.", "nobody.invalid.", (1, 3600, 600, 86400, NEGATIVE_TTL))


class Zone:
    """The names that the replicas of one service may look up; immutable."""

    def __init__(self, addresses: Mapping[str, Iterable[str]]) -> None:
        """`addresses` (IPv4 or IPv6, as text) by name; names that DNS cannot carry are left out."""
        records: dict[Labels, dict[int, list[dnslib.RD]]] = {(): {SOA: [_SOA]}}
        for name, found in addresses.items():
            if not carried(name):
                continue
            labels = tuple(name.encode().split(b"."))
            for address in map(ip_address, found):
                kind, data = (A, dnslib.A) if address.version == 4 else (AAAA, dnslib.AAAA)
                own = records.setdefault(_folded(labels), {})
                own.setdefault(kind, []).append(data(tuple(address.packed)))
                back = tuple(address.reverse_pointer.encode().split(b"."))
                records[back] = {PTR: [dnslib.PTR(dnslib.DNSLabel(labels))]}
        for labels in list(records):
            for cut in range(1, len(labels)):
                records.setdefault(labels[cut:], {})
        self._records = records

    def find(self, name: Labels) -> Mapping[int, list[dnslib.RD]] | None:
        """Return the data under `name` by type; None if there is no such name."""
        return self._records.get(_folded(name))


def answer(query: bytes, zone: Zone | None) -> bytes | None:
    """Return the answer to a `query`, both without TCP's length; None if it is not answered.

    `zone` is None while there is no directory. Never raises, whatever the bytes.
    """
    if len(query) < HEADER.size or query[2] & 0x80:
        return None
    return query[:2] + _answer(query[2:], zone)


@functools.lru_cache(maxsize=512)
def _answer(query: bytes, zone: Zone | None) -> bytes:
    """Return the answer without the ID, for a query without the ID. Most queries differ in nothing
    else, so answers are cached: making one costs a hundred times as much as finding it."""
    flags, *counts = struct.unpack_from("!5H", query)
    header = dnslib.DNSHeader(
        id=0, bitmap=RESPONSE | flags & (0xF << 11 | RECURSE | CHECKING_DISABLED)
    )
    reply = dnslib.DNSRecord(header)
    # Set "recursion available", which clients expect, although recursion would find nothing more.
    header.ra = 1
    try:
        header.rcode = _fill(reply, flags, counts, query, zone)
    except Malformed:
        reply = dnslib.DNSRecord(header)
        header.rcode = FORMERR
    return bytes(reply.pack()[2:])


def _fill(
    reply: dnslib.DNSRecord, flags: int, counts: list[int], query: bytes, zone: Zone | None
) -> int:
    """Write the sections of `reply`; return its RCODE without the bits that EDNS adds."""
    if flags >> 11 & 0xF:
        return NOTIMP
    if counts[:3] != [1, 0, 0]:
        raise Malformed("not one question alone")
    name, at = _name(query, HEADER.size - 2)
    kind, kind_class = _unpack(QUESTION, query, at)
    opt = _opt(query, at + QUESTION.size, counts[3])
    reply.add_question(dnslib.DNSQuestion(dnslib.DNSLabel(name), kind, kind_class))
    if opt is not None:
        version, wants_dnssec = opt >> 16 & 0xFF, opt & 0x8000
        reply.add_ar(
            dnslib.EDNS0(
                ext_rcode=BADVERS >> 4 if version else 0,
                flags="do" if wants_dnssec else "",
                udp_len=UDP_SIZE,
            )
        )
        if version:
            return BADVERS & 0xF
    if kind == OPT:
        raise Malformed("OPT is nothing to ask for")
    if kind_class != IN or kind in (AXFR, IXFR):
        return REFUSED
    return SERVFAIL if zone is None else _look_up(reply, name, kind, zone)


def _look_up(reply: dnslib.DNSRecord, name: Labels, kind: int, zone: Zone) -> int:
    reply.header.aa = 1
    found = zone.find(name)
    known = found or {}
    owner = dnslib.DNSLabel(name)
    for each in (A, AAAA, PTR, SOA) if kind == ANY else (kind,):
        for data in known.get(each, ()):
            reply.add_answer(dnslib.RR(owner, each, IN, TTL, data))
    if not reply.rr:
        reply.add_auth(dnslib.RR(dnslib.DNSLabel(()), SOA, IN, NEGATIVE_TTL, _SOA))
    return NXDOMAIN if found is None else NOERROR


def _opt(query: bytes, at: int, count: int) -> int | None:
    """Return the TTL field (RCODE bits, version, flags) of the OPT among `count` records at `at`.

    None without an OPT; other records (TSIG, SIG(0)) are skipped."""
    found = None
    for _ in range(count):
        name, at = _name(query, at, pointers=True)
        kind, _, ttl, length = _unpack(RECORD, query, at)
        at += RECORD.size + length
        if at > len(query):
            raise Malformed("a record beyond the end")
        if kind == OPT:
            if found is not None or name:
                raise Malformed("a second OPT, or one with a name")
            found = ttl
    return found


def _name(query: bytes, at: int, pointers: bool = False) -> tuple[Labels, int]:
    """Return the labels of the name at `at`, and where it ends.

    With `pointers`, a compression pointer ends the name, and is returned as an empty label, so that
    the name is not taken for the root. Without, a pointer is an error.
    """
    labels: list[bytes] = []
    began = at
    while True:
        (length,) = _unpack(_OCTET, query, at)
        at += 1
        if length == 0:
            break
        if length > LABEL_MAX:
            if length < 0xC0 or not pointers:
                raise Malformed("a label of an unknown kind")
            labels.append(b"")
            at += 1
            break
        labels.append(query[at : at + length])
        at += length
    if at > len(query) or at - began > NAME_MAX:
        raise Malformed("a name that is too long")
    return tuple(labels), at


_OCTET = struct.Struct("!B")


def _unpack(form: struct.Struct, query: bytes, at: int) -> tuple[int, ...]:
    try:
        return form.unpack_from(query, at)
    except struct.error as error:
        raise Malformed("too short") from error


def _folded(name: Labels) -> Labels:
    return tuple(label.lower() for label in name)
