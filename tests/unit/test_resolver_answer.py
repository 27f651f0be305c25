"""What is asked for and what comes back: whoever asks, and whatever they ask with."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import dnslib
import pytest
from dnslib import QTYPE, RCODE, DNSHeader, DNSQuestion, DNSRecord
from hypothesis import given
from hypothesis import strategies as st

from daemon.resolver.answer import NEGATIVE_TTL, TTL, UDP_SIZE, Zone, answer

VIP, VIP6 = "10.80.0.1", "fd00:4e::a50:1"
ZONE = Zone({"api": [VIP, VIP6], "db.v1": ["10.80.0.2"], "x" * 64: ["10.80.0.3"], "a..b": [VIP]})
HEADER = struct.Struct("!6H")


def reverse(address: str) -> str:
    return ip_address(address).reverse_pointer


def ask(name: str, kind: str = "A", **edns: object) -> bytes:
    record = DNSRecord(DNSHeader(rd=1), q=DNSQuestion(name, getattr(QTYPE, kind)))
    if edns:
        record.add_ar(dnslib.EDNS0(**edns))
    return bytes(record.pack())


def reply(query: bytes, zone: Zone | None = ZONE) -> DNSRecord:
    """Answer, and check what is true of every answer."""
    message = answer(query, zone)
    assert message is not None
    assert len(message) <= 512
    parsed = DNSRecord.parse(message)
    assert parsed.header.id == int.from_bytes(query[:2], "big")
    assert (parsed.header.qr, parsed.header.ra, parsed.header.tc, parsed.header.z) == (1, 1, 0, 0)
    return parsed


def rcode(query: bytes, zone: Zone | None = ZONE) -> str:
    return str(RCODE.get(reply(query, zone).header.rcode))


# --- names


@pytest.mark.parametrize(
    ("name", "kind", "found"),
    [
        ("api", "A", [VIP]),
        ("api", "AAAA", [VIP6]),
        ("aPI", "A", [VIP]),
        ("api", "ANY", [VIP, VIP6]),
        ("DB.v1", "A", ["10.80.0.2"]),
        (reverse(VIP), "PTR", ["api."]),
        (reverse(VIP6), "PTR", ["api."]),
        (reverse(VIP6).upper(), "PTR", ["api."]),
    ],
)
def test_what_may_be_known(name: str, kind: str, found: list[str]) -> None:
    got = reply(ask(name, kind))
    assert RCODE.get(got.header.rcode) == "NOERROR"
    assert got.header.aa == 1
    assert [str(rr.rdata) for rr in got.rr] == found
    assert {(str(rr.rname).rstrip("."), rr.ttl) for rr in got.rr} == {(name, TTL)}
    assert got.auth == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("api", "MX"),
        ("api", "HTTPS"),
        ("db.v1", "AAAA"),
        ("v1", "A"),
        ("80.10.in-addr.arpa", "PTR"),
        (".", "NS"),
        ("api", "PTR"),
        (reverse(VIP), "A"),
    ],
)
def test_names_that_have_no_such_data(name: str, kind: str) -> None:
    got = reply(ask(name, kind))
    assert (RCODE.get(got.header.rcode), got.rr) == ("NOERROR", [])
    _is_negative(got)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("web", "A"),
        ("api.example.org", "A"),
        ("example.org", "AAAA"),
        ("other.v1", "A"),
        (reverse("10.80.0.9"), "PTR"),
        ("localhost", "A"),
    ],
)
def test_names_that_are_not(name: str, kind: str) -> None:
    got = reply(ask(name, kind))
    assert (RCODE.get(got.header.rcode), got.rr) == ("NXDOMAIN", [])
    _is_negative(got)


def _is_negative(got: DNSRecord) -> None:
    """It says for how long that may be remembered (RFC 2308)."""
    (soa,) = got.auth
    assert (str(soa.rname), soa.rtype, soa.ttl) == (".", QTYPE.SOA, NEGATIVE_TTL)
    assert soa.rdata.times[-1] == NEGATIVE_TTL


def test_names_that_dns_cannot_spell_are_no_obstacle() -> None:
    assert rcode(ask("x" * 63)) == "NXDOMAIN"
    assert reply(ask(reverse("10.80.0.3"), "PTR")).rr == []


def test_the_zone_says_who_it_is() -> None:
    assert [rr.rtype for rr in reply(ask(".", "SOA")).rr] == [QTYPE.SOA]


def test_without_a_directory_nobody_can_tell() -> None:
    assert rcode(ask("api"), None) == "SERVFAIL"


# --- RFC 8906: queries that servers are known to stumble over


def changed(query: bytes, *, flags: int = 0x0100, counts: tuple[int, ...] = (1, 0, 0, 0)) -> bytes:
    return HEADER.pack(7, flags, *counts) + query[HEADER.size :]


@pytest.mark.parametrize("opcode", range(1, 16))
def test_other_opcodes(opcode: int) -> None:
    got = reply(changed(ask("api"), flags=opcode << 11))
    assert RCODE.get(got.header.rcode) == "NOTIMP"
    assert got.header.opcode == opcode


@pytest.mark.parametrize("flags", [0x0000, 0x0100, 0x0010, 0x0020, 0x0040, 0x0200, 0x0400, 0x000F])
def test_flags_that_change_nothing(flags: int) -> None:
    got = reply(changed(ask("api"), flags=flags))
    assert (RCODE.get(got.header.rcode), len(got.rr)) == ("NOERROR", 1)
    assert (got.header.rd, got.header.cd, got.header.ad) == (flags >> 8 & 1, flags >> 4 & 1, 0)


@pytest.mark.parametrize("kind", [99, 1000, 65535])
def test_types_that_nobody_knows(kind: int) -> None:
    assert rcode(bytes(DNSRecord(q=DNSQuestion("api", kind)).pack())) == "NOERROR"


@pytest.mark.parametrize(("kind", "kind_class"), [(252, 1), (251, 1), (16, 3), (1, 255), (1, 0)])
def test_refused(kind: int, kind_class: int) -> None:
    assert rcode(bytes(DNSRecord(q=DNSQuestion("api", kind, kind_class)).pack())) == "REFUSED"


@pytest.mark.parametrize(
    "query",
    [
        changed(ask("api"), counts=(0, 0, 0, 0)),
        changed(ask("api"), counts=(2, 0, 0, 0)),
        changed(ask("api"), counts=(1, 1, 0, 0)),
        changed(ask("api"), counts=(1, 0, 1, 0)),
        changed(ask("api"), counts=(1, 0, 0, 1)),
        changed(ask("api"), counts=(1, 0, 0, 65535)),
        changed(ask("api"))[:-1],
        changed(b"")[:12],
        ask("api", "OPT"),
        HEADER.pack(7, 0x0100, 1, 0, 0, 0) + b"\xc0\x0c\x00\x01\x00\x01",
        HEADER.pack(7, 0x0100, 1, 0, 0, 0) + b"\x40a\x00\x00\x01\x00\x01",
        HEADER.pack(7, 0x0100, 1, 0, 0, 0) + b"\x01a" * 128 + b"\x00\x00\x01\x00\x01",
    ],
    ids=lambda query: query[2:].hex()[:40],
)
def test_form_errors(query: bytes) -> None:
    got = reply(query)
    assert RCODE.get(got.header.rcode) == "FORMERR"
    assert (got.questions, got.rr, got.auth, got.ar) == ([], [], [], [])


@pytest.mark.parametrize("query", [b"", b"\0" * 11, changed(ask("api"), flags=0x8100)])
def test_what_is_no_query(query: bytes) -> None:
    assert answer(query, ZONE) is None


def test_the_longest_name() -> None:
    name = ".".join(["a" * 63] * 3 + ["b" * 61])
    got = reply(ask(name, udp_len=512))
    assert RCODE.get(got.header.rcode) == "NXDOMAIN"
    assert str(got.q.qname) == f"{name}."


# --- EDNS


def test_edns_is_answered_with_edns() -> None:
    option = dnslib.EDNSOption(10, b"12345678")
    (opt,) = reply(ask("api", udp_len=4096, opts=[option])).ar
    assert (opt.rtype, opt.edns_len, opt.edns_ver) == (QTYPE.OPT, UDP_SIZE, 0)
    assert (opt.edns_rcode, opt.edns_do, opt.rdata) == (0, 0, [])
    assert reply(ask("api")).ar == []


def test_edns_do_is_copied() -> None:
    assert reply(ask("api", flags="do")).ar[0].edns_do == 1


def test_edns_of_another_version() -> None:
    got = reply(ask("api", version=1))
    (opt,) = got.ar
    assert opt.edns_rcode << 4 | got.header.rcode == 16
    assert (opt.edns_ver, got.rr) == (0, [])


def test_edns_twice_or_with_a_name() -> None:
    query = DNSRecord.parse(ask("api", udp_len=512))
    query.add_ar(dnslib.EDNS0())
    assert rcode(bytes(query.pack())) == "FORMERR"
    assert rcode(ask("api", rname="api")) == "FORMERR"


def test_another_record_beside_it_is_not_judged() -> None:
    query = DNSRecord.parse(ask("api", udp_len=512))
    query.add_ar(dnslib.RR("api", 250, rdata=dnslib.RD(b"key")))
    assert len(reply(bytes(query.pack())).rr) == 1


# --- anything at all


def ring() -> bytes:
    """A name without end: two pointers backwards, each to a label that ends at the other."""
    start = b"".join(b"\x3f" + b"a" * 63 for _ in range(9)) + b"\x33" + b"a" * 51
    assert HEADER.size + len(start) == 640
    inner = b"a" + b"\x0a" + b"b" * 10 + b"\xc2\x80"  # 642 to 653; there a pointer to 640
    outer = b"\x28" + inner + b"c" * (40 - len(inner)) + b"\xc2\x82"  # 681: to 642
    return HEADER.pack(7, 0x0100, 1, 0, 0, 0) + start + outer + b"\x00\x01\x00\x01"


def test_a_ring_of_pointers() -> None:
    with pytest.raises(RecursionError):
        DNSRecord.parse(ring())  # why questions are not read with it
    assert answer(ring(), ZONE) == HEADER.pack(7, 0x8180, 0, 0, 0, 0)[:3] + b"\x81" + bytes(8)


names = st.lists(st.binary(min_size=1, max_size=63), max_size=6).filter(
    lambda labels: sum(len(label) + 1 for label in labels) < 255
)


def is_sound(query: bytes) -> None:
    message = answer(query, ZONE)
    assert (message is None) == (len(query) < HEADER.size or query[2] & 0x80 != 0)
    if message is not None:
        assert HEADER.size <= len(message) <= 512
        assert message[:2] == query[:2]
        _, flags, questions, *others = HEADER.unpack_from(message)
        assert flags & 0x8000
        assert questions <= 1
        assert sum(others) <= 4
        assert flags & 0xF in (0, 1, 2, 3, 4, 5)


@given(st.binary(max_size=UDP_SIZE))
def test_garbage(query: bytes) -> None:
    is_sound(query)


@given(st.binary(max_size=60), st.integers(0, 2))
def test_garbage_after_a_header(rest: bytes, additional: int) -> None:
    is_sound(HEADER.pack(7, 0x0100, 1, 0, 0, additional) + rest)


@given(st.data())
def test_damaged_queries(data: st.DataObject) -> None:
    query = bytearray(ask("db.v1", udp_len=1232, opts=[dnslib.EDNSOption(10, b"cookie")]))
    for _ in range(data.draw(st.integers(1, 4))):
        query[data.draw(st.integers(0, len(query) - 1))] = data.draw(st.integers(0, 255))
    is_sound(bytes(query))


@given(names, st.integers(0, 65535), st.sampled_from([1, 255, 3]))
def test_any_question_is_repeated_as_it_was_asked(
    labels: list[bytes], kind: int, kind_class: int
) -> None:
    question = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    question += struct.pack("!HH", kind, kind_class)
    message = answer(HEADER.pack(7, 0, 1, 0, 0, 0) + question, ZONE)
    assert message is not None
    assert len(message) <= 512
    if message[3] & 0xF != RCODE.FORMERR:
        assert message[HEADER.size :].startswith(question)


@given(
    st.dictionaries(
        st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}", fullmatch=True),
        st.tuples(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str)),
        max_size=5,
    ),
    st.sampled_from(["A", "AAAA", "ANY"]),
)
def test_any_name_of_a_service(services: dict[str, tuple[str, str]], kind: str) -> None:
    zone = Zone(services)
    for name in services:
        labels = name.encode().split(b".")
        if not all(0 < len(label) < 64 for label in labels):
            continue
        message = answer(bytes(DNSRecord(q=DNSQuestion(labels, QTYPE.reverse[kind])).pack()), zone)
        assert message is not None
        assert len(message) <= 512
        assert DNSRecord.parse(message).header.a > 0
