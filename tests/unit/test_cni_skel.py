"""The cases of the reference library's skeleton for plugins, as one table.

containernetworking/cni, pkg/skel/skel_test.go and skel.go: what a plugin makes of its
environment and its stdin before any work begins. A row is one start of the executable.

1. "Calls the right function, and no other" is here: asks the daemon for the right thing, once.
2. The reference's plugin leaves CNI_ARGS to the function that is called; ours is KEY=VALUE, and
   anything else is refused (rows "arguments").
3. Rows for STATUS, which the reference's tests leave out, are those of GC.
4. Not here, for want of something to test:
   a plugin that supports 0.1.0, or not 0.4.0 or 1.1.0, or whose own versions are malformed: our
   list of versions is constant (rows "versions" go through all of it);
   a plugin without an about text: ours has one;
   VERSION must not read stdin at all: the specification has its input there, and the version
   asked for must come back. What the reference is after holds: VERSION succeeds whatever stdin
   is (rows "VERSION"; a stdin that nobody closes: test_cni_verbs.py);
   ADD and DEL look at the namespace only after the work, and fail if it is the plugin's own:
   ours does so before, and on ADD only; what DEL finds there is not a reason to leave something
   behind (test_cni_environment.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cni_kit import NETNS, Daemon, configuration, environment, previous, run, serving

VERBS = ("ADD", "CHECK", "DEL", "GC", "STATUS")
FIRST = {"ADD": "0.3.1", "DEL": "0.3.1", "CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
ASKS = {
    "ADD": "/v1/attach", "CHECK": "/v1/check", "DEL": "/v1/detach", "GC": "/v1/gc",
    "STATUS": "/v1/ready",
}  # fmt: skip
REQUIRED = {
    "CNI_CONTAINERID": ("ADD", "CHECK", "DEL"),
    "CNI_NETNS": ("ADD", "CHECK"),
    "CNI_IFNAME": ("ADD", "CHECK", "DEL"),
    "CNI_ARGS": (),
    "CNI_PATH": VERBS,
}
UNREADABLE = "stdin that cannot be read"


@dataclass(frozen=True)
class Row:
    """One start: what is given, and what comes back."""

    case: str
    verb: str
    variables: dict[str, str | None] = field(default_factory=dict)
    """Changes to what a runtime sets; None removes."""
    stdin: Any = field(default_factory=dict)
    """Changes to a configuration that works; or bytes; or `UNREADABLE`."""
    code: int = 0
    """Of the error on stdout, exit code 1; 0 is success, exit code 0."""
    words: tuple[str, ...] = ()
    """In the error."""

    @property
    def id(self) -> str:
        return f"{self.verb or 'none'}: {self.case}"


def required() -> Iterator[Row]:
    for verb in VERBS:
        yield Row("everything", verb)
        for name, verbs in REQUIRED.items():
            for how, value in (("missing", None), ("empty", "")):
                needed = verb in verbs
                yield Row(
                    f"{name} {how}", verb, {name: value}, {}, 4 if needed else 0,
                    (f"missing: {name}",) if needed else (),
                )  # fmt: skip
        names = [name for name, verbs in REQUIRED.items() if verb in verbs]
        yield Row(
            "all missing", verb, dict.fromkeys(REQUIRED), {}, 4, (f"missing: {', '.join(names)}",)
        )
        yield Row("missing, and stdin broken", verb, {"CNI_PATH": None}, b"{", 4, ("CNI_PATH",))


def names() -> Iterator[Row]:
    wrong = {
        "CNI_CONTAINERID": ("some-%%container-id", "-a", "a b", "a/b"),
        "CNI_IFNAME": ("1234567890123456", ".", "..", "test/test", "test:test", "test test"),
    }
    for verb in VERBS:
        for name, values in wrong.items():
            code = 4 if verb in REQUIRED[name] else 0
            for value in values:
                yield Row(f"{name}={value}", verb, {name: value}, {}, code, (name,) if code else ())
        yield Row("longest interface name", verb, {"CNI_IFNAME": "123456789012345"})


def versions() -> Iterator[Row]:
    for verb in VERBS:
        for version in VERSIONS:
            early = VERSIONS.index(version) < VERSIONS.index(FIRST[verb])
            yield Row(
                f"cniVersion {version}", verb, {}, {"cniVersion": version}, 1 if early else 0,
                (f"does not allow {verb}",) if early else (),
            )  # fmt: skip
        for version in ("0.1.0", "0.2.0", "0.3.0", "1.2.0", "9.8.7", "10.0.0"):
            yield Row(
                f"cniVersion {version}", verb, {}, {"cniVersion": version}, 1,
                (version, "noctule supports 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
            )  # fmt: skip
        # None at all means 0.1.0 (pkg/version).
        for nothing in (None, ""):
            yield Row(f"cniVersion {nothing!r}", verb, {}, {"cniVersion": nothing}, 1, ("0.1.0",))
        for version in ("adsfsadf", "1.x.0", "1..0", "1.0.0.0", "-1.0.0"):
            yield Row(
                f"cniVersion {version}", verb, {}, {"cniVersion": version}, 6, ("cniVersion",)
            )


def configurations() -> Iterator[Row]:
    for verb in VERBS:
        yield Row("name malformed", verb, {}, {"name": "te%%st"}, 7, ("name",))
        yield Row("name missing", verb, {}, {"name": None}, 7, ("name",))
        yield Row("name empty", verb, {}, {"name": ""}, 7, ("name",))
        both = {"name": "te%%st", "cniVersion": "adsfsadf"}
        yield Row("name and version malformed", verb, {}, both, 7, ("name",))
        for stdin in (b"", b"{", b"[]", b'"x"', b"null", b"\xff"):
            yield Row(f"stdin {stdin!r}", verb, {}, stdin, 6, ("stdin",))
        yield Row("stdin unreadable", verb, {}, UNREADABLE, 5, ("stdin",))


def arguments() -> Iterator[Row]:
    for verb in VERBS:
        code = 4 if verb in ("ADD", "CHECK") else 0
        yield Row(
            "arguments that are none", verb, {"CNI_ARGS": "some;extra;args"}, {}, code,
            ("CNI_ARGS", "some") if code else (),
        )  # fmt: skip


TABLE = [
    *required(),
    *names(),
    *versions(),
    *configurations(),
    *arguments(),
    Row("not a verb", "NOPE", {}, {}, 4, ("CNI_COMMAND", "NOPE")),
    Row("not a verb, and nothing else", "NOPE", dict.fromkeys(REQUIRED), b"", 4, ("NOPE",)),
]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with serving(tmp_path_factory.mktemp("skel") / "d.sock") as daemon:
        yield daemon


def stdin_of(row: Row, socket: Path) -> Any:
    if not isinstance(row.stdin, dict):
        return row.stdin
    fields: dict[str, Any] = {"cni.dev/valid-attachments": []}
    if row.verb == "CHECK":
        result = previous()
        result["interfaces"][0]["name"] = row.variables.get("CNI_IFNAME") or "eth0"
        fields["prevResult"] = result
    return json.dumps(configuration(socket, **fields, **row.stdin)).encode()


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
def test_table(daemon: Daemon, row: Row) -> None:
    daemon.requests.clear()
    stdin = stdin_of(row, daemon.socket)
    if stdin == UNREADABLE:
        unreadable = os.open("/dev/null", os.O_WRONLY)
        outcome = run(environment(row.verb, **row.variables), unreadable)
        os.close(unreadable)
    else:
        outcome = run(environment(row.verb, **row.variables), stdin)
    asked = [target for _, target, _ in daemon.requests]
    if row.code:
        outcome.failed(row.code, *row.words)
        assert asked == []
        return
    assert outcome.status == 0, outcome
    assert asked == [ASKS[row.verb]]
    if row.verb == "ADD":
        assert outcome.json["interfaces"][0]["sandbox"] == NETNS
    else:
        assert outcome.stdout == ""


def test_what_arrives_is_what_was_given(daemon: Daemon) -> None:
    daemon.requests.clear()
    variables = environment("ADD", CNI_CONTAINERID="some-container-id", CNI_IFNAME="net1")
    assert run(variables, configuration(daemon.socket, name="skel-test")).status == 0
    body = daemon.body
    given = (body["container"], body["netns"], body["ifname"], body["network"])
    assert given == ("some-container-id", NETNS, "net1", "skel-test")


@pytest.mark.parametrize("variables", [{"CNI_COMMAND": ""}, {}, {"CNI_PATH": "/x"}])
def test_without_a_command(variables: dict[str, str]) -> None:
    outcome = run(variables)
    outcome.succeeded()
    first, second = outcome.stderr.splitlines()
    assert first.startswith("CNI plugin noctule")
    assert second == f"CNI protocol versions supported: {', '.join(VERSIONS)}"


@pytest.mark.parametrize("name", [None, *REQUIRED])
@pytest.mark.parametrize("stdin", [b"", b"junk", b'{"cniVersion": "1.0.0"}', UNREADABLE])
def test_version_needs_nothing(name: str | None, stdin: Any) -> None:
    variables = environment("VERSION", **({name: None} if name else {}))
    opened = os.open("/dev/null", os.O_WRONLY) if stdin == UNREADABLE else -1
    outcome = run(variables, opened if opened >= 0 else stdin)
    if opened >= 0:
        os.close(opened)
    assert outcome.status == 0
    asked = "1.0.0" if stdin.startswith(b"{" if isinstance(stdin, bytes) else "{") else "1.1.0"
    assert outcome.json == {"cniVersion": asked, "supportedVersions": list(VERSIONS)}


@pytest.mark.parametrize("verb", VERBS)
def test_an_error_of_the_function_called(daemon: Daemon, verb: str) -> None:
    row = Row("", verb)
    for answer, code, message in (
        ((422, {"code": 1234, "msg": "insufficient something"}), 1234, "insufficient something"),
        ((500, {"code": 999, "msg": "potato"}), 999, "potato"),
    ):
        daemon.replies = {ASKS[verb]: answer}
        outcome = run(environment(verb), stdin_of(row, daemon.socket))
        outcome.failed(code)
        assert (outcome.json["msg"], outcome.json["details"]) == (message, "")
    daemon.replies = {}
