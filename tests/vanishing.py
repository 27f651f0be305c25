"""Processes, namespaces and files that may end while a test asks about them.

1. What is gone is an answer and not an error: None for one thing, left out of a list.
2. Gone means that the kernel says so (`GONE`). What exists and cannot be read is an error.
3. Each function looks once. A process that is just being started or ended may show less than all
   of itself, so whoever waits for one compares what was found and asks again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

PROC = Path("/proc")
GONE = frozenset({errno.ENOENT, errno.ESRCH, errno.ENOTDIR})
"""What proc(5) and file systems answer for a name that was there a moment ago: ENOENT when it is
looked up, ESRCH when it was open already and its process has ended."""


def present(look: Callable[[], T]) -> T | None:
    """Return what `look` returns, None if what it looks at is gone; other OSErrors are raised."""
    try:
        return look()
    except OSError as error:
        if error.errno in GONE:
            return None
        raise


def read(path: Path) -> str | None:
    """Return a file's text, None if it is gone. Bytes that are no text are replaced."""
    return present(lambda: path.read_bytes().decode(errors="replace"))


def link(path: Path) -> str | None:
    """Return where a symbolic link leads, None if it is gone."""
    return present(lambda: str(path.readlink()))


def inode(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of what `path` leads to, None if it is gone."""
    found = present(path.stat)
    return (found.st_dev, found.st_ino) if found is not None else None


def listed(folder: Path) -> list[Path]:
    """Return what is in a folder, by name; nothing if the folder is gone."""
    return sorted(present(lambda: list(folder.iterdir())) or [])


def below(folder: Path) -> list[Path]:
    """Return all files and folders below a folder, each after the folder it is in."""
    found = []
    for place, folders, files in os.walk(folder):  # which leaves out a folder that is gone
        found += [Path(place) / name for name in sorted([*folders, *files])]
    return found


def processes() -> list[int]:
    """Return the pids of all processes of this pid namespace."""
    return [int(path.name) for path in listed(PROC) if path.name.isdecimal()]


def children(pid: int) -> list[int]:
    """Return the pids of the children of a process's main thread."""
    return [int(word) for word in (read(PROC / f"{pid}/task/{pid}/children") or "").split()]


def name(pid: int) -> str | None:
    """Return what a process is called (``comm``), None if it is gone."""
    found = read(PROC / f"{pid}/comm")
    return found.rstrip("\n") if found is not None else None


def words(pid: int) -> list[str]:
    """Return the command line of a process; nothing if it is gone, ended, or the kernel's own."""
    return (read(PROC / f"{pid}/cmdline") or "").split("\0")[:-1]


def descriptors(pid: int) -> Iterator[str]:
    """Yield what each open descriptor of a process leads to."""
    for path in listed(PROC / f"{pid}/fd"):
        if (target := link(path)) is not None:
            yield target
