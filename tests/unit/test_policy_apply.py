"""``noctulectl policy apply``: what is signed, from what it follows, and what the operator sees.

The daemon is a server that says what a test wants, lies included.
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import msgspec
import pytest

from daemon.api.messages import PolicyState
from daemon.ctl.signing import Signing
from daemon.model import policy as policy_model
from daemon.model import records
from daemon.model.policy import Policy
from tests.unit.cni_kit import Daemon, serving
from tests.unit.ctl_kit import key_folder, refused, run
from tests.unit.model_kit import KEYS, TEXT, folder, identity, info, policy, record, trust

LIVE = {"node": "n1", "outcome": "live", "ms": 2.6, "reason": ""}
GONE = {"node": "n2", "outcome": "unreachable", "ms": None, "reason": "its daemon is not there"}
APPLIED = {"version": 8, "live": {"n1": 2.6}, "silent": ["n2"], "nodes": [LIVE, GONE]}


def apply(
    place: Path,
    state: dict[str, Any],
    *options: str,
    last: bytes | None = b"",
    applied: tuple[int, Any] = (200, APPLIED),
) -> tuple[tuple[int, str, str], Daemon]:
    """Apply TEXT at a daemon that says `state`, with a key that signed `last`."""
    (place / "policy.yaml").write_text(TEXT)
    (place / "sock").unlink(missing_ok=True)
    with serving(place / "sock") as daemon:

        def reply(handler: BaseHTTPRequestHandler) -> None:
            answer = applied if handler.command == "POST" else (200, state)
            content = json.dumps(answer[1]).encode()
            handler.send_response(answer[0])
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)

        daemon.instead = reply
        key = key_folder(place, last) / "authority.key"
        arguments = ("policy", "apply", place / "policy.yaml", "--key", key, *options)
        return run("--socket", daemon.socket, *arguments), daemon


def state(version: int = 0, envelope: bytes = b"", **changes: str) -> dict[str, Any]:
    return {
        "cluster": "lab",
        "vips": "10.80.0.0/16",
        "version": version,
        "envelope": base64.b64encode(envelope).decode(),
        **changes,
    }


def sent(daemon: Daemon) -> records.Envelope:
    (got, posted) = daemon.requests
    assert got == ("GET", "/v1/policy", None)
    assert posted[:2] == ("POST", "/v1/policy")
    assert set(posted[2]) == {"envelope"}
    return records.decode(base64.b64decode(posted[2]["envelope"]))


def signed(version: int, text: str = TEXT) -> bytes:
    return record("authority", version, policy(text, version=version))


def test_a_policy_is_signed_here_and_says_where_it_is_live(tmp_path: Path) -> None:
    (status, out, error), daemon = apply(tmp_path, state())
    assert out == (
        "policy 8 is live on 1 of 2 nodes after 3 ms\n"
        "n2: unreachable: its daemon is not there; it takes the policy when it returns\n"
    )
    assert (status, error) == (
        3,
        'noctulectl: first policy of cluster "lab", with VIPs of 10.80.0.0/16, as this daemon '
        "was told\n",
    )
    envelope = sent(daemon)
    assert (envelope.key, envelope.version, envelope.signer) == (KEYS.policy, 1, "authority")
    authority = trust().authority
    assert authority is not None
    covered = records.to_sign("lab", envelope.key, 1, "authority", envelope.body)
    assert authority.verify(envelope.signature, covered)
    assert records.policy_of(envelope) == policy()
    kept = tmp_path / "pki" / "authority.policy"
    assert kept.read_bytes() == records.encode(envelope)
    assert kept.stat().st_mode & 0o777 == 0o600


def test_each_node_that_falls_short_has_a_line_and_the_loser_is_told(tmp_path: Path) -> None:
    nodes = [
        LIVE,
        {"node": "n2", "outcome": "accepted", "reason": "its kernel does not agree after 1 s"},
        {"node": "n3", "outcome": "stale", "reason": "it holds version 9"},
        {"node": "n4", "outcome": "refused", "reason": "bad signature"},
    ]
    answer = APPLIED | {"silent": ["n2", "n3", "n4"], "nodes": nodes}
    (status, out, _), _ = apply(tmp_path, state(), applied=(200, answer))
    assert status == 3
    assert out.splitlines()[1:] == [
        "n2: accepted, and not in its kernel yet: its kernel does not agree after 1 s",
        "n3: stale: it holds version 9",
        "n4: refused: bad signature",
        "another version won; apply again to sign the one after it",
    ]


def test_live_everywhere_is_success(tmp_path: Path) -> None:
    answer = APPLIED | {"silent": [], "nodes": [LIVE]}
    (status, out, _), _ = apply(tmp_path, state(), applied=(200, answer))
    assert (status, out) == (0, "policy 8 is live on 1 of 1 nodes after 3 ms\n")


def test_the_answer_of_a_daemon_of_0_1_0_is_understood(tmp_path: Path) -> None:
    answer = {"version": 8, "live": {"n1": 2.6}, "silent": ["n2"]}
    (status, out, _), _ = apply(tmp_path, state(), applied=(200, answer))
    assert status == 3
    assert out.endswith("n2: no answer; it takes the policy when it returns\n")


def test_not_to_wait_is_said_to_the_daemon(tmp_path: Path) -> None:
    answer = {"version": 1, "live": {}, "silent": [], "nodes": []}
    (status, out, _), daemon = apply(tmp_path, state(), "--no-wait", applied=(200, answer))
    assert (status, out) == (0, "policy 1 is published; no node was asked\n")
    assert daemon.requests[1][:2] == ("POST", "/v1/policy?wait=0")


def test_the_next_version_keeps_what_was_given_out(tmp_path: Path) -> None:
    reordered = "services: {zoo: {}, web: {}, api: {}}\nallow: []\n"
    before = policy(reordered, version=7)
    last = record("authority", 7, before)
    (_, _, error), daemon = apply(tmp_path, state(7, last), last=last)
    envelope = sent(daemon)
    found = records.policy_of(envelope)
    assert (envelope.version, error) == (8, "")
    for name in ("web", "api"):
        assert found.services[name].id == before.services[name].id
        assert found.services[name].vip == before.services[name].vip
    assert found.services["db"].vip != before.services["zoo"].vip


def test_policy_apply_in_json_is_the_daemons_answer(tmp_path: Path) -> None:
    (status, out, _), _ = apply(tmp_path, state(), "--json")
    assert (status, json.loads(out)) == (3, APPLIED)


def test_a_policy_that_is_refused_is_a_sentence(tmp_path: Path) -> None:
    problem = {"code": 7, "msg": "policy: not accepted: stale", "details": ""}
    (status, out, error), _ = apply(tmp_path, state(), applied=(422, problem))
    assert (status, out) == (1, "")
    assert error.endswith("\nnoctulectl: policy: not accepted: stale\n")


# --- policy apply: what a daemon says is not what is signed


def forged(version: int, text: str = TEXT) -> bytes:
    """A policy that says what the attacker likes, under a signature of another key."""
    body = msgspec.msgpack.encode(policy(text, version=version))
    wrong = identity("n1").sign(records.to_sign("lab", KEYS.policy, version, "authority", body))
    return records.encode(records.Envelope(KEYS.policy, version, "authority", body, wrong))


MOVED = "services: {web: {vip: 10.80.0.99}}"
"""What somebody would like web's VIP to be."""
LIES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("a version out of nothing", state(2**63 - 2), ["policy 9223372036854775806", "shows none"]),
    ("a version beside its record", state(2**63 - 2, signed(7)), ["says", "policy 7"]),
    ("a forged record", state(7, forged(7, MOVED)), ["not signed with this key", "ask another"]),
    ("no record", state(7, b"\x95nonsense"), ["the policy that this daemon holds is none"]),
    ("no base64", state(7) | {"envelope": "%%%"}, ["not base64"]),
    ("another kind of record", state(1, record("n1", 1, info("n1"))), ["is none"]),
    ("another pool", state(7, signed(7), vips="10.81.0.0/16"), ["10.81.0.0/16", "--vips"]),
    ("no pool", state(7, signed(7), vips="fd00::/8"), ["addresses.vips", "fd00::/8"]),
    ("another cluster", state(7, signed(7), cluster="lib"), ['"lib"', "of its own"]),
    ("no cluster", state(7, signed(7), cluster="a/b"), ["cluster"]),
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie[0])
def test_a_daemon_that_lies_gets_nothing_signed(
    tmp_path: Path, lie: tuple[str, dict[str, Any], list[str]]
) -> None:
    _, claimed, words = lie
    outcome, daemon = apply(tmp_path, claimed, last=signed(7))
    refused(outcome, *words)
    assert [request[0] for request in daemon.requests] == ["GET"]
    assert (tmp_path / "pki" / "authority.policy").read_bytes() == signed(7)


def test_an_older_genuine_policy_or_none_moves_nothing(tmp_path: Path) -> None:
    """A daemon that lost its state, or serves yesterday's policy, cannot bring it back."""
    before = policy("services: {zoo: {}, web: {}, api: {}}", version=9)
    last = record("authority", 9, before)
    for claimed in (state(3, signed(3, MOVED)), state()):
        (_, _, error), daemon = apply(tmp_path, claimed, last=last)
        envelope = sent(daemon)
        assert envelope.version == 10
        assert "went on from policy 9, signed here last" in error
        web = records.policy_of(envelope).services["web"]
        assert web.vip == before.services["web"].vip


def test_what_another_machine_signed_is_gone_on_from(tmp_path: Path) -> None:
    (_, _, error), daemon = apply(tmp_path, state(12, signed(12)), last=signed(9))
    assert sent(daemon).version == 13
    assert "went on from policy 12, which was signed on another machine" in error
    missing = tmp_path / "other"
    missing.mkdir()
    (_, _, error), daemon = apply(missing, state(12, signed(12)), last=None)
    assert sent(daemon).version == 13
    assert "nothing here says what this key signed last; went on from policy 12" in error
    assert records.decode((missing / "pki" / "authority.policy").read_bytes()).version == 13


def test_where_nothing_is_known_the_operator_says_that_it_is_the_first(tmp_path: Path) -> None:
    outcome, daemon = apply(tmp_path, state(), last=None)
    refused(outcome, "authority.policy is missing", "add --first")
    assert len(daemon.requests) == 1
    _, daemon = apply(tmp_path, state(), "--first", last=None)
    assert sent(daemon).version == 1
    outcome, daemon = apply(tmp_path, state(), "--first", last=signed(4))
    refused(outcome, "policy 4 exists")


def test_a_pool_is_changed_by_the_operator_only(tmp_path: Path) -> None:
    claimed = state(7, signed(7), vips="10.90.0.0/16")
    (_, _, error), daemon = apply(tmp_path, claimed, "--vips", "10.90.0.0/16", last=signed(7))
    assert error == ""
    assert records.policy_of(sent(daemon)).vips == "10.90.0.0/16"
    outcome, _ = apply(tmp_path, claimed, "--vips", "10.91.0.0/16", last=signed(7))
    refused(outcome, "--vips: 10.91.0.0/16", "10.90.0.0/16")
    outcome, _ = apply(tmp_path, claimed, "--vips", "pool", last=signed(7))
    refused(outcome, '--vips: "pool"')


def test_a_damaged_memory_of_the_key_is_named(tmp_path: Path) -> None:
    for content in (b"half of a rec", forged(7)):
        outcome, _ = apply(tmp_path, state(7, signed(7)), last=content)
        refused(outcome, "authority.policy", "move that file away")


def test_a_version_is_remembered_before_it_leaves(tmp_path: Path) -> None:
    """Whatever became of the request: a version with that content was seen by somebody."""
    _, daemon = apply(tmp_path, state(7, signed(7)), last=signed(7), applied=(500, "no"))
    posted = sent(daemon)
    kept = (tmp_path / "pki" / "authority.policy").read_bytes()
    assert records.decode(kept) == posted
    _, daemon = apply(tmp_path, state(7, signed(7)), last=kept)
    assert sent(daemon).version == 9


def test_a_broken_policy_is_never_sent(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("services: {web: {}}\nallow: [{from: web, to: nobody}]\n")
    key = folder() / "authority.key"
    with serving(tmp_path / "sock") as daemon:
        for arguments, word in (
            (("bad.yaml", "--key", key), "nobody"),
            (("none.yaml", "--key", key), "cannot read"),
        ):
            file = tmp_path / str(arguments[0])
            outcome = run("--socket", daemon.socket, "policy", "apply", file, *arguments[1:])
            refused(outcome, word)
        assert daemon.requests == []


def test_a_key_that_is_missing_is_never_used(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(TEXT)
    with serving(tmp_path / "sock") as daemon:
        where = ("--socket", daemon.socket, "policy", "apply", tmp_path / "policy.yaml")
        refused(run(*where, "--key", tmp_path / "authority.key"), "--key", "cannot read")
        assert daemon.requests == []


def test_two_that_sign_at_once_sign_two_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = key_folder(tmp_path, signed(7)) / "authority.key"
    document, compile_ = policy_model.parse(TEXT), policy_model.compile
    both = threading.Barrier(2, timeout=1.0)

    def meets(*words: Any) -> Policy:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait()  # as long as the other has not read what was signed last
        return compile_(*words)

    monkeypatch.setattr(policy_model, "compile", meets)

    def sign(_: int) -> int:
        said = msgspec.convert(state(7, signed(7)), PolicyState)
        return Signing(key).next(document, said).version

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(sign, range(2))) == [8, 9]
