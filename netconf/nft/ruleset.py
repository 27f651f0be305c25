"""The two rulesets: loaded, compared, replaced under traffic, removed.

1. The container's is loaded at attach into a namespace whose interface is not up yet; whatever
   has its name is thrown away. The host's is loaded once per node and outlives the daemon.
2. From then on `mend_container` and `ensure_host` compare what the kernel holds with what it
   should (`readback`), and replace it under running traffic, elements kept, if it differs
   (`replacement`). Why it differs does not matter: another release made it, somebody changed it,
   a crash left two of them, or the cluster has an IPv6 network now.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from netconf import names
from netconf.errors import KernelFailure
from netconf.nft import host, readback, replacement
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
    NEXT,
    NFPROTO_INET,
    TABLE,
    Set,
)
from netconf.nft.host_ruleset import HOST_RULESET
from netconf.nft.tables import Ruleset
from netconf.nft.wire import Enterable, NftSocket

READ_SECONDS: Final = 20.0
"""For all that is read of one container at a time. A comparison, a replacement and an observation
by the programmer follow one another, and the daemon's watchdog waits 120 s for a worker."""


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
    """Load the container ruleset, without elements, for the service addresses `vips` (a CIDR).

    `ula` is the cluster's IPv6 network (`names`, rule 4), or empty. KernelFailure if it is
    refused; ValueError if `vips` or `ula` is no network.
    """
    declared = container_ruleset(vips, ula)
    with _socket(namespace) as nft:
        replacement.load(nft, declared)


def mend_container(namespace: Enterable, vips: str, ula: str) -> list[str]:
    """Make the container ruleset what `load_container` would load now, its elements kept.

    Return what was mended, one sentence each; empty if nothing was to be. The caller keeps others
    from changing elements meanwhile. KernelFailure and ValueError as there.
    """
    return _mend(namespace, container_ruleset(vips, ula))


def delete_container(namespace: Enterable) -> None:
    """Delete the container ruleset; none there is fine."""
    with _socket(namespace) as nft:
        for table in (TABLE, NEXT):
            if readback.awake(nft, NFPROTO_INET, table) is not None:
                nft.delete_table(NFPROTO_INET, table)


def container_present(namespace: Enterable) -> bool:
    """Tell whether a container ruleset is in force in the namespace."""
    with _socket(namespace) as nft:
        return any(readback.awake(nft, NFPROTO_INET, table) for table in (TABLE, NEXT))


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


def ensure_host() -> list[str]:
    """Make the calling thread's namespace have the host ruleset, its elements and counters kept.

    Return what was mended, one sentence each; empty if nothing was to be. KernelFailure if it is
    refused.
    """
    with host.undisturbed():
        return _mend(None, HOST_RULESET)


def calibrate(namespace: Enterable, vips: str, ula: str) -> list[str]:
    """Learn, in a scratch `namespace`, what this kernel says of both tables that was not sent.

    A later kernel may tell more than ours do. What it says of a table just loaded is no difference:
    otherwise every audit would replace every table. Return it; empty on kernels that we know.
    """
    with _socket(namespace) as nft:
        for declared in (container_ruleset(vips, ula), HOST_RULESET):
            replacement.load(nft, declared)
            _peculiar.update(readback.differences(nft, declared))
    return sorted(_peculiar)


_peculiar: set[str] = set()
"""What this kernel says of tables that are as they should be (`calibrate`)."""


def _mend(namespace: Enterable | None, declared: Ruleset) -> list[str]:
    with _socket(namespace) as nft:
        found = readback.differences(nft, declared)
    said = [one for one in found if one not in _peculiar]
    if said:
        # Another socket: the first may still be in the middle of a long list.
        with _socket(namespace) as nft:
            replacement.replace(nft, declared)
    return said


_INCOMPLETE: Final = (
    "check that the kernel has nf_tables with nft_ct, nft_nat, nft_numgen, nft_fib_inet and "
    "nft_reject_inet"
)
_REASONS: Final = {
    **dict.fromkeys(
        (errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EINVAL),
        _INCOMPLETE,
    ),
    errno.EPERM: "the table belongs to a program in the container (flags owner), or CAP_NET_ADMIN "
    "is missing; end that program, or recreate the container",
    errno.EINTR: "a program in the namespace changes its tables all the time; end that program",
    errno.EBUSY: "another program in the namespace uses the table; end that program",
    **dict.fromkeys(
        (errno.ENOMEM, errno.ENOBUFS), "the kernel has no memory for it; it is tried again later"
    ),
}
"""What the kernel's errors mean, and what to do; the kernel's own words for the others."""


@contextlib.contextmanager
def _socket(namespace: Enterable | None) -> Iterator[NftSocket]:
    try:
        nft = NftSocket(namespace)
        try:
            with contextlib.nullcontext() if namespace is None else nft.within(READ_SECONDS):
                yield nft
        finally:
            nft.close()
    except OSError as error:
        raise KernelFailure(
            f"nftables refused: {_REASONS.get(error.errno or 0, error.strerror or error)}",
            details=f"{errno.errorcode.get(error.errno or 0, '?')}: {error}",
        ) from error
