"""Network namespaces: opened by path and entered by one thread, for one operation.

1. An open file of a namespace keeps the namespace alive, so hold a `Namespace` only for one
   operation.
2. ``setns`` moves only the calling thread. A worker thread that stayed in a container's namespace
   would act on the wrong network, so the process is aborted if the thread cannot return.
3. A namespace is identified by device and inode. The kernel may reuse the inode number after the
   namespace has ended, so an equal identity does not prove that it is still the same namespace.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from netconf.errors import UnknownContainer

CLONE_NEWNET = 0x40000000
"""include/uapi/linux/sched.h"""

NS_GET_NSTYPE = 0xB703
"""_IO(0xb7, 0x3), include/uapi/linux/nsfs.h: asks which kind of namespace an open file is."""

OWN = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Namespace:
    """One open network namespace; a context manager that closes it."""

    def __init__(self, fd: int, path: str) -> None:
        """Take ownership of `fd`, an open network namespace; `path` is for messages."""
        self.fd = fd
        self.path = path
        status = os.fstat(fd)
        self.identity = (status.st_dev, status.st_ino)

    @classmethod
    def open(cls, path: str) -> Namespace:
        """Open the network namespace at `path`; UnknownContainer if there is none."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise UnknownContainer(
                f"CNI_NETNS: no network namespace at {path or 'an empty path'}; "
                "start the container first",
                details=str(error),
            ) from error
        try:
            if fcntl.ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET:
                return cls(fd, path)
            cause: OSError = OSError(errno.EINVAL, "a namespace of another kind")
        except OSError as error:
            cause = error
        os.close(fd)
        raise UnknownContainer(
            f"CNI_NETNS: {path} is not a network namespace; "
            "give the path of one, such as /proc/PID/ns/net",
            details=str(cause),
        ) from cause

    @classmethod
    def open_known(cls, path: str, known: tuple[int, int]) -> Namespace:
        """Open the network namespace at `path` if it is the `known` one, (device, inode).

        UnknownContainer if there is none, or another one. Comparing before opening would not do: by
        the time that ``/proc/PID/ns/net`` is opened, the process id may be another process's.
        """
        opened = cls.open(path)
        if opened.identity != tuple(known):
            opened.close()
            raise UnknownContainer(f"{path} is not the namespace that was attached any more")
        return opened

    @classmethod
    def own(cls) -> Namespace:
        """Open the namespace that the calling thread is in."""
        return cls.open(OWN)

    def close(self) -> None:
        """Close the file, so that it no longer keeps the namespace alive; repeatable."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Namespace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Move the calling thread into this namespace for the body, and back afterwards.

        OSError if it cannot enter; if it cannot come back, the process is aborted (rule 2).
        """
        home = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(self.fd)
            try:
                yield
            finally:
                try:
                    _setns(home)
                except OSError:
                    os.abort()
        finally:
            os.close(home)


def identity(path: str) -> tuple[int, int] | None:
    """Return (device, inode) of the namespace at `path`, or None if nothing is there."""
    try:
        status = os.stat(path)  # noqa: PTH116 -- asked a thousand times a second on a full node
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
