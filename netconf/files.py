"""Files that are there whole or not at all, whatever crashes while they are written.

1. `replace` writes a file beside, then renames it over the old one: a reader, and whoever comes
   after a crash, sees the old content or the new, never a mixture.
2. `create` never overwrites: a file that exists already is an error. What it leaves unfinished
   it removes.
3. A file that must survive a power cut is synced before its name appears; one in ``/run``, which
   does not outlive the machine anyway, need not be (`sync`).
4. The mode is that of the file from its first byte on (less the process's umask).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from netconf.errors import IOFailure

PRIVATE = 0o600
"""The mode of what only its owner may read."""


def replace(
    path: Path,
    content: bytes,
    *,
    mode: int = PRIVATE,
    sync: bool = True,
    beside: Path | None = None,
) -> None:
    """Write `content` to the file at `path`, whether it exists or not; IOFailure names it.

    `beside` is where it is written first, in the same folder; ``.NAME.new`` if not given. Two
    writers of one `path` must not run at the same time.
    """
    first = beside or path.with_name(f".{path.name}.new")
    try:
        _write(_open(first, os.O_TRUNC, mode), content, sync)
        first.replace(path)
    except OSError as error:
        raise _failure(path, error) from error


def create(path: Path, content: bytes, *, mode: int = PRIVATE) -> None:
    """Write `content` to a new, synced file at `path`; IOFailure names it, if it exists too."""
    try:
        descriptor = _open(path, os.O_EXCL, mode)
    except OSError as error:
        raise _failure(path, error) from error
    try:
        _write(descriptor, content, sync=True)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise _failure(path, error) from error


def _open(path: Path, how: int, mode: int) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | how, mode)


def _write(descriptor: int, content: bytes, sync: bool) -> None:
    """Write `content` and close the `descriptor`."""
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(descriptor)


def _failure(path: Path, error: OSError) -> IOFailure:
    return IOFailure(f"cannot write {path}: {error.strerror}", details=str(error))
