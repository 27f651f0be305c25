"""What the fabric carries, before any signature: envelopes, bodies, keys, questions, answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from daemon.fabric.answer import Answer
from daemon.model import records
from daemon.model.keys import Key, Keys
from daemon.model.records import Envelope
from tests.fuzz.mutate import Mutator
from tests.fuzz.target import Case, Target, outcome, require

KEYS = Keys("lab")
ID = "00000000000a"
KEY_TEXTS = (
    "noctule/lab/policy", "noctule/lab/node/n1/info", "noctule/lab/node/n1/manifest",
    f"noctule/lab/node/n1/replica/{ID}", "noctule/other/policy", "noctule/lab/alive/n1",
)  # fmt: skip
BODIES: dict[str, dict[str, Any]] = {
    "info": {
        "type": "info", "node": "n1", "certificate": "-----BEGIN CERTIFICATE-----\n",
        "endpoints": ["tls/192.0.2.1:7447"], "slice": "10.64.16.0/20", "mtu": 1468,
        "mesh_macs": ["02:00:00:00:00:01"], "instance": "x",
    },
    "replica": {
        "type": "replica", "attachment": ID, "node": "n1", "network": "mesh", "service": "web",
        "address": "10.64.16.10", "salts": {0: b"s" * 32, 1: b"t" * 32}, "healthy": True,
    },
    "withdrawn": {"type": "withdrawn", "attachment": ID},
    "manifest": {"type": "manifest", "versions": {"info": 1, f"replica/{ID}": 2}},
    "policy": {
        "type": "policy", "version": 5, "vips": "10.80.0.0/16",
        "services": {
            "web": {"id": 1, "name": "web", "vip": "10.80.0.1", "ports": [["tcp", 80, 8080]]},
            "api": {"id": 2, "name": "api", "vip": "10.80.0.2", "weights": {"n1": 0.5},
                    "strategy": "nearest", "sticky": True, "nodes": ["n1"]},
        },
        "edges": [[1, 2, [["tcp", 80], ["icmp", 0]]]],
        "nodes": {"n1": "10.64.16.0/20", "n2": "10.64.32.0/20"},
        "resting": [["old", 3, "10.80.0.3"]],
    },
}  # fmt: skip
MESSAGES: tuple[Any, ...] = (
    {"type": "sync", "node": "n1"},
    {"type": "confirm", "envelope": b"x"},
    {"type": "records", "envelopes": [b"x", b"y"], "yours": 7},
    {"type": "ack", "outcome": "accepted", "reason": ""},
)
WORDS = (
    *BODIES, *(field for body in BODIES.values() for field in body), *KEY_TEXTS, ID, "n1", "n2",
    "web",
    "api", "id", "name", "vip", "ports", "weights", "strategy", "sticky", "sync", "ack", "envelope",
)  # fmt: skip


@contextmanager
def target(folder: Path) -> Iterator[Target]:
    """Offer the target; it keeps nothing open."""
    yield Target(draw, run)


def draw(random: Random) -> Case:
    """Return a key, the body under it, how that travels, and a question or an answer."""
    mutator = Mutator(random, WORDS, binary=True)
    kind = random.choice(tuple(BODIES))
    key = random.choice(KEY_TEXTS)
    envelope = [key, 5, "n1", packed(mutator, BODIES[kind]), b"signature"]
    return {
        "key": mutator.word(key) if random.random() < 0.5 else key,
        "kind": random.choice(("info", "manifest", "replica", "policy", kind)),
        "body": envelope[3],
        "envelope": packed(mutator, envelope),
        "message": packed(mutator, random.choice(MESSAGES)),
        "places": [random.choice(PLACES) for _ in range(random.randrange(5))],
    }


PLACES = (
    b"",
    b"\0\0\0\0",
    b"\0\0\0\1",
    b"\0\0\0\2",
    b"\0\1\0\2",
    b"\0\0\xff\xff",
    b"\0\1\0\1",
    b"12345",
)


def packed(mutator: Mutator, value: Any) -> bytes:
    """Return `value` with changes as msgpack, sometimes damaged."""
    changed = mutator.tree(value)
    try:
        data = msgspec.msgpack.encode(changed)
    except (UnicodeEncodeError, OverflowError, TypeError, RecursionError):
        data = msgspec.msgpack.encode(value)  # msgpack cannot say that
    return mutator.text(data) if mutator.random.random() < 0.3 else data


def run(case: Case) -> str:
    """Read each part; the answer is the first that is not right."""
    key, body, message = case.get("key", ""), case.get("body", b""), case.get("message", b"")
    found = [
        outcome(lambda: _key(key), "record: "),
        outcome(lambda: _body(case.get("kind", "info"), body), "record "),
        outcome(lambda: _envelope(case.get("envelope", b"")), "record: "),
        outcome(lambda: records.decode_question(message), "question: "),
        outcome(lambda: records.decode_answer(message), "answer: "),
    ]
    _answer(case.get("places", []))
    parts = zip(("key", "body", "envelope"), found, strict=False)
    return " and ".join(what for what, came in parts if came == "value") or "nothing readable"


def _key(text: str) -> None:
    fabric = KEYS.is_record(text) if text.isprintable() else False
    parsed = KEYS.parse(text)
    require(not set(text) & set("*$?#@"), "no wildcard is part of a key")
    if parsed is not None:
        require(fabric, "what is a record's key to the store is one to the fabric")
        require("*" not in text and text.startswith("noctule/lab/"), "a key is of the cluster")
    name = KEYS.node_alive(text)
    require(name is None or "/" not in name, "a token names a node")


def _body(kind: str, data: bytes) -> None:
    key = {
        "info": Key("info", "n1"),
        "manifest": Key("manifest", "n1"),
        "replica": Key("replica", "n1", ID),
    }.get(kind, Key("policy"))
    body = records.open_body(key, Envelope("k", 5, "n1", data, b""))
    require(type(body).__name__.lower() in (key.kind, "nodeinfo", "withdrawn"), "as announced")


def _envelope(data: bytes) -> None:
    envelope = records.decode(data)
    require(records.decode(records.encode(envelope)) == envelope, "an envelope has one meaning")


def _answer(places: list[bytes]) -> None:
    answer = Answer()
    for place in places:
        try:
            answer.add(place, place)
        except ValueError as error:
            require(str(error), "a refusal says why")
        if answer.whole:
            require(len(answer.replies()) < 1025, "an answer is bounded")
