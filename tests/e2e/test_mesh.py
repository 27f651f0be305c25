"""A mesh that is kept: over IPv6 alone, with an interface that comes late, and repaired under
traffic whatever somebody deletes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.e2e.cluster import NODES, POLICY, Cluster
from tests.e2e.conftest import telling
from tests.e2e.container import Container
from tests.e2e.machine import inside, run, until
from tests.e2e.underlay import IPV6

REPAIRED = 30.0
"""Seconds for a device to be back. It is promised within 5; an emulated machine is slower."""


@pytest.fixture(scope="module")
def late(_machine: None, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster over IPv6 in which n1 has no interface, and so no fabric address, yet."""
    with telling(Cluster(underlay=IPV6), request) as cluster:
        run("ip", "-n", "n1", "link", "set", "eth1", "down")
        run("ip", "-n", "n1", "link", "set", "eth1", "name", "late0")
        yield cluster


def lines(cluster: Cluster, node: str, event: str) -> list[dict[str, str]]:
    """What a daemon logged of one kind of event."""
    logged = (json.loads(line) for line in cluster.log(node).splitlines() if line.startswith("{"))
    return [line for line in logged if line["event"] == event]


@pytest.fixture(scope="module")
def meshed(late: Cluster) -> Cluster:
    """The same cluster, once everything is there and a policy is in force.

    n1 is started without its interface, serves a container, and meets the others when the
    interface appears: what the first test looks at afterwards.
    """
    for node in NODES:  # one after the other: three at once take minutes on a busy machine
        late.start(node)
    early = late.add("early", "n1", "web")
    until(lambda: lines(late, "n1", "fabric not joined"), "n1 to say that it waits")
    (waiting,) = late.status("n1")["mesh"]
    assert "mesh.links[0].interface: no interface eth1" in waiting
    assert waiting in late.differences("n1")
    late.cni("CHECK", early)
    run("ip", "-n", "n1", "link", "set", "late0", "name", "eth1")
    run("ip", "-n", "n1", "link", "set", "eth1", "up")
    late.give("n1", "2001:db8:1::1/64", "eth1")
    run("ip", "-n", "n1", "route", "add", "2001:db8:2::/64", "via", "2001:db8:1::2")
    late.meet(*NODES)
    late.apply(POLICY)
    late.mesh()
    return late


def test_what_comes_late_is_waited_for(meshed: Cluster) -> None:
    assert meshed.daemons["n1"].poll() is None
    for event in ("mesh link not in use", "mesh link in use", "fabric not joined"):
        assert len(lines(meshed, "n1", event)) == 1, event
    assert lines(meshed, "n1", "mesh repaired") == [], "what comes late was not broken"
    assert lines(meshed, "n1", "mesh") == [], "a mesh without links is no error"
    assert meshed.status("n1")["mesh"] == []


@pytest.fixture(scope="module")
def web(meshed: Cluster) -> Container:
    """A client on n1 of a replica on n3, which is reached through n2 and a tunnel."""
    meshed.add("api", "n3", "api", 8080)
    return meshed.containers["early"]


def reaches(cluster: Cluster, web: Container) -> bool:
    """Tell whether a new connection to the VIP gets an answer."""
    try:
        return web.greet(cluster.vip("api"), 80) == "api"
    except OSError:
        return False


def test_an_underlay_of_ipv6_alone_carries_everything(meshed: Cluster, web: Container) -> None:
    assert "inet " not in run("ip", "-n", "n1", "addr", "show", "dev", "eth1").stdout
    until(lambda: reaches(meshed, web), "the client to reach the service")
    until(lambda: all(meshed.differences(node) == [] for node in NODES), "all to agree")


DAMAGES = {
    "bat0": ("n1", "ip link del bat0", "bat0", "master noctule0", "bat0 was missing"),
    "tunnel": ("n3", "ip link del gnv7", "gnv7", "master bat0", "gnv7 was missing"),
    "bridge": ("n1", "ip link del noctule0", "noctule0", "UP", "noctule0 was missing"),
    "port": ("n1", "ip link set {vh} nomaster", "{vh}", "master noctule0", "{vh} is not a port"),
    "lower": ("n1", "ip link set {vc} down", "{vc}", ",UP", "{vc} is down"),
    "free": ("n1", "ip link set eth1 nomaster", "eth1", "master bat0", "eth1 was no part"),
    "down": ("n3", "ip link set bat0 down", "bat0", ",UP", "bat0 was down"),
}
"""Node, what somebody does there, how it is seen that it is set right, and what the log says."""


@pytest.mark.parametrize("damage", DAMAGES)
def test_traffic_comes_back(meshed: Cluster, web: Container, damage: str) -> None:
    """Somebody deletes or cuts a device: it is back, traffic too, and the log says it once."""
    until(lambda: reaches(meshed, web), "traffic before the damage")
    ends = {host["name"][:2]: host["name"] for host in web.result["interfaces"] if host["name"]}
    node, *rest = DAMAGES[damage]
    command, device, sign, said = (each.format(**ends) for each in rest)
    show = ("ip", "-n", node, "link", "show", device)

    def count() -> int:
        logged = [*lines(meshed, node, "mesh repaired"), *lines(meshed, node, "drift")]
        return sum(said in line["difference"] for line in logged)

    before = count()
    inside(f"/run/netns/{node}", *command.split())
    began = time.monotonic()
    until(lambda: sign in run(*show, check=False).stdout, f"{device} to be back", REPAIRED)
    repaired = time.monotonic() - began
    until(lambda: reaches(meshed, web), f"traffic after {command}")
    print(f"\n{damage}: set right after {repaired:.1f} s, traffic {time.monotonic() - began:.1f} s")
    until(lambda: meshed.differences(node) == [], "nothing to differ any more")
    # The bridge and then its port: what is said twice within 30 s is one line.
    assert count() - before <= 1 <= count()
    meshed.cni("CHECK", web)


def test_a_flag_that_somebody_sets_is_set_back(meshed: Cluster) -> None:
    """No event tells of batman-adv's own settings: the periodic look finds them."""
    inside("/run/netns/n2", "batctl", "meshif", "bat0", "bridge_loop_avoidance", "1")
    until(
        lambda: any("bridge loop" in line["difference"] for line in lines(meshed, "n2",
                                                                          "mesh repaired")),
        "the look to find it",
        REPAIRED,
    )  # fmt: skip
    told = inside("/run/netns/n2", "batctl", "meshif", "bat0", "bridge_loop_avoidance").stdout
    assert told.strip() == "disabled"
