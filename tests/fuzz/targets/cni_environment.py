"""The environment: the variables of a call, and the pairs in CNI_ARGS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from unittest import mock

from cni import environment
from tests.fuzz.mutate import Mutator
from tests.fuzz.target import Case, Target, outcome, require
from tests.fuzz.targets.cni_documents import NETNS, VERBS

VARIABLES = {
    b"CNI_COMMAND": b"ADD",
    b"CNI_CONTAINERID": b"c0ffee",
    b"CNI_NETNS": NETNS.encode(),
    b"CNI_IFNAME": b"eth0",
    b"CNI_ARGS": b"IgnoreUnknown=1;K8S_POD_NAME=x;IP=10.64.16.5",
    b"CNI_PATH": b"/nowhere/bin",
    b"CNI_NETNS_OVERRIDE": b"0",
}
PAIRS = (
    "IgnoreUnknown=1", "IgnoreUnknown=true", "IgnoreUnknown=0", "IP=10.64.16.5", "IP=10.64.16.5/12",
    "IP=fd00::5", "MAC=02:4e:0a:40:10:05", "NOCTULE_SERVICE=web", "K8S_POD_NAME=web", "FOO=bar",
)  # fmt: skip
WORDS = (*VERBS, *PAIRS, "VERSION", NETNS, "eth0", "eth%d", "c0ffee", "1", "true")


@contextmanager
def target(folder: Path) -> Iterator[Target]:
    """Offer the target; ``posix.environ`` is what the interpreter made of execve's, once."""
    variables: dict[bytes, bytes] = {}

    def run(case: Case) -> str:
        variables.clear()
        variables.update(case)
        return outcome(read)

    with mock.patch.object(environment, "environ", variables):
        yield Target(draw, run)


def pairs(mutator: Mutator) -> str:
    """Return a value of CNI_ARGS."""
    text = ";".join(mutator.random.sample(PAIRS, mutator.random.randrange(4)))
    return mutator.word(text) if mutator.random.random() < 0.4 else text


def draw(random: Random) -> Case:
    """Return the variables, as execve passes them: bytes without zeros."""
    mutator = Mutator(random, WORDS)
    variables = {**VARIABLES, b"CNI_COMMAND": random.choice(VERBS).encode()}
    variables[b"CNI_ARGS"] = pairs(mutator).encode(errors="surrogatepass")
    for name in random.sample(sorted(variables), random.choice((0, 1, 1, 2, 3))):
        match random.randrange(4):
            case 0:
                del variables[name]
            case 1:
                variables[name] = mutator.text(variables[name])
            case _:
                word = mutator.word(variables[name].decode(errors="surrogateescape"))
                variables[name] = word.encode(errors="surrogatepass")
    return {name: value.replace(b"\0", b"") for name, value in variables.items()}


def read() -> None:
    """Read it as ``main`` and the verbs do."""
    verb = environment.command()
    if verb not in VERBS:
        return
    call = environment.read(verb)
    asked = environment.arguments(call.args)
    if verb in ("ADD", "CHECK", "DEL"):
        require(environment.valid_name(call.container), "the container id was checked")
        require(0 < len(call.ifname.encode()) < 16, "the interface's name was checked")
    require(";" not in asked.address + asked.mac + asked.service, "pairs were split")
