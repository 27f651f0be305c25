"""The policy in the form that is signed: with the ids and VIPs of services, and resolved edges.

1. A service keeps its id and VIP from one policy to the next, whatever the order in the file.
2. A new service gets the lowest id, and the lowest VIP of the pool, that is neither in use
   nor resting.
3. The id and VIP of a removed service rest: a later service of the same name gets them back,
   and another service only when more than `RESTING` services were removed after it. So a client
   that still knows the old VIP, or a node that still has the old policy, does not reach another
   service there.
4. When the pool has no free VIP left, the one that has rested longest is given out.
5. A ``vip`` in the file wins over everything: another service that had it gets a new one, and in
   that version not one that some service has just given up.
6. A VIP that is no longer in the pool is replaced.
7. Edges with the same two ends are one edge with all their ports.

A policy of a later release (docs/design.md, "Releases side by side"):
8. A strategy that is not known here counts as ``link``, because a strategy only chooses among
   replicas and gives no right. A port whose protocol is not known here is dialled by nobody here.
9. A service that a later release restricts in a new way is listed in `guarded`, and neither it nor
   its edges are in `services` and `edges`. So a release that does not know the restriction opens
   nothing for it. This release knows none of the features that a service may require, so every
   guarded service is closed here, and only that service.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network

import msgspec

from daemon.model.policy_file import FILE, PROTOCOLS, Dial, Document, Port, parse
from netconf.errors import AddressesExhausted, InvalidConfig

__all__ = ["RESTING", "Edge", "Policy", "Port", "Rested", "Service", "compile", "parse"]

RESTING = 256
"""How many removed services are remembered: at most about 12 KiB of the record, and enough for
years of removals."""


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """One service."""

    id: int
    """1 and up; the mark that stands for the service in every ruleset."""
    name: str
    vip: str
    ports: tuple[Port, ...] = ()
    strategy: str = "link"
    weights: dict[str, float] = {}
    """Desired weight by node; 1 for a node that is not named."""
    sticky: bool = False
    nodes: tuple[str, ...] | None = None
    """The nodes that may host it; None for all."""

    def target(self, dial: Dial) -> int:
        """Return the port that replicas listen on for `dial`; 0 for icmp."""
        for port in self.ports:
            if (port.protocol, port.port) == dial:
                return port.target
        return 0


class Edge(msgspec.Struct, frozen=True, array_like=True):
    """`source` may dial `ports` of `to`; both are service ids."""

    source: int
    to: int
    ports: tuple[Dial, ...]


class Rested(msgspec.Struct, frozen=True, array_like=True):
    """A removed service."""

    name: str
    id: int
    vip: str


class Guarded(msgspec.Struct, frozen=True, kw_only=True):
    """A service with a restriction that not every release knows (rule 9).

    Its ports and edges are in fields that only releases read which know what it requires.
    """

    id: int
    name: str
    vip: str
    requires: tuple[str, ...]
    """What a release must know to serve it, by the names of features."""


class Policy(msgspec.Struct, frozen=True, kw_only=True, tag="policy", dict=True):
    """The body of the policy record."""

    version: int
    vips: str
    """The pool of VIPs, as CIDR."""
    services: dict[str, Service]
    edges: tuple[Edge, ...] = ()
    nodes: dict[str, str] | None = None
    """Slice (CIDR) by node, where policy pins who the nodes are."""
    resting: tuple[Rested, ...] = ()
    """Removed services, the longest removed first."""
    guarded: tuple[Guarded, ...] = ()

    @cached_property
    def closed(self) -> dict[str, str]:
        """By name of each service that only later releases can serve: why it is closed here."""
        return {
            one.name: f"policy requires {', '.join(one.requires) or 'a later release'} for "
            f'"{one.name}", which this release does not know; upgrade noctule on this node'
            for one in self.guarded
        }

    def names(self, service: str) -> bool:
        """Tell whether there is a `service` of this name, closed or not."""
        return service in self.services or service in self.closed

    @cached_property
    def by_id(self) -> dict[int, Service]:
        """The services by their ids."""
        return {service.id: service for service in self.services.values()}

    @cached_property
    def outgoing(self) -> dict[int, tuple[Edge, ...]]:
        """What each service may dial: its edges by the id of the dialling service."""
        return self._group(lambda edge: edge.source)

    @cached_property
    def incoming(self) -> dict[int, tuple[Edge, ...]]:
        """Who may dial each service: its edges by the id of the dialled service."""
        return self._group(lambda edge: edge.to)

    @cached_property
    def _dialled(self) -> tuple[Edge, ...]:
        """The edges with those ports that this release can open (rule 8)."""
        known = {*PROTOCOLS, "icmp"}
        found = []
        for edge in self.edges:
            ports = tuple(dial for dial in edge.ports if dial[0] in known)
            if ports:
                found.append(
                    edge if len(ports) == len(edge.ports) else Edge(edge.source, edge.to, ports)
                )
        return tuple(found)

    def _group(self, end: Callable[[Edge], int]) -> dict[int, tuple[Edge, ...]]:
        groups: dict[int, list[Edge]] = {}
        for edge in self._dialled:
            groups.setdefault(end(edge), []).append(edge)
        return {service: tuple(edges) for service, edges in groups.items()}

    def neighbours(self, service: int) -> frozenset[int]:
        """Return the ids of the services joined to `service` by an edge, either way.

        `service` itself is among them only if an edge joins it to itself.
        """
        return frozenset(
            [edge.to for edge in self.outgoing.get(service, ())]
            + [edge.source for edge in self.incoming.get(service, ())]
        )

    def may_host(self, service: str, node: str) -> bool:
        """Tell whether policy lets `node` host replicas of `service`."""
        known = self.services.get(service)
        if known is None or (self.nodes is not None and node not in self.nodes):
            return False
        return known.nodes is None or node in known.nodes


def compile(document: Document, previous: Policy | None, vips: IPv4Network, version: int) -> Policy:
    """Resolve a `document` into the policy that follows `previous`.

    `vips` is the pool of ``addresses.vips``, `version` that of the record to be signed.
    Raises InvalidConfig for a VIP outside the pool, for a slice that overlaps with it, and for a
    `previous` policy that says more than this release can repeat; AddressesExhausted when the
    pool is too small.
    """
    if previous is not None and previous.closed:
        raise InvalidConfig(
            f"{FILE}: services.{min(previous.closed)}: the policy in force was signed by a later "
            "release and restricts it as this one cannot say; sign with that release"
        )
    _check_pool(document, vips)
    ids, addresses, resting = _carry_over(document, previous, vips)
    taken_ids = {*ids.values(), *(rested.id for rested in resting)}
    free_ids = (number for number in range(1, 2**31) if number not in taken_ids)
    rested_vips = [rested.vip for rested in resting]
    former_vips = [service.vip for service in previous.services.values()] if previous else []
    free_vips = _free_vips(vips, set(addresses.values()), [*rested_vips, *former_vips])
    services: dict[str, Service] = {}
    for name, text in document.services.items():
        if name not in addresses:
            vip = next(free_vips, None)
            if vip is None:
                raise AddressesExhausted(
                    f"{FILE}: services.{name}: no VIP is free in {vips}; "
                    "widen addresses.vips in every node.yaml"
                )
            addresses[name] = vip
        services[name] = Service(
            id=ids[name] if name in ids else next(free_ids),
            name=name,
            vip=addresses[name],
            ports=text.ports,
            strategy=text.balance.strategy,
            weights=text.balance.weights,
            sticky=text.balance.sticky,
            nodes=text.nodes,
        )
    given = set(addresses.values())
    return Policy(
        version=version,
        vips=str(vips),
        services=services,
        edges=_edges(document, services),
        nodes=document.nodes,
        resting=tuple(rested for rested in resting if rested.vip not in given),
    )


def _check_pool(document: Document, vips: IPv4Network) -> None:
    for name, text in document.services.items():
        if text.vip is not None and not _usable(text.vip, vips):
            raise InvalidConfig(
                f"{FILE}: services.{name}.vip: {text.vip} is not a host of the pool {vips}; "
                "choose one from it, or leave it out"
            )
    for name, slice in (document.nodes or {}).items():
        if IPv4Network(slice).overlaps(vips):
            raise InvalidConfig(
                f"{FILE}: nodes.{name}.slice: {slice} overlaps with the VIPs {vips}; "
                "choose a slice outside addresses.vips"
            )


def _usable(address: str, pool: IPv4Network) -> bool:
    ends = (pool.network_address, pool.broadcast_address) if pool.prefixlen < 31 else ()
    return IPv4Address(address) in pool and IPv4Address(address) not in ends


def _carry_over(
    document: Document, previous: Policy | None, vips: IPv4Network
) -> tuple[dict[str, int], dict[str, str], tuple[Rested, ...]]:
    """Return the ids and VIPs that services keep, and the services that rest (rules 1, 3, 5, 6)."""
    known: dict[str, Rested] = {}
    if previous is not None:
        known = {rested.name: rested for rested in previous.resting}
        known |= {s.name: Rested(s.name, s.id, s.vip) for s in previous.services.values()}
    wanted = document.services
    ids = {name: known[name].id for name in wanted if name in known}
    addresses = {name: text.vip for name, text in wanted.items() if text.vip is not None}
    fixed = set(addresses.values())
    for name in wanted:
        if name in known and name not in addresses:
            vip = known[name].vip
            if vip not in fixed and _usable(vip, vips):
                addresses[name] = vip
    resting = [rested for name, rested in known.items() if name not in wanted]
    return ids, addresses, tuple(resting[-RESTING:])


def _free_vips(pool: IPv4Network, used: Container[str], last: Iterable[str]) -> Iterator[str]:
    """Yield VIPs to give out: the lowest free ones, and those of `last` only after all."""
    rested = [vip for vip in dict.fromkeys(last) if vip not in used and _usable(vip, pool)]
    known = frozenset(rested)
    for address in pool.hosts():
        if str(address) not in used and str(address) not in known:
            yield str(address)
    yield from rested


def _edges(document: Document, services: dict[str, Service]) -> tuple[Edge, ...]:
    ports: dict[tuple[int, int], dict[Dial, None]] = {}
    for allow in document.allow:
        ends = (services[allow.source].id, services[allow.to].id)
        ports.setdefault(ends, {}).update(dict.fromkeys(allow.ports))
    return tuple(Edge(*ends, tuple(sorted(ports[ends]))) for ends in sorted(ports))
