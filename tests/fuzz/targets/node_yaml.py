"""node.yaml: from text to a configuration in which everything was checked."""

from __future__ import annotations

import ast
import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from pathlib import Path
from random import Random
from typing import Any

import yaml

from daemon import config
from daemon.fabric.interface import Settings
from tests.fuzz.mutate import Mutator
from tests.fuzz.target import Case, Target, outcome, require

NODE: dict[str, Any] = {
    "cluster": "lab",
    "node": "n1",
    "mesh": {
        "algorithm": "BATMAN_V",
        "mtu": 1400,
        "links": [
            {"interface": "eth1", "throughput": 1000000},
            {"geneve": {"remote": "192.0.2.3", "id": 7}},
        ],
    },
    "addresses": {"pool": "10.64.0.0/12", "slice": "10.64.16.0/20", "vips": "10.80.0.0/16"},
    "fabric": {
        "listen": ["tls/192.0.2.1:7447"],
        "connect": ["tls/192.0.2.2:7447"],
        "identity": {"ca": "/a", "certificate": "/b", "key": "/c"},
        "confirm_ms": 100,
        "lease_ms": 500,
    },
    "policy": {"authority": "/d"},
    "paths": {"state": "/run/noctule", "socket": "/run/noctule/noctuled.sock", "cache": "/var/x"},
}
WORDS = (
    *NODE, *NODE["mesh"], *NODE["addresses"], *NODE["fabric"], *NODE["paths"], "interface",
    "geneve",
    "remote", "id", "throughput", "ca", "certificate", "key", "authority", "BATMAN_IV", "auto",
    "eth1",
)  # fmt: skip


@contextmanager
def target(folder: Path) -> Iterator[Target]:
    """Offer the target; it keeps nothing open."""
    yield Target(draw, lambda case: outcome(lambda: read(case), "node.yaml: "))


def draw(random: Random) -> Case:
    """Return the file's text."""
    return text(Mutator(random, WORDS), NODE)


def text(mutator: Mutator, document: dict[str, Any]) -> str:
    """Return `document` with changes, as YAML, of which JSON is a part."""
    if mutator.random.random() < 0.5:
        return json.dumps(mutator.tree(document))
    damaged = mutator.text(_block(repr(document)))
    return damaged.decode(errors=mutator.random.choice(("replace", "surrogateescape")))


@functools.cache
def _block(document: str) -> bytes:
    """Return the `document`, a literal, as people write YAML."""
    return str(yaml.safe_dump(ast.literal_eval(document), sort_keys=False)).encode()


def read(text: str) -> None:
    """Parse it, and look at what the daemon relies on without asking again."""
    made = config.parse(text)
    pool, mine, vips = (
        IPv4Network(network)
        for network in (made.addresses.pool, made.addresses.slice, made.addresses.vips)
    )
    require(mine.subnet_of(pool) and not vips.overlaps(pool), "slice in pool, VIPs outside")
    require(len(made.paths.socket.encode()) < 108, "the socket's path can be bound")
    for path in (made.paths.state, made.paths.socket, made.paths.cache):
        require(Path(path).is_absolute() and "\0" not in path, "paths are absolute")
    Settings(
        cluster=made.cluster,
        node=made.node,
        listen=tuple(made.fabric.listen),
        connect=tuple(made.fabric.connect),
        ca=made.fabric.identity.ca,
        certificate=made.fabric.identity.certificate,
        key=made.fabric.identity.key,
        lease_ms=made.fabric.lease_ms,
    )
