"""Records: what nodes and the policy authority publish, each signed and under a key of its own.

1. A key is ``noctule/<cluster>/policy`` or ``noctule/<cluster>/node/<id>/`` followed by
   ``info``, ``manifest`` or ``replica/<attachment>``. Wildcards are never part of a key.
2. A node's keys are signed by that node (`signer` is its id); the policy by the
   pinned authority (`signer` is its CN) or, with Swarm, by the manager whose id `signer` is.
3. What is signed is a context string, then cluster, key, version, signer and body, each with
   its length in front: no two different records have the same bytes to sign.
4. All versions of a node's records come from one counter that only grows (`next_version`). So a
   manifest of version v lists all live records of its node whose version is below v.
5. A withdrawn attachment is a `Withdrawn` under the replica's key with a higher version.
6. A record is at most `LIMIT` bytes. An unknown field in a body is ignored, so that nodes
   can be upgraded one by one; the envelope is exactly as below. Records that later releases add
   have keys of kinds of their own, which this release ignores (docs/design.md, "Releases side by
   side").
7. A manifest also says which copy its node holds of each record that does not belong to a node
   (today only the policy). So a node that receives it knows which of the two has to ask the other.
   Release 0.1.0 neither writes nor reads that: it gets a policy by publication and `Sync` only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from daemon.model.identity import SigningKey
from daemon.model.keys import Key, Keys
from daemon.model.policy import Policy
from netconf.errors import DecodeFailure, InvalidConfig

CONTEXT = b"noctule record 1"
MESSAGE_LIMIT = 60_000
"""Bytes of one question or answer: what the fabric carries (its MAX_PAYLOAD)."""
LIMIT = MESSAGE_LIMIT - 128
"""Bytes of one encoded record, so that it also fits into a `Confirm` or a `Records`."""
MAX_VERSION = 2**63 - 1
REACH_LIMIT = 256
"""Nodes that one `Reach` may ask about: more than fall silent while others are left to ask."""

Name = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}\Z")]
AttachmentId = Annotated[str, Meta(pattern=r"^[0-9a-f]{12}\Z")]
Mac = Annotated[str, Meta(pattern=r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")]
Endpoint = Annotated[str, Meta(pattern=r"^[a-z]+/[^\s/#?]+:[0-9]{1,5}\Z", max_length=270)]
Version = Annotated[int, Meta(ge=1, le=MAX_VERSION)]
Salt = Annotated[bytes, Meta(min_length=32, max_length=32)]
Association = Annotated[int, Meta(ge=0, le=3)]


class Envelope(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A record as it travels."""

    key: Annotated[str, Meta(max_length=256)]
    version: Version
    signer: Name
    body: bytes
    signature: Annotated[bytes, Meta(max_length=80)]

    @property
    def order(self) -> tuple[int, bytes, bytes]:
        """Of two records under one key the one with the greater `order` wins, everywhere: the
        higher version, then the greater body (then signature) bytes, an arbitrary choice."""
        return (self.version, self.body, self.signature)


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True, tag="info"):
    """Who a node is and where; signed with the key of the certificate it carries."""

    node: Name
    certificate: Annotated[str, Meta(max_length=16384)]
    """PEM, the node's own certificate first, then intermediates if there are any."""
    endpoints: Annotated[tuple[Endpoint, ...], Meta(max_length=16)]
    """Where its fabric listens, as ``tls/host:port``."""
    slice: str
    """The IPv4 network (CIDR) that its replicas' addresses come from."""
    mtu: Annotated[int, Meta(ge=68, le=65535)]
    """Bytes of payload its mesh links carry: the whole mesh uses the smallest."""
    mesh_macs: Annotated[tuple[Mac, ...], Meta(max_length=64)] = ()
    """MACs of its mesh interfaces, by which batman-adv's originators are recognised."""
    instance: Annotated[str, Meta(max_length=64)] = ""
    """A random string that changes with every start of the daemon."""
    ula: Annotated[str, Meta(max_length=64)] = ""
    """Its ``addresses.ula`` (CIDR), so that other nodes notice if theirs differs."""


class Replica(msgspec.Struct, frozen=True, kw_only=True, tag="replica"):
    """One container on the network."""

    attachment: AttachmentId
    node: Name
    network: Name
    """The connectivity association (CA) it is in."""
    service: Name
    address: str
    """Dotted IPv4; MAC and SCI follow from it."""
    salts: Annotated[dict[Association, Salt], Meta(min_length=1, max_length=4)]
    """The salt of each SAK it transmits or will transmit with, by association number."""
    healthy: bool = True


class Withdrawn(msgspec.Struct, frozen=True, kw_only=True, tag="withdrawn"):
    """The body that takes the place of a `Replica` under its key when the replica is gone."""

    attachment: AttachmentId


class Copy(msgspec.Struct, frozen=True, array_like=True):
    """Which copy of a record a node holds."""

    version: Version
    digest: Annotated[bytes, Meta(max_length=32)]
    """Tells two different records of one version apart: see `digest`."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, tag="manifest"):
    """The list of a node's live records, and its copies of those that do not belong to a node."""

    versions: dict[str, Version]
    """By key within the node's subtree (``info``, ``replica/<attachment>``): short, so that a
    bridge full of 1,024 replicas fits into one record. Needs no digest: a node gives each of
    its versions to one record only (rule 4)."""
    shared: Annotated[dict[str, Copy], Meta(max_length=16)] = {}
    """By key below the cluster's root (``policy``). Empty from release 0.1.0."""


Body: TypeAlias = NodeInfo | Replica | Withdrawn | Manifest | Policy
_body_decoder: msgspec.msgpack.Decoder[Body] = msgspec.msgpack.Decoder(Body)
_envelope_decoder = msgspec.msgpack.Decoder(Envelope)
_encoder = msgspec.msgpack.Encoder()


def to_sign(cluster: str, key: str, version: int, signer: str, body: bytes) -> bytes:
    """Return the bytes that a record's signature covers (rule 3)."""
    parts = (
        CONTEXT,
        cluster.encode(),
        key.encode(),
        version.to_bytes(8, "big"),
        signer.encode(),
        body,
    )
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def seal(keys: Keys, key: str, version: int, body: Body, signer: SigningKey) -> bytes:
    """Return the signed and encoded record of `body` under `key`.

    Raises InvalidConfig when the record would be larger than the fabric carries.
    """
    content = _encoder.encode(body)
    signature = signer.sign(to_sign(keys.cluster, key, version, signer.name, content))
    data = encode(Envelope(key, version, signer.name, content, signature))
    if len(data) > LIMIT:
        raise InvalidConfig(
            f"{key}: the record has {len(data)} bytes, and {LIMIT} is the limit; "
            "make it smaller (fewer services, edges or replicas on one node)"
        )
    return data


def encode(envelope: Envelope) -> bytes:
    """Return the encoding of an `envelope`."""
    return _encoder.encode(envelope)


def digest(data: bytes) -> bytes:
    """Return 8 bytes that tell the encoded record `data` from another one of the same version."""
    return hashlib.sha256(data).digest()[:8]


def decode(data: bytes) -> Envelope:
    """Return the envelope that `data` holds; DecodeFailure where it holds none."""
    try:
        return _envelope_decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DecodeFailure(f"record: {error}") from error


def open_body(key: Key, envelope: Envelope) -> Body:
    """Return the body of an `envelope`, checked against its `key`.

    Raises DecodeFailure if it is not a body, or not of the kind and node that the key names.
    """
    try:
        body = _body_decoder.decode(envelope.body)
        problem = _disagreement(key, envelope, body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DecodeFailure(f"record {envelope.key}: {error}") from error
    if problem:
        raise DecodeFailure(f"record {envelope.key}: {problem}")
    return body


def policy_of(envelope: Envelope) -> Policy:
    """Return the policy in an `envelope`, whose signature the caller verifies; DecodeFailure."""
    body = open_body(Key("policy"), envelope)
    assert isinstance(body, Policy)
    return body


def _disagreement(key: Key, envelope: Envelope, body: Body) -> str:
    """Say what is wrong with a `body`, "" if nothing; ValueError for an invalid address."""
    match key.kind, body:
        case "info", NodeInfo():
            IPv4Network(body.slice)
            return "" if body.node == key.node else "names another node"
        case "replica", Replica():
            if str(IPv4Address(body.address)) != body.address:
                return "has an address that is not in dotted form"
            same = (body.node, body.attachment) == (key.node, key.attachment)
            return "" if same else "names another replica"
        case "replica", Withdrawn():
            return "" if body.attachment == key.attachment else "names another replica"
        case "manifest", Manifest():
            return ""
        case "policy", Policy():
            return policy_problem(body, envelope.version)
    return f"does not hold a {key.kind}"


def policy_problem(policy: Policy, version: int) -> str:
    """Say why a signed `policy` cannot be used, "" if it can; ValueError for an invalid address."""
    IPv4Network(policy.vips)
    for slice in (policy.nodes or {}).values():
        IPv4Network(slice)
    for service in policy.services.values():
        IPv4Address(service.vip)
    ends = {end for edge in policy.edges for end in (edge.source, edge.to)}
    if policy.version != version:
        return "has another version inside than outside"
    if any(name != service.name for name, service in policy.services.items()):
        return "lists a service under another name"
    if len(policy.by_id.keys() | {one.id for one in policy.guarded}) != len(policy.services) + len(
        policy.guarded
    ):
        return "gives one id to two services"
    if not policy.services.keys().isdisjoint(policy.closed):
        return "lists a guarded service among the others"
    return "" if ends <= set(policy.by_id) else "has an edge to a service that it does not list"


def next_version(last: int, now_ns: int) -> int:
    """Return the version of a node's next record.

    `last` is the highest version that the node has used, 0 for none. `now_ns` is the wall clock in
    nanoseconds: with it versions grow even if `last` was lost with the state.
    """
    return max(last + 1, now_ns)


# --- questions that the fabric's `ask` carries, and their answers


class Sync(msgspec.Struct, frozen=True, tag="sync"):
    """Asks a node for its own records, the policy and other nodes' infos; answered by `Records`."""

    node: str = ""
    """The node that asks."""
    keys: tuple[str, ...] = ()
    """Asks for these keys (below the cluster's root) and the manifest only; for all if empty.
    Release 0.1.0 ignores it and answers with all."""


class Confirm(msgspec.Struct, frozen=True, tag="confirm"):
    """Asks a node to accept a record and to say whether its kernel agrees; answered by `Ack`."""

    envelope: bytes


class Reach(msgspec.Struct, frozen=True, tag="reach"):
    """Asks whether a node reaches others; answered by `Reached`, by 0.1.0 with an error."""

    nodes: Annotated[tuple[Name, ...], Meta(max_length=REACH_LIMIT)]


class Records(msgspec.Struct, frozen=True, tag="records"):
    """A part of the answer to `Sync`."""

    envelopes: tuple[bytes, ...]
    yours: int = 0
    """The highest version that the answering node knows of the asking node's records."""


UNKNOWN_QUESTION = "unknown question"
"""The outcome in the answer to a question that the answering release does not know."""


class Ack(msgspec.Struct, frozen=True, tag="ack"):
    """The answer to `Confirm`: `outcome` is a value of ``verdict.Outcome``; or `UNKNOWN_QUESTION`,
    the answer to any question."""

    outcome: str
    reason: str = ""


class Reached(msgspec.Struct, frozen=True, tag="reached"):
    """The answer to `Reach`."""

    reached: Annotated[dict[Name, bool], Meta(max_length=REACH_LIMIT)]
    """By node, whether it is reached; nodes of which that is not known are left out."""


Question: TypeAlias = Sync | Confirm | Reach
Answer: TypeAlias = Records | Ack | Reached
_question_decoder: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)
_answer_decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def encode_message(message: Question | Answer) -> bytes:
    """Return the encoding of a question or an answer."""
    return _encoder.encode(message)


def decode_question(data: bytes) -> Question:
    """Return the question in `data`; DecodeFailure where there is none."""
    try:
        return _question_decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DecodeFailure(f"question: {error}") from error


def decode_answer(data: bytes) -> Answer:
    """Return the answer in `data`; DecodeFailure where there is none."""
    try:
        return _answer_decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DecodeFailure(f"answer: {error}") from error


def parts(envelopes: Iterable[bytes], yours: int = 0) -> list[Records]:
    """Return `envelopes` split into answers that each fit into one message; at least one."""
    answers: list[list[bytes]] = [[]]
    size = 0
    for envelope in envelopes:
        cost = len(envelope) + 5
        if answers[-1] and size + cost > LIMIT + 5:
            answers.append([])
            size = 0
        answers[-1].append(envelope)
        size += cost
    return [Records(tuple(answer), yours) for answer in answers]
