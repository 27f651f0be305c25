"""The elements of the host filter, in the node's namespace: ports and MAC pairs.

1. Every function acts in the calling thread's network namespace: the node's.
2. The table must have been loaded (``ruleset.ensure_host``); without it, changing and listing
   elements raises KernelFailure.
3. It is no error to add an element that is there or to remove one that is not: an attach or detach
   may run again after a crash.
4. One socket per node namespace stays open (``wire``, rule 3); a lock lets one thread at a time use
   it.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeAlias, TypeVar

import msgspec

from netconf.errors import KernelFailure
from netconf.nft.elements import NFPROTO_BRIDGE, PAIR, PORT, TABLE, Key, Set
from netconf.nft.wire import Batch, NftSocket

Pair: TypeAlias = tuple[str, str]
"""(sender's MAC, receiver's MAC)."""

Result = TypeVar("Result")

_lock = threading.Lock()
_sockets: dict[tuple[int, int], NftSocket] = {}


class HostCounters(msgspec.Struct, frozen=True):
    """How many frames the host filter dropped since it was loaded, by reason."""

    plaintext: int
    """Not MACsec, or MACsec without encryption."""
    foreign: int
    """From a MAC that is not the port's, with an explicit SCI, or of another MACsec version."""
    forbidden: int
    """MACsec between two MACs that are no pair."""


def add_port(port: str, mac: str) -> None:
    """Let the bridge port `port` send with `mac` as source and receive frames to `mac`."""
    _run(f"let {port} use {mac}", lambda nft: nft.send(Batch().add(PORT, [((port, mac), ())])))


def del_port(port: str, mac: str) -> None:
    """Drop everything from `mac` and to `mac` at the bridge port `port`."""
    _run(f"close {port} to {mac}", lambda nft: _change(nft, PORT, [], [(port, mac)]))


def ports() -> set[tuple[str, str]]:
    """Return all (port's name, MAC)."""
    return _run("list the ports", lambda nft: {_two(key) for key in nft.dump(PORT)})


def pairs() -> set[Pair]:
    """Return all pairs of MACs (sender, receiver) that may exchange frames."""
    return _run("list the pairs", lambda nft: {_two(key) for key in nft.dump(PAIR)})


def change_pairs(add: Iterable[Pair], remove: Iterable[Pair]) -> None:
    """Allow the pairs in `add` and forbid those in `remove`, all in one batch."""
    added, removed = list(add), list(remove)
    _run("change the pairs", lambda nft: _change(nft, PAIR, added, removed))


def counters() -> HostCounters:
    """Return how many frames were dropped, and why."""
    found = _run("read the counters", lambda nft: nft.counters(NFPROTO_BRIDGE, TABLE))
    return msgspec.convert(found, HostCounters)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keep other threads of this process from using this module's functions during the body."""
    with _lock:
        yield


def close() -> None:
    """Close all sockets, so that they no longer keep their namespaces alive."""
    with _lock:
        while _sockets:
            _sockets.popitem()[1].close()


def _change(nft: NftSocket, target: Set, add: list[Pair], remove: list[Pair]) -> None:
    batch = Batch().add(target, [(key, ()) for key in add])
    try:
        nft.send(batch.delete(target, remove))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        there = nft.dump(target)
        batch = Batch().add(target, [(key, ()) for key in add])
        nft.send(batch.delete(target, [key for key in remove if key in there]))


def _two(key: Key) -> Pair:
    first, second = key
    return str(first), str(second)


def _run(operation: str, act: Callable[[NftSocket], Result]) -> Result:
    status = Path("/proc/thread-self/ns/net").stat()
    identity = (status.st_dev, status.st_ino)
    try:
        with _lock:
            if identity not in _sockets:
                _sockets[identity] = NftSocket()
            return act(_sockets[identity])
    except OSError as error:
        raise KernelFailure(
            f"the host filter refused to {operation}: {error.strerror or error}; "
            "restart noctuled if its table was removed",
            details=f"{errno.errorcode.get(error.errno or 0, '?')}: {error}",
        ) from error
