"""This release and the one before, side by side: the contract of docs/design.md on a kernel.

n1 is of the old release, n2 of this one, n3 of the old one: so each meets each, over a shared
segment and over GENEVE.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.cluster import NODES, POLICY, Failed
from tests.e2e.conftest import telling
from tests.e2e.container import Container
from tests.e2e.machine import inside, until
from tests.releases.mixed import NEW, OLD, Mixed

pytestmark = pytest.mark.timeout(600)
REVOKED = POLICY.replace("  - {from: web, to: api, ports: [tcp/80, icmp]}\n", "")


@pytest.fixture(scope="module")
def cluster(_machine: None, request: pytest.FixtureRequest) -> Iterator[Mixed]:
    """All three nodes, a policy in force that the new noctulectl signed, and three containers."""
    mixed = Mixed(n1=OLD, n2=NEW, n3=OLD)
    with telling(mixed, request):
        mixed.start(*NODES)
        mixed.meet(*NODES)
        mixed.apply(POLICY, "n2")
        mixed.mesh()
        mixed.add("web", "n1", "web")
        mixed.add("api", "n2", "api", 8080)
        mixed.add("api3", "n3", "api", 8080)
        yield mixed


def policy_of(cluster: Mixed, node: str) -> int:
    return int(cluster.status(node)["policy"]["version"])


def answers(cluster: Mixed, container: Container) -> set[str]:
    """Who answers at the VIP of api, in a number of dials that meets each replica."""
    vip = cluster.vip("api")
    return {container.greet(vip, 80) for _ in range(24)}


def agreed(cluster: Mixed, *nodes: str) -> None:
    """Wait until what each node's daemon planned is in its kernel."""
    for node in nodes:
        until(lambda n=node: cluster.differences(n) == [], f"kernel and plan of {node} to agree")


def test_nodes_of_both_releases_are_one_cluster(cluster: Mixed) -> None:
    assert {cluster.status(node)["version"] for node in NODES} == {"0.1.0", "0.2.0"}
    for node in NODES:
        until(lambda n=node: policy_of(cluster, n) == 1, f"policy 1 on {node}")
    web = cluster.containers["web"]
    until(lambda: answers(cluster, web) == {"api", "api3"}, "both replicas to answer")
    for node in NODES:
        refused = [one["refused"] for one in cluster.status(node)["replicas"]]
        assert refused == ["", "", ""], f"{node}: {refused}"
        assert cluster.status(node)["counters"]["records"] == {}
    agreed(cluster, *NODES)


@pytest.mark.parametrize("node", ["n1", "n2"])
@pytest.mark.parametrize("executable", [OLD, NEW])
def test_every_verb_with_either_executable(cluster: Mixed, node: str, executable: str) -> None:
    name = f"{executable}-{node}"
    with cluster.calling(executable):
        box = cluster.add(name, node, "web")
        until(lambda: answers(cluster, box) == {"api", "api3"}, f"{name} to reach api")
        cluster.cni("CHECK", box)
        cluster.cni("STATUS", box)
        kept = [{"containerID": box.name, "ifname": box.ifname}]
        kept += [{"containerID": c.name, "ifname": c.ifname}
                 for c in cluster.containers.values() if c.node == node]  # fmt: skip
        cluster.cni("GC", box, **{"cni.dev/valid-attachments": kept})
        cluster.cni("CHECK", box)
        cluster.cni("DEL", box)
        cluster.cni("DEL", box)
        with pytest.raises(Failed):
            cluster.cni("CHECK", box)
    assert "macsec" not in inside(box.netns, "ip", "-d", "link").stdout
    cluster.containers.pop(name).kill()
    # Whoever did not attach it takes it down just as well.
    other = OLD if executable == NEW else NEW
    with cluster.calling(executable):
        box = cluster.add(name, node, "web")
    with cluster.calling(other):
        cluster.cni("CHECK", box)
        cluster.delete(name)
    agreed(cluster, node)


def test_a_revocation_reaches_both(cluster: Mixed) -> None:
    """Signed and published by the old noctulectl and daemon, then again by the new ones."""
    web = cluster.containers["web"]
    cluster.apply(REVOKED, "n1")
    for node in NODES:
        until(lambda n=node: policy_of(cluster, n) == 2, f"policy 2 on {node}")
    until(lambda: not reaches(cluster, web), "web to be cut off")
    agreed(cluster, *NODES)
    cluster.apply(POLICY, "n2")
    for node in NODES:
        until(lambda n=node: policy_of(cluster, n) == 3, f"policy 3 on {node}")
    until(lambda: answers(cluster, web) == {"api", "api3"}, "web to be let in again")


def reaches(cluster: Mixed, container: Container) -> bool:
    try:
        return bool(container.greet(cluster.vip("api"), 80))
    except OSError:
        return False


def test_a_node_is_upgraded_and_downgraded_under_traffic(cluster: Mixed) -> None:
    web, api = cluster.containers["web"], cluster.containers["api"]
    with held(cluster, web, api) as flows:
        for release in (NEW, OLD):
            cluster.turn("n1", release)
            cluster.meet(*NODES)
            until(lambda: answers(cluster, web) == {"api", "api3"}, f"n1 to serve as {release}")
            if release == NEW:
                until(lambda: "ruleset replaced" in cluster.log("n1"), "today's rules for web")
            flows()
            cluster.cni("CHECK", web)
            known = cluster.status("n1")
            assert [one["attachment"] for one in known["replicas"] if one["node"] == "n1"]
            agreed(cluster, "n1")
            late = cluster.add(f"late-{release}", "n1", "web")
            until(lambda b=late: reaches(cluster, b), "a container that came after")
        flows()
    # What this release attached, the old daemon and executable take down.
    with cluster.calling(OLD):
        cluster.delete("late-new")
    cluster.delete("late-old")
    agreed(cluster, *NODES)


class held:  # noqa: N801  used like a function
    """A connection that stays open in the block; called, it proves that it lives."""

    def __init__(self, cluster: Mixed, client: Container, server: Container) -> None:
        self._address, self._client, self._server = server.address, client, server

    def __enter__(self) -> held:
        self._sock = self._client.dial(self._address, 8080)
        self._sock.settimeout(30)
        assert self._sock.recv(100).strip() == self._server.name.encode()
        return self

    def __call__(self) -> None:
        self._sock.sendall(b"alive")
        assert self._sock.recv(100) == b"alive"

    def __exit__(self, *_: Any) -> None:
        self._sock.close()


def test_an_executable_alone_finds_the_other_releases_state(cluster: Mixed) -> None:
    """The daemon is away for the upgrade: the executable has changed already, or not yet."""
    cluster.kill("n1")
    web = cluster.containers["web"]
    with cluster.calling(NEW):
        cluster.cni("CHECK", web)
        alone = cluster.add("alone", "n1", "web")
        cluster.cni("DEL", alone)
        alone.result = cluster.cni("ADD", alone)
    cluster.start("n1")
    until(lambda: reaches(cluster, alone), "the old daemon to adopt what the new executable made")
    agreed(cluster, "n1")
    cluster.delete("alone")
    assert json.loads((cluster.base / "n1/run/node.json").read_text())["node"] == "n1"
