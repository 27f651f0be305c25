"""The store: the same end whatever the order, nothing from whoever may not say it."""

from __future__ import annotations

import copy
import functools
import itertools
import tempfile
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.ctl import pki
from daemon.model.identity import Identity
from daemon.model.records import (
    LIMIT,
    Body,
    Copy,
    Envelope,
    Manifest,
    Withdrawn,
    decode,
    digest,
    encode,
    next_version,
    seal,
    to_sign,
)
from daemon.model.shelf import BYTES_MAX, LIVE_MAX
from daemon.model.store import Store
from daemon.model.trust import MANAGER_UNIT, Trust
from daemon.model.verdict import Outcome
from netconf.errors import DecodeFailure
from tests.unit.model_kit import (
    KEYS,
    NOW,
    SLICES,
    TEXT,
    attachment,
    filled,
    folder,
    identity,
    info,
    policy,
    record,
    replica,
    store,
    trust,
)

PINNED = "services: {web: {}}\nnodes: {n1: {slice: 10.64.16.0/20}, n2: {slice: 10.64.32.0/20}}\n"


@functools.cache
def history() -> tuple[bytes, ...]:
    """What two nodes and the authority published, in order: comings, goings, changes."""
    made: list[tuple[str, int, Body]] = [
        ("authority", 1, policy()),
        ("n1", 1, info("n1")),
        ("n1", 2, replica("n1", 1)),
        ("n1", 3, replica("n1", 2, "api")),
        (
            "n1",
            4,
            Manifest(
                versions={"info": 1, f"replica/{attachment(1)}": 2, f"replica/{attachment(2)}": 3}
            ),
        ),
        ("n1", 5, replica("n1", 1, healthy=False)),
        ("n1", 6, Withdrawn(attachment=attachment(2))),
        ("n1", 7, replica("n1", 3)),
        (
            "n1",
            8,
            Manifest(
                versions={"info": 1, f"replica/{attachment(1)}": 5, f"replica/{attachment(3)}": 7}
            ),
        ),
        ("n1", 9, replica("n1", 4)),
        ("n2", 10, info("n2", mtu=1418)),
        ("n2", 11, info("n2", mtu=1468)),
        ("n2", 12, replica("n2", 1, "api")),
        ("n2", 12, replica("n2", 1, "db")),  # a clash, as from a node restored from a copy
        ("n2", 13, Withdrawn(attachment=attachment(9))),
        ("authority", 2, policy(version=2)),
    ]
    return tuple(record(*one) for one in made)


def merged(records: list[bytes]) -> Store:
    """Offer in the order given; ask again for what came before its signer was known."""
    made = store()
    again = [r for r in records if made.offer(r, NOW).outcome is Outcome.UNKNOWN_SIGNER]
    made.sync(again, NOW)
    return made


@settings(max_examples=40)
@given(st.data())
def test_any_order_and_repetition_ends_the_same(data: st.DataObject) -> None:
    repeated = data.draw(st.lists(st.sampled_from(history()), max_size=5))
    shuffled = data.draw(st.permutations([*history(), *repeated]))
    want, got = merged(list(history())), merged(shuffled)
    assert got.dump() == want.dump()
    assert got.replicas() == want.replicas()
    assert got.refusals() == want.refusals()


@settings(max_examples=40)
@given(st.lists(st.sampled_from(range(16)), max_size=16, unique=True))
def test_a_sync_heals_whatever_was_missed(heard: list[int]) -> None:
    whole = merged(list(history()))
    partly = merged([history()[i] for i in heard])
    partly.sync(whole.records(), NOW)
    assert partly.dump() == whole.dump()


def test_what_the_history_says_in_the_end() -> None:
    made = merged(list(history()))
    assert made.policy() == policy(version=2)
    assert made.infos() == {"n1": info("n1"), "n2": info("n2")}
    # Unlisted and older than the manifest: gone, tombstone and all. Newer: here.
    assert [r.attachment for r in made.replicas() if r.node == "n1"] == [
        attachment(1),
        attachment(3),
        attachment(4),
    ]
    assert made.replica("n1", attachment(1)) == replica("n1", 1, healthy=False)
    assert made.withdrawn() == [KEYS.replica("n2", attachment(9))]
    assert made.highest("n1") == 9
    assert made.highest("n2") == 13
    assert made.highest("n3") == 0


@settings(max_examples=40)
@given(st.sampled_from(range(16)), st.data())
def test_a_tampered_record_is_never_accepted(which: int, data: st.DataObject) -> None:
    original = history()[which]
    position = data.draw(st.integers(0, len(original) - 1))
    flipped = original[position] ^ data.draw(st.integers(1, 255))
    tampered = original[:position] + bytes([flipped]) + original[position + 1 :]
    made = filled()
    before = made.dump()
    verdict = made.offer(tampered, NOW)
    assert verdict.outcome is not Outcome.ACCEPTED
    assert made.dump() == before
    assert made.counts[verdict.outcome] >= 1


@settings(max_examples=40)
@given(
    st.sampled_from(["n1", "n2", "n3", "authority"]),
    st.sampled_from(["n1", "n2", "n3", "authority"]),
    st.sampled_from(["policy", "info", "manifest", "replica", "withdrawn"]),
    st.sampled_from(["n1", "n2", "n3"]),
)
def test_only_the_entitled_signer_is_heard(
    name: str, signed_by: str, kind: str, owner: str
) -> None:
    statements: dict[str, tuple[str, Body]] = {
        "policy": (KEYS.policy, policy(version=9)),
        "info": (KEYS.info(owner), info(owner, mtu=1400)),
        "manifest": (KEYS.manifest(owner), Manifest(versions={})),
        "replica": (KEYS.replica(owner, attachment(1)), replica(owner, 1)),
        "withdrawn": (KEYS.replica(owner, attachment(1)), Withdrawn(attachment=attachment(1))),
    }
    key, body = statements[kind]
    envelope = decode(seal(KEYS, key, 9, body, identity(signed_by)))
    # The signer's name is part of what is signed, so make a fresh signature over `name`.
    forged = _signed_as(name, signed_by, key, body)
    entitled = "authority" if kind == "policy" else owner
    made = filled()
    for data in (encode(msgspec.structs.replace(envelope, signer=name)), forged):
        verdict = made.offer(data, NOW)
        allowed = name == entitled and signed_by == entitled
        assert (verdict.outcome in (Outcome.ACCEPTED, Outcome.KNOWN)) == allowed
        if name != entitled:
            assert verdict.outcome is Outcome.NOT_ENTITLED


def _signed_as(name: str, signed_by: str, key: str, body: Body) -> bytes:
    liar = copy.copy(identity(signed_by))
    liar.name = name
    return seal(KEYS, key, 9, body, liar)


def test_each_refusal_has_its_reason_and_its_counter() -> None:
    made = store()
    other = seal(KEYS, "noctule/other/node/n1/info", 1, info("n1"), identity("n1"))
    stranger = identity("n1", "other")
    cases = [
        (bytes(LIMIT + 1), Outcome.OVERSIZED),
        (b"\xff", Outcome.MALFORMED),
        (seal(KEYS, "noctule/lab/node/*/info", 1, info("n1"), identity("n1")), Outcome.MALFORMED),
        (seal(KEYS, KEYS.info("n1"), 1, replica("n1", 1), identity("n1")), Outcome.MALFORMED),
        (other, Outcome.FOREIGN_CLUSTER),
        (record("n1", 1, replica("n1", 1)), Outcome.UNKNOWN_SIGNER),
        (seal(KEYS, KEYS.info("n2"), 1, info("n2"), identity("n1")), Outcome.NOT_ENTITLED),
        (
            seal(KEYS, KEYS.info("n1"), 1, info("n1", certificate=stranger.pem), stranger),
            Outcome.BAD_CERTIFICATE,
        ),
        (seal(KEYS, KEYS.info("n1"), 1, info("n1"), stranger), Outcome.BAD_SIGNATURE),
        (record("n1", 1, info("n1")), Outcome.ACCEPTED),
        (record("n1", 1, info("n1")), Outcome.KNOWN),
        (record("n1", 2, info("n1")), Outcome.ACCEPTED),
        (record("n1", 1, info("n1")), Outcome.STALE),
    ]
    for data, outcome in cases:
        assert made.offer(data, NOW).outcome is outcome
    for outcome in Outcome:
        assert made.counts[outcome] == sum(outcome is one for _, one in cases)
    # Counted by name, too, once n1 had proved who it is.
    assert made.refused == {}
    for _ in range(2):
        made.offer(seal(KEYS, KEYS.info("n1"), 9, replica("n1", 1), identity("n1")), NOW)
        made.offer(seal(KEYS, KEYS.info("n1"), 9, info("n1"), stranger), NOW)
    assert made.refused == {"n1": Counter({Outcome.MALFORMED: 2, Outcome.BAD_SIGNATURE: 2})}


def test_a_record_of_another_cluster_with_our_key_has_a_wrong_signature() -> None:
    theirs = type(KEYS)("other")
    data = seal(theirs, KEYS.info("n1"), 1, info("n1"), identity("n1"))
    assert store().offer(data, NOW).outcome is Outcome.BAD_SIGNATURE


def test_an_expired_node_is_not_let_in() -> None:
    late = NOW + 800 * 86_400
    assert store().offer(record("n1", 1, info("n1")), late).outcome is Outcome.BAD_CERTIFICATE


def test_a_new_certificate_counts_and_the_old_one_is_over() -> None:
    made = filled(record("n1", 2, replica("n1", 1)))
    renewed = _renewed()
    fresh = info("n1", certificate=renewed.pem)
    early = seal(KEYS, KEYS.replica("n1", attachment(1)), 4, replica("n1", 1), renewed)
    assert made.offer(early, NOW).outcome is Outcome.BAD_SIGNATURE
    assert made.offer(seal(KEYS, KEYS.info("n1"), 3, fresh, renewed), NOW).changed
    assert len(made.replicas()) == 1  # stays until the node signs it anew
    assert made.offer(early, NOW).changed
    old = record("n1", 5, replica("n1", 2))
    assert made.offer(old, NOW).outcome is Outcome.BAD_SIGNATURE


def _renewed() -> Identity:
    """n1's next certificate, from the same CA, made in another folder."""
    spare = Path(tempfile.mkdtemp(dir=folder()))
    for name in ("ca.crt", "ca.key"):
        (spare / name).write_bytes((folder() / name).read_bytes())
    certificate, key = pki.issue(spare, "n1", [], NOW)
    return Identity.load(certificate, key)


def test_a_swarm_manager_signs_policy_where_no_authority_is_pinned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Store("lab", Trust.load(folder() / "ca.crt", None))
    made.offer(record("n2", 1, info("n2")), NOW)
    by_node = seal(KEYS, KEYS.policy, 1, policy(), identity("n2"))
    assert made.offer(by_node, NOW).outcome is Outcome.NOT_ENTITLED
    monkeypatch.setattr(pki, "NODE_UNIT", MANAGER_UNIT)
    manager = _renewed()
    by_manager = seal(KEYS, KEYS.policy, 1, policy(), manager)
    assert made.offer(by_manager, NOW).outcome is Outcome.UNKNOWN_SIGNER
    about = info("n1", certificate=manager.pem)
    made.offer(seal(KEYS, KEYS.info("n1"), 1, about, manager), NOW)
    assert made.offer(by_manager, NOW).changed
    assert made.policy() == policy()


def test_a_manifest_removes_what_it_does_not_list_and_tells_what_is_missing() -> None:
    made = filled(record("n1", 2, replica("n1", 1)), record("n1", 3, replica("n1", 2)))
    own = made.manifest("n1")
    assert own == Manifest(
        versions={"info": 1, f"replica/{attachment(1)}": 2, f"replica/{attachment(2)}": 3},
        shared={"policy": Copy(1, digest(record("authority", 1, policy())))},
    )
    other = filled(record("n1", 4, own))
    missing = [f"node/n1/replica/{attachment(number)}" for number in (1, 2)]
    assert other.behind("n1") == missing
    answer = made.answer("n1", missing)
    assert {decode(data).key for data in answer} == {f"{KEYS.root}/{key}" for key in missing}
    other.sync(made.records(), NOW)
    assert other.behind("n1") == []
    made.offer(record("n1", 5, Manifest(versions={"info": 1})), NOW)
    assert made.replicas() == ()
    assert made.offer(record("n1", 2, replica("n1", 1)), NOW).outcome is Outcome.STALE
    assert made.offer(record("n1", 6, replica("n1", 1)), NOW).changed
    assert "n1" in made.infos()  # a manifest speaks of replicas only


def test_whoever_holds_another_policy_is_told_from_whoever_holds_the_same() -> None:
    new, clash = record("authority", 2, policy(version=2)), record("authority", 2, OTHER)
    assert new != clash

    def behind(ours: bytes, theirs: bytes) -> list[str]:
        """What to ask n1 for that holds `theirs`; since it answers, both end with one."""
        here, there = filled(ours), filled(theirs)
        here.offer(record("n1", 5, there.manifest("n1")), NOW)
        asked = here.behind("n1")
        here.sync(there.answer("n1", asked), NOW)
        return asked

    assert behind(new, new) == []
    assert behind(record("authority", 1, policy()), new) == ["policy"]
    assert behind(new, record("authority", 1, policy())) == []
    # Of two that were signed with one version, each side asks for the other's.
    assert behind(new, clash) == behind(clash, new) == ["policy"]


OTHER = policy("services: {web: {}}\n", 2)


def test_what_a_later_release_shares_is_not_asked_for() -> None:
    later = Manifest(versions={"info": 1, "health/1": 9}, shared={"quarantine": Copy(3, b"x")})
    made = filled(record("n1", 5, later))
    assert made.behind("n1") == []


def test_only_a_manifest_that_takes_something_away_is_news() -> None:
    made = filled(record("n1", 2, replica("n1", 1)), record("n1", 3, replica("n1", 2)))
    heard: list[str] = []
    made.subscribe(lambda verdict: heard.append(verdict.key))
    revision = made.revision
    for version in range(4, 8):
        assert made.offer(record("n1", version, made.manifest("n1")), NOW).changed
    missing = Manifest(versions={**made.manifest("n1").versions, "replica/00000000000c": 7})
    assert made.offer(record("n1", 8, missing), NOW).changed
    assert (heard, made.revision) == ([], revision)
    only = Manifest(versions={"info": 1, f"replica/{attachment(1)}": 2})
    assert made.offer(record("n1", 9, only), NOW).news
    assert (heard, made.revision) == ([KEYS.manifest("n1")], revision + 1)


def test_a_node_that_floods_fills_its_own_share_only() -> None:
    made = filled()
    large = replica("n2", 1)
    content = msgspec.msgpack.decode(msgspec.msgpack.encode(large)) | {"more": bytes(59_000)}
    outcomes: Counter[Outcome] = Counter()
    for number in range(3_000):
        body = msgspec.msgpack.encode(content | {"attachment": attachment(number)})
        key = KEYS.replica("n2", attachment(number))
        signature = identity("n2").sign(to_sign("lab", key, 9, "n2", body)) if number < 50 else b""
        outcomes[made.offer(encode(Envelope(key, 9, "n2", body, signature)), NOW).outcome] += 1
    assert outcomes[Outcome.ACCEPTED] == BYTES_MAX // 59_300
    assert outcomes.total() - outcomes[Outcome.ACCEPTED] == outcomes[Outcome.OVER_QUOTA]
    assert made.refused == {"n2": Counter({Outcome.OVER_QUOTA: outcomes[Outcome.OVER_QUOTA]})}
    assert len(made.dump()) < BYTES_MAX + 20_000
    # Others have their own, and n2 can still make room.
    assert made.offer(record("n1", 9, replica("n1", 1)), NOW).changed
    assert made.offer(record("n2", 10, Withdrawn(attachment=attachment(1))), NOW).changed
    assert made.offer(record("n2", 11, replica("n2", 4_000)), NOW).changed


def test_a_node_has_room_for_all_its_containers_twice() -> None:
    made = filled()
    for number in range(LIVE_MAX):
        assert made.offer(record("n2", number + 2, replica("n2", number + 1)), NOW).changed
    refused = record("n2", 5_000, replica("n2", 4_000))
    assert made.offer(refused, NOW).outcome is Outcome.OVER_QUOTA
    for number in range(LIVE_MAX):
        gone = Withdrawn(attachment=attachment(number + 1))
        assert made.offer(record("n2", 6_000 + number, gone), NOW).changed
    for number in range(LIVE_MAX):
        body = replica("n2", LIVE_MAX + number + 1)
        assert made.offer(record("n2", 8_000 + number, body), NOW).changed
    assert made.offer(record("n2", 9_999, replica("n2", 4_000)), NOW).outcome is Outcome.OVER_QUOTA
    # Its manifest confirms what is gone: there is room again.
    assert made.offer(record("n2", 10_000, made.manifest("n2")), NOW).changed
    assert made.offer(record("n2", 10_001, replica("n2", 1)), NOW).outcome is Outcome.OVER_QUOTA
    gone = Withdrawn(attachment=attachment(2 * LIVE_MAX))
    assert made.offer(record("n2", 10_002, gone), NOW).changed
    assert made.offer(record("n2", 10_003, replica("n2", 1)), NOW).changed


def test_what_a_node_has_forgotten_loses_against_what_it_says_now() -> None:
    # n1 said version 9, lost its state and its clock, and says 7 and a manifest of version 11.
    forgotten, now = record("n1", 9, replica("n1", 1)), record("n1", 7, replica("n1", 1, "api"))
    listed = Manifest(versions={"info": 1, f"replica/{attachment(1)}": 7})
    manifest = record("n1", 11, listed)
    key = f"node/n1/replica/{attachment(1)}"
    made = filled(forgotten, manifest)
    assert made.replicas() != ()  # it stays, so that nobody is cut off meanwhile
    assert made.behind("n1") == [key]
    assert made.offer(now, NOW).changed
    assert made.behind("n1") == []
    for order in itertools.permutations((forgotten, now, manifest)):
        ended = filled(*order)
        ended.offer(now, NOW)  # which is asked for where it was refused before
        assert ended.dump() == made.dump()
    assert made.offer(record("n1", 12, replica("n1", 1)), NOW).changed  # but newer is newer


@pytest.mark.parametrize(
    ("text", "records", "reason"),
    [
        (TEXT, [("n1", 2, replica("n1", 1, "cache"))], 'policy knows no service "cache"'),
        (TEXT, [("n3", 2, replica("n3", 1, "db"))], "policy does not let n3 host db"),
        (PINNED, [("n3", 2, replica("n3", 1))], "policy does not list this node"),
        (
            TEXT,
            [("n1", 2, replica("n1", 1, address="10.64.32.1"))],
            "10.64.32.1 is not in 10.64.16.0/20, the slice of n1",
        ),
        (
            TEXT,
            [
                ("n2", 2, info("n2", slice="10.64.16.0/24")),
                ("n2", 3, replica("n2", 1, address="10.64.16.9")),
            ],
            "slice 10.64.16.0/24 overlaps with 10.64.16.0/20 of n1",
        ),
        (
            PINNED,
            [
                ("n2", 2, info("n2", slice="10.64.64.0/20")),
                ("n2", 3, replica("n2", 1, address="10.64.64.9")),
            ],
            "slice 10.64.64.0/20 is not 10.64.32.0/20, which policy gives to n2",
        ),
        (
            TEXT,
            [
                ("n2", 2, info("n2", slice="10.80.1.0/24")),
                ("n2", 3, replica("n2", 1, address="10.80.1.9")),
            ],
            "slice 10.80.1.0/24 overlaps with the VIPs 10.80.0.0/16",
        ),
        (
            TEXT,
            [
                ("n1", 3, replica("n1", 1)),
                ("n1", 2, replica("n1", 2, address=replica("n1", 1).address)),
            ],
            f"10.64.16.1 is {attachment(1)}'s by a newer record",
        ),
    ],
)
def test_what_has_no_effect_is_explained(
    text: str, records: list[tuple[str, int, Body]], reason: str
) -> None:
    made = filled(record("authority", 2, policy(text, 2)), *(record(*one) for one in records))
    assert any(reason in refusal.reason for refusal in made.refusals())
    refused = [r for r in made.refusals() if "/replica/" in r.key]
    assert refused or "does not list" in reason
    effective = {(r.node, r.attachment) for r in made.replicas()}
    assert not any((r.node, r.key[-12:]) in effective for r in refused)


def test_without_a_policy_nothing_has_effect() -> None:
    made = store()
    made.sync([record("n1", 2, replica("n1", 1)), record("n1", 1, info("n1"))], NOW)
    assert made.replicas() == ()
    assert "there is no policy yet" in made.refusals()[0].reason


def test_a_snapshot_brings_everything_back_verified() -> None:
    want = merged(list(history()))
    got = store()
    assert all(verdict.changed for verdict in got.load(want.dump()))
    assert got.dump() == want.dump()
    assert got.replicas() == want.replicas()


def test_a_snapshot_is_believed_no_more_than_its_records() -> None:
    dump = merged(list(history())).dump()
    strangers = Store("lab", Trust.load(folder("other") / "ca.crt", folder("other") / "ca.crt"))
    assert not any(verdict.changed for verdict in strangers.load(dump))
    elsewhere = Store("elsewhere", trust())
    assert {v.outcome for v in elsewhere.load(dump)} == {Outcome.FOREIGN_CLUSTER}
    for broken in (b"", dump[:-1], b"\x00" * 20):
        with pytest.raises(DecodeFailure, match="snapshot: "):
            store().load(broken)


@settings(max_examples=30)
@given(st.data())
def test_a_damaged_snapshot_never_adds_anything(data: st.DataObject) -> None:
    whole = merged(list(history()))
    dump = bytearray(whole.dump())
    dump[data.draw(st.integers(0, len(dump) - 1))] ^= data.draw(st.integers(1, 255))
    made = store()
    try:
        made.load(bytes(dump))
    except DecodeFailure:
        assert made.records() == []
    assert set(made.records()) <= set(whole.records())


def test_versions_go_on_after_a_restart_even_if_the_clock_went_back() -> None:
    made = filled(record("n1", 500, replica("n1", 1)))
    assert next_version(made.highest("n1"), 100) == 501
    assert SLICES.keys() == made.infos().keys()
