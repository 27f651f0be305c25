"""nft lists what we load, rule by rule, as the declarations say.

The tables are not nft's work, so its reading of them is a second opinion about every expression.
Runs with nft 1.0.6 and with 1.1, whose spellings of the same expressions differ in `SPELLINGS`.
"""

from __future__ import annotations

import json

import pytest

from netconf.nft import ruleset
from netconf.nft.container_ruleset import container_ruleset
from netconf.nft.host_ruleset import HOST_RULESET
from netconf.nft.tables import Ruleset
from tests.kernel.client_server import ULA
from tests.kernel.sandbox import Node, nodes, run

VIPS = "10.80.0.0/16"
CONTAINER = container_ruleset(VIPS, ULA)

SPELLINGS = {
    "ct state new tcp flags & (fin | syn | rst | ack) != syn reject with tcp reset": (
        "ct state new tcp flags != syn / fin,syn,rst,ack reject with tcp reset"
    ),
    "ct state invalid tcp flags & (fin | rst) == fin reject with tcp reset": (
        "ct state invalid tcp flags fin / fin,rst reject with tcp reset"
    ),
    '@ll,116,2 != 0x3 counter name "plaintext" drop': (
        '@ll,112,8 & 0xc != 0xc counter name "plaintext" drop'
    ),
    '@ll,112,1 != 0x0 counter name "foreign" drop': (
        '@ll,112,8 & 0x80 != 0x0 counter name "foreign" drop'
    ),
    '@ll,114,2 != 0x0 counter name "foreign" drop': (
        '@ll,112,8 & 0x30 != 0x0 counter name "foreign" drop'
    ),
}
"""What our texts, which are nft 1.0.6's, say, by what nft 1.1.3 says."""


@pytest.fixture(scope="module")
def node():
    with nodes(1) as (made,):
        ruleset.load_container(made.ns, VIPS, ULA)
        with made.ns.enter():
            ruleset.ensure_host()
        yield made


def listed(node: Node, kind: str, family: str, name: str) -> list[str]:
    """Return what nft lists inside a chain or set, without the lines around it."""
    nft = ("nsenter", f"--net={node.path}", "nft", "list", kind, family, "noctule", name)
    lines = [line.strip() for line in run(*nft).splitlines()]
    begin = next(n for n, line in enumerate(lines) if line.startswith(f"{kind} {name} "))
    return [line for line in lines[begin + 1 :] if line not in ("", "}")]


def cases(family: str, declared: Ruleset) -> list[object]:
    return [pytest.param(family, chain, id=f"{family} {chain.name}") for chain in declared.chains]


@pytest.mark.parametrize(
    ("family", "chain"), cases("inet", CONTAINER) + cases("bridge", HOST_RULESET)
)
def test_nft_lists_each_rule_as_its_text(node, family, chain):
    lines = listed(node, "chain", family, chain.name)
    if chain.hook is not None:
        policy = ("drop", "accept")[chain.hook.policy]
        assert lines[0].startswith(f"type {chain.hook.type} hook ")
        assert lines[0].endswith(f"; policy {policy};")
        del lines[0]
    assert [SPELLINGS.get(line, line) for line in lines] == [one.text for one in chain.rules]


def test_nft_knows_what_each_set_holds(node):
    for family, declared in (("inet", CONTAINER), ("bridge", HOST_RULESET)):
        for one in declared.sets:
            kind = "map" if one.data else "set"
            key = " . ".join(selector.name for selector in one.key)
            data = " . ".join(selector.name for selector in one.data)
            (typeof,) = (
                line
                for line in listed(node, kind, family, one.set.name)
                if line.startswith("typeof ")
            )
            held = f"{key} : {data}" if data else key
            assert typeof.replace("meta iifname", "iifname") == f"typeof {held}"


def test_the_whole_can_be_listed(node):
    for table in ("inet", "bridge"):
        shown = run("nsenter", f"--net={node.path}", "nft", "list", "table", table, "noctule")
        assert shown.count("chain ") == len((CONTAINER if table == "inet" else HOST_RULESET).chains)
    shown = json.loads(run("nsenter", f"--net={node.path}", "nft", "-j", "list", "ruleset"))
    rules = [one for one in shown["nftables"] if "rule" in one]
    ours = (*CONTAINER.chains, *HOST_RULESET.chains)
    assert len(rules) == sum(len(chain.rules) for chain in ours)
