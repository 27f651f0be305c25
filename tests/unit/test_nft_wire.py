"""The encoder: bytes as the kernel wants them, and what they were made from."""

from __future__ import annotations

import socket
import struct
import sys
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netconf import names
from netconf.nft.elements import (
    EGRESS,
    ETHER_ADDR,
    GENUINE6,
    IFNAME,
    INET_PROTO,
    INET_SERVICE,
    IPV4_ADDR,
    IPV6_ADDR,
    LB,
    LB6,
    MARK,
    PAIR,
    PEER,
    PEER6,
    PORT,
    SLOT,
    pack,
    unpack,
)
from netconf.nft.encoding import (
    ELEMENTS_LIMIT,
    HEADER,
    NFGEN,
    Batch,
    Flows,
    ForeignElementError,
    attribute,
    attributes,
    decode_element,
    decode_elements,
    encode_change,
    encode_flow_delete,
    envelope,
    mark_of,
    matches,
    nested,
    tcp_connection,
)
from netconf.uapi import nf_tables as nf
from netconf.uapi.nf_tables import NFTA_SET_ELEM_LIST_ELEMENTS

VALUES = {
    IPV4_ADDR.name: st.ip_addresses(v=4).map(str),
    IPV6_ADDR.name: st.ip_addresses(network="fc00::/7").map(str),
    ETHER_ADDR.name: st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":")),
    INET_PROTO.name: st.sampled_from(["tcp", "udp", "icmp", "icmpv6", "132"]),
    INET_SERVICE.name: st.integers(0, 65535),
    MARK.name: st.integers(0, 2**32 - 1),
    SLOT.name: st.integers(0, 63),
    IFNAME.name: st.from_regex(r"[a-z0-9]{1,15}", fullmatch=True),
}


@pytest.mark.parametrize(
    "target", [LB, LB6, PEER, PEER6, GENUINE6, EGRESS, PORT, PAIR], ids=lambda s: s.name
)
def test_what_is_packed_is_unpacked(target):
    @given(st.tuples(*(VALUES[field.name] for field in target.key)))
    def check(values):
        assert unpack(target.key, pack(target.key, values)) == values

    check()


def test_concatenated_fields_are_padded_to_registers_and_single_ones_are_not():
    native = (7).to_bytes(4, sys.byteorder)
    assert pack(EGRESS.key, (7, "tcp", 8080)) == native + b"\x06\0\0\0" + b"\x1f\x90\0\0"
    assert pack(PAIR.key, ("02:4e:0a:40:10:05", "02:4e:0a:40:10:06")) == bytes.fromhex(
        "024e0a4010050000024e0a4010060000"
    )
    assert pack(PORT.key, ("vh0", "02:4e:0a:40:10:05"))[:16] == b"vh0".ljust(16, b"\0")
    assert pack((ETHER_ADDR,), ("02:4e:0a:40:10:05",)) == bytes.fromhex("024e0a401005")
    assert pack((IPV4_ADDR,), ("10.64.16.5",)) == bytes((10, 64, 16, 5))


def test_a_value_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="inet_service"):
        pack(EGRESS.key, (7, "tcp", "http"))
    with pytest.raises(ValueError):
        pack(EGRESS.key, (7, "tcp"))
    with pytest.raises(ValueError):
        pack((IPV4_ADDR,), ("10.64.0.256",))


def test_a_mark_is_the_address_as_it_lies_in_the_packet():
    assert mark_of("10.64.0.2").to_bytes(4, sys.byteorder) == bytes((10, 64, 0, 2))


def elements(count):
    return [
        (("10.80.0.1", "tcp", port, slot), ("10.64.0.2", 8080))
        for port in range(1, count // 64 + 2)
        for slot in range(64)
    ][:count]


def body(message):
    return message.raw[HEADER.size + NFGEN.size :]


def test_a_long_list_becomes_several_messages_with_every_element_once():
    batch = Batch().add(LB, elements(5000))
    (change,) = batch.changes
    messages = encode_change(change, 1)
    assert len(messages) > 1
    found = []
    for number, message in enumerate(messages):
        length, _, _, sequence, _ = HEADER.unpack_from(message.raw)
        assert (length, sequence) == (len(message.raw), 1 + number)
        lists = dict(attributes(body(message)))
        assert len(lists[NFTA_SET_ELEM_LIST_ELEMENTS]) <= ELEMENTS_LIMIT
        found += [element for element, _ in decode_elements(LB, body(message))]
    assert found == list(change.elements)


@given(st.integers(1, 3000), st.data())
def test_an_offset_names_its_element(count, data):
    (change,) = Batch().add(LB, elements(count)).changes
    messages = encode_change(change, 1)
    message = data.draw(st.sampled_from(messages))
    index = data.draw(st.integers(0, len(message.elements) - 1))
    inside = data.draw(st.integers(0, 7))
    assert message.element_at(message.offsets[index] + inside) == message.elements[index]
    assert message.element_at(0) is None


def test_an_empty_change_is_no_change():
    assert Batch().add(LB, []).delete(LB, []).changes == []


def test_a_batch_begins_and_ends_for_nf_tables():
    raw = envelope([], 9)
    kinds = [HEADER.unpack_from(raw, offset)[1] for offset in (0, 20)]
    assert kinds == [0x10, 0x11]
    assert struct.unpack_from("!H", raw, 18) == (10,)


def flow(protocol, source_port, dialled_port, replica_port, length=4):
    """Attributes of a conntrack entry between addresses of `length` bytes."""

    def side(kind, source, target):
        first = {4: 1, 16: 3}[length]
        addresses = attribute(first, bytes(length)) + attribute(first + 1, bytes(length))
        ports = attribute(2, struct.pack("!H", source)) + attribute(3, struct.pack("!H", target))
        protocols = nested(2, attribute(1, bytes((protocol,))) + ports)
        return nested(kind, nested(1, addresses) + protocols)

    there = side(1, source_port, dialled_port)
    back = side(2, replica_port, source_port)
    return there + back + attribute(12, b"idid")


@pytest.mark.parametrize(
    ("wanted", "is_it"),
    [
        (Flows(1, "out", "tcp", 8080), True),
        (Flows(1, "out", "tcp", 80), False),
        (Flows(1, "out", "udp", 8080), False),
        (Flows(1, "in", "tcp", 80), True),
        (Flows(1, "in", "tcp", 8080), False),
        (Flows(1, "out", "icmp", 0), False),
    ],
)
def test_a_flow_is_of_the_grant_for_the_dialled_replicas_own_port(wanted, is_it):
    assert matches(flow(6, 40000, 80, 8080), wanted) is is_it


def test_icmp_is_both_families_echo():
    for number, is_it in ((1, True), (58, True), (6, False)):
        assert matches(flow(number, 0, 0, 0), Flows(1, "in", "icmp", 0)) is is_it


@pytest.mark.parametrize(("length", "family"), [(4, socket.AF_INET), (16, socket.AF_INET6)])
def test_one_flow_is_deleted_by_its_family_tuple_and_id(length, family):
    sent = encode_flow_delete(flow(6, 40000, 80, 8080, length), 1)
    assert NFGEN.unpack_from(sent, HEADER.size)[0] == family
    assert set(dict(attributes(sent[HEADER.size + NFGEN.size :]))) == {1, 12}


@pytest.mark.parametrize("length", [4, 16])
def test_a_connection_is_named_as_it_was_dialled(length):
    dialled = tcp_connection(flow(6, 40000, 80, 8080, length))
    assert dialled == (bytes(length), 40000, bytes(length), 80)
    assert tcp_connection(flow(17, 40000, 80, 8080, length)) is None


@given(st.ip_addresses(v=4))
def test_both_addresses_of_a_replica_have_one_mark(address):
    six = names.address6_of(str(address), "fd4e:6f63:7475::/96")
    assert mark_of(six) == mark_of(str(address)) == int.from_bytes(address.packed, sys.byteorder)


@given(st.ip_addresses(v=4), st.sampled_from(["fd4e:6f63:7475::/96", "fc00::/7", "fd00:0:1::/64"]))
def test_an_ipv6_address_is_spelt_as_the_kernels_elements_are_read(address, ula):
    six = names.address6_of(str(address), ula)
    fields = (ETHER_ADDR, IPV6_ADDR)
    packed = pack(fields, (names.mac_of(str(address)), six))
    assert packed[8:] == ip_address(six).packed
    assert len(packed) == 24
    assert unpack(fields, packed) == (names.mac_of(str(address)), six)


@given(st.binary(max_size=200))
def test_no_bytes_from_outside_break_the_decoder(raw):
    list(attributes(raw))


@pytest.mark.parametrize("target", [LB, LB6, PEER, GENUINE6, EGRESS, PORT], ids=lambda s: s.name)
def test_an_element_is_what_we_write_or_foreign(target):
    @given(st.binary(max_size=60), st.binary(max_size=60), st.integers(1, 2), st.booleans())
    def check(key, data, kind, whole):
        parts = [nested(nf.NFTA_SET_ELEM_DATA, attribute(kind, data))]
        if whole:
            parts.append(nested(nf.NFTA_SET_ELEM_KEY, attribute(kind, key)))
        raw = b"".join(parts)
        try:
            found, _ = decode_element(target, raw)
        except ForeignElementError as error:
            assert str(error.strerror) == f"set {target.name} holds an element that nobody wrote"
        else:
            assert pack(target.key, found[0]) == key
            assert not target.data or pack(target.data, found[1]) == data

    check()


def test_bytes_that_no_key_is_made_of_are_refused():
    whole = pack(EGRESS.key, (7, "tcp", 80))
    for raw in (b"", whole[:-1], whole + bytes(4), whole[:5] + b"\x01" + whole[6:]):
        with pytest.raises(ValueError):
            unpack(EGRESS.key, raw)
    with pytest.raises(ValueError):
        unpack(PEER.key, b"\x0a\x40\x10")
