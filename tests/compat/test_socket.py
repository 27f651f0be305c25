"""The executable of one release and the daemon of the other, on the unix socket.

What the daemon decides and the kernel becomes is for tests/releases; here it is shapes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from daemon.api import messages
from daemon.api.server import decode_body
from netconf.attach.attachment import AttachRequest
from netconf.errors import NoctuleError, Unsupported
from tests.compat.released import Released, path
from tests.unit import cni_kit
from tests.unit.cni_kit import Daemon, configuration, environment, previous, run, serving
from tests.unit.test_api import ANSWER
from tests.unit.test_show import EMPTY

KINDS: dict[str, type[msgspec.Struct]] = {
    "/v1/attach": AttachRequest,
    "/v1/detach": AttachRequest,
    "/v1/check": AttachRequest,
    "/v1/gc": messages.GCRequest,
    "/v1/ready": messages.ReadyRequest,
}
VERBS = {
    "ADD": "/v1/attach", "CHECK": "/v1/check", "DEL": "/v1/detach", "GC": "/v1/gc",
    "STATUS": "/v1/ready",
}  # fmt: skip


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with serving(tmp_path / "noctuled.sock") as made:
        made.replies["/v1/attach"] = (200, json.loads(msgspec.json.encode(ANSWER)))
        yield made


@pytest.fixture
def executable_of_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """`run` starts the old release's executable."""
    tree, packages = path()
    monkeypatch.setattr(cni_kit, "ROOT", tree)
    monkeypatch.setattr(cni_kit, "PACKAGES", [packages])


def call(daemon: Daemon, verb: str, **fields: Any) -> tuple[cni_kit.Outcome, str, bytes]:
    """Run the executable; return its outcome, and target and body of its one request."""
    daemon.requests.clear()
    asked = configuration(daemon.socket, prevResult=previous(), **fields)
    if verb == "GC":
        asked["cni.dev/valid-attachments"] = [{"containerID": "c0ffee", "ifname": "eth0"}]
    outcome = run(environment(verb), asked)
    ((_, target, body),) = daemon.requests
    return outcome, target, json.dumps(body).encode()


@pytest.mark.parametrize("verb", VERBS)
def test_the_old_daemon_takes_what_our_executable_asks(
    old: Released, daemon: Daemon, verb: str
) -> None:
    outcome, target, body = call(daemon, verb)
    assert (outcome.status, target) == (0, VERBS[verb]), outcome
    assert old("request", target, body) == (0, "")


@pytest.mark.usefixtures("executable_of_before")
@pytest.mark.parametrize("verb", VERBS)
def test_our_daemon_serves_the_old_executable(daemon: Daemon, verb: str) -> None:
    outcome, target, body = call(daemon, verb)
    assert (outcome.status, target) == (0, VERBS[verb]), outcome
    decode_body(body, KINDS[target])


@pytest.mark.parametrize("verb", VERBS)
def test_a_request_with_more_than_we_know_is_served(daemon: Daemon, verb: str) -> None:
    _, target, body = call(daemon, verb)
    more = json.loads(body) | {"colour": "red", "shape": {"corners": 3}}
    decode_body(json.dumps(more).encode(), KINDS[target])


@pytest.mark.parametrize("verb", ["ADD", "CHECK", "GC", "DEL"])
def test_a_restriction_is_never_left_out(old: Released, daemon: Daemon, verb: str) -> None:
    """By the old daemon neither; but a DEL is served whatever it says."""
    _, target, body = call(daemon, verb)
    more = json.dumps(json.loads(body) | {"zone": "dmz", "requires": ["zone"]}).encode()
    if verb == "DEL":
        decode_body(more, KINDS[target], whatever=True)
        return
    with pytest.raises(Unsupported, match="zone: ") as refused:
        decode_body(more, KINDS[target])
    assert refused.value.code == 2
    assert old("request", target, more)[0] == 7


def test_what_a_restriction_needs_is_what_a_request_has() -> None:
    asked = {"container": "a", "ifname": "e", "netns": "/n", "network": "m", "mac": None}
    body = json.dumps(asked | {"requires": ["mac", "bandwidth"]}).encode()
    assert decode_body(body, AttachRequest).requires == ("mac", "bandwidth")
    with pytest.raises(NoctuleError):
        decode_body(json.dumps(asked | {"bandwidth": {"burstiness": 1}}).encode(), AttachRequest)


# --- what a person asks with noctulectl

ANSWERS = {
    "Status": EMPTY,
    "Verification": messages.Verification(node="n1", attachments=0, differences=[]),
    "PolicyState": messages.PolicyState(cluster="lab", vips="10.80.0.0/16", version=0, envelope=""),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_the_old_noctulectl_reads_our_answers(old: Released, kind: str) -> None:
    assert old("readable", kind, msgspec.json.encode(ANSWERS[kind]))


@pytest.mark.parametrize("kind", ANSWERS)
def test_our_noctulectl_reads_the_old_answers(old: Released, kind: str) -> None:
    fields = old("fields", kind)
    told = msgspec.json.decode(msgspec.json.encode(ANSWERS[kind]))
    less = {name: value for name, value in told.items() if name in fields}
    msgspec.json.decode(msgspec.json.encode(less), type=getattr(messages, kind))


@pytest.mark.parametrize(
    "kind", ["NodeStatus", "PortStatus", "ServiceStatus", "ReplicaStatus", "DenialStatus",
             "Counters", "PolicyStatus", "Status", "Verification", "PolicyState", "PolicyApplied"],
)  # fmt: skip
def test_what_was_added_to_an_answer_is_optional(old: Released, kind: str) -> None:
    """And nothing that the old release needs is left out."""
    ours = {one.name: one for one in msgspec.structs.fields(getattr(messages, kind))}
    theirs = old("fields", kind)
    needed = {name for name, one in ours.items() if one.required}
    assert needed <= set(theirs), "new, and the old daemon's answer has it not"
    assert {name for name, required in theirs.items() if required} <= set(ours)
