"""The files in the state folder by which daemon and resolver communicate, and their messages."""

from __future__ import annotations

NAMES = "names"
"""A file with a `daemon.resolver.directory.Directory` as JSON, replaced by rename."""
SOCKET = "resolver.sock"
"""A datagram socket that only root may use: the daemon sends the name of a state file, and the
resolver answers `SERVED` or `NOT_SERVED`."""
SERVED, NOT_SERVED = b"served", b"not served"
