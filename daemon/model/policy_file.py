"""Reads and checks ``policy.yaml``, and says what is wrong with it.

1. A document has ``services``, optionally ``allow`` and ``nodes``; unknown keys are errors.
2. A key written twice is an error.
3. ``target`` is by default the same as ``port``; (protocol, port) is unique in a service.
4. ``nodes`` of a service, when absent, means that every node may host it.
5. ``allow`` without ``ports`` means every port that the service ``to`` declares, not icmp.
6. With a top-level ``nodes``, a node that is not listed there is not in the cluster.
7. Every message is ``policy.yaml: <path>: <what is wrong>; <what to do>``.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import Any, NoReturn, TypeAlias

import msgspec

from daemon.naming import LABEL_MAX, NAME, carried
from daemon.yamlfile import load
from netconf.errors import InvalidConfig

FILE = "policy.yaml"
MAX_WEIGHT = 1_000_000.0
"""Far more than anyone needs, and small enough that sums of weights keep a float's precision."""

PROTOCOLS = ("tcp", "udp")
STRATEGIES = ("link", "weighted", "nearest")
_EDGE_PORT = re.compile(r"(tcp|udp)/([0-9]{1,5})")

Dial: TypeAlias = tuple[str, int]
"""What a client dials: (``tcp`` or ``udp``, port), or (``icmp``, 0)."""


class Port(msgspec.Struct, frozen=True, array_like=True):
    """A port of a service's VIP, and the port its replicas listen on."""

    protocol: str
    port: int
    target: int


class Balance(msgspec.Struct, frozen=True):
    """How a client's connections are shared out among a service's replicas."""

    strategy: str = "link"
    weights: dict[str, float] = {}
    """Desired weight by node, 1 for nodes not named, 0 to send a node nothing new."""
    sticky: bool = False
    """``sticky: client``: one client replica always dials the same replica."""


class ServiceText(msgspec.Struct, frozen=True):
    """One entry of ``services``."""

    ports: tuple[Port, ...] = ()
    balance: Balance = Balance()
    nodes: tuple[str, ...] | None = None
    vip: str | None = None


class AllowText(msgspec.Struct, frozen=True):
    """One entry of ``allow``; `ports` is resolved and never empty."""

    source: str
    to: str
    ports: tuple[Dial, ...]


class Document(msgspec.Struct, frozen=True):
    """A whole ``policy.yaml``, checked for consistency."""

    services: dict[str, ServiceText]
    allow: tuple[AllowText, ...] = ()
    nodes: dict[str, str] | None = None
    """Slice (CIDR) by node, where the policy pins who the nodes are."""


class _Top(msgspec.Struct, forbid_unknown_fields=True):
    """The top level only; below it `_Field` reads values, because it can name their path."""

    services: dict[Any, Any]
    allow: list[Any] = []
    nodes: dict[Any, Any] | None = None


def parse(text: str) -> Document:
    """Read a ``policy.yaml``.

    Raises DecodeFailure (line and column) where it is not YAML, and InvalidConfig (path,
    problem and fix) where it is not a policy.
    """
    top = load(text, FILE, _Top)
    nodes = None if top.nodes is None else _nodes(_Field("nodes", top.nodes))
    members = _Field("services", top.services).named("service")
    services = {name: _service(field, nodes) for name, field in members}
    _resolvable(services)
    _unique_vips(services)
    allow = tuple(_allow(field, services) for field in _Field("allow", top.allow).items())
    return Document(services=services, allow=allow, nodes=nodes)


# --- the parts of a document


def _nodes(field: _Field) -> dict[str, str]:
    slices: dict[str, IPv4Network] = {}
    for name, member in field.named("node"):
        cidr = member.fields("slice").get("slice")
        if cidr is None:
            member.fail("has no slice; write {slice: 10.64.16.0/20}")
        network = cidr.network()
        for other, taken in slices.items():
            if network.overlaps(taken):
                cidr.fail(f"{network} overlaps with {taken} of {other}; give each its own")
        slices[name] = network
    return {name: str(network) for name, network in slices.items()}


def _service(field: _Field, nodes: Mapping[str, str] | None) -> ServiceText:
    parts = field.fields("ports", "balance", "nodes", "vip")
    hosts = _hosts(parts["nodes"], nodes) if "nodes" in parts else None
    known = hosts if hosts is not None else (tuple(nodes) if nodes is not None else None)
    return ServiceText(
        ports=_ports(parts["ports"]) if "ports" in parts else (),
        balance=_balance(parts["balance"], known) if "balance" in parts else Balance(),
        nodes=hosts,
        vip=str(parts["vip"].address()) if "vip" in parts else None,
    )


def _hosts(field: _Field, nodes: Mapping[str, str] | None) -> tuple[str, ...]:
    names: list[str] = []
    for item in field.items():
        name = item.name("node")
        if name in names:
            item.fail(f'node "{name}" is listed twice; remove one')
        if nodes is not None and name not in nodes:
            item.fail(f'there is no node "{name}"{_hint(name, nodes)}; list it under nodes')
        names.append(name)
    if not names:
        field.fail("is empty, so nothing may host it; name nodes, or leave it out for all")
    return tuple(names)


def _ports(field: _Field) -> tuple[Port, ...]:
    ports: list[Port] = []
    for item in field.items():
        parts = item.fields("protocol", "port", "target")
        for needed in ("protocol", "port"):
            if needed not in parts:
                item.fail(f"has no {needed}; write {{protocol: tcp, port: 80}}")
        port = parts["port"].port()
        target = parts["target"].port() if "target" in parts else port
        made = Port(parts["protocol"].one_of(PROTOCOLS), port, target)
        if any((p.protocol, p.port) == (made.protocol, made.port) for p in ports):
            item.fail(f"{made.protocol}/{port} is declared twice; remove one")
        ports.append(made)
    return tuple(ports)


def _balance(field: _Field, hosts: Sequence[str] | None) -> Balance:
    parts = field.fields("strategy", "weights", "sticky")
    weights: dict[str, float] = {}
    for name, member in parts["weights"].named("node") if "weights" in parts else ():
        if hosts is not None and name not in hosts:
            member.fail(f'"{name}" may not host this service{_hint(name, hosts)}; remove it')
        weights[name] = member.weight()
    if "sticky" in parts:
        parts["sticky"].one_of(("client",))
    strategy = parts["strategy"].one_of(STRATEGIES) if "strategy" in parts else "link"
    return Balance(strategy=strategy, weights=weights, sticky="sticky" in parts)


def _resolvable(services: Iterable[str]) -> None:
    """Fail for a name that DNS cannot carry, or cannot tell from another one, because services are
    looked up by name (RFC 1035 section 2.3.4, RFC 4343)."""
    owners: dict[str, str] = {}
    for name in services:
        if not carried(name):
            _fail(
                f"services.{name}",
                f"cannot be looked up: DNS wants 1 to {LABEL_MAX} characters before, between and "
                "after dots; choose another name",
            )
        other = owners.setdefault(name.lower(), name)
        if other != name:
            _fail(
                f"services.{name}",
                f"differs from {other} in capitals only, which DNS does not tell apart; rename one",
            )


def _unique_vips(services: Mapping[str, ServiceText]) -> None:
    owners: dict[str, str] = {}
    for name, service in services.items():
        if service.vip is None:
            continue
        if service.vip in owners:
            other = owners[service.vip]
            _fail(f"services.{name}.vip", f"{service.vip} is {other}'s already; choose another")
        owners[service.vip] = name


def _allow(field: _Field, services: Mapping[str, ServiceText]) -> AllowText:
    parts = field.fields("from", "to", "ports")
    ends: list[str] = []
    for end in ("from", "to"):
        if end not in parts:
            field.fail(f"has no {end}; write {{from: web, to: api}}")
        name = parts[end].text()
        if name not in services:
            parts[end].fail(
                f'there is no service "{name}"{_hint(name, services)}; '
                "list it under services, or correct the name"
            )
        ends.append(name)
    declared = tuple((p.protocol, p.port) for p in services[ends[1]].ports)
    if "ports" in parts:
        ports = tuple(_dial(item, ends[1], declared) for item in parts["ports"].items())
        if not ports:
            parts["ports"].fail("is empty, so nothing is allowed; leave it out for all ports")
    else:
        ports = declared
        if not ports:
            field.fail(f'"{ends[1]}" declares no ports; declare some, or write ports: [icmp]')
    return AllowText(source=ends[0], to=ends[1], ports=tuple(dict.fromkeys(ports)))


def _dial(item: _Field, to: str, declared: Sequence[tuple[str, int]]) -> Dial:
    text = item.text()
    if text == "icmp":
        return ("icmp", 0)
    match = _EDGE_PORT.fullmatch(text)
    if match is None:
        item.fail(f'"{text}" is not a port; write tcp/80, udp/53 or icmp')
    dial = (match[1], int(match[2]))
    if dial not in declared:
        have = ", ".join(f"{protocol}/{port}" for protocol, port in declared) or "none"
        item.fail(f'"{to}" does not declare {text} (it has: {have}); add it to its ports')
    return dial


# --- a value and the path that leads to it


def _fail(path: str, problem: str) -> NoReturn:
    raise InvalidConfig(f"{FILE}: {path}: {problem}")


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


class _Field:
    """One value of the document; every method checks a type or fails with the path."""

    def __init__(self, path: str, value: object) -> None:
        self.path = path
        self.value = value

    def fail(self, problem: str) -> NoReturn:
        _fail(self.path, problem)

    def _child(self, key: str) -> str:
        return f"{self.path}.{key}"

    def _mapping(self, what: str) -> dict[object, object]:
        if not isinstance(self.value, dict):
            self.fail(f"is {_kind(self.value)}, not a mapping; write {what}")
        return self.value

    def fields(self, *allowed: str) -> dict[str, _Field]:
        """Return the fields of a mapping whose keys are all `allowed`."""
        found: dict[str, _Field] = {}
        for key, value in self._mapping("{} for the defaults").items():
            if key not in allowed:
                hint = _hint(str(key), allowed)
                _fail(self._child(str(key)), f"unknown key{hint}; use {', '.join(allowed)}")
            found[str(key)] = _Field(self._child(str(key)), value)
        return found

    def named(self, what: str) -> Iterator[tuple[str, _Field]]:
        """Yield the members of a mapping whose keys are names of the operator's choice."""
        for key, value in self._mapping(f"{{{what} name: …}}").items():
            member = _Field(self._child(str(key)), value)
            _Field(member.path, key).name(what)
            yield str(key), member

    def items(self) -> list[_Field]:
        """Return the items of a list."""
        if not isinstance(self.value, list):
            self.fail(f"is {_kind(self.value)}, not a list; write [ … ]")
        return [_Field(f"{self.path}[{i}]", item) for i, item in enumerate(self.value)]

    def text(self) -> str:
        if not isinstance(self.value, str):
            self.fail(f"is {_kind(self.value)}, not text; put it in quotes")
        return self.value

    def name(self, what: str) -> str:
        text = self.text()
        if NAME.fullmatch(text) is None:
            self.fail(
                f"is not a {what} name; use at most 64 letters, digits, '_', '.' and '-', "
                "a letter or digit first"
            )
        return text

    def port(self) -> int:
        if type(self.value) is not int or not 1 <= self.value <= 65535:
            self.fail(f"{self.value!r} is not a port; use a number from 1 to 65535")
        return self.value

    def weight(self) -> float:
        if type(self.value) not in (int, float):
            self.fail(f"is {_kind(self.value)}, not a number; use 0 or more, 1 is normal")
        weight = float(str(self.value))
        if not math.isfinite(weight) or not 0 <= weight <= MAX_WEIGHT:
            self.fail(f"{self.value} is out of range; use 0 to {MAX_WEIGHT:.0f}, 1 is normal")
        return weight

    def one_of(self, choices: Sequence[str]) -> str:
        found = [choice for choice in choices if self.value == choice]
        if not found:
            self.fail(f'"{self.value}" is not known; use {" or ".join(choices)}')
        return found[0]

    def address(self) -> IPv4Address:
        try:
            return IPv4Address(self.text())
        except AddressValueError:
            self.fail(f'"{self.value}" is not an IPv4 address; write it as 10.80.0.1')

    def network(self) -> IPv4Network:
        text = self.text()
        try:
            return IPv4Network(text)
        except ValueError as error:
            self.fail(f'"{text}" is not an IPv4 network ({error}); write it as 10.64.16.0/20')


def _kind(value: object) -> str:
    if value is None:
        return "empty"
    names = {bool: "yes or no", list: "a list", dict: "a mapping", str: "text"}
    return "a number" if type(value) in (int, float) else names.get(type(value), "something else")
