"""``noctulectl`` as an operator starts it, talking to a server that records what it is asked."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.cni_kit import ROOT, Daemon, serving
from tests.unit.ctl_kit import refused, run
from tests.unit.test_show import EMPTY

STATUS = msgspec.to_builtins(EMPTY)
AGREED = {"node": "n1", "attachments": 2, "differences": [], "outdated": []}


def asked(
    place: Path, replies: dict[str, tuple[int, Any]], *arguments: object
) -> tuple[tuple[int, str, str], Daemon]:
    with serving(place / "sock") as daemon:
        daemon.replies.update(replies)
        return run("--socket", daemon.socket, *arguments), daemon


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


# --- pki


def test_pki_makes_what_a_node_needs_and_overwrites_nothing(tmp_path: Path) -> None:
    place = tmp_path / "pki"
    status, out, _ = run("pki", "init", place, "--cluster", "lab")
    assert (status, out.count("wrote ")) == (0, 5)
    status, out, _ = run("pki", "issue", place, "n1", "192.0.2.1", "--json")
    assert (status, json.loads(out)) == (0, [f"{place}/n1.crt", f"{place}/n1.key"])
    assert (place / "n1.key").stat().st_mode & 0o777 == 0o600
    refused(run("pki", "init", place), "exists already")
    refused(run("pki", "issue", place, "n2", "192.0.2.300"), "address: ")
