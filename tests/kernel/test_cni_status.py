"""What keeps a node from taking another container: told by name, and nothing half made."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from netconf import kernel_probe, names
from netconf.attach import allocation, cni_status
from netconf.errors import LimitedConnectivity, NoctuleError, NodeFull, NotAvailable
from netconf.namespace import Namespace
from netconf.netlink import links
from netconf.nft import host, ruleset
from tests.kernel.conftest import SECRET, Container, MeshNode
from tests.kernel.sandbox import run
from tests.kernel.test_attach import until

MakeContainer = Callable[[], Container]


def trouble(node: MeshNode, key: Path, **changes: str) -> NoctuleError | None:
    """What STATUS would say."""
    try:
        with node.sandbox.ns.enter():
            cni_status.check(msgspec.structs.replace(node.net, **changes), node.state, str(key))
    except NoctuleError as error:
        return error
    return None


@pytest.fixture
def node(mesh_nodes: tuple[MeshNode, MeshNode]) -> MeshNode:
    return mesh_nodes[0]


def test_what_is_missing(node: MeshNode, container: MakeContainer, tmp_path: Path) -> None:
    box = container()
    key = box.key
    until(lambda: trouble(node, key) is None, "the links to be active")

    def expect(kind: type[NoctuleError], *words: str, **changes: str) -> None:
        found = trouble(node, key, **changes)
        assert type(found) is kind, found
        for word in words:
            assert word in found.message

    # What only a new container needs.
    key.unlink()
    expect(NotAvailable, "key.file", str(key))
    key.write_bytes(SECRET)
    made = node.attach(box.request())
    small = f"{made.address}/32"
    expect(NotAvailable, "addresses.slice", small, slice=small)
    key.unlink()
    expect(NotAvailable, "key.file", "addresses.slice", slice=small)  # both at once
    key.write_bytes(SECRET)
    assert trouble(node, key) is None

    # What all need.
    for link, word in (("bat0", "bat0 is down"), ("noctule0", "noctule0 is down")):
        node.sandbox.ip("link", "set", link, "down")
        expect(LimitedConnectivity, word, f"ip link set {link} up")
        node.sandbox.ip("link", "set", link, "up")
    node.sandbox.ip("link", "set", "eth1", "down")
    expect(LimitedConnectivity, "no link to other nodes is up", "eth1")
    node.sandbox.ip("link", "set", "eth1", "up")
    until(lambda: trouble(node, key) is None, "the links to be active again")
    node.sandbox.ip("link", "set", "bat0", "nomaster")
    expect(LimitedConnectivity, "bat0 is no port of noctule0")
    node.sandbox.ip("link", "set", "bat0", "master", "noctule0")
    run("ip", "netns", "exec", node.sandbox.name, "nft", "delete", "table", "bridge", "noctule")
    expect(LimitedConnectivity, "host filter")
    node.sandbox.ip("link", "set", "eth1", "nomaster")
    expect(LimitedConnectivity, "bat0 has no link", "host filter")
    node.sandbox.ip("link", "del", "bat0")
    expect(LimitedConnectivity, "bat0 missing on the node", "start noctuled")
    with node.sandbox.ns.enter():
        ruleset.ensure_host()  # which DEL of the fixture's containers expects
    node.detach(made.id)


def test_this_kernel_lacks_nothing() -> None:
    assert kernel_probe.lacking() == []


def test_a_kernel_that_lacks_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_probe, "MODULES", {"veth": "veth", "tulip": "tulip_bed"})
    assert kernel_probe.lacking() == ["the kernel has no tulip_bed"]


def test_a_bridge_that_others_have_filled(node: MeshNode, container: MakeContainer) -> None:
    """The 1,024th port is refused by the kernel, and by then a veth pair is half made."""
    box, free = container(), 1023 - 1  # bat0 has one
    assert free > allocation.CONTAINERS_MAX
    lines = [f"link add x{number} master {names.BRIDGE} type dummy\n" for number in range(free)]
    batch = ("ip", "-n", node.sandbox.name, "-batch", "-")
    subprocess.run(batch, input="".join(lines), text=True, check=True)
    request = box.request()
    ends = (names.host_end(request.id), names.lower_end(request.id))
    with pytest.raises(NodeFull, match="ports"):
        node.attach(request)
    with (
        node.sandbox.ns.enter(),
        Namespace.open(box.sandbox.path) as inside,
        links.open() as outer,
        links.open(inside) as inner,
    ):
        assert [links.get(outer, end) for end in ends] == [None, None]
        assert links.get(inner, "eth0") is None
        assert (host.ports(), ruleset.container_present(inside)) == (set(), False)
    assert list((node.state.directory / "attachments").iterdir()) == []
    node.sandbox.ip("link", "del", "x0")
    made = node.attach(request)  # one port is enough
    node.check(made.id)
    node.detach(made.id)
