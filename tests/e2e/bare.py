"""Containers without a process: a network namespace behind a path, as runtimes keep them.

1. Made in this process, in a thread that leaves for a new namespace and binds it to a file:
   a hundred times cheaper than starting a program for each.
2. `Bare.kill` takes the path away, which is all that holds the namespace; whoever still has a
   socket in it keeps it alive, and `inventory` counts that.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path

from netconf.namespace import CLONE_NEWNET
from tests.e2e.cluster import Cluster
from tests.e2e.container import Container

MS_BIND = 0x1000
"""include/uapi/linux/mount.h"""
MS_REC = 0x4000
MS_SHARED = 1 << 20
MNT_DETACH = 2
"""include/linux/fs.h"""

NETNS = Path("/run/netns")
"""Where ``ip netns`` looks for names."""

_libc = ctypes.CDLL(None, use_errno=True)


class Bare(Container):
    """A namespace at a path; nothing runs in it."""

    def __init__(self, name: str, node: str, service: str) -> None:
        """Make the namespace. The base class's process does not exist, and nothing asks for it."""
        self.name, self.node, self.service = name, node, service
        self.ifname, self.result, self.add_ms = "eth0", {}, 0.0
        _share(NETNS)
        self._path = NETNS / name
        self._path.touch(exist_ok=False)
        try:
            _in_a_thread(self._bind)
        except BaseException:
            self._path.unlink()
            raise

    def __repr__(self) -> str:
        """Return what a failing test shows."""
        return f"Bare({self.name!r})"

    @property
    def netns(self) -> str:
        """Path of its network namespace."""
        return str(self._path)

    def kill(self) -> None:
        """Take the path away; repeatable."""
        _libc.umount2(self.netns.encode(), MNT_DETACH)
        self._path.unlink(missing_ok=True)

    def _bind(self) -> None:
        unshare()
        source = b"/proc/thread-self/ns/net"
        _check(_libc.mount(source, self.netns.encode(), None, MS_BIND, None))


def bare(cluster: Cluster, name: str, service: str, node: str = "n1") -> Bare:
    """Make a container of `cluster`, which removes it at the end; no network yet."""
    made = Bare(name, node, service)
    cluster.containers[name] = made
    return made


def namespaces() -> int:
    """Return how many network namespaces exist beside the initial one.

    What no path and no process shows any more, a forgotten socket may still hold; the
    kernel's own count alone has those. It cannot be read, but the limit on it can be set:
    the least limit under which one more can be made is the count and one. For these
    milliseconds nobody else on the machine can make a namespace.
    """
    knob = Path("/proc/sys/user/max_net_namespaces")
    usual = knob.read_text()
    try:
        for limit in range(1, 100_000):
            knob.write_text(str(limit))
            try:
                _in_a_thread(unshare)
            except OSError:
                continue
            return limit - 1
    finally:
        knob.write_text(usual)
    raise AssertionError("no end of namespaces")


def unshare() -> None:
    """Move the calling thread into a new network namespace."""
    _check(_libc.unshare(CLONE_NEWNET))


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _share(folder: Path) -> None:
    """Make `folder` a shared mount if it is none, as the first ``ip netns add`` after boot does.

    A folder that is none would become one later, over the namespaces in it, and hide them.
    """
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    place = bytes(folder)
    if _libc.mount(b"", place, b"none", MS_SHARED | MS_REC, None) != 0:
        _check(_libc.mount(place, place, b"none", MS_BIND | MS_REC, None))
        _check(_libc.mount(b"", place, b"none", MS_SHARED | MS_REC, None))


def _in_a_thread(act: Callable[[], None]) -> None:
    failed: list[OSError] = []

    def run() -> None:
        try:
            act()
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
