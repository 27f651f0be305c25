"""Names of fields are matched as Go's decoder would, in everything that runtimes and plugins write.

tests/clients/test_libcni.py asks Go's decoder itself about the same rules.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cni_kit import NETNS, Daemon, configuration, environment, previous, run, serving
from hypothesis import given
from hypothesis import strategies as st

from cni.codec import decode, matched

NAMES = ("ingressRate", "dns", "mask")
MAPS = ("capabilities", "aliases", "io.kubernetes.cri.pod-annotations")
"""Objects that Go reads into a map: their keys are no field names."""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with serving(tmp_path / "d.sock") as daemon:
        yield daemon


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"ingressRate": 1}', {"ingressRate": 1}),
        ('{"IngressRate": 1}', {"ingressRate": 1}),
        ('{"INGRESSRATE": 1}', {"ingressRate": 1}),
        ('{"ingreſſRate": 1}', {"ingressRate": 1}),  # the long s folds to s
        ('{"mas\u212a": 1}', {"mask": 1}),  # the Kelvin sign folds to k
        ('{"ıngressRate": 1}', {"ıngressRate": 1}),  # the dotless i does not fold to i
        ('{"ingreßRate": 1}', {"ingreßRate": 1}),  # one character is never two
        ('{"ingress_rate": 1}', {"ingress_rate": 1}),
        # The later counts, whichever is spelt exactly.
        ('{"ingressRate": 1, "IngressRate": 2}', {"ingressRate": 2}),
        ('{"IngressRate": 1, "ingressRate": 2}', {"ingressRate": 2}),
        ('{"ingressRate": 1, "IngressRate": 2, "ingressRate": 3}', {"ingressRate": 3}),
        ('{"IngressRate": 1, "ingressRate": 2, "IngressRate": 3}', {"ingressRate": 3}),
        # Objects are joined.
        ('{"dns": {"a": 1, "b": 2}, "DNS": {"b": 3}}', {"dns": {"a": 1, "b": 3}}),
        ('{"dns": {"a": 1}, "DNS": {"A": 2}, "Dns": {"a": 3}}', {"dns": {"A": 2, "a": 3}}),
        ('{"dns": {"a": 1}, "DNS": [2]}', {"dns": [2]}),
        ('{"dns": {"a": 1, "b": 2}, "dns": {"b": 3}}', {"dns": {"a": 1, "b": 3}}),
        ('{"x": {"y": {"a": 1}}, "x": {"y": {"b": 2}}}', {"x": {"y": {"a": 1, "b": 2}}}),
        # null says nothing.
        ('{"ingressRate": 1, "IngressRate": null}', {"ingressRate": 1}),
        ('{"ingressRate": null, "IngressRate": 1}', {"ingressRate": 1}),
        ('{"ingressRate": null}', {"ingressRate": None}),
    ],
)
def test_matching(text: str, expected: dict[str, Any]) -> None:
    value = decode(text.encode())
    assert isinstance(value, dict)
    found = matched(value, NAMES)
    assert found == expected
    assert json.dumps(found) == json.dumps(expected)  # the same order, which joining depends on


@given(st.dictionaries(st.sampled_from(NAMES) | st.text(), st.integers()))
def test_matching_is_done_once(value: dict[str, object]) -> None:
    found = matched(value, NAMES)
    assert matched(found, NAMES) == found
    assert set(found.values()) <= set(value.values())
    unmatched = [key for key in found if key not in NAMES]
    assert all(found[key] == value[key] for key in unmatched)


def cried(value: Any) -> Any:
    """Return `value` with the names of all fields in capitals, but with the keys of maps as they
    are."""
    if isinstance(value, list):
        return [cried(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key.upper() if key not in MAPS[2:] else key: one if key in MAPS else cried(one)
        for key, one in value.items()
    }


FULL: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "capabilities": {"dns": True, "ips": True},
    "args": {"cni": {"service": "one", "ips": ["10.64.16.8"]}},
    "runtime": "containerd",
    "dns": {"nameservers": ["192.0.2.1"], "search": ["a"], "options": ["b"], "domain": "c"},
    "runtimeConfig": {
        "ips": ["10.64.16.7/12"],
        "mac": "02:4e:0a:40:10:07",
        "aliases": {"mesh": ["Two"]},
        "bandwidth": {"ingressRate": 8, "ingressBurst": 16, "egressRate": 24, "egressBurst": 32},
        "dns": {"servers": ["192.0.2.2"], "searches": ["d"], "options": ["e"]},
        "io.kubernetes.cri.pod-annotations": {"noctule.io/service": "three", "Other": "x"},
    },
    "prevResult": previous(dns={"nameservers": ["192.0.2.3"], "domain": "f"}),
}


@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
def test_every_field_in_capitals(daemon: Daemon, verb: str) -> None:
    """Whatever object it stands in, a field in capitals means what it means as it is spelt."""
    plain = configuration(daemon.socket, **FULL)
    assert sum(len(entry) for entry in plain["prevResult"].values()) > 8
    outcomes = [run(environment(verb), config) for config in (plain, cried(plain))]
    assert outcomes[0].status == 0, outcomes[0]
    assert outcomes[1] == outcomes[0]
    assert daemon.requests[1] == daemon.requests[0]
    assert daemon.requests[0][2]["bandwidth"]["egress_burst"] == 32


def test_what_del_needs_in_capitals(daemon: Daemon) -> None:
    run(environment("DEL"), cried(configuration(daemon.socket))).succeeded()
    assert daemon.body["network"] == "mesh"


def test_gc_in_capitals(daemon: Daemon) -> None:
    """A list that is not recognised would be no list; an entry that is not, a lost container."""
    valid = [{"ContainerID": "c0ffee", "IfName": "eth0"}]
    config = configuration(daemon.socket, **{"CNI.DEV/Valid-Attachments": valid})
    run(environment("GC"), config).succeeded()
    assert daemon.body["valid"] == [{"containerID": "c0ffee", "ifname": "eth0"}]


def test_what_containerd_sends(daemon: Daemon) -> None:
    """The structs of go-cni have no JSON names, and 10M in a pod's annotation gives this."""
    asked = {
        "bandwidth": {
            "IngressRate": 10_000_000, "IngressBurst": 4_294_967_295,
            "EgressRate": 0, "EgressBurst": 0,
        },
        "dns": {"Servers": ["127.0.0.78"], "Searches": ["pods.test"], "Options": None},
    }  # fmt: skip
    outcome = run(environment("ADD"), configuration(daemon.socket, runtimeConfig=asked))
    assert outcome.json["dns"] == {"nameservers": ["127.0.0.78"], "search": ["pods.test"]}
    assert daemon.body["bandwidth"] == {
        "ingress_rate": 10_000_000, "ingress_burst": 4_294_967_295,
        "egress_rate": 0, "egress_burst": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"runtimeConfig": {"PortMappings": [{"HostPort": 80}]}}, 2, ["PortMappings", "HostPort"]),
        ({"runtimeConfig": {"infinibandGUID": "c2:11"}}, 2, ["infinibandGUID"]),
        ({"runtimeConfig": {"InfinibandGUID": "c2:11"}}, 2, ["InfinibandGUID"]),
        ({"runtimeConfig": {"IPRanges": [[{"subnet": "10.64.16.0/24"}]]}}, 2, ["ipRanges"]),
        ({"runtimeConfig": {"IPs": ["x"]}}, 7, ["runtimeConfig.ips"]),
        ({"runtimeConfig": {"MAC": "x"}}, 7, ["runtimeConfig.mac"]),
        ({"runtimeConfig": {"Bandwidth": {"Rate": 1}}}, 7, ["runtimeConfig.bandwidth.Rate"]),
        ({"runtimeConfig": {"dns": {"Serverz": ["x"]}}}, 7, ["runtimeConfig.dns.Serverz"]),
        ({"runtimeConfig": {"DNS": {"Servers": ["x"], "Search": 7}}}, 7, ["dns.search"]),
        ({"dns": {"nameserver": ["192.0.2.1"]}}, 7, ["dns.nameserver", "nameservers"]),
        ({"IPMasq": True}, 2, ["ipMasq"]),
        ({"IPAM": {"Type": "../x"}}, 7, ["ipam.type"]),
        # A map: the runtime passes nothing for a capability that it knows by another name.
        ({"capabilities": {"DNS": True}}, 2, ["capabilities.DNS", "dns"]),
    ],
)  # fmt: skip
def test_refused(daemon: Daemon, changes: dict[str, Any], code: int, words: list[str]) -> None:
    run(environment("ADD"), configuration(daemon.socket, **changes)).failed(code, *words)
    assert daemon.requests == []


def test_limits_given_twice(daemon: Daemon) -> None:
    text = json.dumps(configuration(daemon.socket, runtimeConfig={}))
    asked = (
        '{"bandwidth": {"ingressRate": 1, "ingressBurst": 2}, '
        '"Bandwidth": {"IngressRate": 3, "EgressRate": 4, "EgressBurst": 5}}'
    )
    stdin = text.replace('"runtimeConfig": {}', f'"runtimeConfig": {asked}').encode()
    assert run(environment("ADD"), stdin).status == 0
    assert daemon.body["bandwidth"] == {
        "ingress_rate": 3, "ingress_burst": 2, "egress_rate": 4, "egress_burst": 5,
    }  # fmt: skip


def test_both_vocabularies_of_dns(daemon: Daemon) -> None:
    asked = {"Servers": ["192.0.2.1"], "nameservers": ["192.0.2.2"], "search": ["a"]}
    config = configuration(daemon.socket, runtimeConfig={"dns": asked}, dns={"searches": ["b"]})
    assert run(environment("ADD"), config).json["dns"] == {
        "nameservers": ["127.0.0.78", "192.0.2.1", "192.0.2.2"], "search": ["b", "a"],
    }  # fmt: skip


def test_what_other_plugins_report_of_dns_is_passed_on(daemon: Daemon) -> None:
    config = configuration(daemon.socket, prevResult={"dns": {"Search": ["a"], "later": [1]}})
    assert run(environment("ADD"), config).json["dns"] == {
        "nameservers": ["127.0.0.78"], "search": ["a"], "later": [1],
    }  # fmt: skip


def test_a_previous_result_goes_on_under_the_names_of_the_specification(daemon: Daemon) -> None:
    """Left as they came, "IPs" and our "ips" would be one field for the next plugin."""
    theirs = {
        "Interfaces": [{"Name": "lo", "Sandbox": NETNS}],
        "IPs": [{"Address": "192.0.2.1/32"}],
    }
    outcome = run(environment("ADD"), configuration(daemon.socket, prevResult=theirs))
    assert outcome.json["interfaces"][0] == {"name": "lo", "sandbox": NETNS}
    assert [one["address"] for one in outcome.json["ips"]] == ["192.0.2.1/32", "10.64.16.5/12"]
    assert not {"Interfaces", "IPs"} & set(outcome.json)


@pytest.mark.parametrize("verb", ["ADD", "STATUS"])
def test_the_version_in_capitals(verb: str) -> None:
    config = configuration(cniVersion=None, **{"CNIVERSION": "1.1.0", "key": 7})
    outcome = run(environment(verb), config)
    outcome.failed(7, "key")
    assert outcome.json["cniVersion"] == "1.1.0"
    assert run(environment("VERSION"), b'{"CniVersion": "0.4.0"}').json["cniVersion"] == "0.4.0"
