"""A next hop that did not answer is asked again at once, not a second after the last time.

Runs on any kernel: two namespaces and a wire.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import pytest

from netconf.netlink import links, next_hop
from tests.kernel.sandbox import Node, nodes, run

NEAR, FAR, BEYOND = "192.0.2.1", "192.0.2.2", "198.51.100.9"
WITHIN = 10.0


@pytest.fixture
def wire() -> Iterator[tuple[Node, Node]]:
    """Two nodes and a wire; only the first has an address, and a route by the second."""
    with nodes(2) as (one, two):
        run("ip", "link", "add", "eth0", "netns", one.name, "type", "veth",
            "peer", "name", "eth0", "netns", two.name)  # fmt: skip
        for node in (one, two):
            node.ip("link", "set", "eth0", "up")
        one.ip("addr", "add", f"{NEAR}/24", "dev", "eth0")
        one.ip("route", "add", f"{BEYOND}/32", "via", FAR)
        yield one, two


def entry(node: Node) -> list[str]:
    """Return the state of the neighbour entry of `FAR`, empty for none."""
    shown = json.loads(node.ip("-j", "neigh", "show", FAR) or "[]")
    return [state for one in shown for state in one["state"]]


def send(node: Node, address: str) -> socket.socket:
    """Send a datagram to `address`, so that its next hop is asked for."""
    with node.ns.enter():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.sendto(b"x", (address, 9))
    return sock


@pytest.mark.parametrize("address", [FAR, BEYOND])
def test_an_open_question_is_asked_anew(wire: tuple[Node, Node], address: str) -> None:
    one, two = wire
    with links.open(one.ns) as rtnl, send(one, address) as sock:
        assert entry(one) == ["INCOMPLETE"]
        two.ip("addr", "add", f"{FAR}/24", "dev", "eth0")
        asked = time.monotonic()
        assert next_hop.ask_again(rtnl, address)
        assert entry(one) == []
        sock.sendto(b"x", (address, 9))
        while entry(one) != ["REACHABLE"]:
            assert time.monotonic() < asked + WITHIN
        assert not next_hop.ask_again(rtnl, address), "what has an answer stays as it is"
        assert entry(one) == ["REACHABLE"]


def test_where_nothing_is_asked_there_is_nothing_to_do(wire: tuple[Node, Node]) -> None:
    one, _ = wire
    with links.open(one.ns) as rtnl:
        assert not next_hop.ask_again(rtnl, FAR), "no entry"
        assert not next_hop.ask_again(rtnl, "203.0.113.1"), "no route"
        one.ip("link", "set", "eth0", "down")
        assert not next_hop.ask_again(rtnl, FAR), "no way"
