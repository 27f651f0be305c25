"""A kernel without IPv6: collected only there; `make ipv4` boots one."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from netconf.errors import KernelFailure
from netconf.mesh import devices
from tests.kernel.client_server import ULA
from tests.kernel.conftest import Container, MeshNode
from tests.kernel.test_attach import (
    picture,
    test_an_attachment_is_made_once,
    test_detach_leaves_nothing_and_can_be_repeated,
    test_two_containers_talk_and_nobody_else_understands,
)

__all__ = [
    "test_an_attachment_is_made_once",
    "test_detach_leaves_nothing_and_can_be_repeated",
    "test_two_containers_talk_and_nobody_else_understands",
]
"""What holds with IPv6 holds without."""


def test_the_mesh_is_adopted(mesh_nodes: tuple[MeshNode, MeshNode]) -> None:
    node = mesh_nodes[0]
    with node.sandbox.ns.enter():
        again = devices.bring_up(node.config)
    assert again.mesh_index == node.facts.mesh_index
    assert again.mtu == node.facts.mtu


def test_an_ipv6_network_is_refused_and_nothing_is_left(
    mesh_nodes: tuple[MeshNode, MeshNode], container: Callable[[], Container]
) -> None:
    node, box = mesh_nodes[0], container()
    before = picture(node, box.sandbox)
    usual, node.net = node.net, msgspec.structs.replace(node.net, ula=ULA)
    with pytest.raises(KernelFailure, match=r"addresses\.ula: .* no IPv6; boot it without"):
        node.attach(box.request())
    assert picture(node, box.sandbox) == before
    node.net = usual
    made = node.attach(box.request())
    node.check(made.id)
    node.detach(made.id)
