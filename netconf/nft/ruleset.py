"""Loading, comparing, replacing and deleting the two rulesets.

1. Attach loads the container's ruleset before the container's interface is up; a table that has its
   name already is deleted. The host's ruleset is loaded once per node and stays when the daemon
   ends.
2. From then on `mend_container` and `ensure_host` compare the table in the kernel with its
   declaration (`readback`). If it differs, they replace it under running traffic and keep its
   elements (`replacement`). This is the same for every cause: another release made the table,
   somebody changed it, a crash left two of them, or the cluster has got an IPv6 network.
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
    """A replica's address, or the VIP that was dialled. For a forged IPv6 source it is the IPv4
    address of the replica that sent the packet."""
    protocol: str
    """``tcp``, ``udp``, ``icmp``, ``icmpv6``, or the protocol's number in decimal digits."""
    port: int
    """The dialled port; 0 for protocols without ports, and for a forged IPv6 source."""
    packets: int


def load_container(namespace: Enterable, vips: str, ula: str) -> None:
    """Load the container ruleset, without elements, for the service addresses `vips` (a CIDR).

    `ula` is the CIDR of the cluster's IPv6 network (`names`, rule 4), or empty. KernelFailure if
    the kernel refuses; ValueError if `vips` or `ula` is no network.
    """
    declared = container_ruleset(vips, ula)
    with _socket(namespace) as nft:
        replacement.load(nft, declared)


def mend_container(namespace: Enterable, vips: str, ula: str) -> list[str]:
    """Replace the container ruleset if it differs from what `load_container` would load now.

    Its elements are kept. Return a sentence for each difference, none if there was none. The caller
    ensures that nobody changes elements meanwhile. KernelFailure and ValueError as for
    `load_container`.
    """
    return _mend(namespace, container_ruleset(vips, ula))


def delete_container(namespace: Enterable) -> None:
    """Delete the container ruleset; it is no error if there is none. KernelFailure."""
    with _socket(namespace) as nft:
        for table in (TABLE, NEXT):
            if readback.awake(nft, NFPROTO_INET, table) is not None:
                nft.delete_table(NFPROTO_INET, table)


def container_present(namespace: Enterable) -> bool:
    """Tell whether a container ruleset is in force in the namespace. KernelFailure."""
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
                continue  # another release's ruleset may not have this set
            for key, packets in counted.items():
                peer, protocol, port = (*key, 0)[:3]
                if source is FORGED:
                    peer = _sender(str(peer))
                found.append(Denial(direction, str(peer), str(protocol), int(port), packets))
    return found


def _sender(mac: str) -> str:
    """Return the IPv4 address in a replica's MAC, or `mac` itself if it is no replica's."""
    try:
        return names.address_of(mac)
    except ValueError:
        return mac


def ensure_host() -> list[str]:
    """Load the host ruleset in the calling thread's namespace, or replace it if it differs.

    Its elements and counters are kept. Return a sentence for each difference, none if there was
    none. KernelFailure if the kernel refuses.
    """
    with host.undisturbed():
        return _mend(None, HOST_RULESET)


def calibrate(namespace: Enterable, vips: str, ula: str) -> list[str]:
    """Learn which differences this kernel reports of tables that were just loaded.

    A newer kernel may add attributes that `readback` takes for differences. Such a difference must
    be ignored from then on, or every audit would replace every table. So load both tables in the
    scratch `namespace`, remember the differences and return them; there are none on the kernels
    that we know.
    """
    with _socket(namespace) as nft:
        for declared in (container_ruleset(vips, ula), HOST_RULESET):
            replacement.load(nft, declared)
            _peculiar.update(readback.differences(nft, declared))
    return sorted(_peculiar)


_peculiar: set[str] = set()
"""The differences that this kernel reports of tables that are as they should be (`calibrate`)."""


def _mend(namespace: Enterable | None, declared: Ruleset) -> list[str]:
    with _socket(namespace) as nft:
        found = readback.differences(nft, declared)
    said = [one for one in found if one not in _peculiar]
    if said:
        # Use a new socket: answers to an unfinished dump may still be waiting in the first one.
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
