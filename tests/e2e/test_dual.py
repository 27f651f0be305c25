"""Three nodes, both families: one policy, one balancing, and what a node says that has only one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from netconf import names
from tests.e2e.cluster import NODES, POLICY, ULA, Cluster
from tests.e2e.conftest import telling
from tests.e2e.machine import until

DIALS = 192
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def cluster(_machine: None, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """web and db on n1 and n2, api on every node; all daemons run."""
    with telling(Cluster(), request) as made:
        made.start(*NODES)
        made.meet(*NODES)
        made.apply(POLICY)
        made.mesh()
        made.add("web", "n1", "web")
        made.add("db", "n2", "db", 5432)
        for node in NODES:
            made.add(f"api-{node}", node, "api", 8080)
        until(
            lambda: len(made.status("n1")["replicas"]) == len(made.containers),
            "n1 to know every replica",
        )
        yield made


def test_addresses_follow_from_one_another(cluster: Cluster) -> None:
    status = cluster.status("n1")
    for service in status["services"]:
        assert service["vip6"] == names.address6_of(service["vip"], ULA)
    six = {replica["address"]: replica["address6"] for replica in status["replicas"]}
    for box in cluster.containers.values():
        assert six[box.address] == box.address6 == names.address6_of(box.address, ULA)
        assert [ip["address"].partition("/")[2] for ip in box.result["ips"]] == ["12", "108"]


def test_three_replicas_share_the_dials_of_a_vip6(cluster: Cluster) -> None:
    web, vip6 = cluster.containers["web"], cluster.vip("api", field="vip6")
    answers = Counter(web.greet(vip6, 80) for _ in range(DIALS))
    assert set(answers) == {f"api-{node}" for node in NODES}
    # Three equal shares; 6 sigma of a binomial with p = 1/3.
    assert all(abs(n - DIALS / 3) < 6 * (DIALS * 2 / 9) ** 0.5 for n in answers.values())


def test_each_replica_answers_at_its_own_address(cluster: Cluster) -> None:
    web = cluster.containers["web"]
    for node in NODES:
        assert web.greet(cluster.containers[f"api-{node}"].address6, 8080) == f"api-{node}"


def test_what_policy_does_not_name_is_refused_and_counted(cluster: Cluster) -> None:
    web, vip6 = cluster.containers["web"], cluster.vip("db", field="vip6")
    with pytest.raises(ConnectionRefusedError):
        web.dial(vip6, 5432)
    (denied,) = [d for d in cluster.status("n1")["counters"]["denied"] if d["peer"] == vip6]
    assert (denied["service"], denied["direction"]) == ("web", "out")
    assert (denied["protocol"], denied["port"]) == ("tcp", 5432)


def test_a_grant_comes_and_goes_in_both_families(cluster: Cluster) -> None:
    web, vip6 = cluster.containers["web"], cluster.vip("db", field="vip6")
    rule = "  - {from: web, to: db, ports: [tcp/5432]}\n"
    cluster.apply(POLICY.replace("allow:\n", f"allow:\n{rule}"))
    with web.dial(vip6, 5432) as flow:
        assert flow.recv(100) == b"db\n"
        cluster.apply(POLICY)
        with pytest.raises(ConnectionAbortedError):
            flow.sendall(b"x")
            flow.recv(1)
    with pytest.raises(ConnectionRefusedError):
        web.dial(vip6, 5432)


def test_a_node_that_was_told_otherwise_is_named_and_cuts_nobody_off(cluster: Cluster) -> None:
    """n3 comes back without an IPv6 network: what is attached there keeps its own."""
    web, far = cluster.containers["web"], cluster.containers["api-n3"]
    config = cluster.base / "n3" / "node.yaml"
    text = config.read_text()
    with web.dial(far.address6, 8080) as flow:
        assert flow.recv(100) == b"api-n3\n"
        cluster.kill("n3")
        config.write_text(text.replace(f', ula: "{ULA}"', ""))
        assert config.read_text() != text
        cluster.start("n3")
        cluster.meet(*NODES)
        until(lambda: "addresses.ula differs" in cluster.log("n1"), "n1 to notice")
        told = {node["node"]: node["ula"] for node in cluster.status("n1")["nodes"]}
        assert told == {"n1": ULA, "n2": ULA, "n3": ""}
        verified = cluster.verify("n3")
        assert verified["differences"] == []
        (outdated,) = verified["outdated"]
        assert f"addresses.ula was {ULA} and is absent" in outdated
        flow.sendall(b"still")
        assert flow.recv(5) == b"still"
    cluster.kill("n3")
    config.write_text(text)
    cluster.start("n3")
    cluster.meet(*NODES)
    until(lambda: {n["ula"] for n in cluster.status("n1")["nodes"]} == {ULA}, "n3 to agree again")
    assert cluster.verify("n3")["outdated"] == []
    assert web.greet(far.address6, 8080) == "api-n3"
