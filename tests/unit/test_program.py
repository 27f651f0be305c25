"""The programmer on an in-memory kernel: always the new view, always in permitted order."""

from __future__ import annotations

import contextlib
import errno
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netconf import names
from netconf.nft.elements import (
    EGRESS,
    EGRESS_ICMP,
    GENUINE6,
    INGRESS,
    INGRESS_ICMP,
    LB,
    LB6,
    PEER,
    PEER6,
)
from netconf.nft.encoding import TcpConnection, mark_of
from netconf.nft.wire import Batch, Flows
from netconf.program import actual, programmer
from netconf.program.desired import EMPTY, Desired, Peer, differing
from tests.unit.fake_nft import FakeNft

SETS = (LB, PEER, EGRESS, EGRESS_ICMP, INGRESS, INGRESS_ICMP)
SETS6 = (LB6, PEER6, GENUINE6)
ULA = "fd4e:6f63:7475::/96"
FAMILIES = pytest.mark.parametrize("ula", ["", ULA])
CAK = b"a secret of more than 16 bytes"


class FakeContainer:
    """One container's kernel state behind `program.Hands`, with macsec's errors.

    `journal` has one entry per change: (``grant`` or ``revoke``, ``receive`` or ``send``).
    """

    def __init__(self, ula=""):
        self.rx = {}
        self.arp = {}
        self.journal = []
        self.aborted = []
        self.ula = ula
        self.tables = FakeNft(SETS + SETS6 if ula else SETS)

    @property
    def nft(self):
        return self

    def send(self, batch):
        self.tables.send(batch)
        added = {key for c in batch.changes if c.verb == "add" for key, _ in c.elements}
        for change in batch.changes:
            receiving = (PEER, PEER6, GENUINE6, INGRESS, INGRESS_ICMP)
            side = "receive" if change.set in receiving else "send"
            keys = {key for key, _ in change.elements}
            if change.verb == "add":
                self.journal.append(("grant", side))
            elif keys - added:  # a key deleted and added again only changed its data
                self.journal.append(("revoke", side))

    def using(self):
        return self.lock

    def within(self, seconds):
        return contextlib.nullcontext()

    def dump(self, target):
        return self.tables.dump(target)

    def generation(self):
        return len(self.tables.sent)

    def connections(self, flows, most):
        return self.tables.connections(flows, most)

    def delete_flows(self, flows):
        self.tables.delete_flows(flows)

    def abort(self, connections):
        """Note what was aborted, and the flows and elements of that moment."""
        if connections:
            left = {name: dict(elements) for name, elements in self.tables.sets.items()}
            self.aborted.append((connections, list(self.tables.flows_deleted), left))

    def add_channel(self, sci):
        if sci in self.rx:
            raise OSError(errno.EEXIST, "")
        self.rx[sci] = {}
        self.journal.append(("grant", "receive"))

    def del_channel(self, sci):
        if self.rx.pop(sci, None) is None:
            raise OSError(errno.ENODEV, "")
        self.journal.append(("revoke", "receive"))

    def add_key(self, sci, an, sak, key_id):
        if sci not in self.rx:
            raise OSError(errno.ENODEV, "")
        if an in self.rx[sci]:
            raise OSError(errno.EBUSY, "")
        self.rx[sci][an] = key_id
        self.journal.append(("grant", "receive"))

    def del_key(self, sci, an):
        if self.rx.get(sci, {}).pop(an, None) is None:
            raise OSError(errno.ENODEV, "")

    def channels(self):
        return {sci: dict(sas) for sci, sas in self.rx.items()}

    def set_neighbour(self, address, mac):
        self.arp[address] = mac
        self.journal.append(("grant", "send"))

    def del_neighbour(self, address):
        self.arp.pop(address, None)
        self.journal.append(("revoke", "send"))

    def neighbours(self):
        return dict(self.arp)


ADDRESSES = [f"10.64.0.{n}" for n in range(1, 6)]
PORTS = st.sampled_from([80, 443])
GRANTS = st.frozensets(
    st.one_of(
        st.tuples(st.integers(1, 3), st.sampled_from(["tcp", "udp"]), PORTS),
        st.tuples(st.integers(1, 3), st.just("icmp"), st.just(0)),
    ),
    max_size=5,
)
SALTS = st.dictionaries(
    st.integers(0, 3), st.sampled_from([bytes([n]) * 32 for n in range(3)]), max_size=2
)


@st.composite
def views(draw):
    addresses = draw(st.sets(st.sampled_from(ADDRESSES)))
    peers = {
        address: Peer(address=address, service=draw(st.integers(1, 3)), salts=draw(SALTS))
        for address in addresses
    }
    slots = st.tuples(
        st.just("10.80.0.1"), st.sampled_from(["tcp", "udp"]), PORTS, st.integers(0, 3)
    )
    targets = st.tuples(st.sampled_from(sorted(addresses) or ADDRESSES), PORTS)
    return Desired(
        peers=peers,
        egress=draw(GRANTS),
        ingress=draw(GRANTS),
        slots=draw(st.dictionaries(slots, targets, max_size=6)),
    )


def move(kernel, old, new):
    before, after = differing(old, new)
    ula = kernel.ula
    programmer.change(kernel, actual.expected(before, ula), after, ula, "mesh", lambda: CAK)


def agrees(kernel, view):
    found = programmer.observe(kernel, kernel.ula)
    assert found == actual.expected(view, kernel.ula)
    assert actual.differences(found, view, kernel.ula) == []


@settings(max_examples=150)
@given(st.lists(views(), min_size=1, max_size=5), st.sampled_from(["", ULA]))
def test_any_sequence_of_views_ends_in_the_last_one_in_permitted_order(sequence, ula):
    kernel = FakeContainer(ula)
    old = EMPTY
    for new in sequence:
        kernel.journal.clear()
        move(kernel, old, new)
        agrees(kernel, new)
        order = kernel.journal
        sends = [n for n, entry in enumerate(order) if entry == ("grant", "send")]
        receives = [n for n, entry in enumerate(order) if entry == ("grant", "receive")]
        assert not sends or not receives or max(receives) < min(sends)
        silenced = [n for n, entry in enumerate(order) if entry == ("revoke", "send")]
        deafened = [n for n, entry in enumerate(order) if entry == ("revoke", "receive")]
        assert not silenced or not deafened or max(silenced) < min(deafened)
        old = new


@given(views(), views(), st.sampled_from(["", ULA]))
def test_what_differs_is_enough_to_know(old, new, ula):
    narrow, whole = FakeContainer(ula), FakeContainer(ula)
    for kernel in (narrow, whole):
        move(kernel, EMPTY, old)
    move(narrow, old, new)
    programmer.change(whole, actual.expected(old, ula), new, ula, "mesh", lambda: CAK)
    assert programmer.observe(narrow, ula) == programmer.observe(whole, ula)
    assert sorted(narrow.journal) == sorted(whole.journal)
    deleted = [set(map(str, kernel.tables.flows_deleted)) for kernel in (narrow, whole)]
    assert deleted[0] == deleted[1]


def test_one_replica_among_many_is_all_that_is_looked_at():
    many = {a: peer(a) for a in ADDRESSES}
    old = Desired(peers=many, egress=frozenset({(1, "tcp", 80)}))
    new = Desired(peers=many | {"10.64.0.9": peer("10.64.0.9")}, egress=old.egress)
    before, after = differing(old, new)
    assert before == EMPTY
    assert after == Desired(peers={"10.64.0.9": peer("10.64.0.9")})
    assert differing(new, new) == (EMPTY, EMPTY)


@given(views(), st.sampled_from(["", ULA]))
def test_nothing_to_do_does_nothing(view, ula):
    kernel = FakeContainer(ula)
    move(kernel, EMPTY, view)
    kernel.journal.clear()
    kernel.tables.sent.clear()

    def no_secret():
        raise AssertionError("the secret is read only when there is a key to install")

    programmer.change(kernel, actual.expected(view, ula), view, ula, "mesh", no_secret)
    assert kernel.journal == []
    assert all(not batch.changes for batch in kernel.tables.sent)


@given(views(), views(), st.sampled_from(["", ULA]))
def test_whatever_is_there_can_be_taken_over(found, view, ula):
    kernel = FakeContainer(ula)
    move(kernel, EMPTY, found)
    programmer.change(kernel, programmer.observe(kernel, ula), view, ula, "mesh", lambda: CAK)
    agrees(kernel, view)


def peer(address, service=1, **salts):
    numbered = {int(an[1:]): salt for an, salt in salts.items()}
    return Peer(address=address, service=service, salts=numbered or {0: bytes(32)})


def test_a_rekey_adds_the_next_number_before_the_old_one_goes():
    kernel = FakeContainer()
    old = Desired(peers={"10.64.0.1": peer("10.64.0.1", a0=bytes(32))})
    both = Desired(peers={"10.64.0.1": peer("10.64.0.1", a0=bytes(32), a1=b"1" * 32)})
    new = Desired(peers={"10.64.0.1": peer("10.64.0.1", a1=b"1" * 32)})
    sci = names.sci_of(names.mac_of("10.64.0.1"))
    move(kernel, EMPTY, old)
    move(kernel, old, both)
    assert set(kernel.rx[sci]) == {0, 1}
    move(kernel, both, new)
    assert set(kernel.rx[sci]) == {1}


def test_one_step_changes_slots_in_one_batch():
    kernel = FakeContainer()
    slots = {("10.80.0.1", "tcp", 80, n): ("10.64.0.1", 8080) for n in range(64)}
    old = Desired(peers={a: peer(a) for a in ADDRESSES}, slots=slots)
    new = Desired(
        peers=old.peers,
        slots=slots | {("10.80.0.1", "tcp", 80, n): ("10.64.0.2", 8080) for n in range(32)},
    )
    move(kernel, EMPTY, old)
    kernel.tables.sent.clear()
    move(kernel, old, new)
    (batch,) = [batch for batch in kernel.tables.sent if batch.changes]
    assert [(c.verb, len(c.elements)) for c in batch.changes] == [("delete", 32), ("add", 32)]


@FAMILIES
def test_flows_of_a_replica_that_leaves_are_deleted_once_for_both_families(ula):
    kernel = FakeContainer(ula)
    old = Desired(peers={a: peer(a) for a in ADDRESSES[:2]}, egress=frozenset({(1, "tcp", 80)}))
    new = Desired(peers={ADDRESSES[1]: peer(ADDRESSES[1])}, egress=old.egress)
    move(kernel, EMPTY, old)
    move(kernel, old, new)
    assert kernel.tables.flows_deleted == [Flows(mark_of(ADDRESSES[0]))]


@FAMILIES
def test_sockets_are_aborted_when_no_map_and_no_flow_leads_there_any_more(ula):
    kernel = FakeContainer(ula)
    old = Desired(
        peers={a: peer(a) for a in ADDRESSES[:3]},
        slots={("10.80.0.1", "tcp", 80, 0): (ADDRESSES[0], 8080)},
        ingress=frozenset({(1, "tcp", 80)}),
    )
    move(kernel, EMPTY, old)
    gone, kept = (Flows(mark_of(ADDRESSES[n])) for n in (0, 2))
    lost, other = (TcpConnection(bytes(4), port, bytes(4), 80) for port in (40000, 40001))
    kernel.tables.established = {gone: [lost], kept: [other]}
    move(kernel, old, Desired(peers={a: peer(a) for a in ADDRESSES[2:3]}, ingress=old.ingress))
    ((aborted, deleted, left),) = kernel.aborted
    assert aborted == [lost]
    assert gone in deleted
    assert left == kernel.tables.sets
    assert (ADDRESSES[0],) not in left[PEER.name]


def test_no_more_sockets_are_aborted_in_one_change_than_is_quick():
    kernel = FakeContainer()
    old = Desired(peers={ADDRESSES[0]: peer(ADDRESSES[0])})
    move(kernel, EMPTY, old)
    many = [TcpConnection(bytes(4), port, bytes(4), 80) for port in range(10000)]
    kernel.tables.established = {Flows(mark_of(ADDRESSES[0])): many}
    move(kernel, old, EMPTY)
    ((aborted, *_),) = kernel.aborted
    assert aborted == many[: programmer.MOST_ABORTED]


@FAMILIES
def test_flows_of_a_grant_that_goes_are_deleted_and_no_others(ula):
    kernel = FakeContainer(ula)
    peers = {ADDRESSES[0]: peer(ADDRESSES[0], 1), ADDRESSES[1]: peer(ADDRESSES[1], 2)}
    old = Desired(
        peers=peers,
        egress=frozenset({(1, "tcp", 80), (1, "tcp", 443), (2, "tcp", 80)}),
        ingress=frozenset({(2, "icmp", 0)}),
    )
    new = Desired(peers=peers, egress=frozenset({(1, "tcp", 443), (2, "tcp", 80)}))
    move(kernel, EMPTY, old)
    move(kernel, old, new)
    assert sorted(kernel.tables.flows_deleted, key=str) == sorted(
        [
            Flows(mark_of(ADDRESSES[0]), "out", "tcp", 80),
            Flows(mark_of(ADDRESSES[1]), "in", "icmp", 0),
        ],
        key=str,
    )


def test_both_families_hold_the_same_of_a_view():
    view = Desired(
        peers={"10.64.0.1": peer("10.64.0.1", 7)},
        egress=frozenset({(7, "tcp", 8080)}),
        slots={("10.80.0.1", "tcp", 80, 5): ("10.64.0.1", 8080)},
    )
    kernel = FakeContainer(ULA)
    move(kernel, EMPTY, view)
    tables = kernel.tables
    replica, vip = "fd4e:6f63:7475::a40:1", "fd4e:6f63:7475::a50:1"
    assert tables.dump(PEER) == {("10.64.0.1",): (7,)}
    assert tables.dump(PEER6) == {(replica,): (7,)}
    assert tables.dump(GENUINE6) == {("02:4e:0a:40:00:01", replica): ()}
    assert tables.dump(LB) == {("10.80.0.1", "tcp", 80, 5): ("10.64.0.1", 8080)}
    assert tables.dump(LB6) == {(vip, "tcp", 80, 5): (replica, 8080)}
    assert kernel.arp == dict.fromkeys(["10.64.0.1", replica], "02:4e:0a:40:00:01")
    move(kernel, view, EMPTY)
    assert not any(tables.sets.values())
    assert kernel.arp == {}


def test_differences_name_what_departs_in_ipv6():
    kernel = FakeContainer(ULA)
    view = Desired(
        peers={"10.64.0.1": peer("10.64.0.1")},
        slots={("10.80.0.1", "tcp", 80, 0): ("10.64.0.1", 8080)},
    )
    move(kernel, EMPTY, view)
    replica, vip = "fd4e:6f63:7475::a40:1", "fd4e:6f63:7475::a50:1"
    kernel.del_neighbour(replica)
    kernel.tables.send(Batch().delete(PEER6, [(replica,)]).delete(LB6, [(vip, "tcp", 80, 0)]))
    kernel.tables.send(Batch().add(GENUINE6, [(("02:4e:0a:40:00:09", replica), ())]))
    assert actual.differences(programmer.observe(kernel, ULA), view, ULA) == [
        f"genuine 02:4e:0a:40:00:09 {replica} should not be there",
        f"neighbour {replica} is missing",
        f"peer {replica} is missing",
        f"slot {vip} tcp 80 0 is missing",
    ]


def test_differences_name_what_departs():
    kernel = FakeContainer()
    view = Desired(
        peers={a: peer(a) for a in ADDRESSES[:2]},
        egress=frozenset({(1, "tcp", 80)}),
        slots={("10.80.0.1", "tcp", 80, 0): ("10.64.0.1", 8080)},
    )
    move(kernel, EMPTY, view)
    kernel.del_neighbour("10.64.0.1")
    kernel.del_channel(names.sci_of(names.mac_of("10.64.0.2")))
    kernel.tables.send(Batch().delete(PEER, [("10.64.0.1",)]).add(PEER, [(("10.64.0.1",), (9,))]))
    kernel.tables.send(Batch().delete(EGRESS, [(1, "tcp", 80)]))
    kernel.tables.send(Batch().add(INGRESS, [((1, "tcp", 81), ())]))
    assert actual.differences(programmer.observe(kernel, ""), view, "") == [
        "channel 024e0a4000020001 is missing",
        "channel 024e0a4000020001 key 0 is missing",
        "egress 1 tcp 80 is missing",
        "ingress 1 tcp 81 should not be there",
        "neighbour 10.64.0.1 is missing",
        "peer 10.64.0.1 is 9, not 1",
    ]


class OnFake(programmer.Programmer):
    """A programmer whose handles are a fake container."""

    def __init__(self, kernel):
        super().__init__()
        self.kernel = kernel

    def _open(self, attachment):
        return self.kernel


@given(views(), views(), views(), st.sampled_from(["", ULA]))
def test_drift_is_read_back_and_repaired_or_left_but_never_made_worse(believed, real, new, ula):
    from threading import Lock
    from types import SimpleNamespace

    kernel = FakeContainer(ula)
    kernel.lock = Lock()
    move(kernel, EMPTY, real)
    programmer = OnFake(kernel)
    attachment = SimpleNamespace(id="a", network="mesh", ula=ula)
    programmer.apply(attachment, believed, new, lambda: CAK)
    # What neither errors nor differs from belief is the audit's to find: reality is read.
    programmer.apply(attachment, None, new, lambda: CAK)
    agrees(kernel, new)
    assert not programmer.disturbed(attachment)
    kernel.tables.send(Batch())
    assert programmer.disturbed(attachment)


def test_a_namespace_that_is_gone_is_an_unknown_container(tmp_path):
    from types import SimpleNamespace

    from netconf.errors import UnknownContainer

    gone = SimpleNamespace(
        id="a", network="mesh", ifname="eth0", netns=str(tmp_path / "gone"), netns_id=(1, 2), ula=""
    )
    with pytest.raises(UnknownContainer):
        programmer.Programmer().apply(gone, EMPTY, EMPTY, lambda: CAK)
    other = SimpleNamespace(**{**vars(gone), "netns": f"/proc/{os.getpid()}/ns/net"})
    with pytest.raises(UnknownContainer):
        programmer.Programmer().observe(other)


def test_sockets_opened_while_the_attachment_is_forgotten_are_closed(monkeypatch, tmp_path):
    """An open socket would keep the namespace alive, with nobody left to close it."""
    from types import SimpleNamespace

    from netconf.errors import UnknownContainer
    from netconf.namespace import identity

    own = f"/proc/{os.getpid()}/ns/net"
    attachment = SimpleNamespace(
        id="a", network="mesh", ifname="eth0", netns=own, netns_id=identity(own), ula=""
    )
    made = programmer.Programmer()
    made.admit("a")
    closed = []

    def opening(netns, ifname):
        made.forget("a")  # by a DEL, in another thread
        return SimpleNamespace(identity=netns.identity, close=lambda: closed.append(ifname))

    monkeypatch.setattr(programmer, "NetnsSockets", opening)
    with pytest.raises(UnknownContainer):
        made.apply(attachment, EMPTY, EMPTY, lambda: CAK)
    assert closed == ["eth0"]
