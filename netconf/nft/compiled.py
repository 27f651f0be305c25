"""A ruleset as the kernel took it, to be given to the next namespace without parsing it again.

1. libnftables needs milliseconds to parse and check a template, under a lock; the kernel takes
   what comes of it in a part of that. So one namespace gets the template as text (the one of
   the rehearsal), is read back, and every other gets those bytes in one batch.
2. What is read back is what is sent, attribute by attribute and untouched: those that make an
   object, without what the kernel only tells of it, and with the set ids that a batch wants.
3. Order: table, sets, their fixed elements, chains, rules; all or nothing.
4. The caller compares what came of it, once, before it relies on it (`netconf.kernel_probe`).

Source: net/netfilter/nf_tables_api.c, nft_table_policy and the like.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

import msgspec

from netconf.nft.encoding import (
    NFT_MSG_GETSETELEM,
    NFT_MSG_GETTABLE,
    NFT_MSG_NEWSETELEM,
    NFTA_SET_ELEM_LIST_SET,
    NFTA_SET_ELEM_LIST_TABLE,
    NFTA_TABLE_NAME,
    NFTA_TABLE_USERDATA,
    NLM_F_CREATE,
    NLM_F_REQUEST,
    attribute,
    message,
    nftables,
    raw_attributes,
    string,
)
from netconf.nft.wire import NftSocket

NLM_F_EXCL: Final = 0x200
NLM_F_APPEND: Final = 0x800

NFT_MSG_NEWTABLE: Final = 0
NFT_MSG_NEWCHAIN: Final = 3
NFT_MSG_GETCHAIN: Final = 4
NFT_MSG_NEWRULE: Final = 6
NFT_MSG_GETRULE: Final = 7
NFT_MSG_NEWSET: Final = 9
NFT_MSG_GETSET: Final = 10

NFTA_TABLE_FLAGS: Final = 2

NFTA_SET_TABLE: Final = 1
NFTA_SET_NAME: Final = 2
NFTA_SET_FLAGS: Final = 3
NFTA_SET_KEY_TYPE: Final = 4
NFTA_SET_KEY_LEN: Final = 5
NFTA_SET_DATA_TYPE: Final = 6
NFTA_SET_DATA_LEN: Final = 7
NFTA_SET_POLICY: Final = 8
NFTA_SET_DESC: Final = 9
NFTA_SET_ID: Final = 10
NFTA_SET_TIMEOUT: Final = 11
NFTA_SET_GC_INTERVAL: Final = 12
NFTA_SET_USERDATA: Final = 13
NFTA_SET_EXPR: Final = 17
NFTA_SET_EXPRESSIONS: Final = 18
NFT_SET_CONSTANT: Final = 0x2

NFTA_CHAIN_TABLE: Final = 1
NFTA_CHAIN_NAME: Final = 3
NFTA_CHAIN_HOOK: Final = 4
NFTA_CHAIN_POLICY: Final = 5
NFTA_CHAIN_TYPE: Final = 7
NFTA_CHAIN_FLAGS: Final = 10
NFTA_CHAIN_USERDATA: Final = 12

NFTA_RULE_TABLE: Final = 1
NFTA_RULE_CHAIN: Final = 2
NFTA_RULE_EXPRESSIONS: Final = 4
NFTA_RULE_USERDATA: Final = 7

# What makes an object, in contrast to what the kernel tells of it: that changes with its version.
TABLE: Final = (NFTA_TABLE_NAME, NFTA_TABLE_FLAGS, NFTA_TABLE_USERDATA)
SET: Final = (
    NFTA_SET_TABLE, NFTA_SET_NAME, NFTA_SET_FLAGS, NFTA_SET_KEY_TYPE, NFTA_SET_KEY_LEN,
    NFTA_SET_DATA_TYPE, NFTA_SET_DATA_LEN, NFTA_SET_POLICY, NFTA_SET_DESC, NFTA_SET_TIMEOUT,
    NFTA_SET_GC_INTERVAL, NFTA_SET_USERDATA, NFTA_SET_EXPR, NFTA_SET_EXPRESSIONS,
)  # fmt: skip
CHAIN: Final = (
    NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE,
    NFTA_CHAIN_FLAGS, NFTA_CHAIN_USERDATA,
)  # fmt: skip
RULE: Final = (NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_RULE_USERDATA)

Attributes = dict[int, bytes]
"""Whole attributes, header and padding included, by type."""


class Compiled(msgspec.Struct, frozen=True):
    """One table with all in it, as the messages of a batch."""

    family: int
    messages: tuple[tuple[int, int, bytes], ...]
    """(nf_tables message type, flags, attributes)."""


def compiled(nft: NftSocket, family: int, table: str) -> Compiled:
    """Read a table back; OSError ENOENT if there is none.

    Of its sets only the constant ones keep their elements: the others' are not the template's.
    """

    def every(kind: int, owner: int) -> list[Attributes]:
        found = map(raw_attributes, nft.dump_raw(kind, family, string(owner, table)))
        # The kernel's filter by table is only as good as its version.
        return [parts for parts in found if parts.get(owner) == string(owner, table)]

    messages = [
        (NFT_MSG_NEWTABLE, NLM_F_EXCL, _only(TABLE, parts))
        for parts in every(NFT_MSG_GETTABLE, NFTA_TABLE_NAME)
    ]
    contents = []
    for number, parts in enumerate(every(NFT_MSG_GETSET, NFTA_SET_TABLE), 1):
        identity = attribute(NFTA_SET_ID, struct.pack("!I", number))
        messages.append((NFT_MSG_NEWSET, 0, _only(SET, parts) + identity))
        if int.from_bytes(parts.get(NFTA_SET_FLAGS, b"")[4:], "big") & NFT_SET_CONSTANT:
            name = parts[NFTA_SET_NAME][4:].rstrip(b"\0").decode()
            which = string(NFTA_SET_ELEM_LIST_TABLE, table) + string(NFTA_SET_ELEM_LIST_SET, name)
            contents += [
                (NFT_MSG_NEWSETELEM, 0, body)
                for body in nft.dump_raw(NFT_MSG_GETSETELEM, family, which)
            ]
    chains = [
        (NFT_MSG_NEWCHAIN, 0, _only(CHAIN, parts))
        for parts in every(NFT_MSG_GETCHAIN, NFTA_CHAIN_TABLE)
    ]
    rules = [
        (NFT_MSG_NEWRULE, NLM_F_APPEND, _only(RULE, parts))
        for parts in every(NFT_MSG_GETRULE, NFTA_RULE_TABLE)
    ]
    return Compiled(family, (*messages, *contents, *chains, *rules))


def load(nft: NftSocket, ruleset: Compiled) -> None:
    """Make the table. OSError EEXIST if there is one already, and then nothing is changed."""
    nft.transact(
        lambda first: [
            message(
                nftables(kind), NLM_F_REQUEST | NLM_F_CREATE | flags, number, ruleset.family, body
            )
            for number, (kind, flags, body) in enumerate(ruleset.messages, first)
        ]
    )


def _only(kept: Iterable[int], parts: Attributes) -> bytes:
    return b"".join(parts[kind] for kind in kept if kind in parts)
