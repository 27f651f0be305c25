"""Chains: what earlier plugins made, and whose name servers a container asks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cni_kit import NETNS, Daemon, configuration, environment, previous, run, serving

OURS = "127.0.0.78"
NEW_INTERFACE = {
    "name": "net1", "mac": "0a:00:00:00:00:02", "mtu": 1400, "sandbox": NETNS,
    "socketPath": "/run/x.sock", "pciID": "0000:00:1f.6",
}  # fmt: skip
NEW_ROUTE = {
    "dst": "192.0.2.0/24", "gw": "192.0.2.1", "mtu": 1400, "advmss": 1360, "priority": 10,
    "table": 100, "scope": 0,
}  # fmt: skip
OLD_INTERFACE = {"name": "net1", "mac": "0a:00:00:00:00:02", "sandbox": NETNS}
OLD_ROUTE = {"dst": "192.0.2.0/24", "gw": "192.0.2.1"}
IPS = [
    {"address": "192.0.2.7/24", "gateway": "192.0.2.1", "interface": 0},
    {"address": "2001:db8::7/64", "interface": 0},
]
OLD_IPS = [{"version": "4", **IPS[0]}, {"version": "6", **IPS[1]}]

RESULTS: dict[str, dict[str, Any]] = {
    "0.3.1": {"interfaces": [OLD_INTERFACE], "ips": OLD_IPS, "routes": [OLD_ROUTE]},
    "0.4.0": {"interfaces": [OLD_INTERFACE], "ips": OLD_IPS, "routes": [OLD_ROUTE]},
    "1.0.0": {"interfaces": [OLD_INTERFACE], "ips": IPS, "routes": [OLD_ROUTE]},
    "1.1.0": {"interfaces": [NEW_INTERFACE], "ips": IPS, "routes": [NEW_ROUTE]},
}
"""One result as each version writes it."""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with serving(tmp_path / "d.sock") as daemon:
        yield daemon


@pytest.mark.parametrize("version", RESULTS)
@pytest.mark.parametrize("theirs", RESULTS)
def test_an_earlier_result_of_any_version(daemon: Daemon, theirs: str, version: str) -> None:
    earlier = {"cniVersion": theirs, **RESULTS[theirs], "dns": {}}
    config = configuration(daemon.socket, cniVersion=version, prevResult=earlier)
    result = run(environment("ADD"), config).json
    # What an older version cannot say, nobody can add.
    expected = RESULTS[min(theirs, version)]
    assert result["cniVersion"] == version
    assert result["interfaces"][:-3] == expected["interfaces"]
    assert result["routes"][:-1] == expected["routes"]
    assert result["ips"][:-1] == RESULTS[version]["ips"]
    assert (result["interfaces"][-3]["name"], result["ips"][-1]["interface"]) == ("eth0", 1)


@pytest.mark.parametrize("version", RESULTS)
def test_of_its_own_version_it_passes_untouched_whatever_it_has(
    daemon: Daemon, version: str
) -> None:
    earlier: dict[str, Any] = {
        "interfaces": [{**NEW_INTERFACE, "x": 1}],
        "ips": [{"version": "4", "address": "odd"}],
        "routes": [{"dst": "x"}],
        "vendor.example/extra": {"a": [1]},
    }
    config = configuration(daemon.socket, cniVersion=version, prevResult=earlier)
    result = run(environment("ADD"), config).json
    assert result["interfaces"][0] == earlier["interfaces"][0]
    assert result["ips"][0] == earlier["ips"][0]
    assert result["routes"][0] == earlier["routes"][0]
    assert result["vendor.example/extra"] == {"a": [1]}


@pytest.mark.parametrize("prev", [None, {}, {"cniVersion": "1.0.0"}])
def test_nothing_earlier(daemon: Daemon, prev: Any) -> None:
    result = run(environment("ADD"), configuration(daemon.socket, prevResult=prev)).json
    assert result == previous()


@pytest.mark.parametrize("theirs", ["0.4.0", "1.0.0"])
def test_check_reads_an_older_result(daemon: Daemon, theirs: str) -> None:
    config = configuration(daemon.socket, prevResult=previous(cniVersion=theirs))
    run(environment("CHECK"), config).succeeded()
    assert daemon.body["address"] == "10.64.16.5"


@pytest.mark.parametrize(
    ("changes", "dns"),
    [
        ({}, {"nameservers": [OURS]}),
        ({"dns": {}, "runtimeConfig": {"dns": {}}}, {"nameservers": [OURS]}),
        (
            {"dns": {"nameservers": ["192.0.2.53"], "domain": "a.example", "search": ["s"]}},
            {"nameservers": [OURS, "192.0.2.53"], "domain": "a.example", "search": ["s"]},
        ),
        (
            {"runtimeConfig": {"dns": {"servers": ["192.0.2.54"], "searches": ["t"]}}},
            {"nameservers": [OURS, "192.0.2.54"], "search": ["t"]},
        ),
        (
            {
                "dns": {"nameservers": [OURS, "192.0.2.53"], "options": ["ndots:1"], "search": []},
                "runtimeConfig": {
                    "dns": {"servers": ["192.0.2.53", "192.0.2.54"], "options": ["ndots:5"]}
                },
                "prevResult": {
                    "dns": {"nameservers": ["192.0.2.55", "192.0.2.54"], "domain": "b.example"}
                },
            },
            {
                "nameservers": [OURS, "192.0.2.53", "192.0.2.54", "192.0.2.55"],
                "options": ["ndots:1", "ndots:5"],
                "domain": "b.example",
            },
        ),
        (
            {"dns": {"domain": "a.example"}, "prevResult": {"dns": {"domain": "b.example"}}},
            {"nameservers": [OURS], "domain": "a.example"},
        ),
    ],
)
def test_dns(daemon: Daemon, changes: dict[str, Any], dns: dict[str, Any]) -> None:
    assert run(environment("ADD"), configuration(daemon.socket, **changes)).json["dns"] == dns
