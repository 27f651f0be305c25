"""The shapes of what the API is asked and answers; answers are also what ``--json`` prints.

What an ADD, DEL or CHECK is asked with is `netconf.attach.attachment.AttachRequest`.

Whoever speaks may be of the release before or after: what is not known is ignored, and what may
not be ignored is named in `requires` (docs/design.md, "Releases side by side"). So a field that is
added here has a default.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from netconf.attach.attachment import HostInterface

# --- requests, and the one answer that a runtime needs


class AttachAnswer(msgspec.Struct, kw_only=True):
    """What the executable needs to write a CNI result."""

    addresses: list[str]
    """In CIDR notation, IPv4 first."""
    routes: list[str]
    """Networks that lead to the interface, in CIDR notation."""
    mac: str
    mtu: int
    nameserver: str
    """Where in its own namespace the container asks for names."""
    service: str
    host: list[HostInterface]
    """What was made on the node."""


class Valid(msgspec.Struct):
    """One attachment that a runtime still wants (CNI 1.1.0, ``cni.dev/valid-attachments``)."""

    container: str = msgspec.field(name="containerID")
    ifname: str = msgspec.field(name="ifname")


class GCRequest(msgspec.Struct):
    """All attachments of one network that a runtime still wants; others *of its own* may go."""

    network: str
    valid: list[Valid]
    runtime: str = ""
    requires: tuple[str, ...] = ()
    """As in `AttachRequest`."""


class ReadyRequest(msgspec.Struct):
    """What an ADD would need."""

    key_file: str


class PolicyRequest(msgspec.Struct):
    """A signed policy record, base64."""

    envelope: str


# --- what a person asks for


class NodeStatus(msgspec.Struct, kw_only=True):
    """One node, as this node sees it."""

    node: str
    alive: bool
    """Its daemon's token is present."""
    lost: bool
    """Nothing is heard of it, and a second witness agrees: its replicas are in no map."""
    slice: str
    mtu: int
    quality: float
    """Of the mesh path from here, 0–1; 1 for this node itself."""
    via: str
    """The node that is the next hop on the mesh; "" for this node or where none is known."""
    ula: str = ""
    """The IPv6 network it was told; all nodes must have been told the same."""
    certificate_until: str = ""
    """When its certificate, or that of a CA above it, ends (ISO 8601, UTC)."""
    suspect: bool = False
    """Nothing is heard of it: its replicas keep their connections and get no new ones. Without
    a token and neither suspect nor lost, a node forwards without its daemon."""


class PortStatus(msgspec.Struct, kw_only=True):
    """One port of a service: what a client dials and where the replica listens."""

    protocol: str
    port: int
    target: int


class ServiceStatus(msgspec.Struct, kw_only=True):
    """One service of the policy in force."""

    name: str
    id: int
    vip: str
    vip6: str = ""
    """Its IPv6 VIP; "" without an IPv6 network."""
    ports: list[PortStatus]
    replicas: list[str]
    """Addresses of the replicas that count, in order."""
    slots: dict[str, int]
    """Slots of 64 that each address has in this node's balancing; empty without replicas."""
    closed: str = ""
    """Why this node opens nothing to or from it; "" where it does what policy says."""


class ReplicaStatus(msgspec.Struct, kw_only=True):
    """One replica known here."""

    attachment: str
    node: str
    service: str
    network: str
    address: str
    address6: str = ""
    """Its IPv6 address; "" without an IPv6 network."""
    mac: str
    refused: str
    """Why this replica's record does not count; "" when it does."""


class DenialStatus(msgspec.Struct, kw_only=True):
    """Packets that one local replica's ACL refused."""

    attachment: str
    service: str
    direction: str
    """``out`` (refused at the source) or ``in`` (refused at the destination)."""
    peer: str
    protocol: str
    port: int
    packets: int


class Counters(msgspec.Struct, kw_only=True):
    """What was refused, and where."""

    plaintext: int
    """Host filter: frames of a container that were not encrypted MACsec."""
    foreign: int
    """Host filter: frames with a MAC that is not the container's own."""
    forbidden: int
    """Host filter: frames between two MACs that no edge joins."""
    denied: list[DenialStatus]
    records: dict[str, int]
    """Fabric records refused, by reason."""
    peers: dict[str, dict[str, int]] = {}
    """The same by node whose records they claim to be, then by reason: who is in trouble, or
    makes it."""


class PolicyStatus(msgspec.Struct, kw_only=True):
    """The policy in force; times are CLOCK_MONOTONIC nanoseconds of this machine."""

    version: int
    received_ns: int
    programmed_ns: int
    """When every local set agreed with it; 0 while not yet."""


class Status(msgspec.Struct, kw_only=True):
    """``GET /v1/status``."""

    node: str
    cluster: str
    version: str
    ready: bool
    """The mesh is up and attachments are adopted: ADD is served."""
    algorithm: str
    mtu: int
    """Payload bytes of the mesh path; a container's device has 24 less."""
    mesh: list[str] = []
    """What is wrong with the mesh's links now and needs time or a person, in sentences."""
    policy: PolicyStatus | None
    nodes: list[NodeStatus]
    services: list[ServiceStatus]
    replicas: list[ReplicaStatus]
    counters: Counters
    trouble: dict[str, str] = {}
    """What keeps local replicas from being programmed, by attachment."""


class Verification(msgspec.Struct, kw_only=True):
    """``GET /v1/verify``: where the kernel differs from the plan, one sentence each."""

    node: str
    attachments: int
    differences: list[str]
    outdated: list[str] = []
    """What only a new attachment mends: containers that an older version or another
    configuration made."""


class PolicyState(msgspec.Struct, kw_only=True):
    """``GET /v1/policy``: what a signer needs to make the next version."""

    cluster: str
    vips: str
    version: int
    """Of the policy in force; 0 without one."""
    envelope: str
    """The signed record in force, base64; "" without one."""


Reached = Literal["live", "accepted", "stale", "refused", "unreachable"]
"""How far a policy got at a node: its kernel agrees; the daemon believes it, and the kernel does
not agree yet; the daemon holds another version that wins; the daemon does not believe it; nobody
answered."""


class NodeOutcome(msgspec.Struct, kw_only=True):
    """How far a policy got at one node."""

    node: str
    outcome: Reached
    ms: float | None = None
    """Milliseconds until the node's kernel sets agreed, as measured here; of ``live`` only."""
    reason: str = ""
    """Of every other outcome, in words."""


class PolicyApplied(msgspec.Struct, kw_only=True):
    """``POST /v1/policy``: where the new version is live by now.

    With ``?wait=0`` it is published and nobody is asked: `live`, `silent` and `nodes` are empty.
    """

    version: int
    live: dict[str, float]
    """Milliseconds until the node's kernel sets agreed, as measured here."""
    silent: list[str]
    """All other nodes of the cluster, whatever the reason."""
    nodes: list[NodeOutcome] = []
    """Every node of the cluster, by name; empty from a daemon of 0.1.0."""
