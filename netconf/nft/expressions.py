"""The statements of rules, encoded as nf_tables expressions; named as in nft's language.

1. A rule is a list of expressions that the kernel evaluates in order; the first one that does not
   match ends the rule (net/netfilter/nf_tables_core.c, nft_do_chain). A statement of nft's language
   is one or several expressions; each function here returns those of one statement.
2. Each statement loads what it needs into registers, beginning with the first register. So no
   statement depends on what another one loaded.
3. Registers are counted in words of 4 bytes, and each field of a concatenation begins a new word. A
   word on a boundary of 16 bytes is called by its old register number, because the kernel dumps it
   so (nft_dump_register).
4. Values from the packet are in network order. Values that the kernel adds (marks, interface types
   and indices, connection states, slots) are numbers in host order. ``ct mark set`` of an address
   copies its bytes in the order in which they are in the packet.
5. A family is matched by an explicit statement (`IPV4`, `IPV6`, `ETHERNET`). nft adds these by
   itself when it compiles a rule and leaves them out of its listings.
6. Constants are those of `netconf.uapi.nf_tables`. Attributes are sent as the kernel dumps them,
   including the default values that it dumps, so that what is read back can be compared with what
   was sent.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network
from typing import Final, TypeAlias

import msgspec

from netconf.nft import elements
from netconf.nft.elements import REGISTER, Field, Set
from netconf.nft.encoding import attribute, nested, string
from netconf.uapi import nf_tables as nf

Statement: TypeAlias = tuple[bytes, ...]
"""Expressions, each one NFTA_LIST_ELEM."""


IPV4_CHECKSUM: Final = 10
"""Offset of the header checksum in an IPv4 header (RFC 791)."""


INVALID, ESTABLISHED, RELATED, NEW = 0x1, 0x2, 0x4, 0x8
"""NF_CT_STATE_BIT of each connection state (linux/netfilter/nf_conntrack_common.h)."""

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
"""Bits of TCP's thirteenth byte (RFC 9293 3.1)."""


class Selector(msgspec.Struct, frozen=True):
    """A value that a rule can load into a register; `name` is nft's name for it."""

    name: str
    field: Field
    load: Callable[[int], bytes]
    """Returns the expression that loads it into the register that begins at the given word."""


def host_order(number: int, length: int = 4) -> bytes:
    """Return a number as the kernel keeps it in a register."""
    return number.to_bytes(length, sys.byteorder)


def _u32(kind: int, number: int) -> bytes:
    return attribute(kind, struct.pack("!I", number))


def _expression(name: str, *attributes: bytes, kind: int = nf.NFTA_LIST_ELEM) -> bytes:
    return nested(kind, string(nf.NFTA_EXPR_NAME, name), nested(nf.NFTA_EXPR_DATA, *attributes))


def _register(word: int) -> int:
    """Return the number of the register that begins at a word (rule 3)."""
    return nf.NFT_REG_1 + word // 4 if word % 4 == 0 else nf.NFT_REG32_00 + word


# -- selectors -----------------------------------------------------------------------------


def _meta(name: str, key: int, field: Field) -> Selector:
    def load(word: int) -> bytes:
        return _expression(
            "meta", _u32(nf.NFTA_META_KEY, key), _u32(nf.NFTA_META_DREG, _register(word))
        )

    return Selector(name, field, load)


def _payload(name: str, base: int, offset: int, field: Field) -> Selector:
    def load(word: int) -> bytes:
        return _expression(
            "payload",
            _u32(nf.NFTA_PAYLOAD_DREG, _register(word)),
            _u32(nf.NFTA_PAYLOAD_BASE, base),
            _u32(nf.NFTA_PAYLOAD_OFFSET, offset),
            _u32(nf.NFTA_PAYLOAD_LEN, field.length),
        )

    return Selector(name, field, load)


def raw(name: str, base: int, offset: int, length: int) -> Selector:
    """Select `length` bytes at `offset` of a header, as nft's ``@ll``, ``@nh`` and ``@th`` do."""
    return _payload(name, base, offset, elements.integer(length))


IP_SADDR = _payload("ip saddr", nf.NFT_PAYLOAD_NETWORK_HEADER, 12, elements.IPV4_ADDR)
IP_DADDR = _payload("ip daddr", nf.NFT_PAYLOAD_NETWORK_HEADER, 16, elements.IPV4_ADDR)
IP_PROTOCOL = raw("ip protocol", nf.NFT_PAYLOAD_NETWORK_HEADER, 9, 1)
IP6_SADDR = _payload("ip6 saddr", nf.NFT_PAYLOAD_NETWORK_HEADER, 8, elements.IPV6_ADDR)
IP6_DADDR = _payload("ip6 daddr", nf.NFT_PAYLOAD_NETWORK_HEADER, 24, elements.IPV6_ADDR)
ETHER_DADDR = _payload("ether daddr", nf.NFT_PAYLOAD_LL_HEADER, 0, elements.ETHER_ADDR)
ETHER_SADDR = _payload("ether saddr", nf.NFT_PAYLOAD_LL_HEADER, 6, elements.ETHER_ADDR)
ETHER_TYPE = raw("ether type", nf.NFT_PAYLOAD_LL_HEADER, 12, 2)
TH_DPORT = _payload("th dport", nf.NFT_PAYLOAD_TRANSPORT_HEADER, 2, elements.INET_SERVICE)
TCP_FLAGS = raw("tcp flags", nf.NFT_PAYLOAD_TRANSPORT_HEADER, 13, 1)
ICMPV6_TYPE = raw("icmpv6 type", nf.NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1)
LOWEST_4_OF = {
    IP_SADDR.name: IP_SADDR,
    IP_DADDR.name: IP_DADDR,
    IP6_SADDR.name: raw("@nh,160,32", nf.NFT_PAYLOAD_NETWORK_HEADER, 20, 4),
    IP6_DADDR.name: raw("@nh,288,32", nf.NFT_PAYLOAD_NETWORK_HEADER, 36, 4),
}
"""By the name of an address's selector, the one for its last 32 bits: the whole of an IPv4 address,
and the IPv4 address inside an IPv6 one (`names`, rule 4)."""

META_MARK = _meta("meta mark", nf.NFT_META_MARK, elements.MARK)
L4PROTO = _meta("meta l4proto", nf.NFT_META_L4PROTO, elements.INET_PROTO)
NFPROTO = _meta("meta nfproto", nf.NFT_META_NFPROTO, elements.integer(1))
IIF = _meta("iif", nf.NFT_META_IIF, elements.integer(4))
IIFTYPE = _meta("iiftype", nf.NFT_META_IIFTYPE, elements.integer(2))
IIFNAME = _meta("iifname", nf.NFT_META_IIFNAME, elements.IFNAME)
OIFNAME = _meta("oifname", nf.NFT_META_OIFNAME, elements.IFNAME)


def _ct_state(word: int) -> bytes:
    return _expression(
        "ct", _u32(nf.NFTA_CT_KEY, nf.NFT_CT_STATE), _u32(nf.NFTA_CT_DREG, _register(word))
    )


def _fib(word: int) -> bytes:
    return _expression(
        "fib",
        _u32(nf.NFTA_FIB_DREG, _register(word)),
        _u32(nf.NFTA_FIB_RESULT, nf.NFT_FIB_RESULT_ADDRTYPE),
        _u32(nf.NFTA_FIB_FLAGS, nf.NFTA_FIB_F_DADDR),
    )


CT_STATE = Selector("ct state", elements.integer(4), _ct_state)
FIB_DADDR_TYPE = Selector("fib daddr type", elements.integer(4), _fib)


def numgen_random(modulus: int) -> Selector:
    """Select a random number from 0 to `modulus` - 1."""

    def load(word: int) -> bytes:
        return _expression(
            "numgen",
            _u32(nf.NFTA_NG_DREG, _register(word)),
            _u32(nf.NFTA_NG_MODULUS, modulus),
            _u32(nf.NFTA_NG_TYPE, nf.NFT_NG_RANDOM),
            _u32(nf.NFTA_NG_OFFSET, 0),
        )

    return Selector(f"numgen random mod {modulus}", elements.SLOT, load)


# -- matches -------------------------------------------------------------------------------


def _cmp(value: bytes, operator: int = nf.NFT_CMP_EQ) -> bytes:
    return _expression(
        "cmp",
        _u32(nf.NFTA_CMP_SREG, nf.NFT_REG_1),
        _u32(nf.NFTA_CMP_OP, operator),
        nested(nf.NFTA_CMP_DATA, attribute(nf.NFTA_DATA_VALUE, value)),
    )


def _bitwise(mask: bytes) -> bytes:
    return _expression(
        "bitwise",
        _u32(nf.NFTA_BITWISE_SREG, nf.NFT_REG_1),
        _u32(nf.NFTA_BITWISE_DREG, nf.NFT_REG_1),
        _u32(nf.NFTA_BITWISE_LEN, len(mask)),
        nested(nf.NFTA_BITWISE_MASK, attribute(nf.NFTA_DATA_VALUE, mask)),
        nested(nf.NFTA_BITWISE_XOR, attribute(nf.NFTA_DATA_VALUE, bytes(len(mask)))),
    )


def eq(what: Selector, value: bytes) -> Statement:
    """Match where `what` is `value`, in the byte order of rule 4."""
    return what.load(0), _cmp(value)


def neq(what: Selector, value: bytes) -> Statement:
    """Match where `what` is not `value`, in the byte order of rule 4."""
    return what.load(0), _cmp(value, nf.NFT_CMP_NEQ)


def masked_eq(what: Selector, mask: bytes, value: bytes) -> Statement:
    """Match where the bits in `mask` of `what` are as in `value`."""
    return what.load(0), _bitwise(mask), _cmp(value)


def masked_neq(what: Selector, mask: bytes, value: bytes) -> Statement:
    """Match where the bits in `mask` of `what` are not as in `value`."""
    return what.load(0), _bitwise(mask), _cmp(value, nf.NFT_CMP_NEQ)


def ct_state(bits: int) -> Statement:
    """Match packets of a connection in any of the states `bits`."""
    return masked_neq(CT_STATE, host_order(bits), host_order(0))


def within(what: Selector, network: IPv4Network | IPv6Network) -> Statement:
    """Match where an address is in `network`."""
    return masked_eq(what, network.netmask.packed, network.network_address.packed)


def interface(what: Selector, name: str) -> Statement:
    """Match the interface `name`; if it ends in ``*``, all interfaces that begin with the rest."""
    if name.endswith("*"):
        return what.load(0), _cmp(name[:-1].encode())
    return what.load(0), _cmp(elements.pack((elements.IFNAME,), (name,)))


IPV4 = eq(NFPROTO, bytes((nf.NFPROTO_IPV4,)))
IPV6 = eq(NFPROTO, bytes((nf.NFPROTO_IPV6,)))
ETHERNET = eq(IIFTYPE, host_order(nf.ARPHRD_ETHER, 2))
TCP = eq(L4PROTO, bytes((socket.IPPROTO_TCP,)))
UDP = eq(L4PROTO, bytes((socket.IPPROTO_UDP,)))
ICMPV6 = eq(L4PROTO, bytes((socket.IPPROTO_ICMPV6,)))


# -- sets and maps -------------------------------------------------------------------------


def _key(target: Set, selectors: tuple[Selector, ...]) -> Statement:
    """Load a key, field by field, each from a new word on (rule 3).

    TypeError if the selectors do not load the fields of the set's key.
    """
    if tuple(one.field for one in selectors) != target.key:
        raise TypeError(f"{target.name} is not keyed by {' . '.join(s.name for s in selectors)}")
    loads, word = [], 0
    for one in selectors:
        loads.append(one.load(word))
        word += -(-one.field.length // REGISTER)
    return tuple(loads)


def _lookup(target: Set, *more: bytes, flags: int = 0) -> bytes:
    return _expression(
        "lookup",
        string(nf.NFTA_LOOKUP_SET, target.name),
        _u32(nf.NFTA_LOOKUP_SREG, nf.NFT_REG_1),
        *more,
        _u32(nf.NFTA_LOOKUP_FLAGS, flags),
    )


def among(target: Set, *key: Selector) -> Statement:
    """Match where `key` is in a set."""
    return *_key(target, key), _lookup(target)


def not_among(target: Set, *key: Selector) -> Statement:
    """Match where `key` is not in a set."""
    return *_key(target, key), _lookup(target, flags=nf.NFT_LOOKUP_F_INV)


def mapped(target: Set, *key: Selector) -> Statement:
    """Load a map's data for `key`, from the first register on; no match if it has none."""
    return *_key(target, key), _lookup(target, _u32(nf.NFTA_LOOKUP_DREG, nf.NFT_REG_1))


def update(target: Set, *key: Selector) -> Statement:
    """Add `key` to a set, or renew its timeout; count it in both cases; no match if it is full."""
    return *_key(target, key), _expression(
        "dynset",
        string(nf.NFTA_DYNSET_SET_NAME, target.name),
        _u32(nf.NFTA_DYNSET_SREG_KEY, nf.NFT_REG_1),
        _u32(nf.NFTA_DYNSET_OP, nf.NFT_DYNSET_OP_UPDATE),
        _u32(nf.NFTA_DYNSET_FLAGS, 0),
    )


# -- changes -------------------------------------------------------------------------------


def immediate(value: bytes) -> Statement:
    """Load a constant into the first register."""
    data = nested(nf.NFTA_IMMEDIATE_DATA, attribute(nf.NFTA_DATA_VALUE, value))
    return (_expression("immediate", _u32(nf.NFTA_IMMEDIATE_DREG, nf.NFT_REG_1), data),)


def meta_mark_set(value: Statement) -> Statement:
    """Give the packet the mark that `value` loads."""
    key, register = _u32(nf.NFTA_META_KEY, nf.NFT_META_MARK), _u32(nf.NFTA_META_SREG, nf.NFT_REG_1)
    return *value, _expression("meta", key, register)


def ct_mark_set(what: Selector) -> Statement:
    """Give the packet's connection the bytes selected by `what` as mark (rule 4)."""
    key, register = _u32(nf.NFTA_CT_KEY, nf.NFT_CT_MARK), _u32(nf.NFTA_CT_SREG, nf.NFT_REG_1)
    return what.load(0), _expression("ct", key, register)


def ip_saddr_set(what: Selector) -> Statement:
    """Overwrite an IPv4 source; the kernel corrects the checksums of IP and of TCP or UDP."""
    return what.load(0), _expression(
        "payload",
        _u32(nf.NFTA_PAYLOAD_SREG, nf.NFT_REG_1),
        _u32(nf.NFTA_PAYLOAD_BASE, nf.NFT_PAYLOAD_NETWORK_HEADER),
        _u32(nf.NFTA_PAYLOAD_OFFSET, 12),
        _u32(nf.NFTA_PAYLOAD_LEN, IP_SADDR.field.length),
        _u32(nf.NFTA_PAYLOAD_CSUM_TYPE, nf.NFT_PAYLOAD_CSUM_INET),
        _u32(nf.NFTA_PAYLOAD_CSUM_OFFSET, IPV4_CHECKSUM),
        _u32(nf.NFTA_PAYLOAD_CSUM_FLAGS, nf.NFT_PAYLOAD_L4CSUM_PSEUDOHDR),
    )


def dnat(family: int, target: Set, *key: Selector) -> Statement:
    """Send a new connection to the address and port that a map has for `key`."""
    address, port = nf.NFT_REG_1, _register(-(-target.data[0].length // REGISTER))
    return *mapped(target, *key), _expression(
        "nat",
        _u32(nf.NFTA_NAT_TYPE, nf.NFT_NAT_DNAT),
        _u32(nf.NFTA_NAT_FAMILY, family),
        _u32(nf.NFTA_NAT_REG_ADDR_MIN, address),
        _u32(nf.NFTA_NAT_REG_ADDR_MAX, address),
        _u32(nf.NFTA_NAT_REG_PROTO_MIN, port),
        _u32(nf.NFTA_NAT_REG_PROTO_MAX, port),
        _u32(nf.NFTA_NAT_FLAGS, nf.NF_NAT_RANGE_MAP_IPS | nf.NF_NAT_RANGE_PROTO_SPECIFIED),
    )


# -- verdicts ------------------------------------------------------------------------------


def _verdict(code: int, *more: bytes) -> Statement:
    body = nested(
        nf.NFTA_DATA_VERDICT, attribute(nf.NFTA_VERDICT_CODE, struct.pack("!i", code)), *more
    )
    return (
        _expression(
            "immediate",
            _u32(nf.NFTA_IMMEDIATE_DREG, nf.NFT_REG_VERDICT),
            nested(nf.NFTA_IMMEDIATE_DATA, body),
        ),
    )


ACCEPT = _verdict(nf.NF_ACCEPT)
DROP = _verdict(nf.NF_DROP)
RETURN = _verdict(nf.NFT_RETURN)


def jump(chain: str) -> Statement:
    """Go on in another chain, and come back if that chain ends without a verdict."""
    return _verdict(nf.NFT_JUMP, string(nf.NFTA_VERDICT_CHAIN, chain))


def goto(chain: str) -> Statement:
    """Go on in another chain, without coming back."""
    return _verdict(nf.NFT_GOTO, string(nf.NFTA_VERDICT_CHAIN, chain))


def reject(kind: int, code: int) -> Statement:
    """Drop the packet and answer with an ICMP error: `kind` is an NFT_REJECT_…, which also says how
    `code` is to be read."""
    attributes = (
        _u32(nf.NFTA_REJECT_TYPE, kind),
        attribute(nf.NFTA_REJECT_ICMP_CODE, bytes((code,))),
    )
    return (_expression("reject", *attributes),)


REJECT_TCP_RESET: Final = (_expression("reject", _u32(nf.NFTA_REJECT_TYPE, nf.NFT_REJECT_TCP_RST)),)


def counter_name(name: str) -> Statement:
    """Count the packet in a named counter of the table."""
    kind, which = (
        _u32(nf.NFTA_OBJREF_IMM_TYPE, nf.NFT_OBJECT_COUNTER),
        string(nf.NFTA_OBJREF_IMM_NAME, name),
    )
    return (_expression("objref", kind, which),)


NOTHING_COUNTED: Final = (
    attribute(nf.NFTA_COUNTER_BYTES, bytes(8)),
    attribute(nf.NFTA_COUNTER_PACKETS, bytes(8)),
)
"""The attributes of a counter that has counted nothing yet."""


def counter(kind: int) -> bytes:
    """Return, as an attribute `kind`, the counter that each new element of a set gets."""
    return _expression("counter", *NOTHING_COUNTED, kind=kind)
