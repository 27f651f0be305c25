"""The network configuration: what is refused, with which code, and what reaches the daemon."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cni_kit import Daemon, configuration, environment, previous, run, serving

VERBS = ("ADD", "DEL", "CHECK", "GC", "STATUS")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with serving(tmp_path / "d.sock") as daemon:
        yield daemon


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "stdin",
    [b"", b" ", b"{", b"null", b"[]", b'"x"', b"\xff", b"{} {}", b"{'name': 1}", b"[" * 100_000,
     b'{"a": NaN}', b'{"a": 1e999}', b"\xef\xbb\xbf{}", b'{"a": ' + b"1" * 5000 + b"}"],
)  # fmt: skip
def test_not_a_json_object(verb: str, stdin: bytes) -> None:
    run(environment(verb), stdin).failed(6)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", [None, "", "te%%st", "-x", "a/b", 7, ["x"]])
def test_the_name(verb: str, name: Any) -> None:
    config = configuration(name=name)
    run(environment(verb), config).failed(7, "name")


@pytest.mark.parametrize(
    ("version", "verbs"),
    [
        ("0.3.1", {"ADD", "DEL"}),
        ("0.4.0", {"ADD", "DEL", "CHECK"}),
        ("1.0.0", {"ADD", "DEL", "CHECK"}),
        ("1.1.0", {"ADD", "DEL", "CHECK", "GC", "STATUS"}),
        ("1.2.0", set()),
        ("0.3.0", set()),
        ("0.1.0", set()),
        ("1.1", set()),
        ("9.8.7", set()),
        (None, set()),  # 0.1.0 by definition
    ],
)
@pytest.mark.parametrize("verb", VERBS)
def test_versions(daemon: Daemon, verb: str, version: str | None, verbs: set[str]) -> None:
    config = configuration(daemon.socket, cniVersion=version, prevResult=previous())
    outcome = run(environment(verb), config)
    if verb in verbs:
        assert outcome.status == 0, outcome
    else:
        outcome.failed(1, "cniVersion")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("version", ["adsfsadf", "1.1.0.0", "1..0", "1.1.x", 1, [1], "1.1.0\n"])
def test_versions_that_are_none(verb: str, version: Any) -> None:
    run(environment(verb), configuration(cniVersion=version)).failed(6, "cniVersion")


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_an_error_carries_the_version_of_the_configuration(version: str) -> None:
    outcome = run(environment("ADD"), configuration(cniVersion=version, service=5))
    outcome.failed(7, "service")
    assert outcome.json["cniVersion"] == version
    assert run(environment("ADD"), b"{").json["cniVersion"] == "1.1.0"


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"servise": "web"}, 7, ["servise", "service, key, socket"]),
        ({"some": "config"}, 7, ["some"]),
        ({"service": None}, 7, ["service", "args.cni.service", "NOCTULE_SERVICE", "alias"]),
        ({"service": 5}, 7, ["service"]),
        ({"service": ""}, 7, ["service"]),
        ({"service": "\ud800"}, 7, ["service"]),
        ({"key": None}, 7, ["key", "file"]),
        ({"key": "/x"}, 7, ["key"]),
        ({"key": {}}, 7, ["key.file"]),
        ({"key": {"file": ""}}, 7, ["key.file"]),
        ({"key": {"file": "relative"}}, 7, ["key.file"]),
        ({"key": {"file": "/a\0b"}}, 7, ["key.file"]),
        ({"key": {"file": "/x", "mode": 1}}, 7, ["key.mode"]),
        ({"socket": 7}, 7, ["socket"]),
        ({"socket": "relative"}, 7, ["socket"]),
        ({"socket": "/" + "x" * 107}, 7, ["socket", "107"]),
        ({"args": 1}, 7, ["args"]),
        ({"args": {"cni": []}}, 7, ["args.cni"]),
        ({"args": {"cni": {"service": 1}}}, 7, ["args.cni.service"]),
        ({"args": {"cni": {"ips": "10.64.16.9"}}}, 7, ["args.cni.ips"]),
        ({"runtimeConfig": []}, 7, ["runtimeConfig"]),
        ({"runtimeConfig": {"aliases": "web"}}, 7, ["runtimeConfig.aliases"]),
        ({"runtimeConfig": {"aliases": [1]}}, 7, ["runtimeConfig.aliases"]),
        ({"runtimeConfig": {"aliases": {"mesh": "web"}}}, 7, ["runtimeConfig.aliases.mesh"]),
        ({"runtimeConfig": {"ips": ["x"]}}, 7, ["runtimeConfig.ips"]),
        ({"runtimeConfig": {"ips": ["10.64.16.5/99"]}}, 7, ["runtimeConfig.ips"]),
        ({"runtimeConfig": {"ips": ["10.64.16.5", "10.64.16.6"]}}, 2, ["ips", "10.64.16.6"]),
        ({"runtimeConfig": {"ips": ["fd00::1", "fd00::2/64"]}}, 2, ["ips", "fd00::2"]),
        ({"runtimeConfig": {"ips": ["fd00::1/129"]}}, 7, ["runtimeConfig.ips"]),
        ({"runtimeConfig": {"ipRanges": [[{"subnet": "10.64.16.0/24"}]]}}, 2, ["ipRanges"]),
        ({"runtimeConfig": {"bandwidth": 1}}, 7, ["runtimeConfig.bandwidth"]),
        ({"runtimeConfig": {"bandwidth": {"rate": 1}}}, 7, ["runtimeConfig.bandwidth.rate"]),
        ({"runtimeConfig": {"bandwidth": {"ingressRate": -1}}}, 7, ["bandwidth.ingressRate"]),
        ({"runtimeConfig": {"bandwidth": {"ingressRate": "1"}}}, 7, ["bandwidth.ingressRate"]),
        ({"runtimeConfig": {"bandwidth": {"ingressRate": True}}}, 7, ["bandwidth.ingressRate"]),
        ({"runtimeConfig": {"bandwidth": {"egressRate": 1}}}, 7, ["egressRate", "egressBurst"]),
        ({"runtimeConfig": {"bandwidth": {"egressBurst": 1}}}, 7, ["egressRate", "egressBurst"]),
        ({"runtimeConfig": {"bandwidth": {"egressBurst": 1 << 63}}}, 7, ["egressBurst"]),
        ({"runtime": ""}, 7, ["runtime"]),
        ({"runtime": 1}, 7, ["runtime"]),
        ({"runtimeConfig": {"mac": "x"}}, 7, ["runtimeConfig.mac"]),
        ({"runtimeConfig": {"mac": 1}}, 7, ["runtimeConfig.mac"]),
        ({"runtimeConfig": {"portMappings": [{"hostPort": 80}]}}, 2, ["portMappings", "hostPort"]),
        ({"capabilities": {"portMappings": True}}, 2, ["capabilities.portMappings", "true"]),
        ({"capabilities": []}, 7, ["capabilities"]),
        ({"ipam": "host-local"}, 7, ["ipam"]),
        ({"ipam": {"type": 1}}, 7, ["ipam.type"]),
        ({"ipam": {"subnet": "10.64.16.0/24"}}, 7, ["ipam.type"]),
        ({"ipam": {"type": "../host-local"}}, 7, ["ipam.type", "CNI_PATH"]),
        ({"ipam": {"type": ".."}}, 7, ["ipam.type"]),
        ({"ipMasq": True}, 2, ["ipMasq", "true"]),
        ({"prevResult": 1}, 7, ["prevResult"]),
        ({"prevResult": {"interfaces": {}}}, 7, ["prevResult.interfaces"]),
        ({"prevResult": {"ips": [1]}}, 7, ["prevResult.ips"]),
        ({"prevResult": {"cniVersion": "0.2.0"}}, 1, ["prevResult.cniVersion", "0.2.0"]),
        ({"prevResult": {"cniVersion": "1.2.0"}}, 1, ["prevResult.cniVersion", "1.2.0"]),
        ({"prevResult": {"cniVersion": 1}}, 1, ["prevResult.cniVersion"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
def test_refused_fields(
    daemon: Daemon, verb: str, changes: dict[str, Any], code: int, words: list[str]
) -> None:
    if verb == "CHECK":
        changes = {"prevResult": previous(), **changes}
    config = configuration(**{"socket": daemon.socket, **changes})
    run(environment(verb), config).failed(code, *words)
    assert daemon.requests == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dns": {"nameservers": ["10.80.0.1"]}},
        {"dns": None, "runtimeConfig": {"dns": None, "bandwidth": None}},
        {"runtimeConfig": {"bandwidth": {}}},
        {"runtime": "podman"},
        {"ipam": {}},
        {"ipam": {"type": ""}},
        {"ipMasq": False},
        {"disableCheck": True, "disableGC": True},
        {"cniVersions": ["1.0.0", "1.1.0"], "loadOnlyInlinedPlugins": True},
        {"capabilities": {"aliases": True, "ips": True, "mac": True, "portMappings": False}},
        {"capabilities": {"dns": True, "bandwidth": True}},
        {"runtimeConfig": {"portMappings": []}},
        {"runtimeConfig": {"mac": ""}},
        {"cni.dev/valid-attachments": [], "cni.dev/anything": 1},
        {"args": {"cni": {"labels": [{"key": "a", "value": "b"}]}, "org": {"x": 1}}},
        {"type": None},
    ],
)
def test_tolerated_fields(daemon: Daemon, changes: dict[str, Any]) -> None:
    outcome = run(environment("ADD"), configuration(daemon.socket, **changes))
    assert outcome.status == 0, outcome


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"dns": 7}, "dns"),
        ({"dns": {"nameservers": "10.0.0.1"}}, "dns.nameservers"),
        ({"dns": {"search": [1]}}, "dns.search"),
        ({"dns": {"domain": 1}}, "dns.domain"),
        ({"runtimeConfig": {"dns": {"servers": [""]}}}, "runtimeConfig.dns.servers"),
    ],
)
def test_refused_dns(daemon: Daemon, changes: dict[str, Any], word: str) -> None:
    run(environment("ADD"), configuration(daemon.socket, **changes)).failed(7, word)
    assert daemon.requests == []


def test_dns_of_a_previous_result_must_be_an_object(daemon: Daemon) -> None:
    config = configuration(daemon.socket, prevResult={"dns": []})
    run(environment("ADD"), config).failed(7, "prevResult.dns")


ALL_CANDIDATES = [
    {"name": "one", "from": "args.cni.service"},
    {"name": "two", "from": "CNI_ARGS NOCTULE_SERVICE"},
    {"name": "three", "from": "alias"},
    {"name": "four", "from": "alias"},
    {"name": "five", "from": "service"},
]


@pytest.mark.parametrize("aliases", [["three", "four"], {"mesh": ["three", "four"], "x": ["no"]}])
def test_service_candidates_in_order(daemon: Daemon, aliases: Any) -> None:
    config = configuration(
        daemon.socket,
        args={"cni": {"service": "one"}},
        runtimeConfig={"aliases": aliases},
        service="five",
    )
    assert run(environment("ADD", CNI_ARGS="NOCTULE_SERVICE=two"), config).status == 0
    assert daemon.body["services"] == ALL_CANDIDATES


@pytest.mark.parametrize("candidate", ALL_CANDIDATES)
def test_any_one_candidate_is_enough(daemon: Daemon, candidate: dict[str, str]) -> None:
    changes: dict[str, Any] = {
        "args.cni.service": {"args": {"cni": {"service": candidate["name"]}}},
        "CNI_ARGS NOCTULE_SERVICE": {},
        "alias": {"runtimeConfig": {"aliases": {"mesh": [candidate["name"]]}}},
        "service": {"service": candidate["name"]},
    }[candidate["from"]]
    args = "NOCTULE_SERVICE=two" if candidate["name"] == "two" else ""
    config = configuration(daemon.socket, **{"service": None, **changes})
    assert run(environment("ADD", CNI_ARGS=args), config).status == 0
    assert daemon.body["services"] == [candidate]


@pytest.mark.parametrize("aliases", [{}, {"other": ["web"]}, [], None, {"mesh": None}])
def test_no_alias_on_this_network_is_no_candidate(daemon: Daemon, aliases: Any) -> None:
    config = configuration(daemon.socket, service=None, runtimeConfig={"aliases": aliases})
    run(environment("ADD"), config).failed(7, "service")


@pytest.mark.parametrize(
    ("runtime", "args", "text", "address"),
    [
        (["10.64.16.7/12"], ["10.64.16.8"], "10.64.16.9", "10.64.16.7"),
        (None, ["10.64.16.8"], "10.64.16.9", "10.64.16.8"),
        ([], [], "10.64.16.9/12", "10.64.16.9"),
        (None, None, "", None),
    ],
)
def test_the_address_asked_for(
    daemon: Daemon, runtime: Any, args: Any, text: str, address: str | None
) -> None:
    config = configuration(
        daemon.socket, runtimeConfig={"ips": runtime}, args={"cni": {"ips": args}}
    )
    assert run(environment("ADD", CNI_ARGS=f"IP={text}"), config).status == 0
    assert daemon.body["address"] == address


@pytest.mark.parametrize(
    ("asked", "address", "address6"),
    [
        (["10.64.16.7/12", "fd4e::a40:1007/108"], "10.64.16.7", "fd4e::a40:1007"),
        (["fd4e::a40:1007", "10.64.16.7"], "10.64.16.7", "fd4e::a40:1007"),
        (["fd4e::a40:1007"], None, "fd4e::a40:1007"),
    ],
)
def test_an_address_of_each_family(
    daemon: Daemon, asked: list[str], address: str | None, address6: str
) -> None:
    config = configuration(daemon.socket, runtimeConfig={"ips": asked})
    assert run(environment("ADD"), config).status == 0
    assert (daemon.body["address"], daemon.body["address6"]) == (address, address6)
    config = configuration(daemon.socket)
    assert run(environment("ADD", CNI_ARGS=f"IP={','.join(asked)}"), config).status == 0
    assert daemon.requests[1] == daemon.requests[0]


def test_limits_are_passed_in_our_names(daemon: Daemon) -> None:
    asked = {"ingressRate": 2048, "ingressBurst": 1600, "egressRate": 4096, "egressBurst": 3200}
    config = configuration(daemon.socket, runtimeConfig={"bandwidth": asked})
    assert run(environment("ADD"), config).status == 0
    assert daemon.body["bandwidth"] == {
        "ingress_rate": 2048, "ingress_burst": 1600, "egress_rate": 4096, "egress_burst": 3200,
    }  # fmt: skip


def test_a_runtime_may_say_who_it_is(daemon: Daemon) -> None:
    assert run(environment("ADD"), configuration(daemon.socket, runtime="crio")).status == 0
    assert daemon.body["runtime"] == "crio"


def test_the_mac_asked_for(daemon: Daemon) -> None:
    config = configuration(daemon.socket, runtimeConfig={"mac": "02:4E:0A:40:10:07"})
    assert run(environment("ADD", CNI_ARGS="MAC=02:4e:00:00:00:01"), config).status == 0
    assert daemon.body["mac"] == "02:4e:0a:40:10:07"


@pytest.mark.parametrize(
    "changes",
    [
        {"service": 5, "key": "x", "args": 1, "runtimeConfig": [], "ipam": {"type": "../x"}},
        {"ipam": 7, "runtime": 7, "dns": 7},
        {"servise": "x", "prevResult": 7, "capabilities": 1},
    ],
)
def test_del_works_with_a_broken_configuration(daemon: Daemon, changes: dict[str, Any]) -> None:
    run(environment("DEL"), configuration(daemon.socket, **changes)).succeeded()
    assert len(daemon.requests) == 1


def test_text_that_is_not_ascii_arrives(daemon: Daemon) -> None:
    config = configuration(daemon.socket, service="wäb", key={"file": "/run/schlüssel"})
    stdin = json.dumps(config, ensure_ascii=False).encode()
    assert run(environment("ADD"), stdin).status == 0
    assert daemon.body["services"] == [{"name": "wäb", "from": "service"}]
    assert daemon.body["key_file"] == "/run/schlüssel"
