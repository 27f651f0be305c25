"""The lock that keeps a second daemon from using the same state folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from netconf.errors import TryAgain


def take(folder: Path) -> int:
    """Return a descriptor that holds the folder's lock until it is closed; TryAgain if another
    process holds it. The kernel drops the lock with the process (flock(2))."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(folder / "noctuled.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise TryAgain(
            f"paths.state: another noctuled runs on {folder}; stop it, or give this one its own"
        ) from error
    return lock
