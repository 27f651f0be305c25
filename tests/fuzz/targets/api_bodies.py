"""Bodies of API requests: from bytes to a checked request, or code 6 or 7; at speed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from daemon.api.messages import GCRequest, PolicyRequest, ReadyRequest
from daemon.api.server import decode_body
from netconf.attach.attachment import AttachRequest
from tests.fuzz.mutate import Mutator
from tests.fuzz.target import Case, Target, outcome, require

ATTACH: dict[str, Any] = {
    "container": "c0ffee",
    "ifname": "eth0",
    "netns": "/run/netns/x",
    "network": "mesh",
    "services": [{"name": "web", "from": "alias"}, {"name": "api", "from": "service"}],
    "key_file": "/run/key",
    "address": "10.64.16.5",
    "mac": None,
}
GC: dict[str, Any] = {"network": "mesh", "valid": [{"containerID": "c0ffee", "ifname": "eth0"}]}
POLICY: dict[str, Any] = {"envelope": "lKFrAaFuxAFixAFz"}
BODIES: tuple[tuple[type[msgspec.Struct], dict[str, Any]], ...] = (
    (AttachRequest, ATTACH),
    (GCRequest, GC),
    (PolicyRequest, POLICY),
    (ReadyRequest, {"key_file": "/run/key"}),
)
WORDS = (*ATTACH, *GC, *POLICY, "containerID", "name", "from")


@contextmanager
def target(folder: Path) -> Iterator[Target]:
    """Offer the target; it keeps nothing open."""
    yield Target(draw, run)


def draw(random: Random) -> Case:
    """Return which request it is to be, and its body."""
    which = random.randrange(len(BODIES))
    return {"kind": which, "body": body(Mutator(random, WORDS), BODIES[which][1])}


def body(mutator: Mutator, document: dict[str, Any]) -> bytes:
    """Return `document` with changes, as JSON, sometimes damaged."""
    data = json.dumps(mutator.tree(document), ensure_ascii=mutator.random.random() < 0.9)
    encoded = data.encode(errors="surrogatepass")
    return mutator.text(encoded) if mutator.random.random() < 0.3 else encoded


def run(case: Case) -> str:
    """Decode it as the handlers do."""
    kind, _ = BODIES[case.get("kind", 0)]

    def decode() -> None:
        made = decode_body(case.get("body", b""), kind)
        again = decode_body(msgspec.json.encode(made), kind)
        require(made == again, "what was understood can be said again")

    return outcome(decode, "request: ")
