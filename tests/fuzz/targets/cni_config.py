"""The network configuration on stdin: from bytes to what each verb makes of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import msgspec

from cni import config, result
from cni.client import Attached
from cni.codec import encode
from cni.environment import Environment
from netconf.attach.attachment import AttachRequest
from tests.fuzz.mutate import Mutator
from tests.fuzz.target import Case, Target, outcome, require
from tests.fuzz.targets import cni_documents, cni_environment

ATTACHED = Attached(
    ["10.64.16.5/12"], ["10.80.0.0/16"], "02:4e:0a:40:10:05", 1394, "127.0.0.78", "web",
    [{"name": "vh0123456789ab", "mac": "0a:4e:0a:40:10:05", "mtu": 1418}],
)  # fmt: skip


@contextmanager
def target(folder: Path) -> Iterator[Target]:
    """Offer the target; it keeps nothing open."""
    yield Target(draw, lambda case: outcome(lambda: run(case)))


def draw(random: Random) -> Case:
    """Return a verb, what is on stdin, and CNI_ARGS."""
    mutator = Mutator(random, cni_documents.WORDS)
    return {
        "verb": random.choice(cni_documents.VERBS),
        "stdin": cni_documents.stdin(mutator, cni_documents.document(random)),
        "args": random.choice(("", "", cni_environment.pairs(mutator))),
    }


def run(case: Case) -> None:
    """Read it as the verb does, and write what the verb would."""
    verb, stdin = case.get("verb", "ADD"), case.get("stdin", b"")
    require(config.version_of(stdin) in ("", *result.SUPPORTED), "an error has a known version")
    network = config.read(stdin, verb)
    call = Environment(verb, "c0ffee", cni_documents.NETNS, "eth0", case.get("args", ""))
    if verb in ("ADD", "CHECK"):
        require(network.socket.startswith("/"), "a socket has an absolute path")
        body = encode(network.request(call).body())
        # The daemon refuses what it does not know: both ends must agree on every field.
        wanted = msgspec.json.decode(body, type=AttachRequest)
        require(wanted.services, "some service is asked for")
        previous = network.previous()
        made = result.success(network.version, call, ATTACHED, previous, network.dns())
        shown = json.loads(encode(made))
        ours = [interface["name"] for interface in shown["interfaces"][-2:]]
        require(ours == ["eth0", "vh0123456789ab"], "our interfaces are the last")
    elif verb == "GC":
        valid = network.valid_attachments()
        # Collecting too much cannot be mended: an absent list must never become an empty one.
        given = json.loads(stdin)
        names = ("cni.dev/valid-attachments", "cni.dev/attachments")
        listed = [value for name, value in given.items() if name.casefold() in names]
        absent = all(value is None for value in listed)
        require((valid is None) == absent, "an absent list is not an empty one")
