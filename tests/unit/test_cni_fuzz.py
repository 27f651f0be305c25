"""Whatever comes in: JSON on stdout that fits the exit code, and never a traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cni_kit import Daemon, Outcome, configuration, environment, previous, run, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

VERBS = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"]
SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

BYTES = st.binary(max_size=12).filter(lambda value: b"\0" not in value)
WORDS = st.sampled_from(
    ["eth0", "a", "..", "%", "IgnoreUnknown=1", "IP=10.64.16.9", "IP=x;K8S_A=b", "/proc/self/fd/0"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["eth0", "10.64.16.5/12", "/x", "1.1.0", "0.4.0", "mesh"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["cni", "file", "service", "ips", "mac", "aliases", "interfaces", "name",
                         "sandbox", "address", "interface", "containerID", "ifname", "type", "x"]),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip
FIELDS = st.sampled_from(
    ["cniVersion", "name", "type", "service", "key", "capabilities", "runtimeConfig", "args",
     "prevResult", "disableCheck", "ipam", "dns", "ipMasq", "runtime", "cni.dev/valid-attachments",
     "cni.dev/attachments", "unknown"]
)  # fmt: skip


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with serving(Path(tmp_path_factory.mktemp("fuzz")) / "d.sock") as daemon:
        yield daemon


def judge(outcome: Outcome) -> None:
    assert "Traceback" not in outcome.stderr, outcome
    if outcome.status == 0:
        assert outcome.stdout == "" or "code" not in outcome.json
    else:
        error = outcome.json
        assert outcome.status == 1
        assert isinstance(error["code"], int) and 0 < error["code"] < 999, error
        assert error["msg"], error


@SETTINGS
@given(verb=st.sampled_from(VERBS), stdin=st.binary() | JSON.map(lambda v: json.dumps(v).encode()))
def test_any_stdin(verb: str, stdin: bytes) -> None:
    judge(run(environment(verb), stdin))


@SETTINGS
@given(verb=st.sampled_from(VERBS), changes=st.dictionaries(FIELDS, JSON, max_size=4))
def test_any_value_in_any_field(daemon: Daemon, verb: str, changes: dict[str, Any]) -> None:
    config = {**configuration(daemon.socket, prevResult=previous()), **changes}
    judge(run(environment(verb), config))


@SETTINGS
@given(
    verb=st.sampled_from(VERBS).map(str.encode) | BYTES,
    changes=st.dictionaries(
        st.sampled_from(
            ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH", "PYTHONPATH",
             "CNI_NETNS_OVERRIDE"]
        ),
        BYTES | WORDS.map(str.encode),
    ),
)  # fmt: skip
def test_any_environment(daemon: Daemon, verb: bytes, changes: dict[str, bytes]) -> None:
    variables = {
        **environment("ADD"),
        **{name: value.decode("utf-8", "surrogateescape") for name, value in changes.items()},
        "CNI_COMMAND": verb.decode("utf-8", "surrogateescape"),
    }
    judge(run(variables, configuration(daemon.socket, prevResult=previous())))


@SETTINGS
@given(verb=st.sampled_from(VERBS), status=st.integers(200, 599), answer=JSON)
def test_any_answer(daemon: Daemon, verb: str, status: int, answer: Any) -> None:
    targets = ("attach", "detach", "check", "gc", "ready")
    daemon.replies = {f"/v1/{target}": (status, answer) for target in targets}
    try:
        config = configuration(
            daemon.socket, prevResult=previous(), **{"cni.dev/valid-attachments": []}
        )
        judge(run(environment(verb), config))
    finally:
        daemon.replies = {}
