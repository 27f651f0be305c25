"""Comparing a table in the kernel with its declaration; one sentence for each difference.

1. All that packets meet is compared: that the table is awake, each chain's type, hook, priority
   and policy, each rule's expressions in order, each set's declaration, constant elements, and that
   there is nothing else. What fills the sets is `netconf.program.actual`'s; here it matters only
   that it is of the kind that we write, and no more than can be read (`wire.MOST_PARTS`).
2. What was sent is compared attribute by attribute. The kernel adds some of its own, more of them
   with each version: one that is all zero says what is so by default; any other is a difference.
3. A rule is ours whatever its handle, counters or comment.
4. A container with CAP_NET_ADMIN may put anything into its namespace: no more than `MOST` objects
   of a kind are read, and no more than `SAID` sentences said. Chains are asked for by name, since
   the kernel cannot list those of one table.

Source: net/netfilter/nf_tables_api.c (nf_tables_fill_chain_info, …_fill_rule_info, …_fill_set).
"""

from __future__ import annotations

import difflib
import functools
import itertools
from collections.abc import Iterator
from typing import Final

from netconf.nft.elements import NEXT, NFPROTO_INET, TABLE
from netconf.nft.encoding import (
    NLA_F_NESTED,
    NLA_TYPE_MASK,
    ForeignElementError,
    attributes,
    raw_attributes,
    string,
    tagged_attributes,
)
from netconf.nft.tables import (
    Chain,
    Rule,
    Ruleset,
    SetDeclaration,
    chain_attributes,
    set_attributes,
)
from netconf.nft.wire import TOO_MUCH, NftSocket
from netconf.uapi import nf_tables as nf

POLICIES: Final = ("drop", "accept")
"""By NF_DROP and NF_ACCEPT."""

SET: Final = (
    nf.NFTA_SET_FLAGS,
    nf.NFTA_SET_KEY_TYPE,
    nf.NFTA_SET_KEY_LEN,
    nf.NFTA_SET_DATA_TYPE,
    nf.NFTA_SET_DATA_LEN,
    nf.NFTA_SET_DESC,
    nf.NFTA_SET_TIMEOUT,
    nf.NFTA_SET_GC_INTERVAL,
    nf.NFTA_SET_EXPR,
    nf.NFTA_SET_POLICY,
    nf.NFTA_SET_EXPRESSIONS,
)
"""The attributes of a set that are compared. The others are added by the kernel, or only stored by
it for nft to read."""

MOST: Final = 1000
"""Most objects of a kind that are read: many times what any table of ours has."""

SAID: Final = 10
"""Most sentences about one table, before the one that counts the rest."""


def name_of(family: int, table: str = TABLE) -> str:
    """Return a table's name as people write it, such as ``table inet noctule``."""
    return f"table {'inet' if family == NFPROTO_INET else 'bridge'} {table}"


def awake(nft: NftSocket, family: int, table: str) -> bool | None:
    """Tell whether a table is in force, that is not dormant; None if there is no such table."""
    found = nft.get(nf.NFT_MSG_GETTABLE, family, string(nf.NFTA_TABLE_NAME, table))
    if found is None:
        return None
    return (
        not _number(dict(attributes(found)).get(nf.NFTA_TABLE_FLAGS, b"")) & nf.NFT_TABLE_F_DORMANT
    )


def differences(nft: NftSocket, declared: Ruleset) -> list[str]:
    """Return a sentence for each difference between the table and `declared`.

    OSError if the kernel refuses to list something.
    """
    where = name_of(declared.family)
    force = awake(nft, declared.family, TABLE)
    if force is None:
        return [f"{where} is missing"]
    found = [] if force else [f"{where} is dormant: none of its chains is in force"]
    if awake(nft, declared.family, NEXT) is not None:
        found.append(f"{name_of(declared.family, NEXT)} was left behind")
    try:
        for one in itertools.chain(
            _surplus(nft, declared), _sets(nft, declared), _chains(nft, declared)
        ):
            found.append(f"{where}: {one}")
    except OSError as error:
        if error.errno not in TOO_MUCH:
            raise
        found.append(f"{where} holds more than {MOST} rules or sets: not all was read")
    if len(found) > SAID:
        found[SAID:] = [f"{where}: and {len(found) - SAID} further differences"]
    return found


def fits(nft: NftSocket, table: str, declared: SetDeclaration) -> bool:
    """Tell whether a set of `table` is as declared, so that its elements may move there."""
    target = declared.set
    body = string(nf.NFTA_SET_TABLE, table) + string(nf.NFTA_SET_NAME, target.name)
    found = nft.get(nf.NFT_MSG_GETSET, target.family, body)
    return found is not None and _alike(set_attributes(declared), found, SET)


def _surplus(nft: NftSocket, declared: Ruleset) -> Iterator[str]:
    """Find chains that are not ours, by the number of objects that the table says it has.

    Only if that number is too high are all chains of the namespace listed, to name the surplus.
    """
    found = nft.get(nf.NFT_MSG_GETTABLE, declared.family, string(nf.NFTA_TABLE_NAME, TABLE))
    there = _number(dict(attributes(found or b"")).get(nf.NFTA_TABLE_USE, b""))
    ours = len(declared.sets) + len(declared.chains) + len(declared.counters)
    if there > ours:
        yield f"it holds {there} chains, sets and counters in place of {ours}"
        try:
            listed = nft.dump_raw(nf.NFT_MSG_GETCHAIN, declared.family, b"", MOST)
        except OSError as error:
            if error.errno not in TOO_MUCH:
                raise
            return
        known = {chain.name for chain in declared.chains}
        for parts in map(dict, map(attributes, listed)):
            name = _text(parts[nf.NFTA_CHAIN_NAME])
            if _text(parts[nf.NFTA_CHAIN_TABLE]) == TABLE and name not in known:
                yield f"chain {_shown(name)} should not be there"


def _sets(nft: NftSocket, declared: Ruleset) -> Iterator[str]:
    family = declared.family
    body = string(nf.NFTA_SET_TABLE, TABLE)
    found = {}
    for raw in nft.dump_raw(nf.NFT_MSG_GETSET, family, body, MOST):
        parts = dict(attributes(raw))
        if _text(parts[nf.NFTA_SET_TABLE]) == TABLE:
            found[_text(parts[nf.NFTA_SET_NAME])] = raw
    for one in declared.sets:
        name = one.set.name
        there = found.pop(name, None)
        if there is None:
            yield f"set {name} is missing"
        elif not _alike(set_attributes(one), there, SET):
            yield f"set {name} is declared otherwise"
        else:
            yield from _held(nft, one)
    yield from (f"set {_shown(name)} should not be there" for name in found)
    counters = {
        _text(dict(attributes(raw))[nf.NFTA_OBJ_NAME])
        for raw in nft.dump_raw(nf.NFT_MSG_GETOBJ, family, string(nf.NFTA_OBJ_TABLE, TABLE), MOST)
    }
    yield from (f"counter {name} is missing" for name in declared.counters if name not in counters)


def _held(nft: NftSocket, declared: SetDeclaration) -> Iterator[str]:
    """Tell of elements that are none of ours (rule 1)."""
    try:
        held = nft.dump(declared.set)
    except ForeignElementError as error:
        yield str(error.strerror)
    except OSError as error:
        if error.errno not in TOO_MUCH:
            raise
        yield f"set {declared.set.name} holds more elements than anybody would write"
    else:
        if declared.elements and set(held) != set(declared.elements):
            yield f"set {declared.set.name} does not hold what it always holds"


def _chains(nft: NftSocket, declared: Ruleset) -> Iterator[str]:
    rules: dict[str, list[bytes]] = {}
    body = string(nf.NFTA_RULE_TABLE, TABLE)
    for raw in nft.dump_raw(nf.NFT_MSG_GETRULE, declared.family, body, MOST):
        parts = dict(attributes(raw))
        if _text(parts[nf.NFTA_RULE_TABLE]) == TABLE:
            of_chain = rules.setdefault(_text(parts[nf.NFTA_RULE_CHAIN]), [])
            of_chain.append(parts.get(nf.NFTA_RULE_EXPRESSIONS, b""))
    for chain in declared.chains:
        body = string(nf.NFTA_CHAIN_TABLE, TABLE) + string(nf.NFTA_CHAIN_NAME, chain.name)
        there = nft.get(nf.NFT_MSG_GETCHAIN, declared.family, body)
        if there is None:
            yield f"chain {chain.name} is missing"
            continue
        yield from (f"chain {chain.name} {one}" for one in _chain(chain, there))
        found = rules.get(chain.name, [])
        yield from (f"chain {chain.name}: {one}" for one in _rules(chain.rules, found))


def _chain(declared: Chain, there: bytes) -> Iterator[str]:
    parts = dict(attributes(there))
    if not _alike(chain_attributes(declared), there, (nf.NFTA_CHAIN_HOOK, nf.NFTA_CHAIN_TYPE)):
        yield "meets packets elsewhere than it should"
    if declared.hook is not None:
        policy = _number(parts.get(nf.NFTA_CHAIN_POLICY, b""))
        if policy != declared.hook.policy:
            yield f"has policy {POLICIES[policy & 1]}, not {POLICIES[declared.hook.policy]}"


def _rules(declared: tuple[Rule, ...], there: list[bytes]) -> Iterator[str]:
    """Compare a chain's rules in order; `there` are the expressions of those in the kernel."""
    known = [
        next((n for n, one in enumerate(declared) if _is(one, raw)), -place)
        for place, raw in enumerate(there, 1)
    ]
    compared = difflib.SequenceMatcher(None, range(len(declared)), known, autojunk=False)
    for what, first, last, begin, end in compared.get_opcodes():
        if what == "equal":
            continue
        yield from (f"a rule is missing: {one.text}" for one in declared[first:last])
        for place in range(begin, end):
            meant = f": {declared[known[place]].text}" if known[place] >= 0 else ""
            yield f"rule {place + 1} should not be there{meant}"


# Cached, because the rules are the same in all containers of a node.
@functools.lru_cache(maxsize=4096)
def _is(declared: Rule, raw: bytes) -> bool:
    """Tell whether the expressions of a rule in the kernel are those declared."""
    there = [payload for _, payload in attributes(raw)]
    if len(there) != len(declared.expressions):
        return False
    return all(
        _contains(next(payload for _, payload in attributes(sent)), found)
        for sent, found in zip(declared.expressions, there, strict=True)
    )


def _contains(sent: bytes, found: bytes) -> bool:
    """Tell whether the attributes `found` are those `sent`, apart from added defaults (rule 2)."""
    there = dict(attributes(found))
    for kind, payload in tagged_attributes(sent):
        held = there.pop(kind & NLA_TYPE_MASK, None)
        if held is None:
            if any(payload):
                return False
        elif kind & NLA_F_NESTED:
            if not _contains(payload, held):
                return False
        elif held != payload:
            return False
    return not any(map(any, there.values()))


def _alike(sent: bytes, found: bytes, kinds: tuple[int, ...]) -> bool:
    """Compare only those attributes of an object whose types are in `kinds`."""
    ours, theirs = raw_attributes(sent), raw_attributes(found)
    return _contains(
        b"".join(ours[kind] for kind in kinds if kind in ours),
        b"".join(theirs[kind] for kind in kinds if kind in theirs),
    )


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, "big")


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")


def _shown(name: str) -> str:
    """Escape a name that a container may have chosen, so that it can be logged safely."""
    return ascii(name)[1:-1]
