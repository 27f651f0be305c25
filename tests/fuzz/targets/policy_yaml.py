"""policy.yaml: from text to the policy that follows the one before, several in a row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from daemon.model import policy
from daemon.model.policy import Policy
from daemon.model.records import policy_problem
from tests.fuzz.mutate import Mutator
from tests.fuzz.target import Case, Target, outcome, require
from tests.fuzz.targets.node_yaml import text

POLICY: dict[str, Any] = {
    "services": {
        "web": {},
        "api": {
            "ports": [{"protocol": "tcp", "port": 80, "target": 8080}],
            "balance": {"strategy": "link", "weights": {"n1": 0.5}, "sticky": "client"},
        },
        "db": {"ports": [{"protocol": "tcp", "port": 5432}], "nodes": ["n1", "n2"]},
    },
    "allow": [
        {"from": "web", "to": "api", "ports": ["tcp/80"]},
        {"from": "api", "to": "db", "ports": ["tcp/5432", "icmp"]},
        {"from": "web", "to": "db"},
    ],
    "nodes": {"n1": {"slice": "10.64.16.0/20"}, "n2": {"slice": "10.64.32.0/20"}},
}
FIXED: dict[str, Any] = {
    "services": {"web": {"vip": "10.80.0.1"}, "db": {}, "new": {"vip": "10.80.0.2"}},
    "allow": [{"from": "new", "to": "web", "ports": ["icmp"]}],
}
POOLS = ("10.80.0.0/16", "10.80.0.0/16", "10.80.0.0/30", "10.80.0.2/31", "10.80.0.1/32")
WORDS = (
    "services", "allow", "nodes", "ports", "protocol", "port", "target", "balance", "strategy",
    "weights", "sticky", "client", "from", "to", "slice", "vip", "weighted", "nearest", "icmp",
    "tcp/80",
    "tcp/5432", "web", "api", "db", "new", "n1", "n2", "n3", "10.80.0.1", "10.80.0.2", "10.80.0.0",
)  # fmt: skip


@contextmanager
def target(folder: Path) -> Iterator[Target]:
    """Offer the target; it keeps nothing open."""
    yield Target(draw, run)


def draw(random: Random) -> Case:
    """Return the pool of VIPs, and the texts of up to three policies, one after the other."""
    mutator = Mutator(random, WORDS)
    return {
        "vips": random.choice(POOLS),
        "texts": [
            text(mutator, random.choice((POLICY, FIXED))) for _ in range(random.randint(1, 3))
        ],
    }


def run(case: Case) -> str:
    """Compile them; one that is refused changes nothing."""
    vips = IPv4Network(case.get("vips", POOLS[0]))
    previous: Policy | None = None
    found = []

    def compile(text: str, version: int) -> None:
        nonlocal previous
        made = policy.compile(policy.parse(text), previous, vips, version)
        _fit(made, previous, vips)
        previous = made

    for version, one in enumerate(case.get("texts", []), 1):
        found.append(outcome(lambda: compile(one, version), "policy.yaml: "))  # noqa: B023
    return min(found, default="value")


def _fit(made: Policy, previous: Policy | None, vips: IPv4Network) -> None:
    """Hold the policy to its rules, and to what the other nodes will say of it."""
    require(not policy_problem(made, made.version), "nodes accept it")
    sealed = msgspec.msgpack.encode(made)
    require(msgspec.msgpack.decode(sealed, type=Policy) == made, "it arrives as it was sent")
    taken = [service.vip for service in made.services.values()]
    require(len(set(taken)) == len(taken), "no two services have one VIP")
    require(all(IPv4Address(vip) in vips for vip in taken), "VIPs are of the pool")
    if previous is not None:
        for name, service in made.services.items():
            before = previous.services.get(name)
            require(before is None or before.id == service.id, "a service keeps its id")
    for service in made.services.values():
        for number in made.neighbours(service.id):
            require(number in made.by_id, "edges join services of the policy")
