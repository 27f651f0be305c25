"""Records: keys without wildcards, one meaning per signature, bodies that fit their keys."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.fabric.interface import MAX_PAYLOAD
from daemon.model.keys import Key, Keys
from daemon.model.records import (
    LIMIT,
    MAX_VERSION,
    Ack,
    Body,
    Confirm,
    Envelope,
    Manifest,
    Records,
    Sync,
    Withdrawn,
    decode,
    decode_answer,
    decode_question,
    encode,
    encode_message,
    next_version,
    open_body,
    parts,
    seal,
    to_sign,
)
from netconf.errors import DecodeFailure, InvalidConfig
from tests.unit.model_kit import KEYS, attachment, identity, info, policy, record, replica

ANY = st.text(max_size=6)


@settings(max_examples=60)
@given(*[st.tuples(ANY, ANY, st.integers(1, 2**40), ANY, st.binary(max_size=6))] * 2)
def test_different_records_have_different_bytes_to_sign(
    one: tuple[str, str, int, str, bytes], two: tuple[str, str, int, str, bytes]
) -> None:
    assert (to_sign(*one) == to_sign(*two)) == (one == two)


BODIES: list[tuple[str, str, Body]] = [
    ("n1", KEYS.info("n1"), info("n1", mesh_macs=("02:00:00:00:00:01",), instance="a")),
    ("n1", KEYS.replica("n1", attachment(5)), replica("n1", 5)),
    ("n1", KEYS.replica("n1", attachment(5)), Withdrawn(attachment=attachment(5))),
    ("n1", KEYS.manifest("n1"), Manifest(versions={"info": 3})),
    ("authority", KEYS.policy, policy(version=7)),
]


@pytest.mark.parametrize(("signer", "key", "body"), BODIES)
def test_a_record_comes_back_as_it_was(signer: str, key: str, body: Body) -> None:
    envelope = decode(record(signer, 7, body))
    assert (envelope.key, envelope.version, envelope.signer) == (key, 7, signer)
    parsed = KEYS.parse(key)
    assert parsed is not None
    assert open_body(parsed, envelope) == body
    assert encode(envelope) == record(signer, 7, body)


WRONG: list[tuple[str, Body]] = [
    (KEYS.info("n2"), info("n1")),
    (KEYS.info("n1"), replica("n1", 5)),
    (KEYS.info("n1"), info("n1", slice="10.64.16.1/20")),
    (KEYS.info("n1"), info("n1", mtu=10)),
    (KEYS.info("n1"), info("n1", endpoints=("192.0.2.1",))),
    (KEYS.info("n1"), info("n1", mesh_macs=("02:00",))),
    (KEYS.replica("n1", attachment(6)), replica("n1", 5)),
    (KEYS.replica("n2", attachment(5)), replica("n1", 5)),
    (KEYS.replica("n1", attachment(5)), replica("n1", 5, address="10.64.16.300")),
    (KEYS.replica("n1", attachment(5)), replica("n1", 5, address="10.64.16.5\n")),
    (KEYS.replica("n1", attachment(5)), replica("n1", 5, salts={})),
    (KEYS.replica("n1", attachment(5)), replica("n1", 5, salts={4: bytes(32)})),
    (KEYS.replica("n1", attachment(5)), replica("n1", 5, salts={0: bytes(31)})),
    (KEYS.replica("n1", attachment(5)), replica("n1", 5, service="a/b")),
    (KEYS.replica("n1", attachment(5)), Withdrawn(attachment=attachment(6))),
    (KEYS.policy, policy(version=8)),
    (KEYS.policy, Manifest(versions={})),
    (KEYS.policy, msgspec.structs.replace(policy(version=7), edges=((1, 9, ()),))),
    (KEYS.policy, msgspec.structs.replace(policy(version=7), vips="all")),
]


@pytest.mark.parametrize(("key", "body"), WRONG)
def test_a_body_that_does_not_fit_its_key_is_refused(key: str, body: Body) -> None:
    parsed = KEYS.parse(key)
    assert parsed is not None
    with pytest.raises(DecodeFailure, match=f"record {key}: "):
        open_body(parsed, decode(seal(KEYS, key, 7, body, identity("n1"))))


@settings(max_examples=60)
@given(st.binary(max_size=200))
def test_any_bytes_are_an_envelope_or_an_explained_error(data: bytes) -> None:
    try:
        envelope = decode(data)
        open_body(Key("info", "n1"), envelope)
    except DecodeFailure as error:
        assert error.message.startswith("record")


@pytest.mark.parametrize(
    "envelope",
    [
        Envelope("k", 0, "n1", b"", b""),
        Envelope("k", MAX_VERSION + 1, "n1", b"", b""),
        Envelope("k", 1, "n/1", b"", b""),
        Envelope("k" * 257, 1, "n1", b"", b""),
        Envelope("k", 1, "n1", b"", bytes(81)),
    ],
)
def test_an_envelope_keeps_within_its_bounds(envelope: Envelope) -> None:
    with pytest.raises(DecodeFailure):
        decode(encode(envelope))


def test_an_envelope_has_no_room_for_unsigned_extras() -> None:
    parts = msgspec.msgpack.decode(record("n1", 1, info("n1")))
    with pytest.raises(DecodeFailure):
        decode(msgspec.msgpack.encode([*parts, b"more"]))


def test_a_field_of_a_later_release_is_ignored() -> None:
    body = msgspec.to_builtins(Withdrawn(attachment=attachment(1))) | {"later": 1}
    envelope = Envelope(
        KEYS.replica("n1", attachment(1)), 1, "n1", msgspec.msgpack.encode(body), b""
    )
    assert open_body(Key("replica", "n1", attachment(1)), envelope) == Withdrawn(
        attachment=attachment(1)
    )


def test_a_record_too_large_for_the_fabric_is_not_sealed() -> None:
    body = Manifest(versions={f"replica/{attachment(i)}": 2**62 for i in range(3000)})
    with pytest.raises(InvalidConfig, match=r"manifest: the record has \d+ bytes, and 59872"):
        seal(KEYS, KEYS.manifest("n1"), 1, body, identity("n1"))


def test_the_manifest_of_a_full_bridge_fits() -> None:
    long, node = Keys("c" * 64), "n" * 64
    body = Manifest(versions={f"replica/{attachment(i)}": 2**62 for i in range(1024)})
    assert len(seal(long, long.manifest(node), 2**62, body, identity("n1"))) < LIMIT


@settings(max_examples=60)
@given(st.lists(st.integers(0, LIMIT).map(bytes), max_size=12))
def test_an_answer_is_cut_into_messages_that_the_fabric_carries(envelopes: list[bytes]) -> None:
    cut = parts(envelopes)
    assert [data for answer in cut for data in answer.envelopes] == envelopes
    assert cut
    assert all(len(encode_message(answer)) <= MAX_PAYLOAD for answer in cut)
    assert all(len(encode_message(Confirm(data))) <= MAX_PAYLOAD for data in envelopes)


def test_questions_and_answers_come_back_and_are_not_mixed_up() -> None:
    for question in (Sync(), Confirm(b"x")):
        assert decode_question(encode_message(question)) == question
        with pytest.raises(DecodeFailure, match="answer: "):
            decode_answer(encode_message(question))
    for answer in (Records((b"x", b"y")), Ack("accepted"), Ack("stale", "why")):
        assert decode_answer(encode_message(answer)) == answer
        with pytest.raises(DecodeFailure, match="question: "):
            decode_question(encode_message(answer))


@settings(max_examples=60)
@given(st.integers(0, 2**62), st.integers(0, 2**62))
def test_versions_only_grow(last: int, now_ns: int) -> None:
    assert next_version(last, now_ns) > last
    assert next_version(last, now_ns) >= now_ns
