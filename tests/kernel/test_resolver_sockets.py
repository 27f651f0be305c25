"""The resolver's sockets, destroyed from inside a container as the kernel lets it.

Here and not among the unit tests: whether a kernel destroys sockets at all is its
configuration's business (CONFIG_INET_DIAG_DESTROY), and the nodes' kernels do.
"""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from netconf.names import NAMESERVER
from tests.e2e.machine import inside, socket_in
from tests.unit.resolver_kit import NAMES, NAMESPACES, Node, becomes, resolve, serving

pytestmark = NAMESPACES


def test_sockets_that_were_destroyed_are_made_anew(tmp_path: Path) -> None:
    """CAP_NET_ADMIN in a container may do that (sock_diag(7), SOCK_DESTROY)."""
    with Node(tmp_path) as node:
        node.names(NAMES)
        box, other = node.box(), node.box()
        with serving(node), socket_in(box.netns, socket.SOCK_DGRAM) as witness:
            witness.bind((NAMESERVER, 54))
            inside(box.netns, "ss", "-KHuan", "src", NAMESERVER)
            witness.setblocking(False)
            with pytest.raises(OSError, match="abort") as told:
                witness.recv(1)
            assert told.value.errno == errno.ECONNABORTED, "the kernel destroyed no socket"
            becomes("10.80.0.1", box)
            assert resolve(other) == "10.80.0.1"
