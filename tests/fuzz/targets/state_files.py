"""The state folder as found: whatever is in its files, it can be listed, used and emptied."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from daemon.cluster.snapshot import Snapshot
from daemon.journal import Journal
from daemon.model.store import Store
from daemon.resolver.server import Server
from netconf.attach.attachment import AttachRequest, NodeNet
from netconf.attach.state import State
from netconf.errors import DecodeFailure
from tests.fuzz.mutate import Mutator
from tests.fuzz.target import Case, Target, logged, outcome, require
from tests.unit import model_kit

NODE: dict[str, Any] = {
    "cluster": "lab", "node": "n1", "pool": "10.64.0.0/12", "slice": "10.64.16.0/28",
    "vips": "10.80.0.0/16", "mtu": 1418, "bridge": "noctule0", "ula": "fd00:64::/64",
}  # fmt: skip
ID = "0123456789ab"
ATTACHMENT: dict[str, Any] = {
    "id": ID, "network": "mesh", "container": "c0ffee", "ifname": "eth0", "netns": "/run/netns/x",
    "netns_id": [4, 4026531840], "service": "web", "key_file": "/k", "address": "10.64.16.5",
    "salt": "00" * 32, "an": 0, "mtu": 1418, "phase": "ready",
}  # fmt: skip
REQUEST: dict[str, Any] = {
    "container": "c0ffee", "ifname": "eth0", "netns": "/run/netns/x", "network": "mesh",
    "service": "web", "key_file": "/k", "address": None, "mac": None,
}  # fmt: skip
NAMES: dict[str, Any] = {
    "addresses": {"web": ["10.80.0.1", "fd00::1"], "api": ["10.80.0.2"]},
    "known": {"web": ["api"], "api": []},
}
FILE = f"attachments/{ID}@10.64.16.5.json"
WORDS = (
    *NODE, *ATTACHMENT, "10.64.16.5", "10.64.16.0/28", "10.64.16.15", "02:4e:0a:40:10:05", "adding",
    "deleting", "unreadable", "attachments/x.tmp", "addresses", "known",
    "attachments/ba@10.64.16.6.json", ".json", "@",
)  # fmt: skip


@contextmanager
def target(folder: Path) -> Iterator[Target]:
    """Offer the target, in a folder that is empty again after each case."""
    store = model_kit.store()
    ended, end = socket.socketpair()
    with ended, end, logged() as lines:
        end.send(b".")

        def run(case: Case) -> str:
            lines.clear()
            place = folder / "state"
            try:
                found = _run(place, store, ended, case)
            finally:
                shutil.rmtree(place, ignore_errors=True)
            require(not any("Traceback" in line for line in lines), f"a bug is logged: {lines}")
            return found

        yield Target(draw, run)


def draw(random: Random) -> Case:
    """Return files by name, and what is asked of the folder then."""
    mutator = Mutator(random, WORDS)
    files = {
        "node.json": _json(mutator, NODE),
        FILE: _json(mutator, ATTACHMENT),
        "last": random.choice((b"10.64.16.5", mutator.text(b"10.64.16.5"))),
        "records": mutator.text(b"\x83\xa4type\xaasnapshot 1\xa7cluster\xa3lab\xa9envelopes\x90"),
        "policy": mutator.text(b"policy"),
        "names": _json(mutator, NAMES),
        "attachments/0.tmp": b"",
    }
    if random.random() < 0.5:
        name = random.choice(sorted(files))
        files[mutator.word(name)] = files.pop(name)
    return {
        "files": files,
        "request": mutator.tree(REQUEST | {"address": random.choice((None, "10.64.16.6"))}),
        "node": mutator.tree(NODE) if random.random() < 0.3 else NODE,
    }


def _json(mutator: Mutator, document: dict[str, Any]) -> bytes:
    data = json.dumps(mutator.tree(document)).encode()
    return mutator.text(data) if mutator.random.random() < 0.4 else data


def _run(place: Path, store: Store, ended: socket.socket, case: Case) -> str:
    (place / "attachments").mkdir(parents=True)
    for name, content in case.get("files", {}).items():
        _write(place / name, place, content)
    found = outcome(lambda: State(place).read_node())
    state = State(place)
    Snapshot(place, place, store).load()
    with Server(place, Journal()) as server:
        server.serve(ended)  # all that is there, then it sees that it should end
    attachments = state.all()
    require({one.id for one in attachments} == state.ids(), "all that is listed is read")
    for one in attachments:
        require(state.get(one.id) == one, "one is as among all")
        require(one.vh.encode() and one.vc.encode(), "its links have names")
    asked = outcome(lambda: _allocate(state, case))
    for one in state.all():
        with state.holding(one.id, 0):
            state.remove(one)
    require(not state.ids(), "every attachment can be taken away")
    made = state.allocate(
        AttachRequest(**REQUEST), NodeNet(**NODE), netns_id=(1, 2), salt=b"s" * 32
    )
    require(state.all() == [made], "what was odd is out of the way")
    return f"node {found}, allocate {asked}"


def _write(path: Path, place: Path, content: bytes) -> None:
    """Write what can be a file's name, and lies in the folder."""
    try:
        if path.parent.resolve() in (place, place / "attachments"):
            path.write_bytes(content)
    except (OSError, ValueError):
        return


def _allocate(state: State, case: Case) -> None:
    """Allocate if node.yaml and a runtime could have said so: both were checked before."""
    try:
        request = msgspec.convert(case.get("request", REQUEST), AttachRequest)
        node = msgspec.convert(case.get("node", NODE), NodeNet)
        pool, mine = IPv4Network(node.pool), IPv4Network(node.slice)
        msgspec.json.encode(request)
    except (ValueError, UnicodeEncodeError) as error:
        raise DecodeFailure(f"not from ours: {type(error)}") from error
    if not mine.subnet_of(pool) or mine.num_addresses > 4096:
        raise DecodeFailure("not from ours: refused by node.yaml")
    made = state.allocate(request, node, netns_id=(1, 2), salt=b"s" * 32)
    require(IPv4Address(made.address) in mine, "the address is of the slice")
    require(state.get(made.id) == made, "what was allocated is there")
