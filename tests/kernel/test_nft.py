"""The kernel agrees with our encoder, our decoder and our fake.

Runs wherever there are nftables and network namespaces, as root.
"""

from __future__ import annotations

import errno

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netconf.errors import UnknownContainer
from netconf.netlink import links
from netconf.nft import host, ruleset
from netconf.nft.elements import (
    EGRESS,
    EGRESS_ICMP,
    INGRESS,
    INGRESS_ICMP,
    LB,
    NFPROTO_INET,
    PEER,
    Set,
)
from netconf.nft.host_ruleset import HOST_RULESET
from netconf.nft.wire import Batch, BatchError, NftSocket
from netconf.program import netns_sockets
from tests.kernel.client_server import ULA
from tests.kernel.sandbox import nodes, run
from tests.unit.fake_nft import FakeNft

SETS = (LB, PEER, EGRESS, EGRESS_ICMP, INGRESS, INGRESS_ICMP)
MISSING = Set(NFPROTO_INET, "noctule", "no_such_set", PEER.key)

PEERS = Batch().add(PEER, [(("10.64.0.1",), (7,))])


@pytest.fixture(scope="module")
def node():
    with nodes(1) as (made,):
        yield made


@pytest.fixture
def nft(node):
    ruleset.load_container(node.ns, "10.80.0.0/16", ULA)
    opened = NftSocket(node.ns)
    yield opened
    opened.close()


ADDRESSES = st.sampled_from(["10.64.0.1", "10.64.0.2", "255.1.2.3"])
GRANT = st.tuples(st.integers(1, 2), st.sampled_from(["tcp", "udp"]), st.sampled_from([80, 443]))
KEYS = {
    "lb": st.tuples(ADDRESSES, st.sampled_from(["tcp", "udp"]), st.just(80), st.integers(0, 3)),
    "peer": st.tuples(ADDRESSES),
    "egress": GRANT,
    "ingress": GRANT,
    "egress_icmp": st.tuples(st.integers(1, 2)),
    "ingress_icmp": st.tuples(st.integers(1, 2)),
}
DATA = {
    "lb": st.tuples(ADDRESSES, st.sampled_from([80, 8080])),
    "peer": st.tuples(st.integers(1, 2)),
}


@st.composite
def batches(draw):
    batch = Batch()
    for _ in range(draw(st.integers(1, 4))):
        target = draw(st.sampled_from(SETS))
        keys = draw(st.lists(KEYS[target.name], max_size=3))
        if draw(st.booleans()):
            data = DATA.get(target.name, st.just(()))
            batch.add(target, [(key, draw(data)) for key in keys])
        else:
            batch.delete(target, keys)
    return batch


def outcome(nft, batch):
    try:
        nft.send(batch)
    except BatchError as error:
        return error.errno, error.change, error.element
    return None


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(batches(), max_size=8))
def test_the_fake_does_as_the_kernel_does(nft, sequence):
    fake = FakeNft(SETS)
    for target in SETS:
        nft.send(Batch().delete(target, nft.dump(target)))
    for batch in sequence:
        theirs, ours = outcome(nft, batch), outcome(fake, batch)
        assert (theirs and theirs[:2]) == (ours and ours[:2])
        if theirs and theirs[2] is not None:
            assert theirs[2] == ours[2]
        assert {s.name: nft.dump(s) for s in SETS} == fake.sets


def test_a_change_of_data_is_one_batch(nft):
    slot = ("10.80.0.1", "tcp", 80, 0)
    nft.send(Batch().add(LB, [(slot, ("10.64.0.1", 80))]))
    with pytest.raises(OSError) as refused:
        nft.send(Batch().add(LB, [(slot, ("10.64.0.2", 80))]))
    assert refused.value.errno == errno.EEXIST
    nft.send(Batch().delete(LB, [slot]).add(LB, [(slot, ("10.64.0.2", 80))]))
    assert nft.dump(LB) == {slot: ("10.64.0.2", 80)}


def test_the_culprit_is_named(nft):
    keys = [("10.64.0.1",), ("10.64.0.2",), ("10.64.0.3",)]
    nft.send(Batch().add(PEER, [(keys[0], (1,)), (keys[2], (1,))]))
    with pytest.raises(BatchError) as refused:
        nft.send(Batch().add(EGRESS, [((1, "tcp", 80), ())]).delete(PEER, keys))
    assert refused.value.errno == errno.ENOENT
    assert refused.value.change.set == PEER
    assert refused.value.element in (None, (keys[1], ()))
    assert nft.dump(EGRESS) == {}


def test_a_batch_of_many_messages_is_whole(nft):
    slots = {
        (f"10.80.{n // 250}.{n % 250}", "tcp", 80, slot): ("10.64.0.1", 8080)
        for n in range(40)
        for slot in range(64)
    }
    nft.send(Batch().add(LB, slots.items()))
    assert nft.dump(LB) == slots
    with pytest.raises(OSError):
        nft.send(Batch().delete(LB, [*slots, ("10.80.200.1", "tcp", 80, 0)]))
    assert len(nft.dump(LB)) == len(slots)
    nft.send(Batch().delete(LB, slots))
    assert nft.dump(LB) == {}


def test_a_set_that_is_not_there_is_missing(nft):
    with pytest.raises(OSError) as refused:
        nft.send(Batch().add(MISSING, [(("10.64.0.1",), ())]))
    assert refused.value.errno == errno.ENOENT
    with pytest.raises(FileNotFoundError):
        nft.dump(MISSING)


def test_nft_reads_what_we_wrote(node, nft):
    nft.send(
        Batch()
        .add(PEER, [(("10.64.0.1",), (7,))])
        .add(EGRESS, [((7, "udp", 53), ())])
        .add(LB, [(("10.80.0.1", "tcp", 80, 9), ("10.64.0.1", 8080))])
    )
    shown = run("ip", "netns", "exec", node.name, "nft", "-nn", "list", "table", "inet", "noctule")
    assert "10.64.0.1 : 0x00000007" in shown
    assert "0x00000007 . 17 . 53" in shown
    assert "10.80.0.1 . 6 . 80 . 9 : 10.64.0.1 . 8080" in shown


def test_the_container_ruleset_comes_whole_and_goes(node):
    ruleset.delete_container(node.ns)
    assert not ruleset.container_present(node.ns)
    ruleset.delete_container(node.ns)
    run(
        "ip",
        "netns",
        "exec",
        node.name,
        "nft",
        "add table inet noctule { set egress { type mark; }; }",
    )
    ruleset.load_container(node.ns, "10.80.0.0/16", ULA)
    assert ruleset.container_present(node.ns)
    assert ruleset.denials(node.ns) == []
    with pytest.raises(ValueError):
        ruleset.load_container(node.ns, "10.80.0.0/16; flush ruleset", "")


def handle():
    """Return the line that names the host filter's table by its handle."""
    return run("nft", "-a", "list", "table", "bridge", "noctule").splitlines()[0]


def test_the_host_ruleset_is_kept_or_replaced_with_its_elements(monkeypatch):
    with nodes(1) as (node,):
        ours = ("02:4e:0a:40:00:01", "02:4e:0a:40:00:02")
        with node.ns.enter():
            ruleset.ensure_host()
            host.add_port("vh1", ours[0])
            host.add_port("vh1", ours[0])
            host.change_pairs([ours], [])
            loaded = host.counters()
            before = handle()
            ruleset.ensure_host()
            assert handle() == before
            older = msgspec.structs.replace(HOST_RULESET, chains=HOST_RULESET.chains[:-1])
            monkeypatch.setattr(ruleset, "HOST_RULESET", older)
            ruleset.ensure_host()
            assert handle() != before
            assert (host.ports(), host.pairs()) == ({("vh1", ours[0])}, {ours})
            assert host.counters() == loaded
            host.change_pairs([ours[::-1]], [ours, ("02:4e:00:00:00:09", ours[0])])
            assert host.pairs() == {ours[::-1]}
            host.del_port("vh1", ours[0])
            host.del_port("vh1", ours[0])
            assert host.ports() == set()
        host.close()


def test_whoever_comes_after_the_sockets_closed_is_told_so(node, monkeypatch):
    monkeypatch.setattr(netns_sockets.macsec, "open", links.open)  # which not all kernels have
    sockets = netns_sockets.NetnsSockets(node.ns, "lo")
    with sockets.using():
        sockets.nft.generation()
    sockets.close()
    sockets.close()
    with pytest.raises(UnknownContainer), sockets.using():
        pytest.fail("the sockets are closed")


def test_a_closed_socket_is_used_no_more(node, nft):
    other = NftSocket(node.ns)
    other.send(Batch().add(EGRESS_ICMP, [((7,), ())]).delete(EGRESS_ICMP, [(7,)]))
    other.close()  # another thread does that, for something was deleted
    other.close()
    for use in (other.generation, lambda: other.dump(PEER), lambda: other.send(PEERS)):
        with pytest.raises(UnknownContainer):
            use()
