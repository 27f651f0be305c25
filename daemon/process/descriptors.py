"""Raises the limit of open files, because each container needs several sockets."""

from __future__ import annotations

import resource


def allow_most() -> None:
    """Raise the limit as far as this process may (RLIMIT_NOFILE, getrlimit(2)).

    The usual 1,024 are enough for 330 containers.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
