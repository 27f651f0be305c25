"""What a filter, a blinking link and a death cost, on real daemons: nothing, nothing, and seconds.

The lease is a second here: with half of that, an emulated machine is silent by itself. So the
times printed are half a second longer than by default; on a busy machine they say little, and no
test depends on them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.cluster import NODES, POLICY, Cluster
from tests.e2e.conftest import telling
from tests.e2e.container import Container
from tests.e2e.demo import Stream
from tests.e2e.machine import inside, run, until
from tests.e2e.underlay import PORT

LEASE_MS = 1000
FILTERED = 30.0
"""Seconds for which the fabric's port is filtered."""
BLINK = 2.0
BLINKS = 3
FILTER = f"""
table inet filtered {{
  chain in {{ type filter hook input priority 0; tcp dport {PORT} drop; tcp sport {PORT} drop; }}
  chain out {{ type filter hook output priority 0; tcp dport {PORT} drop; tcp sport {PORT} drop; }}
}}
"""


EVERYTHING = ("ip", "ip6", "arp", "0x4305")
"""The EtherTypes between nodes: the fabric's and batman-adv's."""
FAR = (("n2", "eth2"), ("n3", "eth1"))
"""Both ends of the way to n3."""


def cut(*ends: tuple[str, str]) -> None:
    """Let nothing in at these interfaces (node and name): a switch that forwards nothing.

    The links stay up, so that the daemons find nothing to repair.
    """
    for node, device in ends:
        chain = f"type filter hook ingress device {device} priority -500; policy drop;"
        rules = f"table netdev cut {{\n chain in {{ {chain} }}\n}}"
        inside(f"/run/netns/{node}", "nft", "-f", "-", input=rules)


def blinking(node: str, device: str) -> None:
    """Prepare an interface for `blink`: it drops, both ways, what a set names."""
    chains = "\n".join(
        f"chain {hook} {{ type filter hook {hook} device {device} priority -500; "
        "meta protocol @dark drop; }"
        for hook in ("ingress", "egress")
    )
    rules = f"table netdev blink {{\nset dark {{ type ether_type; flags timeout; }}\n{chains}\n}}"
    inside(f"/run/netns/{node}", "nft", "-f", "-", input=rules)


def blink(node: str, seconds: float) -> None:
    """Let nothing pass for `seconds`, as the kernel counts them.

    The start of a program that ends the blink would make it longer, by seconds on a busy machine.
    """
    dark = ", ".join(f"{kind} timeout {round(seconds * 1e3)}ms" for kind in EVERYTHING)
    inside(f"/run/netns/{node}", "nft", f"add element netdev blink dark {{ {dark} }}")


def mend(*ends: tuple[str, str]) -> None:
    """Undo `cut`."""
    for node, _ in ends:
        inside(f"/run/netns/{node}", "nft", "delete", "table", "netdev", "cut")


class Scene:
    """Three nodes, a client on the first and a server on each other."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.web = cluster.add("web", "n1", "web")
        self.api = {node: cluster.add(f"api-{node}", node, "api", 8080) for node in ("n2", "n3")}
        until(lambda: set(self.slots()) == {box.address for box in self.api.values()}, "both slots")

    def stream(self, node: str) -> Stream:
        """Open a connection from the client to the server on `node`."""
        return Stream(self.web.dial(self.api[node].address, 8080))

    def slots(self) -> Any:
        """Return the slots of the servers' VIP on n1, by address."""
        services = self.cluster.status("n1")["services"]
        return next(one["slots"] for one in services if one["name"] == "api")

    def seen(self, node: str) -> Any:
        """Return what n1 thinks of `node`."""
        return next(o for o in self.cluster.status("n1")["nodes"] if o["node"] == node)

    def losses(self) -> int:
        """Count how often any node lost another one."""
        return sum(self.cluster.log(node).count("node lost") for node in NODES)


@pytest.fixture(scope="module")
def scene(_machine: None, request: pytest.FixtureRequest) -> Iterator[Scene]:
    with telling(Cluster(lease_ms=LEASE_MS), request) as cluster:
        for node in NODES:  # one after the other: three at once take minutes on a busy machine
            cluster.start(node)
        cluster.meet(*NODES)
        cluster.apply(POLICY)
        cluster.mesh()
        yield Scene(cluster)


def test_a_filter_on_the_fabrics_port_costs_no_connection(scene: Scene) -> None:
    with scene.stream("n2") as stream:
        stream.progress()
        inside("/run/netns/n2", "nft", "-f", "-", input=FILTER)
        began = time.monotonic()
        until(lambda: not scene.seen("n2")["alive"], "n1 to miss n2's token")
        # The mesh hears it: it has its slots back before long, and new connections reach it.
        until(lambda: not scene.seen("n2")["suspect"], "n1 to hear n2 by the mesh")
        until(lambda: scene.api["n2"].address in scene.slots(), "n2 to have slots")
        vip = scene.cluster.vip("api")
        until(lambda: scene.web.greet(vip, 80) == "api-n2", "a new connection to n2")
        while time.monotonic() < began + FILTERED:
            stream.progress()
            assert not scene.seen("n2")["lost"]
        until(lambda: scene.api["n2"].address in scene.slots(), "n2 to have slots all the same")
        inside("/run/netns/n2", "nft", "delete", "table", "inet", "filtered")
        scene.cluster.meet(*NODES)
        echoes = stream.progress()
    assert echoes
    print(f"\nfiltered for {FILTERED:.0f} s: longest gap {stream.longest * 1e3:.0f} ms")
    assert scene.losses() == 0


def test_a_link_that_blinks_costs_no_connection(scene: Scene) -> None:
    blinking("n1", "eth1")
    with scene.stream("n2") as stream:
        for _ in range(BLINKS):
            stream.progress()
            blink("n1", BLINK)
            ends = time.monotonic() + BLINK
            until(lambda e=ends: time.monotonic() >= e, "the blink's end")
            scene.cluster.meet(*NODES)
            until(lambda: not scene.seen("n2")["suspect"], "n1 to trust n2 again")
            stream.progress()
    inside("/run/netns/n1", "nft", "delete", "table", "netdev", "blink")
    print(f"\n{BLINKS} blinks of {BLINK:.0f} s: longest gap {stream.longest:.1f} s")
    assert scene.losses() == 0
    assert "node suspect" in scene.cluster.log("n1"), "the blinks were not noticed"


def test_a_dead_node_leaves_the_slots_at_once_and_its_flows_soon(scene: Scene) -> None:
    dead: Container = scene.api["n3"]
    with scene.stream("n3") as stream:
        stream.progress()
        cut(*FAR)
        began = time.monotonic()
        scene.cluster.kill("n3")
        run("ip", "-n", "n3", "link", "set", "eth1", "down")
        until(lambda: dead.address not in scene.slots(), "n3 to leave the slots")
        slots = time.monotonic() - began
        until(lambda: scene.seen("n3")["lost"], "n3 to be lost")
        lost = time.monotonic() - began
        until(lambda: stream.error is not None, "the flow to be reset")
        reset = time.monotonic() - began
    print(
        f"\nwith a lease of {LEASE_MS} ms: out of the slots after {slots:.2f} s, "
        f"lost after {lost:.2f} s, reset after {reset:.2f} s"
    )
    assert isinstance(stream.error, ConnectionAbortedError | ConnectionResetError)
    log = scene.cluster.log("n1")
    assert log.index("node suspect") < log.index("node lost"), "suspicion comes first"
    vip = scene.cluster.vip("api")
    assert {scene.web.greet(vip, 80) for _ in range(16)} == {"api-n2"}
