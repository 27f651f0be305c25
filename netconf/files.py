"""Writing files so that a crash never leaves half of one.

1. `replace` writes a temporary file in the same folder and renames it over the old one. So a reader
   sees either the old content or the new, also after a crash, and never a mixture.
2. `create` never overwrites: it is an error if the file exists. If writing fails, `create` removes
   the unfinished file.
3. A file that must survive a power cut is synced before it gets its name. A file in ``/run`` is
   lost with a power cut anyway and need not be synced (`sync`).
4. The file has its final mode (less the process's umask) before anything is written to it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from netconf.errors import IOFailure

PRIVATE = 0o600
"""The mode of a file that only its owner may read and write."""


def replace(
    path: Path,
    content: bytes,
    *,
    mode: int = PRIVATE,
    sync: bool = True,
    beside: Path | None = None,
) -> None:
    """Write `content` to the file at `path`, whether it exists or not; IOFailure names it.

    `beside` is the path of the temporary file, in the same folder; ``.NAME.new`` by default. Two
    writers of one `path` must not run at the same time, since they would share that file.
    """
    first = beside or path.with_name(f".{path.name}.new")
    try:
        _write(_open(first, os.O_TRUNC, mode), content, sync)
        first.replace(path)
    except OSError as error:
        raise _failure(path, error) from error


def create(path: Path, content: bytes, *, mode: int = PRIVATE) -> None:
    """Write `content` to a new, synced file at `path`; IOFailure if that fails or it exists."""
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
