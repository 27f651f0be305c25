"""Replacing a table under running traffic: no flow is lost, and no packet passes unfiltered.

1. At every moment a complete table is in force. So for a while two tables are in force: a packet
   that either of them refuses is refused, and the table that maps a new flow to a replica first
   decides which replica it is.
2. A table is never made or deleted in the batch that puts it into force or out of force. In a batch
   that makes a base chain, the kernel passes packets to the chain before its rules are active; in
   one that deletes the chain, it still does so when its rules are no longer active. Meanwhile a
   policy of drop drops packets that it should not, and a policy of accept lets everything pass.
   (nf_tables_addchain registers the hook at once; nf_tables_commit unregisters it last. That lost
   up to 6 packets in 1,000 replacements.) So a table is made dormant, with all its elements, and
   woken by a second batch; and a batch of its own makes it dormant again before it is deleted.
3. A packet passes through the hooks that were registered when it arrived, even if it is preempted
   on the way. So after a table was made dormant, an RCU grace period must pass before it is
   deleted. Without that wait, one packet in some 1,000 replacements met a table without rules.
4. The steps, using the only two names that our tables have (TABLE is the one that stays):

       make NEXT of TABLE's elements  →  wake NEXT  →  TABLE to sleep, wait  →  delete TABLE  →
       make TABLE of NEXT's elements  →  wake TABLE  →  NEXT to sleep, wait  →  delete NEXT

5. A crash leaves what `replace` finishes, whoever calls it: TABLE, if it is awake, is whole, and
   NEXT is thrown away; otherwise NEXT is, and TABLE is made of it. If neither is awake, nothing
   was in force, and a new table is loaded at once.
6. Elements move as bytes, with the counters and the time left of those that have them, where both
   sets hold the same. Others begin empty, for whoever programs them to fill: also those that hold
   more than anybody would write (`MOST_PARTS`), or what nobody would (`ForeignElementError`). If
   the kernel refuses the elements, all sets and counters begin empty: rules in force matter more.
   What is counted between a copy and the waking, a few milliseconds, is lost.
7. Nobody else changes the table's elements meanwhile: the caller sees to that.

Sources: net/netfilter/nf_tables_api.c (nf_tables_updtable, nf_tables_table_disable), and
net/netfilter/nf_nat_core.c (nf_nat_inet_fn) for the first mapping; for rule 3,
include/linux/netfilter.h (nf_hook) and net/packet/af_packet.c (packet_release).
"""

from __future__ import annotations

import socket
from collections import deque

from netconf.nft import readback
from netconf.nft.elements import NEXT, TABLE
from netconf.nft.encoding import (
    NLM_F_CREATE,
    NLM_F_REQUEST,
    ForeignElementError,
    attributes,
    decode_elements,
    message,
    nested,
    nftables,
    raw_attributes,
    string,
)
from netconf.nft.tables import (
    Message,
    Ruleset,
    table_flags,
)
from netconf.nft.wire import TOO_MUCH, NftSocket, most_parts
from netconf.uapi import nf_tables as nf


def replace(nft: NftSocket, declared: Ruleset) -> None:
    """Make the table as `declared`, whatever is there now, and keep its elements.

    OSError as the kernel gave it; if a table was in force before, one is in force then too.
    """
    family = declared.family
    table, following = (readback.awake(nft, family, name) for name in (TABLE, NEXT))
    if not table and not following:
        load(nft, declared)
        return
    if table:
        if following is not None:
            remove(nft, family, NEXT)
        _copy(nft, declared, TABLE, NEXT)
    if table is not None:
        remove(nft, family, TABLE)
    _copy(nft, declared, NEXT, TABLE)
    remove(nft, family, NEXT)


def load(nft: NftSocket, declared: Ruleset) -> None:
    """Make the table in one batch, without elements, and delete any tables that have our names.

    Only for a namespace that no packets pass through yet, or in which no table was in force.
    """
    family = declared.family
    present = [name for name in (TABLE, NEXT) if readback.awake(nft, family, name) is not None]
    gone = [(nf.NFT_MSG_DELTABLE, 0, string(nf.NFTA_TABLE_NAME, name)) for name in present]
    _send(nft, family, [*gone, *declared.messages()])


def remove(nft: NftSocket, family: int, table: str) -> None:
    """Make a table dormant, wait, delete it (rules 2 and 3); OSError ENOENT if there is none."""
    name = string(nf.NFTA_TABLE_NAME, table)
    _send(nft, family, [(nf.NFT_MSG_NEWTABLE, 0, name + table_flags(nf.NFT_TABLE_F_DORMANT))])
    _grace_period()
    nft.delete_table(family, table)


def _grace_period() -> None:
    """Wait, some 10 ms, until every packet has left the hooks that it was in (rule 3).

    Closing a packet socket waits for an RCU grace period, on one processor as on many.
    """
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()


def _copy(nft: NftSocket, declared: Ruleset, source: str, target: str) -> None:
    """Make the table `target` with the elements of `source`, and put it into force (rule 2)."""
    family = declared.family
    counted = _counted(nft, family, source) if declared.counters else {}
    filled = [
        *declared.messages(target, dormant=True, counted=counted),
        *_elements(nft, declared, source, target),
    ]
    try:
        _send(nft, family, filled)
    except OSError:
        empty = declared.messages(target, dormant=True)
        if filled == empty:
            raise
        _send(nft, family, empty)
    name = string(nf.NFTA_TABLE_NAME, target)
    _send(nft, family, [(nf.NFT_MSG_NEWTABLE, 0, name + table_flags(0))])


def _counted(nft: NftSocket, family: int, table: str) -> dict[str, bytes]:
    """Return the NFTA_OBJ_DATA of a table's named counters, by name."""
    listed = nft.dump_raw(
        nf.NFT_MSG_GETOBJ, family, string(nf.NFTA_OBJ_TABLE, table), readback.MOST
    )
    found = {}
    for payload in listed:
        name = dict(attributes(payload))[nf.NFTA_OBJ_NAME].rstrip(b"\0").decode(errors="replace")
        found[name] = raw_attributes(payload)[nf.NFTA_OBJ_DATA]
    return found


def _elements(nft: NftSocket, declared: Ruleset, source: str, target: str) -> list[Message]:
    """Return the messages that add the elements of `source` to `target` (rule 6)."""
    family = declared.family
    found: list[Message] = []
    for one in declared.sets:
        if one.elements or not readback.fits(nft, source, one):
            continue
        name = string(nf.NFTA_SET_ELEM_LIST_SET, one.set.name)
        try:
            listed = nft.dump_raw(
                nf.NFT_MSG_GETSETELEM,
                family,
                string(nf.NFTA_SET_ELEM_LIST_TABLE, source) + name,
                most_parts(one.set),
            )
            for payload in listed:
                deque(decode_elements(one.set, payload), maxlen=0)
        except ForeignElementError:
            continue
        except OSError as error:
            if error.errno not in TOO_MUCH:
                raise
            continue
        place = string(nf.NFTA_SET_ELEM_LIST_TABLE, target) + name
        for payload in listed:
            held = dict(attributes(payload)).get(nf.NFTA_SET_ELEM_LIST_ELEMENTS, b"")
            if held:
                body = place + nested(nf.NFTA_SET_ELEM_LIST_ELEMENTS, held)
                found.append((nf.NFT_MSG_NEWSETELEM, 0, body))
    return found


def _send(nft: NftSocket, family: int, messages: list[Message]) -> None:
    nft.transact(
        lambda first: [
            message(nftables(kind), NLM_F_REQUEST | NLM_F_CREATE | flags, number, family, body)
            for number, (kind, flags, body) in enumerate(messages, first)
        ]
    )
