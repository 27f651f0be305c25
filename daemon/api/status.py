"""Putting together what ``status`` tells: pure assembly over what the parts already know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from daemon.api.messages import (
    Counters,
    DenialStatus,
    NodeStatus,
    PolicyStatus,
    PortStatus,
    ReplicaStatus,
    ServiceStatus,
    Status,
)
from daemon.model.store import Outcome
from netconf import names
from netconf.attach.attachment import Attachment
from netconf.errors import NoctuleError
from netconf.namespace import Namespace
from netconf.nft import host, ruleset

if TYPE_CHECKING:
    from daemon.node import Node

VERSION = "0.1.0"
HARMLESS = (Outcome.ACCEPTED, Outcome.KNOWN, Outcome.STALE, Outcome.UNKNOWN_SIGNER)
"""What becomes of records in the course of things; the rest was refused."""


def counters(attachments: Iterable[Attachment], records: Mapping[str, int]) -> Counters:
    """Read what was refused; to be called in a worker thread.

    `records` are offers by outcome; a namespace that is gone meanwhile has no denials.
    """
    denied: list[DenialStatus] = []
    for attachment in attachments:
        try:
            with Namespace.open(attachment.netns) as namespace:
                found = ruleset.denials(namespace)
        except NoctuleError:
            continue
        denied.extend(
            DenialStatus(
                attachment=attachment.id,
                service=attachment.service,
                direction=denial.direction,
                peer=denial.peer,
                protocol=denial.protocol,
                port=denial.port,
                packets=denial.packets,
            )
            for denial in found
        )
    filtered = host.counters()
    return Counters(
        plaintext=filtered.plaintext,
        foreign=filtered.foreign,
        forbidden=filtered.forbidden,
        denied=denied,
        records={
            str(outcome): count
            for outcome, count in sorted(records.items())
            if outcome not in HARMLESS
        },
    )


def status(node: Node, counted: Counters) -> Status:
    """Return the status of `node`; `counted` was read before."""
    policy = node.store.policy()
    return Status(
        node=node.config.node,
        cluster=node.config.cluster,
        version=VERSION,
        ready=node.ready,
        algorithm=node.config.mesh.algorithm,
        mtu=node.links.facts.mtu,
        policy=PolicyStatus(
            version=policy.version,
            received_ns=node.ruling.received_ns,
            programmed_ns=node.ruling.programmed_ns,
        )
        if policy
        else None,
        nodes=_nodes(node),
        services=_services(node),
        replicas=_replicas(node),
        counters=counted,
    )


def _nodes(node: Node) -> list[NodeStatus]:
    infos = node.membership.infos()
    quality = node.links.quality()
    via = node.links.via()
    return [
        NodeStatus(
            node=name,
            alive=name in node.liveness.alive,
            lost=name in node.liveness.lost,
            slice=info.slice,
            mtu=info.mtu,
            quality=1.0 if name == node.config.node else quality.get(name, 0.0),
            via=via.get(name, ""),
            ula=info.ula,
        )
        for name, info in infos.items()
    ]


def _services(node: Node) -> list[ServiceStatus]:
    policy = node.store.policy()
    if policy is None:
        return []
    replicas = [r for r in node.store.replicas() if r.node not in node.liveness.lost]
    slots: dict[str, Counter[str]] = {}
    for (_, service), addresses in node.slots().items():
        slots.setdefault(service, Counter()).update(addresses)
    return [
        ServiceStatus(
            name=service.name,
            id=service.id,
            vip=service.vip,
            vip6=_six(node, service.vip),
            ports=[
                PortStatus(protocol=p.protocol, port=p.port, target=p.target) for p in service.ports
            ],
            replicas=[r.address for r in replicas if r.service == service.name],
            slots=dict(sorted(slots.get(service.name, Counter()).items())),
        )
        for service in policy.services.values()
    ]


def _six(node: Node, address: str) -> str:
    ula = node.config.addresses.ula
    return names.address6_of(address, ula) if ula else ""


def _replicas(node: Node) -> list[ReplicaStatus]:
    keys = node.store.keys
    refused = {refusal.key: refusal.reason for refusal in node.store.refusals()}
    return [
        ReplicaStatus(
            attachment=replica.attachment,
            node=replica.node,
            service=replica.service,
            network=replica.network,
            address=replica.address,
            address6=_six(node, replica.address),
            mac=names.mac_of(replica.address),
            refused=refused.get(keys.replica(replica.node, replica.attachment), "")
            or ("its node is lost" if replica.node in node.liveness.lost else ""),
        )
        for replica in node.store.held_replicas()
    ]
