"""What the model's tests share: one cluster's certificates, and short ways to make records."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from ipaddress import IPv4Network
from pathlib import Path

import msgspec

from daemon.ctl import pki
from daemon.model.identity import Identity
from daemon.model.keys import Keys
from daemon.model.policy import Policy, compile, parse
from daemon.model.records import Body, Manifest, NodeInfo, Replica, Withdrawn, seal
from daemon.model.store import Store
from daemon.model.trust import Trust

NOW = 1_800_000_000.0
"""Seconds: when all of the tests happen."""
VIPS = IPv4Network("10.80.0.0/16")
SLICES = {"n1": "10.64.16.0/20", "n2": "10.64.32.0/20", "n3": "10.64.48.0/20"}
KEYS = Keys("lab")
TEXT = """
services:
  web: {}
  api: {ports: [{protocol: tcp, port: 80, target: 8080}], balance: {weights: {n3: 0.5}}}
  db: {ports: [{protocol: tcp, port: 5432}], nodes: [n1, n2]}
allow:
  - {from: web, to: api, ports: [tcp/80]}
  - {from: api, to: db, ports: [tcp/5432, icmp]}
"""


def folder(cluster: str = "lab") -> Path:
    """A folder with a CA, an authority, and a pair for each node of SLICES."""
    return _folder(cluster)


@functools.cache
def _folder(cluster: str) -> Path:
    path = Path(tempfile.mkdtemp(prefix="noctule-pki-"))
    atexit.register(_remove, path, os.getpid())
    pki.init(path, cluster, NOW)
    for node in SLICES:
        pki.issue(path, node, ["192.0.2.1"], NOW)
    return path


def _remove(path: Path, maker: int) -> None:
    """Remove a folder at the end of the process that made it.

    A forked child inherits what its parent registered and must not act on it. A
    TemporaryDirectory would: Python 3.13 clears the list in a child of `multiprocessing`, which
    drops the last reference, and the object then removes its folder.
    """
    if os.getpid() == maker:
        shutil.rmtree(path)


@functools.cache
def identity(name: str, cluster: str = "lab") -> Identity:
    return Identity.load(folder(cluster) / f"{name}.crt", folder(cluster) / f"{name}.key")


def trust() -> Trust:
    return Trust.load(folder() / "ca.crt", folder() / "authority.crt")


def store() -> Store:
    return Store("lab", trust())


def policy(text: str = TEXT, version: int = 1, previous: Policy | None = None) -> Policy:
    return compile(parse(text), previous, VIPS, version)


def info(node: str, **changes: object) -> NodeInfo:
    fields: dict[str, object] = {
        "node": node,
        "certificate": identity(node).pem,
        "endpoints": ("tls/192.0.2.1:7447",),
        "slice": SLICES[node],
        "mtu": 1468,
    }
    return NodeInfo(**(fields | changes))  # type: ignore[arg-type]


def attachment(number: int) -> str:
    return f"{number:012x}"


def replica(node: str, number: int, service: str = "web", **changes: object) -> Replica:
    """Replica `number` of `node`, at that place in its slice."""
    fields: dict[str, object] = {
        "attachment": attachment(number),
        "node": node,
        "network": "mesh",
        "service": service,
        "address": str(IPv4Network(SLICES[node])[number]),
        "salts": {0: number.to_bytes(32, "big")},
    }
    return Replica(**(fields | changes))  # type: ignore[arg-type]


class Placed(msgspec.Struct, frozen=True):
    """What the planner reads of an attachment (`daemon.model.plan.Local`)."""

    id: str
    service: str
    network: str
    address: str


def placed(one: Replica) -> Placed:
    """Return the attachment that a replica's record speaks of."""
    return Placed(one.attachment, one.service, one.network, one.address)


def record(node: str, version: int, body: Body) -> bytes:
    """Seal `body` as `node` does, under the key where it belongs."""
    match body:
        case Replica() | Withdrawn():
            key = KEYS.replica(node, body.attachment)
        case Manifest():
            key = KEYS.manifest(node)
        case NodeInfo():
            key = KEYS.info(node)
        case Policy():
            key = KEYS.policy
    return seal(KEYS, key, version, body, identity(node))


def filled(*records: bytes) -> Store:
    """A store that knows policy 1, the three nodes, and `records`."""
    made = store()
    made.offer(record("authority", 1, policy()), NOW)
    for node in SLICES:
        made.offer(record(node, 1, info(node)), NOW)
    for data in records:
        made.offer(data, NOW)
    return made
