"""A namespace is the one that was attached, or none at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from netconf.errors import UnknownContainer
from netconf.namespace import Namespace, identity

OWN = f"/proc/{os.getpid()}/ns/net"
FILES = Path("/proc/self/fd")


def test_the_known_namespace_is_opened() -> None:
    known = identity(OWN)
    assert known is not None
    with Namespace.open_known(OWN, known) as opened:
        assert opened.identity == known


def test_another_one_at_the_same_path_is_not() -> None:
    """As when a process id is another process's by the time that its namespace is opened."""
    known = identity(OWN)
    assert known is not None
    before = len(list(FILES.iterdir()))
    with pytest.raises(UnknownContainer, match="is not the namespace that was attached"):
        Namespace.open_known(OWN, (known[0], known[1] + 1))
    assert len(list(FILES.iterdir())) == before, "the other one stays open"
