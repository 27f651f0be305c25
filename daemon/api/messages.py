"""The requests and answers of the API; ``noctulectl --json`` prints the answers as they are.

The request of ADD, DEL and CHECK is `netconf.attach.attachment.AttachRequest`.

The other side may be of the release before or after. A field that the receiver does not know is
ignored; a request names those that may not be ignored in `requires` (docs/design.md, "Releases
side by side"). So a field that is added here has a default.
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
    """Networks that are routed to the interface, in CIDR notation."""
    mac: str
    mtu: int
    nameserver: str
    """IPv4 address of the container's name server, inside the container's own namespace."""
    service: str
    host: list[HostInterface]
    """The interfaces that were made on the node."""


class Valid(msgspec.Struct):
    """One attachment that a runtime still wants (CNI 1.1.0, ``cni.dev/valid-attachments``)."""

    container: str = msgspec.field(name="containerID")
    ifname: str = msgspec.field(name="ifname")


class GCRequest(msgspec.Struct):
    """GC: all attachments of `network` that `runtime` made are removed, except the `valid` ones."""

    network: str
    valid: list[Valid]
    runtime: str = ""
    requires: tuple[str, ...] = ()
    """As in `AttachRequest`."""


class ReadyRequest(msgspec.Struct):
    """STATUS: whether an ADD with this secret would work."""

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
    """Its ``addresses.ula`` (CIDR), which must be the same on all nodes."""
    certificate_until: str = ""
    """When its certificate, or that of a CA above it, ends (ISO 8601, UTC)."""
    suspect: bool = False
    """Nothing is heard of it: its replicas keep their connections and get no new ones. A node that
    is not `alive`, but neither suspect nor lost, forwards without its daemon."""


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
    """How many packets, frames and records were refused, and where."""

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
    """Fabric records refused, by the node whose records they claim to be, then by reason. That node
    has a fault, or somebody sends bad records in its name."""


class PolicyStatus(msgspec.Struct, kw_only=True):
    """The policy in force; times are CLOCK_MONOTONIC nanoseconds of this machine."""

    version: int
    received_ns: int
    programmed_ns: int
    """When the kernel of this node agreed with it for all attachments; 0 until then."""


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
    """Sentences about what is wrong with the mesh's links now and was not mended at once."""
    policy: PolicyStatus | None
    nodes: list[NodeStatus]
    services: list[ServiceStatus]
    replicas: list[ReplicaStatus]
    counters: Counters
    trouble: dict[str, str] = {}
    """Why local replicas could not be programmed into the kernel, by attachment id."""


class Verification(msgspec.Struct, kw_only=True):
    """``GET /v1/verify``: where the kernel differs from the plan, one sentence each."""

    node: str
    attachments: int
    differences: list[str]
    outdated: list[str] = []
    """Sentences about containers made by an older version or under another configuration, which
    only recreating them mends."""


class PolicyState(msgspec.Struct, kw_only=True):
    """``GET /v1/policy``: what a signer needs to make the next version."""

    cluster: str
    vips: str
    version: int
    """Of the policy in force; 0 without one."""
    envelope: str
    """The signed record in force, base64; "" without one."""


Reached = Literal["live", "accepted", "stale", "refused", "unreachable"]
"""How far a policy got at a node. ``live``: its kernel agrees. ``accepted``: its daemon accepted
the record, but the kernel does not agree yet. ``stale``: its daemon holds a version that wins.
``refused``: its daemon refused the record. ``unreachable``: nobody answered."""


class NodeOutcome(msgspec.Struct, kw_only=True):
    """How far a policy got at one node."""

    node: str
    outcome: Reached
    ms: float | None = None
    """Milliseconds until the node's kernel agreed, as measured here; only for ``live``."""
    reason: str = ""
    """Why, in words, for every outcome but ``live``."""


class PolicyApplied(msgspec.Struct, kw_only=True):
    """``POST /v1/policy``: where the new version is live by now.

    With ``?wait=0`` it is published and no node is asked: `live`, `silent` and `nodes` are empty.
    """

    version: int
    live: dict[str, float]
    """By node: milliseconds until its kernel agreed, as measured here."""
    silent: list[str]
    """All other nodes of the cluster, whatever the reason (`nodes` says which)."""
    nodes: list[NodeOutcome] = []
    """Every node of the cluster, by name; empty from a daemon of 0.1.0."""
