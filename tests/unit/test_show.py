"""What people see of a status: aligned, complete, and in words."""

from __future__ import annotations

import msgspec

from daemon.api.messages import (
    Counters,
    DenialStatus,
    NodeStatus,
    PolicyStatus,
    PortStatus,
    ReplicaStatus,
    ServiceStatus,
    Status,
    Verification,
)
from daemon.ctl import show
from tests.unit.model_kit import NOW


def node(name: str, **changes: object) -> NodeStatus:
    fields: dict[str, object] = {
        "node": name, "alive": True, "lost": False, "slice": "10.64.16.0/20", "mtu": 1468,
        "quality": 1.0, "via": "",
    }  # fmt: skip
    return NodeStatus(**(fields | changes))  # type: ignore[arg-type]


def replica(name: str, **changes: object) -> ReplicaStatus:
    fields: dict[str, object] = {
        "attachment": name, "node": "n1", "service": "web", "network": "mesh",
        "address": "10.64.16.5", "mac": "02:4e:0a:40:10:05", "refused": "",
    }  # fmt: skip
    return ReplicaStatus(**(fields | changes))  # type: ignore[arg-type]


EMPTY = Status(
    node="n1",
    cluster="lab",
    version="0.1.0",
    ready=True,
    algorithm="BATMAN_IV",
    mtu=1468,
    policy=None,
    nodes=[node("n1")],
    services=[],
    replicas=[],
    counters=Counters(plaintext=0, foreign=0, forbidden=0, denied=[], records={}),
)


def changed(**changes: object) -> str:
    return show.status(msgspec.structs.replace(EMPTY, **changes), NOW)


def test_columns_are_aligned_numbers_to_the_right() -> None:
    assert show.table(("name", "packets"), [("web", 5), ("database", 12345)]) == (
        "NAME      PACKETS\n"
        "web             5\n"
        "database    12345"
    )  # fmt: skip


def test_a_column_with_one_word_is_of_words() -> None:
    assert show.table(("a", "b"), [(1, "x"), ("-", 2)]).splitlines()[1:] == ["1  x", "-  2"]


def test_no_rows_leave_the_head() -> None:
    assert show.table(("a", "b"), []) == "A  B"


def test_no_line_ends_with_blanks() -> None:
    assert all(line == line.rstrip() for line in changed(replicas=[replica("x")]).splitlines())


def test_a_fresh_node_says_so() -> None:
    text = changed()
    assert text.startswith("n1 in cluster lab: ready, BATMAN_IV, mesh MTU 1468, no policy yet\n")
    assert "host filter dropped: 0 plaintext, 0 foreign, 0 forbidden" in text
    for head in ("SERVICE", "REPLICA", "DENIED", "records refused"):
        assert head not in text


def test_a_node_that_starts_and_its_policy() -> None:
    policy = PolicyStatus(version=7, received_ns=1, programmed_ns=2)
    text = changed(ready=False, policy=policy)
    assert "lab: starting, " in text
    assert "policy 7" in text


def test_each_node_is_alive_silent_suspect_or_lost() -> None:
    text = changed(
        nodes=[
            node("n1"),
            node("n2", alive=False, quality=0.5, via="n3"),
            node("n3", alive=False, lost=True, quality=0.0),
            node("n4", alive=False, suspect=True),
        ]
    )
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.startswith("n")}
    assert rows["n2"] == ["n2", "silent", "10.64.16.0/20", "0.50", "n3"]
    assert (rows["n3"][1], rows["n4"][1]) == ("lost", "suspect")
    assert changed().splitlines()[3].split() == ["n1", "alive", "10.64.16.0/20", "1.00", "-"]


def test_services_show_what_a_client_dials() -> None:
    port = PortStatus(protocol="tcp", port=80, target=8080)
    services = [
        ServiceStatus(name="api", id=2, vip="10.80.0.2", ports=[port],
                      replicas=["10.64.16.5", "10.64.32.5"], slots={}),
        ServiceStatus(name="web", id=1, vip="10.80.0.1", ports=[], replicas=[], slots={}),
    ]  # fmt: skip
    lines = [line.split() for line in changed(services=services).splitlines()]
    assert ["api", "2", "10.80.0.2", "tcp/80", "2"] in lines
    assert ["web", "1", "10.80.0.1", "-", "0"] in lines


def test_a_refused_replica_says_why() -> None:
    text = changed(replicas=[replica("aa"), replica("bb", refused="policy knows it not")])
    assert "aa       web      10.64.16.5  n1    counts" in text
    assert text.splitlines()[-3].endswith("policy knows it not")


def test_what_was_refused_is_counted() -> None:
    denial = DenialStatus(
        attachment="aa", service="web", direction="out", peer="db", protocol="tcp", port=5432,
        packets=3,
    )  # fmt: skip
    text = changed(
        counters=Counters(
            plaintext=1,
            foreign=2,
            forbidden=3,
            denied=[denial],
            records={"malformed": 4},
            peers={"n2": {"over quota": 3}},
        )
    )
    assert "1 plaintext, 2 foreign, 3 forbidden" in text
    assert [line.split() for line in text.splitlines() if "5432" in line] == [
        ["web", "out", "db", "tcp", "5432", "3"]
    ]
    assert "records refused: malformed: 4\n" in text
    assert text.endswith("records of n2 refused: over quota: 3")


def test_a_verification_lists_differences_or_says_there_are_none() -> None:
    agreed = Verification(node="n1", attachments=4, differences=[])
    assert show.verification(agreed) == "n1: the kernel agrees with the plan (4 attachments)"
    text = show.verification(Verification(node="n1", attachments=4, differences=["a", "b"]))
    assert text.splitlines() == ["n1: the kernel differs from the plan:", "a", "b"]


def test_ipv6_is_shown_where_there_is_some_and_where_nodes_disagree() -> None:
    ula = "fd4e:6f63:7475::/96"
    service = ServiceStatus(name="api", id=2, vip="10.80.0.2", vip6="fd4e:6f63:7475::a50:2",
                            ports=[], replicas=[], slots={})  # fmt: skip
    six = replica("aa", address6="fd4e:6f63:7475::a40:1005")
    text = changed(services=[service], replicas=[six], nodes=[node("n1", ula=ula)])
    lines = [line.split() for line in text.splitlines()]
    assert ["SERVICE", "ID", "VIP", "VIP6", "PORTS", "REPLICAS"] in lines
    assert ["api", "2", "10.80.0.2", "fd4e:6f63:7475::a50:2", "-", "0"] in lines
    assert ["aa", "web", "10.64.16.5", "fd4e:6f63:7475::a40:1005", "n1", "counts"] in lines
    assert "differs" not in text
    text = changed(nodes=[node("n1", ula=ula), node("n2")])
    assert f"addresses.ula differs, so there is no IPv6 between: n1 {ula}, n2 none" in text


def test_what_only_a_new_attachment_mends_is_said_beside_the_differences() -> None:
    made = Verification(node="n1", attachments=1, differences=[], outdated=["aa (web): old"])
    agrees, outdated = show.verification(made).split("\n", 1)
    assert "agrees" in agrees
    assert outdated.endswith("\naa (web): old")
    made.differences = ["bb (web): slot is missing"]
    said = show.verification(made).splitlines()
    assert said[1] == "bb (web): slot is missing"
    assert said[-1] == "aa (web): old"


def test_certificates_that_end_soon_or_have_ended_are_named() -> None:
    """NOW is 2027-01-15T08:00:00Z."""
    ends = {
        "n1": "2027-02-14T07:59:59Z",
        "n2": "2027-02-14T08:00:00Z",
        "n3": "2027-01-15T07:59:59Z",
        "n4": "",
    }
    text = changed(nodes=[node(name, certificate_until=end) for name, end in ends.items()])
    assert [line for line in text.splitlines() if line.startswith("certificate")] == [
        "certificate of n1 ends at 2027-02-14T07:59:59Z, in 29 days: renew it",
        "certificate of n3 ended at 2027-01-15T07:59:59Z: renew it",
    ]


def test_what_is_wrong_with_the_mesh_comes_before_everything_else() -> None:
    why = "mesh.links[0].interface: no interface eth1 in this namespace"
    assert changed(mesh=[why]).splitlines()[1:3] == ["", why]
    assert why not in changed()
