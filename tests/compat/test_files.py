"""The state folder of a node that is upgraded, or downgraded, under its containers."""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from daemon.resolver.directory import Directory, directory
from daemon.resolver.server import StateFile
from netconf.attach.attachment import Attachment, AttachRequest, NodeNet, Phase
from netconf.attach.state import State
from netconf.errors import TryAgain
from netconf.netlink.shaping import Bandwidth
from tests.compat.released import Released
from tests.unit.model_kit import NOW, TEXT, folder, policy, record

NODE = NodeNet(
    cluster="lab", node="n1", pool="10.64.0.0/12", slice="10.64.16.0/20", vips="10.80.0.0/16",
    mtu=1468, ula="fd4e:6f63::/96",
)  # fmt: skip
REQUEST = AttachRequest(
    container="c0ffee", ifname="eth0", netns="/run/netns/x", network="mesh", service="web",
    key_file="/run/key", runtime="podman",
    bandwidth=Bandwidth(ingress_rate=8000, ingress_burst=8000),
)  # fmt: skip
WRITTEN = [phase for phase in typing.get_args(Phase) if phase != "unreadable"]
ULA = "fd4e:6f63::/96"


def fields(value: msgspec.Struct) -> dict[str, object]:
    return dict(msgspec.to_builtins(value))


@pytest.mark.parametrize("phase", WRITTEN)
def test_the_old_release_reads_our_state_files(old: Released, tmp_path: Path, phase: Phase) -> None:
    state = State(tmp_path)
    state.write_node(NODE)
    made = state.allocate(REQUEST, NODE, netns_id=(4, 17), salt=bytes(32))
    made = msgspec.structs.replace(made, phase=phase)
    state.save(made)
    read, served = old("states", str(tmp_path))[made.id]
    assert read["phase"] == phase, "it would take the attachment for a damaged one"
    ours = fields(made)
    assert read == {name: ours[name] for name in read}
    assert served == {name: ours[name] for name in ("netns", "netns_id", "service", "phase")}
    known = old("node", str(tmp_path))
    assert known == {name: fields(NODE)[name] for name in known}


@pytest.mark.parametrize("phase", WRITTEN)
def test_we_read_the_state_files_of_the_old_release(
    old: Released, tmp_path: Path, phase: Phase
) -> None:
    asked = {name: value for name, value in fields(REQUEST).items()
             if name not in ("services", "requires")}  # fmt: skip
    node = {name: value for name, value in fields(NODE).items() if name != "bridge"}
    made = old("allocate", str(tmp_path), asked, node, (4, 17), bytes(32), phase)
    state = State(tmp_path)
    (found,) = state.all()
    assert found.phase == phase
    assert made == {name: fields(found)[name] for name in made}
    assert fields(state.read_node()) | node == fields(state.read_node())
    file = tmp_path / "attachments" / f"{found.id}@{found.address}.json"
    served = msgspec.json.decode(file.read_bytes(), type=StateFile)
    assert (served.netns, served.service, served.phase) == ("/run/netns/x", "web", phase)
    state.remove(found)
    assert old("states", str(tmp_path)) == {}


def test_what_a_later_release_adds_to_a_state_file_is_ignored(
    old: Released, tmp_path: Path
) -> None:
    state = State(tmp_path)
    state.write_node(NODE)
    made = state.allocate(REQUEST, NODE, netns_id=(4, 17), salt=bytes(32))
    for file in (
        tmp_path / "attachments" / f"{made.id}@{made.address}.json", tmp_path / "node.json"
    ):  # fmt: skip
        more = msgspec.json.decode(file.read_bytes()) | {"epochs": [{"an": 1}], "edge": "x"}
        file.write_bytes(msgspec.json.encode(more))
    assert state.get(made.id) == made
    assert state.read_node() == NODE
    read, _ = old("states", str(tmp_path))[made.id]
    assert read["phase"] == "adding"
    assert old("node", str(tmp_path))["slice"] == NODE.slice


def test_addresses_of_files_nobody_can_read_are_not_given_out(
    old: Released, tmp_path: Path
) -> None:
    """What the file's name says is enough for both, and for a DEL."""
    state = State(tmp_path)
    taken = state.allocate(REQUEST, NODE, netns_id=(4, 17), salt=bytes(32))
    file = tmp_path / "attachments" / f"{taken.id}@{taken.address}.json"
    file.write_bytes(b'{"of": "a release to come"}')
    other = {"container": "other", "ifname": "eth0", "netns": "/n", "network": "mesh"}
    node = {name: value for name, value in fields(NODE).items() if name != "bridge"}
    made = old("allocate", str(tmp_path), other, node, (4, 18), bytes(32), "ready")
    assert made["address"] != taken.address
    found = state.get(taken.id)
    assert isinstance(found, Attachment)
    assert (found.phase, found.address) == ("unreadable", taken.address)
    state.remove(found)
    assert not file.exists()


# --- locks


@contextlib.contextmanager
def held(state: State, kind: str) -> Iterator[None]:
    with getattr(state, kind)():
        yield


@pytest.mark.parametrize(
    ("ours", "theirs", "both"),
    [("shared", "shared", True), ("shared", "exclusive", False), ("exclusive", "shared", False)],
)
def test_locks_are_the_same_locks(
    old: Released, tmp_path: Path, ours: str, theirs: str, both: bool
) -> None:
    """An executable that works alone excludes the daemon, whichever of the two is older."""
    state = State(tmp_path)
    with held(state, ours):
        assert old("locked", str(tmp_path), theirs) is both
    assert old("locked", str(tmp_path), theirs) is True


def test_one_operation_per_attachment_whoever_does_it(old: Released, tmp_path: Path) -> None:
    this, that = "0" * 11 + "1", "0" * 11 + "2"
    with State(tmp_path).holding(this):
        assert old("locked", str(tmp_path), "", this) is False
        assert old("locked", str(tmp_path), "", that) is True
    with pytest.raises(TryAgain), State(tmp_path).holding(this), State(tmp_path).holding(this, 0):
        pytest.fail("twice")


# --- names


@pytest.mark.parametrize("ula", ["", ULA])
def test_each_resolver_reads_the_names_of_the_other_daemon(old: Released, ula: str) -> None:
    ours = msgspec.json.encode(directory(policy(TEXT), ula))
    theirs = old("policy_names", str(folder()), [record("authority", 1, policy(TEXT))], NOW, ula)
    read = msgspec.json.decode(theirs, type=Directory)
    seen = old("names", ours)
    assert seen == {service: read.of(service) for service in read.known}
    assert set(seen) == {"web", "api"}
    assert len(seen["web"]["api"]) == (2 if ula else 1)
    more = msgspec.json.decode(ours) | {"aliases": {"a": "b"}, "since": 5}
    assert old("names", msgspec.json.encode(more)) == seen
    assert msgspec.json.decode(msgspec.json.encode(more), type=Directory) == read
