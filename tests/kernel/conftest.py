"""Two nodes joined by a wire, and containers on them: namespaces of one kernel.

The fixtures need root and a kernel with batman-adv and macsec, as the lab has. Nothing is
made in the namespace pytest runs in; everything made is removed at the end.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from daemon.reconcile.host_pairs import HostPairs, Pair
from netconf import frames
from netconf.attach import operations
from netconf.attach.attachment import Attachment, AttachRequest, NodeNet
from netconf.attach.state import State
from netconf.mesh import devices
from netconf.mesh.config import Link, MeshConfig
from netconf.netlink import links
from netconf.nft import host, ruleset
from netconf.program.desired import Desired
from tests.kernel.client_server import ULA
from tests.kernel.sandbox import Node, nodes, run

SECRET = b"a secret of more than sixteen bytes"
VIPS = "10.80.0.0/16"
collect_ignore = ["test_ipv4.py"] if links.has_ipv6() else []


def pairs(address: str, view: Desired) -> frozenset[Pair]:
    """Return what the host filter must hold for the replica at `address` with this `view`."""
    needed = HostPairs()
    needed.want("this one", address, view.peers)
    return needed.lacking()


class Container:
    """A namespace that plays a container."""

    def __init__(self, sandbox: Node, key: Path) -> None:
        self.sandbox = sandbox
        self.key = key

    def request(self, **changes: str | None) -> AttachRequest:
        """Return the ADD for this container, with changes."""
        request = AttachRequest(
            container=self.sandbox.name,
            ifname="eth0",
            netns=self.sandbox.path,
            network="mesh",
            service="web",
            key_file=str(self.key),
        )
        return msgspec.structs.replace(request, **changes)


class MeshNode:
    """A namespace that plays a node, with its state folder."""

    def __init__(self, sandbox: Node, number: int, folder: Path) -> None:
        self.sandbox = sandbox
        self.state = State(folder)
        self.config = MeshConfig(links=[Link(interface="eth1")])
        with sandbox.ns.enter():
            self.facts = devices.bring_up(self.config)
            ruleset.ensure_host()
        self.net = NodeNet(
            cluster="lab",
            node=f"n{number}",
            pool="10.64.0.0/12",
            slice=f"10.64.{16 * number}.0/20",
            vips=VIPS,
            mtu=self.facts.mtu,
            ula=ULA if links.has_ipv6() else "",
        )

    def attach(self, request: AttachRequest) -> Attachment:
        """ADD on this node."""
        with self.sandbox.ns.enter():
            return operations.attach(self.net, self.state, request)

    def detach(self, attachment: str) -> Attachment | None:
        """DEL on this node."""
        with self.sandbox.ns.enter():
            return operations.detach(self.state, attachment)

    def check(self, attachment: str) -> None:
        """CHECK on this node."""
        with self.sandbox.ns.enter():
            operations.check(self.net, self.state, attachment)


@pytest.fixture(scope="session")
def _kernel() -> None:
    """Skip where the kernel lacks what the mesh is made of."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    for module in ("batman_adv", "macsec", "geneve"):
        there = subprocess.run(["modprobe", module], capture_output=True, check=False)
        if there.returncode != 0:
            pytest.skip(f"this kernel has no {module}")


@pytest.fixture
def wire(_kernel: None) -> Iterator[tuple[Node, Node]]:
    """Two namespaces joined by a wire that is called eth1 at both ends."""
    with nodes(2) as (first, second):
        run(
            *("ip", "-n", first.name, "link", "add", "eth1", "mtu", "1532", "type", "veth"),
            *("peer", "name", "eth1", "mtu", "1532", "netns", second.name),
        )
        yield first, second


@pytest.fixture
def mesh_nodes(wire: tuple[Node, Node], tmp_path: Path) -> Iterator[tuple[MeshNode, MeshNode]]:
    """Two nodes with mesh, bridge and host filter up."""
    try:
        first, second = (
            MeshNode(sandbox, number, tmp_path / f"n{number}")
            for number, sandbox in enumerate(wire, 1)
        )
        yield first, second
    finally:
        host.close()
        frames.close()


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Callable[[], Container]]:
    """Make containers on demand; all share one secret."""
    key = tmp_path / "mesh.key"
    key.write_bytes(SECRET)
    made: list[Node] = []

    def make() -> Container:
        made.append(Node())
        # An open file would keep the namespace alive after its deletion.
        made[-1].ns.close()
        return Container(made[-1], key)

    try:
        yield make
    finally:
        for sandbox in made:
            if Path(sandbox.path).exists():
                sandbox.remove()
