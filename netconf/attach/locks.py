"""File locks that no crash leaves behind: the kernel releases them when their holder ends.

1. Each lock is taken through a file that is opened for it. So threads of one process exclude each
   other in the same way as processes do.
2. Waiting has a limit; after that TryAgain names the file and how long it was waited for.
3. Lock files are never removed: somebody waiting for a removed file would get a lock on a file
   that nobody else can find, and so exclude nobody.

Source: flock(2); fcntl(2), "Open file description locks".
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from netconf.errors import IOFailure, TryAgain

POLL_SECONDS = (0.002, 0.1)
"""Shortest and longest pause between two attempts. The locking calls that wait take no time limit,
so the calls that do not wait are repeated. The pause grows, because a hundred executables may be
waiting at once on one processor."""


@contextmanager
def shared(path: Path, timeout: float) -> Iterator[None]:
    """Hold the whole file together with other `shared` holders. TryAgain, IOFailure."""
    with _locked(path, timeout, lambda fd: fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)):
        yield


@contextmanager
def exclusive(path: Path, timeout: float) -> Iterator[None]:
    """Hold the whole file alone. TryAgain, IOFailure."""
    with _locked(path, timeout, lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)):
        yield


@contextmanager
def byte(path: Path, offset: int, timeout: float) -> Iterator[None]:
    """Hold one byte of the file alone; the file need not be that long. TryAgain, IOFailure."""
    # struct flock: l_type, l_whence, l_start, l_len, l_pid (0 for this kind of lock).
    wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)

    def lock(fd: int) -> None:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)

    with _locked(path, timeout, lock):
        yield


@contextmanager
def _locked(path: Path, timeout: float, lock: Callable[[int], None]) -> Iterator[None]:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise IOFailure(f"cannot open {path}: {error.strerror}", details=str(error)) from error
    try:
        _wait(fd, path, timeout, lock)
        yield
    finally:
        os.close(fd)


def _wait(fd: int, path: Path, timeout: float, lock: Callable[[int], None]) -> None:
    deadline = time.monotonic() + timeout
    pause, longest = POLL_SECONDS
    while True:
        try:
            return lock(fd)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise IOFailure(f"cannot lock {path}: {error.strerror}") from error
            if time.monotonic() >= deadline:
                raise TryAgain(
                    f"{path} has been locked for {timeout:g} s by another operation; "
                    "try again when it has finished"
                ) from error
        time.sleep(pause)
        pause = min(pause * 1.5, longest)
