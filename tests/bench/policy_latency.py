"""From an edited policy to the kernel sets of three nodes, and the fabric's share of it.

Each round moves one edge: web may dial db, or may not. What is timed, all on CLOCK_MONOTONIC
of the one machine that holds the three nodes:

* edit → sets: the signed record is handed to n1's daemon, until each node has said that its
  kernel agrees (the slowest node counts).
* fabric: until the record has reached each other node's daemon (the slowest counts).
* peer: the same change by hand, ``nft -f`` in one container of each node, one after the
  other: what an operator with three shells would wait for at the very least. The ratio of
  each round is taken against the same round's peer.

Run it in the lab: ``make bench``. Rounds: first argument, 30 by default.
"""

from __future__ import annotations

import base64
import json
import statistics
import sys
import time
from ipaddress import IPv4Network

from daemon.model import policy, records
from daemon.model.identity import Identity
from tests.e2e.cluster import NODES, POLICY, Cluster, running
from tests.e2e.machine import inside, until

OPEN = POLICY.replace("allow:\n", "allow:\n  - {from: web, to: db, ports: [tcp/5432]}\n")


class Signer:
    """Signs policies here, so that no process start is part of what is timed."""

    def __init__(self, cluster: Cluster) -> None:
        pki = cluster.base / "pki"
        self.identity = Identity.load(pki / "authority.crt", pki / "authority.key")
        self.cluster = cluster

    def sign(self, text: str) -> bytes:
        """Return the request body that applies `text` as the next version."""
        state = self.cluster.api("n1", "GET", "/v1/policy")
        keys = records.Keys(state["cluster"])
        previous = records.policy_of(records.decode(base64.b64decode(state["envelope"])))
        version = state["version"] + 1
        compiled = policy.compile(policy.parse(text), previous, IPv4Network(state["vips"]), version)
        sealed = records.seal(keys, keys.policy, version, compiled, self.identity)
        return json.dumps({"envelope": base64.b64encode(sealed).decode()}).encode()


def one_round(cluster: Cluster, body: bytes) -> tuple[float, float]:
    """Apply; return milliseconds until the slowest set, and until the slowest daemon."""
    began = time.monotonic_ns()
    applied = cluster.api("n1", "POST", "/v1/policy", body)
    assert sorted(applied["live"]) == sorted(NODES), applied
    known = [
        until(lambda n=node: _programmed(cluster, n, applied["version"]), f"{node} to program")
        for node in NODES
    ]
    sets = max(p["programmed_ns"] for p in known) - began
    fabric = max(p["received_ns"] for p in known[1:]) - known[0]["received_ns"]
    return sets / 1e6, fabric / 1e6


def _programmed(cluster: Cluster, node: str, version: int) -> dict[str, int] | None:
    found = cluster.status(node)["policy"]
    return found if found["version"] == version and found["programmed_ns"] else None


def by_hand(cluster: Cluster) -> float:
    """Change one element in one container of each node with nft; return milliseconds."""
    command = "add element inet noctule peer { 10.64.0.9 : 60000 }\n"
    undo = "delete element inet noctule peer { 10.64.0.9 }\n"
    containers = [cluster.containers[f"api-{node}"].netns for node in NODES]
    began = time.monotonic()
    for netns in containers:
        inside(netns, "nft", "-f", "-", input=command)
    took = (time.monotonic() - began) * 1e3
    for netns in containers:
        # The daemon's audit may have been here first: to it, this is drift.
        inside(netns, "nft", "-f", "-", input=undo, check=False)
    return took


def main() -> None:
    """Print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    sets, fabric, peer, ratio = [], [], [], []
    with running() as cluster:
        cluster.add("web", "n1", "web")
        for node in NODES:
            cluster.add(f"api-{node}", node, "api", 8080)
        cluster.add("db", "n2", "db", 5432)
        signer = Signer(cluster)
        for number in range(rounds + 2):
            took = one_round(cluster, signer.sign(POLICY if number % 2 else OPEN))
            hand = by_hand(cluster)
            if number >= 2:  # The first of each kind warms caches.
                sets.append(took[0])
                fabric.append(took[1])
                peer.append(hand)
                ratio.append(took[0] / hand)
    print(f"\npolicy edit on n1 → kernel sets of three nodes, {rounds} rounds\n")
    print(f"{'':<34}{'p50':>13}{'p99':>13}")
    for name, values, unit in (
        ("edit → sets of all nodes", sets, "ms"),
        ("  of which the fabric", fabric, "ms"),
        ("nft -f by hand on three nodes", peer, "ms"),
        ("edit → sets, over nft by hand", ratio, "×"),
    ):
        cuts = statistics.quantiles(values, n=100, method="inclusive")
        print(f"{name:<34}{cuts[49]:>10.2f} {unit}{cuts[98]:>10.2f} {unit}")


if __name__ == "__main__":
    main()
