"""Where the daemon and the resolver meet: names in the state folder, and what is said there."""

from __future__ import annotations

NAMES = "names"
"""File: a `daemon.resolver.directory.Directory`, as JSON, replaced by rename."""
SOCKET = "resolver.sock"
"""Datagram socket, of root alone: takes the name of a state file, and says one of the below."""
SERVED, NOT_SERVED = b"served", b"not served"
