"""The plan: from policy and records to the sets of each local container. One pure function.

1. A local attachment gets peers and grants only if its own record is eligible, with the same
   service, network and address: other nodes refuse it otherwise, so this one keeps it closed too.
   If not, or without a policy, its view is empty (default deny).
2. Its peers are the replicas of services that an edge joins to its own, in either direction, in
   the same network and on nodes that are not lost; never itself. Replicas of its own service are
   peers only if an edge joins the service to itself. Health does not matter here: an unhealthy
   replica may still dial.
3. Egress and ingress follow from policy alone, so that a replica that comes or goes changes no
   grant. Both name the port that the replica listens on, because the packets at the filters carry
   that port. icmp has port 0. The ruleset itself lets answers pass.
4. There are slots for each VIP and port that an edge from its own service allows, over the healthy
   replicas in its network. They never lead to the client itself: a packet that leaves through the
   filter of eth0 cannot come back in through it.
5. All local clients of one (network, service) share its slots, so that the hysteresis remembers one
   assignment. A sticky client, or one that would dial itself, derives its own from the shared ones.
6. A service without a healthy replica has no slots, so its VIP refuses connections at once.
   A replica on a suspect node stays a peer with its keys and grants, so that its connections go on.
   It gets no slots, unless no other replica has any weight. In that case dialling it waits for as
   long as TCP repeats its SYN. If the node comes back after a short interruption the connection is
   made; with a refusal, the interruption would have become an outage.
7. What did not change since the last plan is the same object again, so that comparing two plans
   costs only what changed. All clients of one (network, service) share one view, except where the
   view depends on the client: if it is among its own peers, or dials a sticky service.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping
from typing import Protocol, TypeAlias

import msgspec

from daemon.model import balance
from daemon.model.balance import Slots
from daemon.model.policy import Edge, Policy, Service
from daemon.model.records import Replica
from netconf.program.desired import EMPTY, Desired, Grant, Peer, Slot, Target

Group: TypeAlias = tuple[str, str]
"""(network, service name): the replicas that one client can dial under one VIP."""


NOBODY = ""
"""Stands for a client without an address, for the view that clients share (rule 7): no slot leads
to it, and it is not sticky."""


class Local(Protocol):
    """The fields of an attachment (`netconf.attach.attachment`) that a plan depends on."""

    @property
    def id(self) -> str: ...
    @property
    def service(self) -> str: ...
    @property
    def network(self) -> str: ...
    @property
    def address(self) -> str: ...


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `plan`, which the next call needs as `previous`."""

    views: dict[str, Desired] = {}
    """By attachment id; every local attachment has one."""
    slots: dict[Group, Slots] = {}
    """The slots in use."""
    local: dict[str, Local] = {}
    """The attachments that were planned for, by id."""
    common: dict[Group, Desired] = {}
    """The view that the clients of a group share (rule 7)."""


NOTHING = Plan()
"""The `previous` plan of the first one."""


def plan(
    policy: Policy | None,
    replicas: Iterable[Replica],
    local: Collection[Local],
    *,
    node: str,
    alive: Container[str],
    suspect: Container[str] = (),
    quality: Mapping[str, float],
    previous: Plan,
) -> Plan:
    """Return the view of each `local` attachment.

    `replicas` are those of ``Store.replicas``, in its order, this `node`'s included; `alive`
    the nodes that are not lost (this node counts as alive in any case); `suspect` those of them
    to which no new connection should go; `quality` that of the path to each node, 0 to 1;
    `previous` the last plan.
    """
    if policy is None:
        return Plan(views={one.id: EMPTY for one in local})
    planner = _Planner(policy, replicas, node, alive, suspect, quality, previous)
    return Plan(
        views={one.id: planner.view(one) for one in local},
        slots=planner.slots,
        local={one.id: one for one in local},
        common=planner.commons,
    )


class _Planner:
    """One run of `plan`, which works out once what several attachments share."""

    def __init__(
        self,
        policy: Policy,
        replicas: Iterable[Replica],
        node: str,
        alive: Container[str],
        suspect: Container[str],
        quality: Mapping[str, float],
        previous: Plan,
    ) -> None:
        self.policy = policy
        self.node = node
        self.suspect = suspect
        self.quality = quality
        self.previous = previous
        self.slots: dict[Group, Slots] = {}
        self.commons: dict[Group, Desired] = {}
        self.groups: dict[Group, list[Replica]] = {}
        self.own: dict[str, Replica] = {}
        for replica in replicas:
            if replica.node == node:
                self.own[replica.attachment] = replica
            elif replica.node not in alive:
                continue
            self.groups.setdefault((replica.network, replica.service), []).append(replica)

    def view(self, local: Local) -> Desired:
        service = self.policy.services.get(local.service)
        said = self.own.get(local.id)
        if service is None or said is None or said.address != local.address:
            return EMPTY
        group = (local.network, local.service)
        if group != (said.network, said.service):
            return EMPTY
        common = self.common(group, service)
        before = self.previous
        last = before.views.get(local.id, EMPTY)
        if (
            last is not EMPTY  # which an attachment has whatever its group's view is
            and before.local.get(local.id) == local
            and before.common.get(group) is common
        ):
            return last
        outgoing = self.policy.outgoing.get(service.id, ())
        if local.address not in common.peers and not any(
            self.policy.by_id[edge.to].sticky for edge in outgoing
        ):
            return common
        made = Desired(
            peers={a: peer for a, peer in common.peers.items() if a != local.address},
            egress=common.egress,
            ingress=common.ingress,
            slots=self.slots_of(outgoing, local.network, local.address),
        )
        return last if last == made else made

    def common(self, group: Group, service: Service) -> Desired:
        """Return the view that the clients of a group share; the last plan's object if equal."""
        if group not in self.commons:
            made = self.view_of(group[0], service)
            last = self.previous.common.get(group)
            self.commons[group] = last if last is not None and last == made else made
        return self.commons[group]

    def view_of(self, network: str, service: Service) -> Desired:
        """Return what any replica of `service` may see (rules 2 to 4)."""
        outgoing = self.policy.outgoing.get(service.id, ())
        incoming = self.policy.incoming.get(service.id, ())
        last = self.previous.common.get((network, service.name), EMPTY).peers
        return Desired(
            peers={
                replica.address: _peer(replica, number, last.get(replica.address))
                for number in sorted(self.policy.neighbours(service.id))
                for replica in self.groups.get((network, self.policy.by_id[number].name), ())
            },
            egress=frozenset(g for edge in outgoing for g in self.grants(edge, edge.to)),
            ingress=frozenset(g for edge in incoming for g in self.grants(edge, edge.source)),
            slots=self.slots_of(outgoing, network, NOBODY),
        )

    def grants(self, edge: Edge, peer: int) -> list[Grant]:
        """Return the grants of an `edge` as seen by the end whose other end is `peer`."""
        to = self.policy.by_id[edge.to]
        return [(peer, dial[0], to.target(dial)) for dial in edge.ports]

    def slots_of(self, outgoing: Iterable[Edge], network: str, client: str) -> dict[Slot, Target]:
        """Return the load-balancing map of the client with this address (rules 4 to 6)."""
        found: dict[Slot, Target] = {}
        for edge in outgoing:
            to = self.policy.by_id[edge.to]
            chosen = self.chosen(to, network, client)
            for dial in edge.ports:
                if dial[1]:
                    for number, address in enumerate(chosen):
                        found[to.vip, dial[0], dial[1], number] = (address, to.target(dial))
        return found

    def chosen(self, to: Service, network: str, client: str) -> Slots:
        """Return the slots of one client."""
        group = (network, to.name)
        shared = self.shared(group, to)
        if client in shared:
            # Weigh the other replicas by the shared slots they have, which hysteresis has settled.
            # If none has any (``nearest``, and the client itself is nearest), weigh them anew.
            left: dict[str, float] = dict(Counter(a for a in shared if a != client))
            others = [r for r in self.groups[group] if r.address != client]
            weights = left or self.weights(to, others, shared)
            shared = balance.slots(weights, shared, self.node)
        if to.sticky and client != NOBODY:
            return balance.stick(shared, client)
        return shared

    def shared(self, group: Group, to: Service) -> Slots:
        """Return the slots of a `group`, the same for all clients on this node (rule 5)."""
        if group not in self.slots:
            before = self.previous.slots.get(group, ())
            replicas = self.groups.get(group, ())
            weights = self.weights(to, replicas, before)
            self.slots[group] = balance.settle(weights, before, self.node)
        return self.slots[group]

    def weights(
        self, to: Service, replicas: Collection[Replica], before: Slots
    ) -> dict[str, float]:
        """Return the weights of `replicas`, those on suspect nodes only if there are no others."""
        trusted = [one for one in replicas if one.node == self.node or one.node not in self.suspect]
        return balance.weights(to, trusted, self.node, self.quality, before) or balance.weights(
            to, replicas, self.node, self.quality, before
        )


def _peer(replica: Replica, service: int, last: Peer | None) -> Peer:
    """Return a replica as a `Peer`; the object of the `last` plan if it is unchanged (rule 7)."""
    if last is not None and last.salts is replica.salts and last.service == service:
        return last
    return Peer(address=replica.address, service=service, salts=replica.salts)
