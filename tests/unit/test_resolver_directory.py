"""Who may look up whom: what the directory says of a policy."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from daemon.journal import Journal
from daemon.model.policy import compile
from daemon.model.policy_file import AllowText, parse
from daemon.resolver.client import Resolver
from daemon.resolver.directory import Directory, directory
from daemon.resolver.protocol import NAMES
from tests.unit.model_kit import VIPS, policy

ULA = "fd00:4e::/64"


def test_a_name_for_each_service_that_may_be_dialled() -> None:
    made = directory(policy(), "")
    vips = {name: service.vip for name, service in policy().services.items()}
    assert made.of("web") == {"api": (vips["api"],)}
    assert made.of("api") == {"db": (vips["db"],)}
    assert made.of("db") == {}
    assert made.of("nobody") == {}


def test_two_families() -> None:
    vip = policy().services["api"].vip
    assert directory(policy(), ULA).of("web") == {"api": (vip, "fd00:4e::a50:2")}


def test_itself_only_by_an_edge() -> None:
    text = "services: {a: {ports: [{protocol: tcp, port: 1}]}}\n"
    assert directory(policy(text), "").of("a") == {}
    assert set(directory(policy(text + "allow: [{from: a, to: a}]"), "").of("a")) == {"a"}


def test_a_name_that_differs_in_capitals_only_belongs_to_the_older_service() -> None:
    """policy.yaml may not say so any more, but what was signed before it could not is in force."""
    ports = "{ports: [{protocol: tcp, port: 1}]}"
    old = policy(f"services: {{web: {{}}, api: {ports}}}\nallow: [{{from: web, to: api}}]")
    document = parse(f"services: {{api: {ports}, web: {{}}}}")
    edges = {to: AllowText(source="web", to=to, ports=(("tcp", 1),)) for to in ("api", "API")}
    document = msgspec.structs.replace(
        document,
        services={"API": document.services["api"], **document.services},
        allow=(edges["api"], edges["API"]),
    )
    new = compile(document, old, VIPS, 2)
    assert directory(new, "").of("web") == {"api": (old.services["api"].vip,)}
    document = msgspec.structs.replace(document, allow=(edges["API"],))
    assert directory(compile(document, old, VIPS, 2), "").of("web") == {}


def test_it_survives_the_file() -> None:
    made = directory(policy(), ULA)
    assert msgspec.json.decode(msgspec.json.encode(made), type=Directory) == made


def test_names_follow_the_policy_also_within_one_version(tmp_path: Path) -> None:
    """Two signers may have used one version; a node that held the one that lost takes the other."""
    lost, won = policy("services: {web: {}}\n", 2), policy(version=2)
    resolver = Resolver(tmp_path, Journal())

    def known() -> dict[str, tuple[str, ...]]:
        return msgspec.json.decode((tmp_path / NAMES).read_bytes(), type=Directory).of("web")

    resolver.write(lost, "")
    assert known() == {}
    resolver.write(won, "")
    assert set(known()) == {"api"}
    (tmp_path / NAMES).unlink()
    resolver.write(won, "")
    assert not (tmp_path / NAMES).exists()  # nothing new


def test_names_that_lead_nowhere() -> None:
    with pytest.raises(ValueError, match="not among"):
        Directory(addresses={}, known={"web": ("api",)})
    with pytest.raises(ValueError, match="nowhere"):
        Directory(addresses={"api": ("nowhere",)}, known={})
