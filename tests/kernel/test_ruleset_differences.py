"""Whatever is changed in a table is named, and mended under the elements that are there."""

from __future__ import annotations

import re

import pytest

from netconf.nft import host, readback, replacement, ruleset
from netconf.nft.container_ruleset import container_ruleset
from netconf.nft.elements import EGRESS, LB, NEXT, NFPROTO_INET, PEER
from netconf.nft.host_ruleset import HOST_RULESET
from netconf.nft.wire import Batch, NftSocket
from tests.kernel import release_010
from tests.kernel.client_server import ULA
from tests.kernel.sandbox import nodes, run

VIPS = "10.80.0.0/16"
DECLARED = container_ruleset(VIPS, ULA)
PEERS = {("10.64.0.1",): (7,)}
SLOTS = {("10.80.0.1", "tcp", 80, 9): ("10.64.0.1", 8080)}
OURS = ("02:4e:0a:40:00:01", "02:4e:0a:40:00:02")


@pytest.fixture
def node():
    with nodes(1) as (made,):
        ruleset.load_container(made.ns, VIPS, ULA)
        yield made
    host.close()


@pytest.fixture
def sock(node):
    opened = NftSocket(node.ns)
    opened.send(
        Batch().add(PEER, PEERS.items()).add(LB, SLOTS.items()).add(EGRESS, [((7, "tcp", 80), ())])
    )
    yield opened
    opened.close()


def nft(node, *command):
    return run("nsenter", f"--net={node.path}", "nft", *command)


def handle(node, chain, text):
    (found,) = re.findall(
        rf"{re.escape(text)} # handle (\d+)",
        nft(node, "-a", "list", "chain", *chain),
    )
    return found


IN = ("inet", "noctule", "input")
BRIDGE = ("bridge", "noctule", "container")
TAMPERED = [
    pytest.param(
        lambda n: nft(n, "delete", "rule", *IN, "handle", handle(n, IN, "jump stray")),
        ["chain input: a rule is missing: jump stray"],
        id="a rule is deleted",
    ),
    pytest.param(
        lambda n: nft(n, "chain", *IN, "{ policy accept; }"),
        ["chain input has policy accept, not drop"],
        id="a policy is flipped",
    ),
    pytest.param(
        lambda n: nft(n, "insert", "rule", *IN, "accept"),
        ["chain input: rule 1 should not be there"],
        id="an accept is inserted",
    ),
    pytest.param(
        lambda n: nft(n, "add", "rule", *IN, "meta mark set 7"),
        ["chain input: rule 15 should not be there"],
        id="a rule is appended",
    ),
    pytest.param(
        lambda n: nft(n, "insert", "rule", *IN, "goto refuse"),
        ["chain input: rule 1 should not be there: goto refuse"],
        id="a rule of ours stands twice",
    ),
    pytest.param(
        lambda n: nft(
            n, "replace", "rule", *IN, "handle", handle(n, IN, 'iif "lo" accept'), "iif", "2",
            "accept",
        ),
        [
            'chain input: a rule is missing: iif "lo" accept',
            "chain input: rule 2 should not be there",
        ],
        id="a constant is changed",
    ),
    pytest.param(
        lambda n: nft(n, "add chain inet noctule mine { type filter hook output priority 5; }"),
        [
            "it holds 27 chains, sets and counters in place of 26",
            "chain mine should not be there",
        ],
        id="a chain is added",
    ),
    pytest.param(
        lambda n: nft(n, "add set inet noctule mine { type mark; }"),
        [
            "it holds 27 chains, sets and counters in place of 26",
            "set mine should not be there",
        ],
        id="a set is added",
    ),
    pytest.param(
        lambda n: nft(n, "add table inet noctule { flags dormant; }"),
        None,
        id="the table sleeps",
    ),
    pytest.param(
        lambda n: nft(n, "delete", "table", "inet", "noctule"), None, id="the table is deleted"
    ),
]  # fmt: skip


@pytest.mark.parametrize(("tamper", "said"), TAMPERED)
def test_each_change_is_named_and_mended(node, sock, tamper, said):
    assert ruleset.mend_container(node.ns, VIPS, ULA) == []
    tamper(node)
    found = ruleset.mend_container(node.ns, VIPS, ULA)
    if said is None:
        assert len(found) == 1 and found[0].startswith("table inet noctule is ")
    else:
        assert found == [f"table inet noctule: {one}" for one in said]
        assert (sock.dump(PEER), sock.dump(LB)) == (PEERS, SLOTS)
        assert sock.dump(EGRESS) == {(7, "tcp", 80): ()}
    assert ruleset.mend_container(node.ns, VIPS, ULA) == []
    assert readback.awake(sock, NFPROTO_INET, NEXT) is None


def test_a_chain_that_is_flushed_and_hung_elsewhere_is_named(node, sock):
    for act in ("flush", "delete"):
        nft(node, act, "chain", "inet", "noctule", "balance")
    nft(node, "add chain inet noctule balance { type filter hook output priority 10; }")
    found = ruleset.mend_container(node.ns, VIPS, ULA)
    assert "table inet noctule: chain balance meets packets elsewhere than it should" in found
    assert len([one for one in found if "chain balance: a rule is missing" in one]) == 2


def test_a_namespace_full_of_rules_is_read_and_told_of_within_bounds(node, sock, tmp_path):
    many = tmp_path / "many.nft"
    rules = "".join(f"add rule inet noctule input meta mark {n} accept\n" for n in range(3000))
    many.write_text(rules)
    nft(node, "-f", str(many))
    found = ruleset.mend_container(node.ns, VIPS, ULA)
    assert found == ["table inet noctule holds more than 1000 rules or sets: not all was read"]
    assert ruleset.mend_container(node.ns, VIPS, ULA) == []
    assert sock.dump(PEER) == PEERS
    many.write_text("".join(f"add chain inet noctule c{n}\n" for n in range(100)))
    nft(node, "-f", str(many))
    found = ruleset.mend_container(node.ns, VIPS, ULA)
    assert len(found) == readback.SAID + 1
    assert found[-1] == "table inet noctule: and 91 further differences"


def test_chains_in_other_tables_are_nobodys_business(node, sock):
    nft(node, "add table inet other; add chain inet other output")
    nft(node, "add chain inet other input { type filter hook input priority 0; }")
    assert ruleset.mend_container(node.ns, VIPS, ULA) == []


def test_a_network_that_the_cluster_got_since_is_a_difference_and_gets_its_rules(node, sock):
    ruleset.load_container(node.ns, VIPS, "")
    sock.send(Batch().add(PEER, PEERS.items()))
    found = ruleset.mend_container(node.ns, VIPS, ULA)
    assert len([one for one in found if "a rule is missing: ip6 daddr fd4e:" in one]) == 2
    assert sock.dump(PEER) == PEERS
    assert ruleset.mend_container(node.ns, VIPS, ULA) == []


def test_the_tables_of_release_010_are_replaced_with_their_elements(node, sock):
    sock.delete_table(NFPROTO_INET, "noctule")
    release_010.load(sock, "container")
    sock.send(Batch().add(PEER, PEERS.items()).add(LB, SLOTS.items()))
    assert ruleset.mend_container(node.ns, VIPS, "") != []
    assert (sock.dump(PEER), sock.dump(LB)) == (PEERS, SLOTS)
    assert ruleset.mend_container(node.ns, VIPS, "") == []
    release_010.load(sock, "host")
    with node.ns.enter():
        host.add_port("vh1", OURS[0])
        host.change_pairs([OURS], [])
        assert ruleset.ensure_host() != []
        assert (host.ports(), host.pairs()) == ({("vh1", OURS[0])}, {OURS})
        assert ruleset.ensure_host() == []


def test_the_host_filter_is_compared_and_mended_too(node):
    with node.ns.enter():
        assert ruleset.ensure_host() == ["table bridge noctule is missing"]
        host.add_port("vh1", OURS[0])
        accept = 'ether type != 0x88e5 counter name "plaintext" drop'
        nft(node, "delete", "rule", *BRIDGE, "handle", handle(node, BRIDGE, accept))
        nft(node, "insert", "rule", *BRIDGE, "accept")
        assert ruleset.ensure_host() == [
            "table bridge noctule: chain container: rule 1 should not be there",
            f"table bridge noctule: chain container: a rule is missing: {accept}",
        ]
        assert host.ports() == {("vh1", OURS[0])}
        assert ruleset.ensure_host() == []


@pytest.mark.parametrize("declared", [DECLARED, HOST_RULESET], ids=["container", "host"])
def test_a_crash_at_any_step_is_finished_by_the_next(node, sock, declared, monkeypatch):
    """Whichever batch was the last, the whole comes of it, elements included."""
    if declared is HOST_RULESET:
        with node.ns.enter():
            ruleset.ensure_host()
            host.change_pairs([OURS], [])

    def held():
        if declared is HOST_RULESET:
            with node.ns.enter():
                return host.pairs()
        return sock.dump(PEER), sock.dump(LB), sock.dump(EGRESS)

    full = held()
    transact = NftSocket.transact

    class CrashedError(Exception):
        pass

    for last in range(100):
        left = last

        def crash(self, messages):
            nonlocal left
            if left == 0:
                raise CrashedError
            left -= 1
            transact(self, messages)

        monkeypatch.setattr(NftSocket, "transact", crash)
        try:
            replacement.replace(sock, declared)
            break
        except CrashedError:
            pass
        finally:
            monkeypatch.setattr(NftSocket, "transact", transact)
        force = [
            readback.awake(sock, declared.family, name) for name in ("noctule", "noctule-next")
        ]
        assert True in force  # one is in force, whatever happens
        if declared is HOST_RULESET:
            with node.ns.enter():
                ruleset.ensure_host()
        else:
            ruleset.mend_container(node.ns, VIPS, ULA)
        assert held() == full
        assert readback.awake(sock, declared.family, NEXT) is None
        assert readback.differences(sock, declared) == []
    assert last == 8


def test_what_a_kernel_tells_of_a_table_just_loaded_is_no_difference(node, sock, monkeypatch):
    monkeypatch.setattr(ruleset, "_peculiar", set())
    with nodes(1) as (scratch,):
        assert ruleset.calibrate(scratch.ns, VIPS, ULA) == []  # we know the kernels that we test on
        later = readback.differences

        def differences(nft, declared):
            return [*later(nft, declared), "table inet noctule: set lb is declared otherwise"]

        monkeypatch.setattr(readback, "differences", differences)
        assert ruleset.mend_container(node.ns, VIPS, ULA) != []
        assert len(ruleset.calibrate(scratch.ns, VIPS, ULA)) == 1
    assert ruleset.mend_container(node.ns, VIPS, ULA) == []
    nft(node, "insert", "rule", *IN, "accept")
    (said,) = ruleset.mend_container(node.ns, VIPS, ULA)
    assert said.endswith("rule 1 should not be there")


def test_counts_of_refusals_and_their_age_are_kept(node, sock):
    nft(
        node,
        "add element inet noctule denied_out "
        "{ 10.64.0.9 . tcp . 22 counter packets 5 bytes 300 expires 10m }",
    )
    before = ruleset.denials(node.ns)
    assert [(one.peer, one.packets) for one in before] == [("10.64.0.9", 5)]
    replacement.replace(sock, DECLARED)
    assert ruleset.denials(node.ns) == before
    shown = nft(node, "list", "set", "inet", "noctule", "denied_out")
    assert re.search(r"expires (9m\d+s|10m)", shown)
