"""From what is known to what each container may see: one pure function.

1. A local attachment counts only if its own record does, with the same service, network and
   address: what other nodes refuse to believe, this one does not open either. Otherwise, or
   without a policy, its view is empty: default deny.
2. Peers are the replicas of services joined to its own by an edge, either way, in the same
   network and on nodes that are alive; never itself. Replicas of its own service are peers
   only if an edge joins the service to itself. Health does not matter: an unhealthy replica
   still dials.
3. Egress and ingress follow from policy alone, so that a replica that comes or goes changes
   no grant. Both name the port that the replica listens on, for that is what the packets
   that reach the filters carry. icmp has port 0; answers are the ruleset's business.
4. Slots exist for each VIP and port that an edge from its own service allows, over the
   healthy replicas of that network, but never to itself: a packet that leaves through the
   filter of eth0 cannot come back in through it.
5. Slots are shared by all local clients of one (network, service), so that hysteresis has one
   memory; a sticky client, or one that would dial itself, derives its own from them.
6. A service without a healthy replica has no slots: its VIP then refuses at once.
   A replica on a suspect node is a peer like any other, with its keys and grants, so that its
   connections go on; but it gets no slots, unless nobody else has any weight. Then dialling it
   is worth a try, and waits as long as TCP repeats its SYN: if the node comes back after a blink
   the connection is made, where a refusal would have made an outage of the blink.
7. What did not change since the last plan is the same object again, so that whoever compares
   looks at what changed only. All clients of one (network, service) have one view, except where
   a view depends on whose it is: among its own peers, or dialling a sticky service.
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
"""The address of a client that is no replica: no slot leads to it, and it sticks to nothing."""


class Local(Protocol):
    """What matters here of an attachment of this node (`netconf.attach.attachment`)."""

    @property
    def id(self) -> str: ...
    @property
    def service(self) -> str: ...
    @property
    def network(self) -> str: ...
    @property
    def address(self) -> str: ...


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What follows, and what the next plan follows from."""

    views: dict[str, Desired] = {}
    """By attachment id; every local attachment has one."""
    slots: dict[Group, Slots] = {}
    """The slots in use."""
    local: dict[str, Local] = {}
    """What was planned for, by attachment id."""
    common: dict[Group, Desired] = {}
    """The view of a client that is nobody in particular (rule 7)."""


NOTHING = Plan()
"""Before the first plan."""


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
    """One run of `plan`: what several attachments share is worked out once."""

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
            last is not EMPTY  # which says nothing of what its group sees
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
        """Return the view of a client that is nobody in particular, the last one if it is equal."""
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
            # What is left of the shared slots has hysteresis already; only where nothing is
            # left (``nearest``, and this is the nearest) the weights are asked again.
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
    """Return a replica as its peers see it; the `last` one if that is still true (rule 7)."""
    if last is not None and last.salts is replica.salts and last.service == service:
        return last
    return Peer(address=replica.address, service=service, salts=replica.salts)
