"""How many files a process may have open: several sockets for each container."""

from __future__ import annotations

import resource


def allow_most() -> int:
    """Raise the limit as far as this process may (RLIMIT_NOFILE, getrlimit(2)); return it.

    The usual 1,024 last the daemon for 330 containers. Python's own use of select(2), which
    could not bear more, is not among ours.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most
