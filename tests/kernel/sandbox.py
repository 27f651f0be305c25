"""Namespaces with veth wires for tests of rulesets; needs root, and no more than nftables.

Sockets are made inside a namespace and stay there, so one thread plays all parts.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator

from netconf.namespace import Namespace


def run(*command: str) -> str:
    """Run a command, return its output; CalledProcessError if it fails."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Node:
    """A named namespace that is deleted at the end."""

    def __init__(self) -> None:
        self.name = f"test-{uuid.uuid4().hex[:8]}"
        run("ip", "netns", "add", self.name)
        self.path = f"/run/netns/{self.name}"
        self.ns = Namespace.open(self.path)
        self.ip("link", "set", "lo", "up")

    def ip(self, *arguments: str) -> str:
        """Run ``ip`` in the namespace."""
        return run("ip", "-n", self.name, *arguments)

    def remove(self) -> None:
        """Delete the namespace."""
        self.ns.close()
        run("ip", "netns", "del", self.name)


@contextlib.contextmanager
def nodes(count: int) -> Iterator[list[Node]]:
    """Make `count` namespaces."""
    if os.geteuid() != 0:
        import pytest

        pytest.skip("needs root")
    made: list[Node] = []
    try:
        for _ in range(count):
            made.append(Node())
        yield made
    finally:
        for node in made:
            node.remove()
