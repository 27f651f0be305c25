"""The two templates: loaded whole or not at all, recognised, replaced, removed.

1. ``container.nft`` is loaded at attach, once, into a namespace that has none; what a
   crashed attach left there is replaced in the same transaction. It is never replaced under
   a running container, whose flows would meet an empty table: it stays what it was.
2. ``host.nft`` is loaded once per node and outlives the daemon: while the loaded table is
   of the same text it is left alone. A table of another text is replaced in one
   transaction that carries its elements over, so that no frame meets a gap.
3. Which text was loaded is written into the table's comment.
4. Parsing the container's template takes several times as long as all that the kernel does
   with it, so whoever attaches often has it learned first (`learn_container`).
5. libnftables gets a context per load, made inside the namespace and freed at once: its
   socket would pin the namespace. A context costs 0.1 ms and leaks about 2.5 kB (1.0.6).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import sys
import threading
from collections.abc import Iterable, Iterator
from importlib import resources
from ipaddress import IPv4Network
from types import ModuleType
from typing import Literal

import msgspec

from netconf import names
from netconf.errors import KernelFailure
from netconf.nft import compiled
from netconf.nft.compiled import Compiled
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
    Key,
    Set,
)
from netconf.nft.wire import Enterable, NftSocket

DEBIAN_PACKAGES = "/usr/lib/python3/dist-packages"
"""Where python3-nftables installs its module; it is not on the package index."""

_libnftables = threading.Lock()
"""libnftables keeps process-wide state (parser, name tables): one thread at a time."""

_learned: dict[tuple[str, str], Compiled] = {}
"""The container ruleset as the kernel took it, by VIPs and IPv6 network (`learn_container`)."""

NO_ULA = "::/128"
"""Where IPv6 VIPs lie without an IPv6 network: no packet is addressed there (RFC 4291 2.5.2)."""


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
    with _socket(namespace) as nft:
        loaded = nft.table_comment(NFPROTO_INET, TABLE)
        known = _learned.get((vips, ula))
        if loaded is None and known is not None:
            compiled.load(nft, known)
            return
    template = _template("container.nft")
    vips6 = names.network6_of(vips, ula) if ula else NO_ULA
    script = f"define vips = {IPv4Network(vips)}\ndefine vips6 = {vips6}\n"
    script += f'table inet {TABLE} {{\n\tcomment "{_version("container.nft", template)}"\n}}\n'
    script += template
    if loaded is not None:
        script = f"delete table inet {TABLE}\n{script}"
    with namespace.enter():
        _load(script, "container.nft")


def learn_container(namespace: Enterable, vips: str, ula: str) -> bool:
    """Spare every later `load_container` with these arguments the parsing; tell if that works.

    `namespace` is a scratch one with the container ruleset, just loaded. It is read back, deleted,
    and made anew of what was read; only if that comes out the same is it relied on.
    """
    with _socket(namespace) as nft:
        read = compiled.compiled(nft, NFPROTO_INET, TABLE)
        nft.delete_table(NFPROTO_INET, TABLE)
        try:
            compiled.load(nft, read)
        except OSError:
            return False
        if compiled.compiled(nft, NFPROTO_INET, TABLE) != read:
            return False
    _learned[vips, ula] = read
    return True


def delete_container(namespace: Enterable) -> None:
    """Delete the container ruleset; none there is fine."""
    with _socket(namespace) as nft:
        if nft.table_comment(NFPROTO_INET, TABLE) is not None:
            nft.delete_table(NFPROTO_INET, TABLE)


def container_present(namespace: Enterable) -> bool:
    """Tell whether the namespace has the container ruleset."""
    with _socket(namespace) as nft:
        return nft.table_comment(NFPROTO_INET, TABLE) is not None


def container_current(namespace: Enterable) -> bool:
    """Tell whether the namespace's container ruleset, if any, is of this version's text."""
    with _socket(namespace) as nft:
        found = nft.table_comment(NFPROTO_INET, TABLE)
    return found in (None, _version("container.nft", _template("container.nft")))


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
    template = _template("host.nft")
    comment = _version("host.nft", template)
    script = f'table bridge {TABLE} {{\n\tcomment "{comment}"\n}}\n{template}'
    with _socket(None) as nft:
        loaded = nft.table_comment(NFPROTO_BRIDGE, TABLE)
        if loaded == comment:
            return
        if loaded is not None:
            kept = "".join(_add_elements(target, _dump(nft, target)) for target in (PORT, PAIR))
            script = f"delete table bridge {TABLE}\n{script}{kept}"
    _load(script, "host.nft")


def _dump(nft: NftSocket, target: Set) -> Iterable[Key]:
    """Return the keys of a set, none if a table of another version lacks it."""
    try:
        return nft.dump(target)
    except FileNotFoundError:
        return ()


def _add_elements(target: Set, keys: Iterable[Key]) -> str:
    """Return the nft command that adds `keys` to a bridge set, or nothing for none."""
    elements = ", ".join(" . ".join(_literal(value) for value in key) for key in keys)
    if not elements:
        return ""
    return f"add element bridge {target.table} {target.name} {{ {elements} }}\n"


def _literal(value: str | int) -> str:
    text = str(value)
    return text if ":" in text else f'"{text}"'


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
            "nftables refused to answer: check that the kernel has nf_tables",
            details=f"{errno.errorcode.get(error.errno or 0, '?')}: {error}",
        ) from error


def _version(name: str, template: str) -> str:
    """Return the comment of a table loaded from `template` (rule 3)."""
    return f"{name} {hashlib.sha256(template.encode()).hexdigest()[:12]}"


def _template(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _load(script: str, name: str) -> None:
    """Run one nft transaction in the calling thread's namespace."""
    with _libnftables:
        context = _module().Nftables()
        code, _, said = context.cmd(script)
        del context
    if code != 0:
        raise KernelFailure(
            f"nftables refused {name}: check that the kernel has nf_tables, nft_nat, nft_fib, "
            "nft_numgen and nft_reject, and that nftables is 1.0.6 or later",
            details=str(said).strip(),
        )


def _module() -> ModuleType:
    try:
        return importlib.import_module("nftables")
    except ModuleNotFoundError:
        # A virtual environment does not see Debian's modules; last, so that nothing else
        # is taken from there first.
        if DEBIAN_PACKAGES not in sys.path:
            sys.path.append(DEBIAN_PACKAGES)
    try:
        return importlib.import_module("nftables")
    except ModuleNotFoundError as error:
        raise KernelFailure(
            "the Python module nftables is missing: install python3-nftables",
            details=str(error),
        ) from error
