"""What one container puts into its own sets is named, within bounds, and mended."""

from __future__ import annotations

import contextlib
import errno

import pytest

from netconf.attach import operations
from netconf.attach.attachment import Attachment
from netconf.attach.state import State
from netconf.errors import KernelFailure
from netconf.nft import host, readback, replacement, ruleset, wire
from netconf.nft.elements import EGRESS, LB, LB6, NFPROTO_INET, PEER
from netconf.nft.encoding import NLM_F_CREATE, NLM_F_REQUEST, message, nftables, string
from netconf.nft.tables import table_flags
from netconf.nft.wire import Batch, NftSocket
from netconf.uapi import nf_tables as nf
from tests.kernel.sandbox import nodes
from tests.kernel.test_ruleset_differences import DECLARED, PEERS, SLOTS, ULA, VIPS, nft

NFT_TABLE_F_OWNER = 0x2


@pytest.fixture
def node():
    with nodes(1) as (made,):
        ruleset.load_container(made.ns, VIPS, ULA)
        yield made


@pytest.fixture
def sock(node):
    opened = NftSocket(node.ns)
    opened.send(Batch().add(PEER, PEERS.items()).add(LB, SLOTS.items()))
    yield opened
    opened.close()


FOREIGN = [
    pytest.param("add element inet noctule peer { * : 5 }", "peer", id="a catch-all in a map"),
    pytest.param("add element inet noctule ingress { * }", "ingress", id="a catch-all in a set"),
    pytest.param(
        "add element inet noctule denied_in { * counter packets 5 bytes 300 }",
        "denied_in",
        id="a catch-all where refusals are counted",
    ),
]


@pytest.mark.parametrize(("command", "name"), FOREIGN)
def test_an_element_that_nobody_wrote_is_named_and_goes(node, sock, command, name):
    nft(node, command)
    said = f"set {name} holds an element that nobody wrote"
    (target,) = (one.set for one in DECLARED.sets if one.set.name == name)
    with pytest.raises(OSError, match=said):
        sock.dump(target)
    assert ruleset.mend_container(node.ns, VIPS, ULA) == [f"table inet noctule: {said}"]
    assert sock.dump(target) == {}
    assert sock.dump(LB) == SLOTS  # the others are kept
    assert ruleset.mend_container(node.ns, VIPS, ULA) == []
    assert ruleset.denials(node.ns) == []


def test_a_set_of_shorter_keys_is_one_of_elements_that_nobody_wrote(node):
    nft(node, "delete", "table", "inet", "noctule")
    nft(node, "add table inet noctule")
    nft(node, "add set inet noctule denied_in { type inet_proto; counter; elements = { 6 }; }")
    nft(node, "add map inet noctule peer { type ipv4_addr : verdict; }")
    nft(node, "add element inet noctule peer { 10.64.0.1 : accept }")
    with pytest.raises(KernelFailure) as refused:
        ruleset.denials(node.ns)
    assert "denied_in holds an element that nobody wrote" in refused.value.details
    opened = NftSocket(node.ns)
    with contextlib.closing(opened), pytest.raises(OSError, match="nobody wrote"):
        opened.dump(PEER)
    assert ruleset.mend_container(node.ns, VIPS, ULA) != []
    assert ruleset.denials(node.ns) == []


def add_many(sock, count):
    """Grant `count` services more than anybody would."""
    for first in range(0, count, 20_000):
        sock.send(
            Batch().add(EGRESS, [((first + n, "tcp", 80), ()) for n in range(min(20_000, count))])
        )


def test_a_set_that_nobody_would_fill_is_not_read_to_its_end(node, sock, monkeypatch):
    received = 0
    receive = NftSocket._receive

    def count(self):
        nonlocal received
        received += 1
        return receive(self)

    add_many(sock, 60_000)  # 46 messages
    monkeypatch.setattr(wire, "MOST_PARTS", 10)
    monkeypatch.setattr(NftSocket, "_receive", count)
    with pytest.raises(OSError) as refused:
        sock.dump(EGRESS)
    assert refused.value.errno == errno.EFBIG
    assert sock.dump(PEER) == PEERS  # the former dump is not in the way of the next
    assert received < 20
    sock.send(Batch().delete(PEER, PEERS).add(PEER, PEERS.items()))
    assert ruleset.mend_container(node.ns, VIPS, ULA) == [
        "table inet noctule: set egress holds more elements than anybody would write"
    ]
    assert (sock.dump(PEER), sock.dump(EGRESS)) == (PEERS, {})


def test_what_is_read_of_a_container_has_a_deadline(node, sock, monkeypatch):
    add_many(sock, 20_000)
    with sock.within(60):
        assert len(sock.dump(EGRESS)) > 20_000 - 1
    with sock.within(-1), pytest.raises(TimeoutError):
        sock.dump(EGRESS)
    assert sock.dump(PEER) == PEERS
    monkeypatch.setattr(ruleset, "READ_SECONDS", -1)
    (said,) = ruleset.mend_container(node.ns, VIPS, ULA)
    assert said.endswith("not all was read")
    monkeypatch.undo()
    assert ruleset.mend_container(node.ns, VIPS, ULA) == []


def test_the_largest_set_that_we_may_write_is_read(sock):
    slots = {
        (f"fd4e::{n:x}", "tcp", 80, slot): ("fd4e::ffff", 8080)
        for n in range(1, 1401)
        for slot in range(64)
    }
    elements = list(slots.items())
    for first in range(0, len(elements), 10_000):
        sock.send(Batch().add(LB6, elements[first : first + 10_000]))
    assert sock.dump(LB6) == slots


def test_counters_of_others_are_not_carried_over(node, sock, tmp_path):
    many = tmp_path / "many.nft"
    many.write_text("".join(f"add counter inet noctule c{n}\n" for n in range(1100)))
    nft(node, "-f", str(many))
    assert ruleset.mend_container(node.ns, VIPS, ULA) != []
    assert (sock.dump(PEER), sock.dump(LB)) == (PEERS, SLOTS)
    assert ruleset.mend_container(node.ns, VIPS, ULA) == []


@pytest.mark.parametrize(
    ("name", "declared", "elements"),
    [
        ("ingress", "type mark . inet_proto . inet_service; timeout 1h;", ["7 . 6 . 80"]),
        (
            "denied_in_other",
            "type ipv4_addr . inet_proto; size 1024; flags dynamic,timeout;",
            [f"10.64.{n // 250}.{n % 250} . {n % 7}" for n in range(600)],
        ),
    ],
    ids=["with timeouts", "of another size"],
)
def test_the_elements_of_a_set_declared_otherwise_stay_behind(node, sock, name, declared, elements):
    nft(node, "delete", "table", "inet", "noctule")
    nft(node, "add table inet noctule")
    nft(node, f"add set inet noctule {name} {{ {declared} }}")
    nft(node, f"add element inet noctule {name} {{ {', '.join(elements)} }}")
    assert ruleset.mend_container(node.ns, VIPS, ULA) != []
    (target,) = (one.set for one in DECLARED.sets if one.set.name == name)
    assert sock.dump(target) == {}
    assert ruleset.mend_container(node.ns, VIPS, ULA) == []


def test_elements_that_the_kernel_refuses_do_not_stop_a_replacement(node, sock, monkeypatch):
    monkeypatch.setattr(readback, "fits", lambda _, __, one: one.set.name == "ingress")
    monkeypatch.setattr(replacement, "decode_elements", lambda *_: [])
    nft(node, "delete", "table", "inet", "noctule")
    nft(node, "add table inet noctule")
    nft(node, "add set inet noctule ingress { type inet_proto; elements = { 6 }; }")
    assert ruleset.mend_container(node.ns, VIPS, ULA) != []
    assert ruleset.mend_container(node.ns, VIPS, ULA) == []


@pytest.fixture
def owned(node):
    """The container's table, owned by a program in there (NFT_TABLE_F_OWNER)."""
    nft(node, "delete", "table", "inet", "noctule")
    owner = NftSocket(node.ns)
    body = string(nf.NFTA_TABLE_NAME, "noctule") + table_flags(NFT_TABLE_F_OWNER)
    kind, flags = nftables(nf.NFT_MSG_NEWTABLE), NLM_F_REQUEST | NLM_F_CREATE
    owner.transact(lambda number: [message(kind, flags, number, NFPROTO_INET, body)])
    yield node
    owner.close()


def test_a_table_that_a_program_owns_is_called_so(owned):
    with pytest.raises(KernelFailure, match="flags owner"):
        ruleset.mend_container(owned.ns, VIPS, ULA)


def test_a_table_that_a_program_owns_does_not_stop_a_detach(owned, tmp_path, monkeypatch, caplog):
    # Where the kernel has no MACsec nobody can be asked; elsewhere there is none here either.
    monkeypatch.setattr(operations, "_replicas", lambda _: [])
    state = State(tmp_path)
    made = Attachment(
        id="000000000001", network="mesh", container="c", ifname="eth0", netns=owned.path,
        netns_id=owned.ns.identity, service="web", key_file="", address="10.64.16.1",
        salt="11" * 32, an=0, mtu=1468, phase="ready", ula="",
    )  # fmt: skip
    state.save(made)
    with nodes(1) as (here,), here.ns.enter():
        assert operations.detach(state, made.id) is not None
        host.close()
    assert state.get(made.id) is None
    (logged,) = caplog.records
    assert (logged.message, logged.fields["attachment"]) == ("ruleset not removed", made.id)
