"""The two rulesets: loaded whole or not at all, recognised, replaced, removed.

1. The container's is loaded at attach, once, into a namespace that has none; what a
   crashed attach left there is replaced in the same transaction. It is never replaced under
   a running container, whose flows would meet an empty table: it stays what it was.
2. The host's is loaded once per node and outlives the daemon: while the loaded table is
   of the same messages it is left alone. Another one is replaced in one
   transaction that carries its elements over, so that no frame meets a gap.
3. Which messages were loaded is written into the table's comment, as a hash.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Literal

import msgspec

from netconf import names
from netconf.errors import KernelFailure
from netconf.nft.container_ruleset import container_ruleset
from netconf.nft.elements import (
    DENIED_IN,
    DENIED_IN6,
    DENIED_IN6_OTHER,
    DENIED_IN_OTHER,
    DENIED_OUT,
    DENIED_OUT6,
    DENIED_OUT6_OTHER,
    DENIED_OUT_OTHER,
    FORGED,
    NFPROTO_BRIDGE,
    NFPROTO_INET,
    PAIR,
    PORT,
    TABLE,
    Set,
)
from netconf.nft.encoding import (
    NFT_MSG_DELTABLE,
    NFTA_TABLE_NAME,
    NLM_F_CREATE,
    NLM_F_REQUEST,
    Change,
    encode_change,
    message,
    nftables,
    string,
)
from netconf.nft.host_ruleset import HOST_RULESET
from netconf.nft.tables import Ruleset
from netconf.nft.wire import Enterable, NftSocket


class Denial(msgspec.Struct, frozen=True):
    """How many packets to or from one peer and port the container's ruleset refused."""

    direction: Literal["out", "in"]
    peer: str
    """A replica's address, or the VIP that was dialled; of a forged IPv6 source, the IPv4
    address of the replica that sent it."""
    protocol: str
    """``tcp``, ``udp``, ``icmp``, ``icmpv6``, or the protocol's number in decimal digits."""
    port: int
    """The dialled port; 0 for protocols without ports, and for a forged IPv6 source."""
    packets: int


def load_container(namespace: Enterable, vips: str, ula: str) -> None:
    """Load the container ruleset for the service addresses `vips` (a CIDR).

    `ula` is the cluster's IPv6 network (`names`, rule 4), or empty. Replaces whatever table
    of that name is there. KernelFailure if it is refused; ValueError if `vips` or `ula` is
    no network.
    """
    ruleset = container_ruleset(vips, ula)
    with _socket(namespace) as nft:
        _load(nft, ruleset)


def delete_container(namespace: Enterable) -> None:
    """Delete the container ruleset; none there is fine."""
    with _socket(namespace) as nft:
        if nft.table_comment(NFPROTO_INET, TABLE) is not None:
            nft.delete_table(NFPROTO_INET, TABLE)


def container_present(namespace: Enterable) -> bool:
    """Tell whether the namespace has the container ruleset."""
    with _socket(namespace) as nft:
        return nft.table_comment(NFPROTO_INET, TABLE) is not None


def container_current(namespace: Enterable, vips: str, ula: str) -> bool:
    """Tell whether the namespace's container ruleset, if any, is this version's."""
    with _socket(namespace) as nft:
        found = nft.table_comment(NFPROTO_INET, TABLE)
    return found in (None, container_ruleset(vips, ula).version)


_DENIED: tuple[tuple[Literal["out", "in"], Set], ...] = (
    ("out", DENIED_OUT),
    ("out", DENIED_OUT_OTHER),
    ("out", DENIED_OUT6),
    ("out", DENIED_OUT6_OTHER),
    ("in", DENIED_IN),
    ("in", DENIED_IN_OTHER),
    ("in", DENIED_IN6),
    ("in", DENIED_IN6_OTHER),
    ("in", FORGED),
)


def denials(namespace: Enterable) -> list[Denial]:
    """Return what the container's ruleset refused within the last hour."""
    found = []
    with _socket(namespace) as nft:
        for direction, source in _DENIED:
            try:
                counted = nft.dump_counters(source)
            except FileNotFoundError:
                continue  # a ruleset of another version, or none, counts less
            for key, packets in counted.items():
                peer, protocol, port = (*key, 0)[:3]
                if source is FORGED:
                    peer = _sender(str(peer))
                found.append(Denial(direction, str(peer), str(protocol), int(port), packets))
    return found


def _sender(mac: str) -> str:
    """Return the replica's address that a MAC spells, or the MAC if it is none."""
    try:
        return names.address_of(mac)
    except ValueError:
        return mac


def ensure_host() -> None:
    """Make the calling thread's namespace have the host ruleset, keeping its elements.

    KernelFailure if it is refused.
    """
    with _socket(None) as nft:
        loaded = nft.table_comment(NFPROTO_BRIDGE, TABLE)
        if loaded == HOST_RULESET.version:
            return
        kept = () if loaded is None else tuple(_keys(nft, target) for target in (PORT, PAIR))
        _load(nft, HOST_RULESET, *kept)


def _keys(nft: NftSocket, target: Set) -> Change:
    """Return the change that adds what a set holds; nothing if a table of another version
    lacks it."""
    with contextlib.suppress(FileNotFoundError):
        return Change("add", target, tuple((key, ()) for key in nft.dump(target)))
    return Change("add", target, ())


def _load(nft: NftSocket, ruleset: Ruleset, *kept: Change) -> None:
    """Make the table in one transaction, in place of one that is there, and add `kept` to it."""
    family, name = ruleset.family, string(NFTA_TABLE_NAME, TABLE)
    present = nft.table_comment(family, TABLE) is not None

    def messages(first: int) -> list[bytes]:
        found = []
        if present:
            found.append(message(nftables(NFT_MSG_DELTABLE), NLM_F_REQUEST, first, family, name))
        for kind, flags, body in ruleset.messages():
            flags |= NLM_F_REQUEST | NLM_F_CREATE
            found.append(message(nftables(kind), flags, first + len(found), family, body))
        for change in kept:
            if change.elements:
                found += [one.raw for one in encode_change(change, first + len(found))]
        return found

    nft.transact(messages)


@contextlib.contextmanager
def _socket(namespace: Enterable | None) -> Iterator[NftSocket]:
    try:
        nft = NftSocket(namespace)
        try:
            yield nft
        finally:
            nft.close()
    except OSError as error:
        raise KernelFailure(
            "nftables refused: check that the kernel has nf_tables with nft_ct, nft_nat, "
            "nft_numgen, nft_fib_inet and nft_reject_inet",
            details=f"{errno.errorcode.get(error.errno or 0, '?')}: {error}",
        ) from error
