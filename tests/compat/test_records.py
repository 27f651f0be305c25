"""Records, snapshots and questions of one release, as the other understands them."""

from __future__ import annotations

import msgspec
import pytest

from daemon.model import records
from daemon.model.records import Confirm, Envelope, Sync, encode_message
from daemon.model.store import Store
from daemon.model.verdict import Outcome
from tests.compat.released import Released
from tests.unit.model_kit import (
    KEYS,
    NOW,
    SLICES,
    VIPS,
    attachment,
    filled,
    folder,
    identity,
    policy,
    record,
    replica,
    store,
    trust,
)  # fmt: skip
from tests.unit.test_exchange import Member, play

TEXT = """
services:
  web: {}
  api: {ports: [{protocol: tcp, port: 80, target: 8080}]}
  db: {ports: [{protocol: tcp, port: 5432}], nodes: [n1, n2]}
allow:
  - {from: web, to: api, ports: [tcp/80]}
  - {from: api, to: db, ports: [tcp/5432]}
"""
REPLICAS = [replica("n1", 1), replica("n2", 2, "api"), replica("n3", 3, "api")]


def ours() -> list[bytes]:
    """Today's records of a small cluster, everything that nodes say of themselves included."""
    known = filled(*(record(one.node, 2, one) for one in REPLICAS))
    said = [known.envelope(KEYS.policy), *(known.envelope(KEYS.info(node)) for node in SLICES)]
    said += [known.envelope(KEYS.replica(one.node, one.attachment)) for one in REPLICAS]
    said += [record(node, 9, known.manifest(node)) for node in SLICES]
    return [one for one in said if one is not None]


def theirs(old: Released) -> list[bytes]:
    """The same as the old release says it."""

    def seal(node: str, key: str, version: int, kind: str, body: object) -> bytes:
        fields = msgspec.structs.asdict(body)  # type: ignore[arg-type]
        return bytes(old("seal", str(folder()), node, key, version, kind, fields))

    said = [bytes(old("seal_policy", str(folder()), TEXT, 1, str(VIPS)))]
    said += [
        old("seal", str(folder()), node, KEYS.info(node), 1, "NodeInfo", {
            "node": node, "certificate": identity(node).pem,
            "endpoints": ("tls/192.0.2.1:7447",), "slice": SLICES[node], "mtu": 1468,
        })
        for node in SLICES
    ]  # fmt: skip
    said += [
        old("seal", str(folder()), one.node, KEYS.replica(one.node, one.attachment), 2, "Replica", {
            "attachment": one.attachment, "node": one.node, "network": one.network,
            "service": one.service, "address": one.address, "salts": one.salts,
        })
        for one in REPLICAS
    ]  # fmt: skip
    said += [
        old("seal", str(folder()), node, KEYS.manifest(node), 9, "Manifest", {
            "versions": {"info": 1} | {
                f"replica/{one.attachment}": 2 for one in REPLICAS if one.node == node
            },
        })
        for node in SLICES
    ]  # fmt: skip
    return said


def believed(known: Store) -> list[tuple[str, str]]:
    return [(one.node, one.attachment) for one in known.replicas()]


def test_the_old_release_believes_our_records(old: Released) -> None:
    outcomes, told = old("offer", str(folder()), ours(), NOW)
    assert set(outcomes) == {"accepted"}
    assert told["policy"] == 1
    assert told["services"] == {"web": 1, "api": 2, "db": 3}
    assert [(node, number) for node, number, *_ in told["replicas"]] == [
        (one.node, one.attachment) for one in REPLICAS
    ]
    assert told["refusals"] == {}


def test_the_old_release_misses_nothing_of_what_our_manifests_list(old: Released) -> None:
    """It would ask for it every ten seconds, for ever."""
    _, told = old("offer", str(folder()), ours(), NOW)
    assert told["behind"] == {node: [] for node in SLICES}


def test_we_believe_the_old_release(old: Released) -> None:
    known = store()
    verdicts = [known.offer(one, NOW) for one in theirs(old)]
    assert {verdict.outcome for verdict in verdicts} == {Outcome.ACCEPTED}
    assert believed(known) == [(one.node, one.attachment) for one in REPLICAS]
    assert known.refusals() == ()
    assert [known.behind(node) for node in SLICES] == [[], [], []]
    made = known.policy()
    assert made is not None
    assert made.edges == policy(TEXT).edges
    assert made.services == policy(TEXT).services


def test_withdrawals_are_understood(old: Released) -> None:
    gone = REPLICAS[1]
    key = KEYS.replica(gone.node, gone.attachment)
    ending = record(gone.node, 20, records.Withdrawn(attachment=gone.attachment))
    outcomes, told = old("offer", str(folder()), [*ours(), ending], NOW)
    assert (outcomes[-1], told["withdrawn"]) == ("accepted", [key])
    known = store()
    ending = old("seal", str(folder()), gone.node, key, 20, "Withdrawn",
                 {"attachment": gone.attachment})  # fmt: skip
    for one in [*theirs(old), ending]:
        known.offer(one, NOW)
    assert known.withdrawn() == [key]


def test_snapshots_are_read_after_an_upgrade_and_after_a_downgrade(old: Released) -> None:
    known = store()
    problems = [v for v in known.load(old("dump", str(folder()), theirs(old), NOW))
                if not v.changed]  # fmt: skip
    assert problems == []
    assert believed(known) == [(one.node, one.attachment) for one in REPLICAS]
    outcomes, told, again = old("load", str(folder()), known.dump(), NOW)
    assert set(outcomes) == {"accepted"}
    assert told["policy"] == 1
    third = Store("lab", trust())
    assert all(verdict.changed for verdict in third.load(again))
    assert believed(third) == believed(known)


def test_the_same_policy_opens_the_same(old: Released) -> None:
    local = [(one.attachment, one.service, one.network, one.address) for one in REPLICAS[:1]]
    mine = old("views", str(folder()), ours(), NOW, local, "n1")
    assert mine == old("views", str(folder()), theirs(old), NOW, local, "n1")
    (view,) = mine.values()
    assert view[0] == [(2, "tcp", 8080)]
    assert view[2] == [one.address for one in REPLICAS[1:]]


# --- questions


def test_the_old_release_answers_our_questions(old: Released) -> None:
    # It does not know that a Sync may ask for some keys only, and answers with all.
    some = Sync("n2", ("policy",))
    for question in (Sync("n2"), some, Confirm(record("n2", 2, REPLICAS[1]))):
        replies = old("answer", str(folder()), ours(), NOW, encode_message(question))
        assert replies, f"no answer to {question}"
        told = [records.decode_answer(one) for one in replies]
        if isinstance(question, Sync):
            found = [records.decode(one).key for part in told for one in part.envelopes]  # type: ignore[union-attr]
            assert KEYS.policy in found
        else:
            assert [one.outcome for one in told] == ["known"]  # type: ignore[union-attr]


def test_the_old_release_is_no_witness(old: Released) -> None:
    """It answers with an error whether it reaches others, as liveness expects."""
    question = encode_message(records.Reach(("n2",)))
    assert old("answer", str(folder()), ours(), NOW, question) is None


def test_we_understand_the_old_release_s_questions(old: Released) -> None:
    confirmed = record("n2", 2, REPLICAS[1])
    sync, confirm = old("questions", "n2", confirmed)
    assert records.decode_question(sync) == Sync("n2")
    assert records.decode_question(confirm) == Confirm(confirmed)
    answers = [encode_message(one) for one in records.parts(ours(), 7)]
    answers.append(encode_message(records.Ack("accepted")))
    assert old("understood", answers) == [("records", len(ours()), 7), ("ack", "accepted")]


def test_an_unknown_question_has_an_answer_that_counts_as_none(old: Released) -> None:
    later = msgspec.msgpack.encode({"type": "forecast", "for": ["n1"], "hours": 3})
    said: list[bytes] = []

    async def scene(one: Member, two: Member) -> None:
        said.extend(await one.fabric.ask("n2", later, 5.0))

    play(scene)
    (answer,) = map(records.decode_answer, said)
    assert isinstance(answer, records.Ack)
    assert answer.outcome == "unknown question"
    assert old("understood", said) == [("ack", "unknown question")]
    assert old("answer", str(folder()), ours(), NOW, later) is None, (
        "the fabric says that it failed"
    )


# --- what only a later release says


def resealed(node: str, key: str, version: int, body: dict[str, object]) -> bytes:
    """A record with a body that today's code would not write."""
    content = msgspec.msgpack.encode(body)
    one = identity(node)
    signature = one.sign(records.to_sign("lab", key, version, one.name, content))
    return records.encode(Envelope(key, version, one.name, content, signature))


def as_written(data: bytes) -> dict[str, object]:
    return dict(msgspec.msgpack.decode(records.decode(data).body))


def later() -> list[bytes]:
    """Today's records with fields in each that nobody knows yet."""
    found = []
    for data in ours():
        said = records.decode(data)
        body = as_written(data) | {"colour": "red", "shape": [1, {"x": b"y"}]}
        found.append(resealed(said.signer, said.key, said.version, body))
    return found


def test_unknown_fields_are_ignored_by_both(old: Released) -> None:
    outcomes, told = old("offer", str(folder()), later(), NOW)
    assert set(outcomes) == {"accepted"}
    assert len(told["replicas"]) == 3
    known = store()
    assert {known.offer(one, NOW).outcome for one in later()} == {Outcome.ACCEPTED}
    assert len(known.replicas()) == 3


@pytest.mark.parametrize("key", ["noctule/lab/node/n1/health", "noctule/lab/node/n1/edge/x/y"])
def test_records_of_an_unknown_kind_are_let_go(old: Released, key: str) -> None:
    unknown = resealed("n1", key, 30, {"type": "health", "well": True})
    listing = resealed("n1", KEYS.manifest("n1"), 31, {
        "type": "manifest",
        "versions": {"info": 1, f"replica/{attachment(1)}": 2, key.partition("n1/")[2]: 30},
    })  # fmt: skip
    known = store()
    for one in ours():
        known.offer(one, NOW)
    before = known.dump()
    verdict = known.offer(unknown, NOW)
    assert verdict.outcome is Outcome.UNKNOWN_KIND
    assert known.dump() == before
    known.offer(listing, NOW)
    assert known.behind("n1") == [], "it would be asked for every ten seconds, for ever"
    assert len(known.replicas()) == 3
    outcomes, told = old("offer", str(folder()), [*ours(), unknown], NOW)
    assert outcomes[-1] == "malformed"
    assert len(told["replicas"]) == 3
    snapshot = msgspec.msgpack.encode(
        msgspec.msgpack.decode(before) | {"envelopes": (*ours(), unknown), "more": 1}
    )
    outcomes, told, _ = old("load", str(folder()), snapshot, NOW)
    assert (outcomes.count("malformed"), len(told["replicas"])) == (1, 3)
    again = store()
    again.load(snapshot)
    assert len(again.replicas()) == 3
