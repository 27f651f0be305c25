"""Records with good signatures and odd contents, offered to stores in different orders."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from daemon.model.plan import NOTHING, Plan, plan
from daemon.model.records import Envelope, encode, to_sign
from daemon.model.store import Store
from daemon.model.trust import Trust
from daemon.model.verdict import Outcome
from tests.fuzz.mutate import Mutator
from tests.fuzz.target import Case, Target, outcome, require
from tests.fuzz.targets.fabric_records import BODIES, WORDS, packed
from tests.unit import model_kit
from tests.unit.model_kit import KEYS, NOW, identity, placed

NODES = ("n1", "n2")
SIGNERS = (*NODES, "authority")


@contextmanager
def target(folder: Path) -> Iterator[Target]:
    """Offer the target, with one cluster's real certificates."""
    for name in SIGNERS:
        identity(name)
    yield Target(draw, run)


def draw(random: Random) -> Case:
    """Return up to ten records, and in which other order they come."""
    mutator = Mutator(random, WORDS, binary=True)
    steps = [_step(mutator) for _ in range(random.randint(1, 7))]
    steps += [{"signer": "authority"}, {"signer": "n1"}, {"signer": "n2"}]
    order = list(range(len(steps)))
    random.shuffle(steps)
    random.shuffle(order)
    return {"steps": steps, "order": order, "snapshot": packed(mutator, SNAPSHOT)}


SNAPSHOT: dict[str, Any] = {"type": "snapshot 1", "cluster": "lab", "envelopes": [b"x", b"y"]}


def _step(mutator: Mutator) -> dict[str, Any]:
    random = mutator.random
    signer = random.choice(SIGNERS)
    kind = "policy" if signer == "authority" else random.choice(tuple(BODIES))
    number = f"{random.randint(10, 13):012x}"
    body = dict(BODIES[kind])
    if "attachment" in body:
        body["attachment"] = number
    if kind == "replica":
        body["address"] = f"10.64.{16 if signer == 'n1' else 32}.{random.randint(10, 12)}"
    if kind == "info":
        body |= {"certificate": identity(signer).pem, "slice": model_kit.SLICES[signer]}
    if "node" in body:
        body["node"] = signer
    version = random.randint(1, 12)
    if kind == "policy":
        body["version"] = version
    if kind == "manifest":
        listed = random.sample(range(10, 14), random.randrange(4))
        body["versions"] = {"info": 1} | {f"replica/{n:012x}": version for n in listed}
    within = f"replica/{number}" if kind == "withdrawn" else kind
    within = f"replica/{number}" if kind == "replica" else within
    key = KEYS.policy if kind == "policy" else f"{KEYS.root}/node/{signer}/{within}"
    step = {
        "signer": signer,
        "key": mutator.word(key) if random.random() < 0.05 else key,
        "version": random.choice((0, 2**63, 2**63 - 1)) if random.random() < 0.03 else version,
        "body": packed(mutator, body) if random.random() < 0.7 else msgspec.msgpack.encode(body),
    }
    if random.random() < 0.1:
        step["name"] = random.choice((*SIGNERS, "n3", ""))
    if random.random() < 0.1:
        step["damage"] = random.randrange(400)
    return step


def _sealed(step: dict[str, Any]) -> bytes:
    """Return the record that a step describes: signed, whatever is in it."""
    signer = step.get("signer", "n1")
    if "body" not in step:
        return _ground(signer)
    key, version, body = step.get("key", ""), step.get("version", 1), bytes(step["body"])
    name = step.get("name", signer)
    try:
        signature = identity(signer).sign(to_sign("lab", key, version, name, body))
        data = encode(Envelope(key, version, name, body, signature))
    except (OverflowError, UnicodeEncodeError):
        return body  # no record can say that
    if "damage" in step:
        place = step["damage"] % len(data)
        data = data[:place] + bytes((data[place] ^ 1,)) + data[place + 1 :]
    return data


@functools.cache
def _ground(signer: str) -> bytes:
    """Return the first record of each, without which the others do not count."""
    body = model_kit.policy() if signer == "authority" else model_kit.info(signer)
    return model_kit.record(signer, 1, body)


@functools.cache
def _trust() -> Trust:
    return model_kit.trust()


def run(case: Case) -> str:
    """Offer all until nothing changes, in two orders and by snapshot: three equal stores."""
    sealed = [_sealed(step) for step in case.get("steps", [])]
    order = [n for n in case.get("order", []) if n < len(sealed)]
    rest = [n for n in range(len(sealed)) if n not in order]
    one, other, restored = (Store("lab", _trust()) for _ in range(3))
    found = _offer(one, sealed)
    _offer(other, [sealed[n] for n in (*order, *rest)])
    require(one.dump() == other.dump(), "the order of records does not matter")
    restored.load(one.dump())
    require(restored.dump() == one.dump(), "a snapshot holds all of it")
    require(other.replicas() == one.replicas(), "equal stores have equal effect")
    _effect(one)
    for node in NODES:
        _plan(one, node)
    snapshot = case.get("snapshot", b"")
    return f"{found}, snapshot {outcome(lambda: restored.load(snapshot), 'snapshot: ')}"


def _offer(store: Store, sealed: Sequence[bytes]) -> str:
    """Return the worst that became of a record."""
    verdicts = [store.offer(data, NOW) for data in sealed]
    for verdict in verdicts:
        verdict.reason.encode()
        require(verdict.reason or verdict.outcome in (
            Outcome.ACCEPTED, Outcome.KNOWN, Outcome.STALE, Outcome.FOREIGN_CLUSTER,
        ), "a refusal says why")  # fmt: skip
    for _ in sealed:
        if not any(verdict.changed for verdict in store.sync(sealed, NOW)):
            break
    return max((str(verdict.outcome) for verdict in verdicts), default="nothing")


def _effect(store: Store) -> None:
    """Hold the effective replicas to the rules, worked out anew from what is held."""
    policy, infos, replicas = store.policy(), store.infos(), store.replicas()
    addresses = [replica.address for replica in replicas]
    require(len(set(addresses)) == len(addresses), "one replica has an address")
    for replica in replicas:
        require(policy is not None, "without policy nothing counts")
        assert policy is not None
        require(policy.may_host(replica.service, replica.node), "policy lets the node host it")
        slice = IPv4Network(infos[replica.node].slice)
        require(IPv4Address(replica.address) in slice, "it is of its node's slice")
        require(not slice.overlaps(IPv4Network(policy.vips)), "no slice has VIPs")
        pinned = (policy.nodes or {}).get(replica.node)
        require(policy.nodes is None or IPv4Network(pinned or "") == slice, "the pinned slice")
    shown = {refusal.key for refusal in store.refusals()}
    held = {KEYS.replica(r.node, r.attachment) for r in store.held_replicas()}
    counted = {KEYS.replica(r.node, r.attachment) for r in replicas}
    require(held - counted <= shown and not counted & shown, "what does not count is explained")


def _plan(store: Store, node: str) -> None:
    """Plan for a node: what was accepted must not stop it."""
    replicas = store.replicas()
    local = [placed(replica) for replica in replicas if replica.node == node]

    def planned(previous: Plan) -> Plan:
        return plan(
            store.policy(),
            replicas,
            local,
            node=node,
            alive=set(NODES),
            quality={"n1": 0.9, "n2": 0.5},
            previous=previous,
        )

    made = planned(NOTHING)
    require(set(made.views) == {one.id for one in local}, "each attachment has a view")
    require(planned(made).views == made.views, "planning again changes nothing")
