"""``noctulectl`` as an operator starts it, talking to a server that records what it is asked."""

from __future__ import annotations

import atexit
import base64
import functools
import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import msgspec
import pytest

from daemon.model import records
from tests.unit.cni_kit import ROOT, Daemon, serving
from tests.unit.model_kit import KEYS, TEXT, folder, policy, record, trust
from tests.unit.test_show import EMPTY

STATUS = msgspec.to_builtins(EMPTY)
AGREED = {"node": "n1", "attachments": 2, "differences": [], "outdated": []}


LAUNCHER = """
import json, os, sys, tempfile
from daemon.ctl.main import main
for line in sys.stdin:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(error.fileno(), 2)
            sys.argv = ["noctulectl", *json.loads(line)]
            sys.exit(main())
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said = [os.pread(file.fileno(), 1 << 20, 0).decode() for file in (out, error)]
    print(json.dumps([status, *said]), flush=True)
"""
"""Each command is a process of its own; forking spares the imports, not the exit."""


@functools.cache
def _launcher() -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LAUNCHER]
    pipe = subprocess.PIPE
    launcher = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
    atexit.register(launcher.kill)
    return launcher


def run(*arguments: object) -> tuple[int, str, str]:
    """Start noctulectl; return exit status, stdout and stderr."""
    launcher = _launcher()
    assert launcher.stdin is not None
    assert launcher.stdout is not None
    launcher.stdin.write(json.dumps([str(one) for one in arguments]) + "\n")
    launcher.stdin.flush()
    status, out, error = json.loads(launcher.stdout.readline())
    return status, out, error


def asked(
    place: Path, replies: dict[str, tuple[int, Any]], *arguments: object
) -> tuple[tuple[int, str, str], Daemon]:
    with serving(place / "sock") as daemon:
        daemon.replies.update(replies)
        return run("--socket", daemon.socket, *arguments), daemon


def refused(outcome: tuple[int, str, str], *words: str) -> None:
    """Assert exit status 1, and one sentence on stderr with all `words`."""
    status, out, error = outcome
    assert (status, out) == (1, ""), outcome
    assert error.startswith("noctulectl: "), error
    assert "Traceback" not in error
    for word in words:
        assert word in error, error


def test_status_is_a_table_for_people_and_json_for_programs(tmp_path: Path) -> None:
    (status, out, error), daemon = asked(tmp_path, {"/v1/status": (200, STATUS)}, "status")
    assert (status, error) == (0, "")
    assert out.startswith("n1 in cluster lab: ready")
    assert daemon.requests == [("GET", "/v1/status", None)]
    (tmp_path / "sock").unlink()
    (status, out, _), _ = asked(tmp_path, {"/v1/status": (200, STATUS)}, "status", "--json")
    assert (status, json.loads(out)) == (0, STATUS)


@pytest.mark.parametrize(("differences", "status"), [([], 0), (["peer x is missing"], 3)])
def test_verify_tells_by_its_exit_status(
    tmp_path: Path, differences: list[str], status: int
) -> None:
    answer = AGREED | {"differences": differences}
    outcome, _ = asked(tmp_path, {"/v1/verify": (200, answer)}, "verify", "--json")
    assert (outcome[0], json.loads(outcome[1])) == (status, answer)


def test_the_daemons_words_are_passed_on(tmp_path: Path) -> None:
    problem = {"code": 11, "msg": "the kernel is busy; try again", "details": "EBUSY"}
    outcome, _ = asked(tmp_path, {"/v1/verify": (422, problem)}, "verify")
    refused(outcome)
    assert outcome[2] == "noctulectl: the kernel is busy; try again\nEBUSY\n"


def test_nobody_there_says_what_to_look_at(tmp_path: Path) -> None:
    refused(run("--socket", tmp_path / "none", "status"), str(tmp_path), "is noctuled running?")


@pytest.mark.parametrize("answer", [(200, {"colour": "red"}), (200, []), (500, "what?")])
def test_an_answer_that_is_not_the_daemons_is_no_traceback(
    tmp_path: Path, answer: tuple[int, Any]
) -> None:
    outcome, _ = asked(tmp_path, {"/v1/status": answer}, "status")
    refused(outcome, f"status {answer[0]}", "is not noctuled's")


def test_a_daemon_that_dies_over_the_question_is_an_error(tmp_path: Path) -> None:
    def die(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True

    with serving(tmp_path / "sock") as daemon:
        daemon.instead = die
        refused(run("--socket", daemon.socket, "status"), "no daemon answers")


def test_the_socket_is_found_by_the_configuration(tmp_path: Path) -> None:
    text = (ROOT / "packaging/examples/node.yaml").read_text()
    with serving(tmp_path / "sock") as daemon:
        daemon.replies["/v1/verify"] = (200, AGREED)
        paths = f"{{state: {tmp_path}, socket: {tmp_path}/sock, cache: {tmp_path}}}"
        kept = text.partition("\npaths:")[0]
        (tmp_path / "node.yaml").write_text(f"{kept}\npaths: {paths}\n")
        status, out, error = run("--config", tmp_path / "node.yaml", "verify")
    assert (status, error) == (0, "")
    assert out == "n1: the kernel agrees with the plan (2 attachments)\n"


def test_a_broken_configuration_names_the_field(tmp_path: Path) -> None:
    (tmp_path / "node.yaml").write_text("cluster: lab\nmesh: {links: []}\n")
    refused(run("--config", tmp_path / "node.yaml", "status"), "node.yaml: ", "missing")


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["policy"], ["policy", "apply"], ["pki", "issue", "x"],
                  ["--socket", "a", "--config", "b", "status"]],
)  # fmt: skip
def test_a_wrong_command_line_is_2(arguments: list[str]) -> None:
    status, out, error = run(*arguments)
    assert (status, out) == (2, "")
    assert "usage: noctulectl" in error


# --- policy apply


def apply(
    place: Path, state: dict[str, Any], *options: str, applied: tuple[int, Any] | None = None
) -> tuple[tuple[int, str, str], Daemon]:
    (place / "policy.yaml").write_text(TEXT)
    replies = {"/v1/policy": (200, state)}
    with serving(place / "sock") as daemon:

        def reply(handler: BaseHTTPRequestHandler) -> None:
            answer = replies["/v1/policy"]
            if handler.command == "POST":
                answer = applied or (200, {"version": 8, "live": {"n1": 2.6}, "silent": ["n2"]})
            content = json.dumps(answer[1]).encode()
            handler.send_response(answer[0])
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)

        daemon.instead = reply
        key = folder() / "authority.key"
        arguments = ("policy", "apply", place / "policy.yaml", "--key", key, *options)
        return run("--socket", daemon.socket, *arguments), daemon


def state(version: int = 0, envelope: bytes = b"") -> dict[str, Any]:
    return {
        "cluster": "lab",
        "vips": "10.80.0.0/16",
        "version": version,
        "envelope": base64.b64encode(envelope).decode(),
    }


def sent(daemon: Daemon) -> records.Envelope:
    (got, posted) = daemon.requests
    assert got == ("GET", "/v1/policy", None)
    assert posted[:2] == ("POST", "/v1/policy")
    assert set(posted[2]) == {"envelope"}
    return records.decode(base64.b64decode(posted[2]["envelope"]))


def test_a_policy_is_signed_here_and_says_where_it_is_live(tmp_path: Path) -> None:
    (status, out, error), daemon = apply(tmp_path, state())
    assert (status, error) == (0, "")
    assert out == (
        "policy 8 is live on 1 of 2 nodes after 3 ms; no answer from n2: "
        "they take it when they return\n"
    )
    envelope = sent(daemon)
    assert (envelope.key, envelope.version, envelope.signer) == (KEYS.policy, 1, "authority")
    authority = trust().authority
    assert authority is not None
    signed = records.to_sign("lab", envelope.key, 1, "authority", envelope.body)
    assert authority.verify(envelope.signature, signed)
    assert records.policy_of(envelope) == policy()


def test_the_next_version_keeps_what_was_given_out(tmp_path: Path) -> None:
    reordered = "services: {zoo: {}, web: {}, api: {}}\nallow: []\n"
    before = policy(reordered, version=7)
    _, daemon = apply(tmp_path, state(7, record("authority", 7, before)))
    envelope = sent(daemon)
    found = records.policy_of(envelope)
    assert envelope.version == 8
    for name in ("web", "api"):
        assert found.services[name].id == before.services[name].id
        assert found.services[name].vip == before.services[name].vip
    assert found.services["db"].vip != before.services["zoo"].vip


def test_policy_apply_in_json_is_the_daemons_answer(tmp_path: Path) -> None:
    (status, out, _), _ = apply(tmp_path, state(), "--json")
    assert (status, json.loads(out)["silent"]) == (0, ["n2"])


def test_a_policy_that_is_refused_is_a_sentence(tmp_path: Path) -> None:
    problem = {"code": 7, "msg": "policy: not accepted: stale", "details": ""}
    outcome, _ = apply(tmp_path, state(), applied=(422, problem))
    refused(outcome, "policy: not accepted: stale")


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


# --- pki


def test_pki_makes_what_a_node_needs_and_overwrites_nothing(tmp_path: Path) -> None:
    place = tmp_path / "pki"
    status, out, _ = run("pki", "init", place, "--cluster", "lab")
    assert (status, out.count("wrote ")) == (0, 4)
    status, out, _ = run("pki", "issue", place, "n1", "192.0.2.1", "--json")
    assert (status, json.loads(out)) == (0, [f"{place}/n1.crt", f"{place}/n1.key"])
    assert (place / "n1.key").stat().st_mode & 0o777 == 0o600
    refused(run("pki", "init", place), "exists already")
    refused(run("pki", "issue", place, "n2", "192.0.2.300"), "address: ")
