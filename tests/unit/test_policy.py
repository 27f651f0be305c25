"""policy.yaml: what it may say, how it is refused, and what stays the same when it changes."""

from __future__ import annotations

from ipaddress import IPv4Network

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.model.policy import RESTING, Policy, compile, parse
from netconf.errors import AddressesExhausted, DecodeFailure, InvalidConfig
from tests.unit.model_kit import TEXT, VIPS, policy

NAMES = st.sets(st.sampled_from([f"s{i}" for i in range(12)]))


def services(names: object) -> str:
    listed = ", ".join(f"{name}: {{}}" for name in sorted(names))  # type: ignore[call-overload]
    return f"services: {{{listed}}}"


def test_the_example_of_the_design() -> None:
    made = policy()
    web, api, db = (made.services[name] for name in ("web", "api", "db"))
    assert [service.id for service in (web, api, db)] == [1, 2, 3]
    assert [service.vip for service in (web, api, db)] == ["10.80.0.1", "10.80.0.2", "10.80.0.3"]
    assert api.target(("tcp", 80)) == 8080
    assert db.target(("tcp", 5432)) == 5432
    assert [tuple(edge.ports) for edge in made.outgoing[api.id]] == [(("icmp", 0), ("tcp", 5432))]
    assert made.neighbours(api.id) == {web.id, db.id}
    assert made.neighbours(web.id) == {api.id}
    assert made.may_host("db", "n2")
    assert not made.may_host("db", "n3")
    assert not made.may_host("cache", "n1")


def test_an_edge_without_ports_means_all_declared_ones_and_not_icmp() -> None:
    text = (
        "services: {a: {}, b: {ports: [{protocol: tcp, port: 1}, {protocol: udp, port: 2}]}}\n"
        "allow: [{from: a, to: b}]"
    )
    assert parse(text).allow[0].ports == (("tcp", 1), ("udp", 2))


def test_edges_with_the_same_ends_are_one() -> None:
    text = TEXT + "  - {from: web, to: api, ports: [icmp]}\n"
    assert [edge.ports for edge in policy(text).outgoing[1]] == [(("icmp", 0), ("tcp", 80))]


def test_pinned_nodes_are_the_only_hosts() -> None:
    made = policy("services: {a: {}}\nnodes: {n1: {slice: 10.64.16.0/20}}")
    assert made.may_host("a", "n1")
    assert not made.may_host("a", "n2")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            TEXT.replace("to: db", "to: dbx"),
            'allow[1].to: there is no service "dbx"; did you mean "db"?',
        ),
        (TEXT.replace("[tcp/80]", "[tcp/81]"), 'allow[0].ports[0]: "api" does not declare tcp/81'),
        (TEXT.replace("[tcp/80]", "[http]"), 'allow[0].ports[0]: "http" is not a port; write'),
        (TEXT.replace("[tcp/80]", "[]"), "allow[0].ports: is empty"),
        (TEXT.replace("[tcp/80]", "tcp/80"), "allow[0].ports: is text, not a list"),
        (TEXT.replace("from: web, ", ""), "allow[0]: has no from; write"),
        (
            TEXT.replace("from: web", "form: web"),
            'allow[0].form: unknown key; did you mean "from"?',
        ),
        ("services: {a: {}, b: {}}\nallow: [{from: a, to: b}]", 'allow[0]: "b" declares no ports'),
        ("services: {a: }", "services.a: is empty, not a mapping; write {}"),
        ("services: {no: {}}", "services.False: is yes or no, not text; put it in quotes"),
        ("services: {-a: {}}", "services.-a: is not a service name; use"),
        ("services: {a: {prots: []}}", 'services.a.prots: unknown key; did you mean "ports"?'),
        ("services: {a: {ports: [{port: 1}]}}", "services.a.ports[0]: has no protocol; write"),
        (
            "services: {a: {ports: [{protocol: tcp, port: 0}]}}",
            "services.a.ports[0].port: 0 is not a port; use",
        ),
        (
            "services: {a: {ports: [{protocol: tcp, port: 1, target: 65536}]}}",
            "services.a.ports[0].target: 65536 is not a port; use",
        ),
        (
            "services: {a: {ports: [{protocol: tcp, port: true}]}}",
            "services.a.ports[0].port: True is not a port; use",
        ),
        (
            "services: {a: {ports: [{protocol: sctp, port: 1}]}}",
            'services.a.ports[0].protocol: "sctp" is not known; use tcp or udp',
        ),
        (
            "services: {a: {ports: [{protocol: tcp, port: 1}, {protocol: tcp, port: 1}]}}",
            "services.a.ports[1]: tcp/1 is declared twice; remove one",
        ),
        (
            "services: {a: {balance: {strategy: best}}}",
            'services.a.balance.strategy: "best" is not known; use link or weighted or nearest',
        ),
        (
            "services: {a: {balance: {sticky: true}}}",
            'services.a.balance.sticky: "True" is not known; use client',
        ),
        (
            "services: {a: {balance: {weights: {n1: -1}}}}",
            "services.a.balance.weights.n1: -1 is out of range; use",
        ),
        (
            "services: {a: {balance: {weights: {n1: .nan}}}}",
            "services.a.balance.weights.n1: nan is out of range; use",
        ),
        (
            "services: {a: {nodes: [n1], balance: {weights: {n2: 1}}}}",
            'services.a.balance.weights.n2: "n2" may not host this service',
        ),
        ("services: {a: {nodes: []}}", "services.a.nodes: is empty"),
        ("services: {a: {nodes: [n1, n1]}}", 'services.a.nodes[1]: node "n1" is listed twice'),
        (
            "services: {a: {nodes: [n2]}}\nnodes: {n1: {slice: 10.64.16.0/20}}",
            'services.a.nodes[0]: there is no node "n2"; list it under nodes',
        ),
        ("services: {a: {vip: 10.80}}", "services.a.vip: is a number, not text; put it in quotes"),
        ("services: {a: {vip: ten}}", 'services.a.vip: "ten" is not an IPv4 address; write'),
        (
            "services: {a: {vip: 10.80.0.9}, b: {vip: 10.80.0.9}}",
            "services.b.vip: 10.80.0.9 is a's already; choose another",
        ),
        (
            "services: {web: {}, api: {}, Web: {}}",
            "services.Web: differs from web in capitals only, which DNS does not tell apart",
        ),
        (f"services: {{{'a' * 64}: {{}}}}", f"services.{'a' * 64}: cannot be looked up"),
        ("services: {a..b: {}}", "services.a..b: cannot be looked up: DNS wants 1 to 63"),
        ("services: {a.: {}}", "services.a.: cannot be looked up"),
        ("services: {}\nnodes: {n1: {}}", "nodes.n1: has no slice; write"),
        ("services: {}\nnodes: {n1: {slice: 10.64.16.1/20}}", 'nodes.n1.slice: "10.64.16.1/20"'),
        (
            "services: {}\nnodes: {n1: {slice: 10.64.0.0/12}, n2: {slice: 10.64.16.0/20}}",
            "nodes.n2.slice: 10.64.16.0/20 overlaps with 10.64.0.0/12 of n1; give each",
        ),
        ("service: {}", 'unknown key "service"; did you mean "services"?'),
    ],
)
def test_a_mistake_is_named_with_its_path(text: str, says: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse(text)
    assert caught.value.message.startswith(f"policy.yaml: {says}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("services: [", "line 1, column 12"),
        ("services: {a: {}, a: {}}", "line 1, column 19"),
        ("[" * 1000, "policy.yaml"),
        ("a: \x00", "policy.yaml"),
    ],
)
def test_what_is_not_yaml_is_named_with_its_place(text: str, says: str) -> None:
    with pytest.raises(DecodeFailure, match=says):
        parse(text)


@settings(max_examples=60)
@given(st.text(max_size=200))
def test_any_text_is_a_document_or_an_explained_error(text: str) -> None:
    try:
        parse(text)
    except (DecodeFailure, InvalidConfig) as error:
        assert error.message.startswith("policy.yaml: ")


def test_a_vip_outside_the_pool_and_a_slice_inside_it() -> None:
    for vip in ("10.81.0.1", "10.80.0.0", "10.80.255.255"):
        with pytest.raises(InvalidConfig, match=r"policy.yaml: services\.a\.vip: .* choose one"):
            policy(f"services: {{a: {{vip: {vip}}}}}")
    with pytest.raises(InvalidConfig, match=r"policy.yaml: nodes\.n1\.slice: .* choose a slice"):
        policy("services: {}\nnodes: {n1: {slice: 10.80.1.0/24}}")


@settings(max_examples=60)
@given(st.lists(NAMES, min_size=1, max_size=8))
def test_whoever_stays_keeps_id_and_vip_and_no_two_share_one(history: list[set[str]]) -> None:
    last: Policy | None = None
    ever: dict[str, tuple[int, str]] = {}
    for version, names in enumerate(history, 1):
        last = compile(parse(services(names)), last, VIPS, version)
        now = {name: (s.id, s.vip) for name, s in last.services.items()}
        assert set(now) == names
        for name, pair in now.items():
            assert ever.setdefault(name, pair) == pair  # also after an absence
        assert len({pair[0] for pair in ever.values()}) == len(ever)
        assert len({pair[1] for pair in ever.values()}) == len(ever)
        again = compile(parse(services(names)), last, VIPS, version)
        assert again.services == last.services
        assert again.resting == last.resting


def test_the_order_in_the_file_does_not_matter() -> None:
    before = policy("services: {a: {}, b: {}}")
    after = policy("services: {c: {}, b: {}, a: {}}", 2, before)
    assert {n: s.id for n, s in after.services.items()} == {"a": 1, "b": 2, "c": 3}


def test_the_remembered_are_bounded_and_the_oldest_is_forgotten_first() -> None:
    many = [f"s{i:04}" for i in range(RESTING + 1)]
    first = policy(services(many))
    second = policy("services: {x: {}}", 2, first)
    assert len(second.resting) == RESTING
    assert second.resting[0].name == "s0001"
    assert second.services["x"].id == first.services["s0000"].id


def test_a_full_pool_gives_out_the_longest_resting_vip_then_nothing() -> None:
    pool = IPv4Network("10.80.0.0/30")
    first = compile(parse("services: {a: {}, b: {}}"), None, pool, 1)
    second = compile(parse("services: {b: {}}"), first, pool, 2)
    third = compile(parse("services: {b: {}, c: {}}"), second, pool, 3)
    assert third.services["c"].vip == first.services["a"].vip
    assert third.resting == ()
    with pytest.raises(AddressesExhausted, match=r"policy.yaml: services\.d: no VIP is free"):
        compile(parse("services: {b: {}, c: {}, d: {}}"), third, pool, 4)


def test_a_fixed_vip_wins_over_who_had_it() -> None:
    first = policy("services: {a: {}, b: {}}")
    second = policy("services: {a: {}, b: {vip: 10.80.0.1}}", 2, first)
    assert second.services["b"].vip == "10.80.0.1"
    assert second.services["a"].vip == "10.80.0.3"  # not 10.80.0.2, which b's clients know
    assert second.services["a"].id == first.services["a"].id


def test_another_pool_moves_every_vip() -> None:
    first = policy("services: {a: {}}")
    second = compile(parse("services: {a: {}}"), first, IPv4Network("10.90.0.0/16"), 2)
    assert second.services["a"].vip == "10.90.0.1"


def test_a_policy_travels_unchanged_even_after_it_was_queried() -> None:
    made = policy()
    plain = msgspec.msgpack.encode(made)
    made.neighbours(1)
    assert msgspec.msgpack.encode(made) == plain
    assert msgspec.msgpack.decode(plain, type=Policy) == made
