"""Declaring a table as a value, and encoding the nfnetlink messages that make it.

1. A ruleset consists of sets, counters, chains and rules. We encode the messages ourselves, so that
   they are the same bytes on every node. nft is not used, because its versions compile the same
   text differently (marks came out with their bytes swapped).
2. The order in a batch is: table, sets, their constant elements, counters, chains, rules.
3. Each rule has its text in nft's language, which is not sent to the kernel. It is for the reader
   of the code and for messages about a missing rule; tests compare it with what nft lists.
4. Each set states what its keys and data are (NFTA_SET_KEY_TYPE, _DATA_TYPE, and the ``typeof`` in
   its userdata). This is for nft's listings only: the kernel stores it and uses nothing but the
   lengths.
5. The chains of a dormant table are attached to no hook. A table is loaded in one batch whether it
   is dormant or not.

Sources: net/netfilter/nf_tables_api.c; nft's src/mnl.c (mnl_nft_set_add) and src/expression.c,
src/payload.c, src/meta.c, src/numgen.c (…_expr_build_udata) for rule 4.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

import msgspec

from netconf.nft.elements import IPV4_ADDR, IPV6_ADDR, REGISTER, TABLE, Field, Key, Set, pack
from netconf.nft.encoding import (
    attribute,
    nested,
    string,
)
from netconf.nft.expressions import (
    ETHER_DADDR,
    ETHER_SADDR,
    IIFNAME,
    IP6_DADDR,
    IP6_SADDR,
    IP_DADDR,
    IP_SADDR,
    L4PROTO,
    META_MARK,
    NOTHING_COUNTED,
    TH_DPORT,
    Selector,
    Statement,
    counter,
    host_order,
)
from netconf.uapi import nf_tables as nf

NFTNL_UDATA_SET_KEYBYTEORDER: Final = 0
NFTNL_UDATA_SET_DATABYTEORDER: Final = 1
NFTNL_UDATA_SET_KEY_TYPEOF: Final = 3
NFTNL_UDATA_SET_DATA_TYPEOF: Final = 4
NFTNL_UDATA_SET_TYPEOF_EXPR: Final = 0
NFTNL_UDATA_SET_TYPEOF_DATA: Final = 1
BYTEORDER_INVALID: Final = 0
BYTEORDER_HOST_ENDIAN: Final = 1
BYTEORDER_BIG_ENDIAN: Final = 2
EXPR_PAYLOAD: Final = 7
EXPR_CONCAT: Final = 13
EXPR_META: Final = 9
EXPR_NUMGEN: Final = 23
PROTO_DESC_TH: Final = 11
PROTO_DESC_IP: Final = 12
PROTO_DESC_IP6: Final = 13
PROTO_DESC_ETHER: Final = 17
THDR_DPORT: Final = 2
IPHDR_SADDR: Final = 11
IPHDR_DADDR: Final = 12
IP6HDR_SADDR: Final = 8
IP6HDR_DADDR: Final = 9
ETHHDR_DADDR: Final = 1
ETHHDR_SADDR: Final = 2

TYPE_BITS: Final = 6
"""A concatenation's type consists of its fields' numbers, each in this many bits."""

Message: TypeAlias = tuple[int, int, bytes]
"""(nf_tables message type, further flags, attributes)."""


class Rule(msgspec.Struct, frozen=True):
    """One rule: its text in nft's language, and its expressions for the kernel (rule 3)."""

    text: str
    expressions: Statement


class Hook(msgspec.Struct, frozen=True):
    """The hook of a base chain, with the numbers of linux/netfilter.h."""

    type: Literal["filter", "nat"]
    number: int
    priority: int
    policy: int
    """NF_DROP or NF_ACCEPT."""


class Chain(msgspec.Struct, frozen=True):
    """A chain and its rules in order; without a hook it runs only if other chains jump to it."""

    name: str
    hook: Hook | None
    rules: tuple[Rule, ...]


class SetDeclaration(msgspec.Struct, frozen=True, kw_only=True):
    """How a set or map is made; `set` says what its elements are."""

    set: Set
    key: tuple[Selector, ...]
    """The values of a packet that make up its key."""
    data: tuple[Selector, ...] = ()
    flags: int = 0
    size: int = 0
    """The most elements that it may have; 0 for no limit."""
    timeout: int = 0
    """Milliseconds until an element expires; 0 for never."""
    gc_interval: int = 0
    """Milliseconds between two removals of expired elements; 0 for the kernel's default."""
    counting: bool = False
    """Whether each element has a counter."""
    elements: tuple[Key, ...] = ()
    """The elements of a constant set."""


class Ruleset(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one table consists of."""

    family: int
    sets: tuple[SetDeclaration, ...]
    counters: tuple[str, ...] = ()
    chains: tuple[Chain, ...]

    def messages(
        self,
        table: str = TABLE,
        *,
        dormant: bool = False,
        counted: Mapping[str, bytes] = MappingProxyType({}),
    ) -> list[Message]:
        """Return the messages that make the table with the name `table`, in the order of rule 2.

        `counted` is the NFTA_OBJ_DATA with which a counter begins, by its name; others begin at 0.
        """
        flags = table_flags(nf.NFT_TABLE_F_DORMANT if dormant else 0)
        found: list[Message] = [
            (nf.NFT_MSG_NEWTABLE, nf.NLM_F_EXCL, string(nf.NFTA_TABLE_NAME, table) + flags)
        ]
        for number, one in enumerate(self.sets, 1):
            identity = string(nf.NFTA_SET_TABLE, table) + _u32(nf.NFTA_SET_ID, number)
            found.append((nf.NFT_MSG_NEWSET, 0, identity + set_attributes(one)))
        found += [
            (nf.NFT_MSG_NEWSETELEM, 0, _elements(table, one.set, one.elements))
            for one in self.sets
            if one.elements
        ]
        for name in self.counters:
            kind = string(nf.NFTA_OBJ_NAME, name) + _u32(nf.NFTA_OBJ_TYPE, nf.NFT_OBJECT_COUNTER)
            begin = counted.get(name) or nested(nf.NFTA_OBJ_DATA, *NOTHING_COUNTED)
            found.append((nf.NFT_MSG_NEWOBJ, 0, string(nf.NFTA_OBJ_TABLE, table) + kind + begin))
        for chain in self.chains:
            body = string(nf.NFTA_CHAIN_TABLE, table) + chain_attributes(chain)
            found.append((nf.NFT_MSG_NEWCHAIN, 0, body))
        for chain in self.chains:
            place = string(nf.NFTA_RULE_TABLE, table) + string(nf.NFTA_RULE_CHAIN, chain.name)
            found += [
                (nf.NFT_MSG_NEWRULE, nf.NLM_F_APPEND, place + rule_attributes(one))
                for one in chain.rules
            ]
        return found


def rule(text: str, *statements: Statement) -> Rule:
    """Declare a rule: its `text` in nft's language, and the same as statements."""
    return Rule(text, tuple(one for statement in statements for one in statement))


def table_flags(flags: int) -> bytes:
    """Return the attribute that makes a table dormant (NFT_TABLE_F_DORMANT) or wakes it (0)."""
    return _u32(nf.NFTA_TABLE_FLAGS, flags)


def set_attributes(declared: SetDeclaration) -> bytes:
    """Return the attributes of a set except its table and id; TypeError if `declared` is wrong."""
    target = declared.set
    if tuple(s.field for s in (*declared.key, *declared.data)) != (*target.key, *target.data):
        raise TypeError(f"{target.name} is declared to hold something else")
    flags = declared.flags | (nf.NFT_SET_MAP if target.data else 0)
    parts = [
        string(nf.NFTA_SET_NAME, target.name),
        _u32(nf.NFTA_SET_FLAGS, flags),
        _u32(nf.NFTA_SET_KEY_TYPE, _type(target.key)),
        _u32(nf.NFTA_SET_KEY_LEN, _length(target.key)),
    ]
    if target.data:
        parts.append(_u32(nf.NFTA_SET_DATA_TYPE, _type(target.data)))
        parts.append(_u32(nf.NFTA_SET_DATA_LEN, _length(target.data)))
    if declared.size:
        parts.append(nested(nf.NFTA_SET_DESC, _u32(nf.NFTA_SET_DESC_SIZE, declared.size)))
    if declared.timeout:
        parts.append(attribute(nf.NFTA_SET_TIMEOUT, struct.pack("!Q", declared.timeout)))
    if declared.gc_interval:
        parts.append(_u32(nf.NFTA_SET_GC_INTERVAL, declared.gc_interval))
    if declared.counting:
        parts.append(counter(nf.NFTA_SET_EXPR))
    parts.append(attribute(nf.NFTA_SET_USERDATA, _userdata(declared)))
    return b"".join(parts)


def chain_attributes(chain: Chain) -> bytes:
    """Return the attributes of a chain except its table."""
    parts = [string(nf.NFTA_CHAIN_NAME, chain.name)]
    if (hook := chain.hook) is not None:
        place = attribute(nf.NFTA_HOOK_PRIORITY, struct.pack("!i", hook.priority))
        parts += [
            string(nf.NFTA_CHAIN_TYPE, hook.type),
            nested(nf.NFTA_CHAIN_HOOK, _u32(nf.NFTA_HOOK_HOOKNUM, hook.number), place),
            _u32(nf.NFTA_CHAIN_POLICY, hook.policy),
        ]
    return b"".join(parts)


def rule_attributes(declared: Rule) -> bytes:
    """Return the attributes of a rule except its table and chain."""
    return nested(nf.NFTA_RULE_EXPRESSIONS, *declared.expressions)


def _elements(table: str, target: Set, keys: Iterable[Key]) -> bytes:
    found = (
        nested(
            nf.NFTA_LIST_ELEM,
            nested(nf.NFTA_SET_ELEM_KEY, attribute(nf.NFTA_DATA_VALUE, pack(target.key, key))),
        )
        for key in keys
    )
    place = string(nf.NFTA_SET_ELEM_LIST_TABLE, table) + string(
        nf.NFTA_SET_ELEM_LIST_SET, target.name
    )
    return place + nested(nf.NFTA_SET_ELEM_LIST_ELEMENTS, *found)


def _type(fields: tuple[Field, ...]) -> int:
    number = 0
    for field in fields:
        number = number << TYPE_BITS | field.number
    return number


def _length(fields: tuple[Field, ...]) -> int:
    if len(fields) == 1:
        return fields[0].length
    words = sum(-(-field.length // REGISTER) for field in fields)
    return words * REGISTER


def _u32(kind: int, number: int) -> bytes:
    return attribute(kind, struct.pack("!I", number))


# -- a set's userdata, for nft's listings (rule 4) -----------------------------------------


def _udata(kind: int, value: bytes) -> bytes:
    return bytes((kind, len(value))) + value


def _number(kind: int, number: int) -> bytes:
    return _udata(kind, host_order(number))


def _payload_typeof(protocol: int, field: int) -> bytes:
    return _typeof(EXPR_PAYLOAD, _number(0, protocol) + _number(1, field))


def _meta_typeof(key: int) -> bytes:
    return _typeof(EXPR_META, _number(0, key))


def _typeof(expression: int, data: bytes) -> bytes:
    kind = _number(NFTNL_UDATA_SET_TYPEOF_EXPR, expression)
    return kind + _udata(NFTNL_UDATA_SET_TYPEOF_DATA, data)


_TYPEOF: Final = {
    IP_SADDR.name: _payload_typeof(PROTO_DESC_IP, IPHDR_SADDR),
    IP_DADDR.name: _payload_typeof(PROTO_DESC_IP, IPHDR_DADDR),
    IP6_SADDR.name: _payload_typeof(PROTO_DESC_IP6, IP6HDR_SADDR),
    IP6_DADDR.name: _payload_typeof(PROTO_DESC_IP6, IP6HDR_DADDR),
    ETHER_SADDR.name: _payload_typeof(PROTO_DESC_ETHER, ETHHDR_SADDR),
    ETHER_DADDR.name: _payload_typeof(PROTO_DESC_ETHER, ETHHDR_DADDR),
    TH_DPORT.name: _payload_typeof(PROTO_DESC_TH, THDR_DPORT),
    L4PROTO.name: _meta_typeof(nf.NFT_META_L4PROTO),
    META_MARK.name: _meta_typeof(nf.NFT_META_MARK),
    IIFNAME.name: _meta_typeof(nf.NFT_META_IIFNAME),
    "numgen random mod 64": _typeof(
        EXPR_NUMGEN, _number(0, nf.NFT_NG_RANDOM) + _number(1, 64) + _number(2, 0)
    ),
}


def _typeof_all(selectors: tuple[Selector, ...]) -> bytes:
    if len(selectors) == 1:
        return _TYPEOF[selectors[0].name]
    parts = (_udata(number, _TYPEOF[one.name]) for number, one in enumerate(selectors))
    return _typeof(EXPR_CONCAT, b"".join(parts))


def _byteorder(fields: tuple[Field, ...]) -> int:
    if len(fields) > 1:
        return BYTEORDER_INVALID
    addresses = fields[0] in (IPV4_ADDR, IPV6_ADDR)
    return BYTEORDER_BIG_ENDIAN if addresses else BYTEORDER_HOST_ENDIAN


def _userdata(declared: SetDeclaration) -> bytes:
    parts = [_number(NFTNL_UDATA_SET_KEYBYTEORDER, _byteorder(declared.set.key))]
    if declared.data:
        parts.append(_number(NFTNL_UDATA_SET_DATABYTEORDER, _byteorder(declared.set.data)))
    parts.append(_udata(NFTNL_UDATA_SET_KEY_TYPEOF, _typeof_all(declared.key)))
    if declared.data:
        parts.append(_udata(NFTNL_UDATA_SET_DATA_TYPEOF, _typeof_all(declared.data)))
    return b"".join(parts)
