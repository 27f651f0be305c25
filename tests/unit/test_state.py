"""State files: one address, one owner, whatever runs in parallel or dies."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netconf import names
from netconf.attach import allocation
from netconf.attach.attachment import Attachment, AttachRequest, NodeNet
from netconf.attach.state import State
from netconf.errors import (
    AddressesExhausted,
    InvalidConfig,
    IOFailure,
    NodeFull,
    NotAvailable,
    TryAgain,
)
from netconf.netlink.shaping import Bandwidth

NODE = NodeNet(
    cluster="lab",
    node="n1",
    pool="10.64.0.0/12",
    slice="10.64.16.0/29",
    vips="10.80.0.0/16",
    mtu=1468,
)
SALT = bytes(32)


def request(number: int, **changes: str) -> AttachRequest:
    made = AttachRequest(
        container=f"c{number}", ifname="eth0", netns="/run/netns/x", network="mesh"
    )
    return msgspec.structs.replace(made, **changes)


def allocate(state: State, number: int, node: NodeNet = NODE, **changes: str) -> Attachment:
    return state.allocate(request(number, **changes), node, netns_id=(4, 17), salt=SALT)


def test_an_attachment_survives_the_process(tmp_path: Path) -> None:
    made = allocate(State(tmp_path), 1)
    assert made.phase == "adding"
    assert (tmp_path / "attachments" / f"{made.id}@{made.address}.json").exists()
    again = State(tmp_path)
    assert again.get(made.id) == made
    assert again.all() == [made]
    ready = msgspec.structs.replace(made, phase="ready")
    again.save(ready)
    assert State(tmp_path).get(made.id) == ready
    again.remove(ready)
    again.remove(ready)
    assert (again.get(made.id), again.all()) == (None, [])


def test_what_a_writer_left_that_died_before_its_first_file(tmp_path: Path) -> None:
    state = State(tmp_path)
    other = allocate(state, 1)
    dead, live = (
        tmp_path / "attachments" / f"{name}@10.64.16.2.tmp" for name in ("a" * 12, "b" * 12)
    )
    dead.touch()
    live.touch()
    state.sweep("a" * 12)
    state.sweep("a" * 12)
    assert (dead.exists(), live.exists(), state.all()) == (False, True, [other])


def test_names_follow_from_the_address(tmp_path: Path) -> None:
    made = allocate(State(tmp_path), 1, address="10.64.16.5")
    assert made.mac == "02:4e:0a:40:10:05"
    assert made.sci == bytes.fromhex("024e0a4010050001")
    assert (made.vh, made.vc) == (f"vh{made.id}", f"vc{made.id}")
    assert len(made.vh) < 16


def test_addresses_are_not_reused_at_once_and_the_slice_ends(tmp_path: Path) -> None:
    state = State(tmp_path)
    made = [allocate(state, number) for number in range(6)]
    assert [attachment.address for attachment in made] == [f"10.64.16.{n}" for n in range(1, 7)]
    with pytest.raises(AddressesExhausted, match=r"10\.64\.16\.0/29"):
        allocate(state, 6)
    state.remove(made[1])
    state.remove(made[3])
    assert [allocate(state, number).address for number in (6, 7)] == ["10.64.16.2", "10.64.16.4"]
    state.remove(made[0])
    assert allocate(state, 8).address == "10.64.16.1"


@given(st.binary(max_size=20))
def test_a_damaged_hint_is_no_obstacle(
    tmp_path_factory: pytest.TempPathFactory, hint: bytes
) -> None:
    folder = tmp_path_factory.mktemp("state")
    state = State(folder)
    (folder / "last").write_bytes(hint)
    first = allocate(state, 1)
    assert first.address.startswith("10.64.16.")
    state.remove(first)
    assert allocate(state, 2).address != first.address, "the hint did not recover"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"address": "10.64.16.0"}, "address: .*network or broadcast"),
        ({"address": "10.64.16.7"}, "address: .*network or broadcast"),
        ({"address": "10.64.32.1"}, "address: .*not in this node's slice 10.64.16.0/29"),
        ({"address": "10.64.16.999"}, "address: "),
        ({"address": "fd00::1"}, "address: "),
        ({"address": "10.64.16.1"}, "another attachment has it"),
        ({"mac": "02:4e:0a:40:10"}, "mac: "),
        ({"mac": "00:11:22:33:44:55"}, "mac: .*not a replica's MAC"),
        ({"address": "10.64.16.3", "mac": "02:4e:0a:40:10:04"}, "mac: .*02:4e:0a:40:10:03"),
    ],
)
def test_requests_that_cannot_be_honoured(
    tmp_path: Path, changes: dict[str, str], text: str
) -> None:
    state = State(tmp_path)
    first = allocate(state, 0, address="10.64.16.1")
    with pytest.raises(InvalidConfig, match=text):
        allocate(state, 1, **changes)
    assert state.all() == [first]


ULA = msgspec.structs.replace(NODE, ula="fd4e:6f63::/64")


@pytest.mark.parametrize(
    ("node", "changes", "text"),
    [
        (NODE, {"address6": "fd4e:6f63::a40:1005"}, "no IPv6 network"),
        (ULA, {"address6": "fd4e:6f64::a40:1005"}, "not in this cluster's fd4e:6f63::/64"),
        (ULA, {"address6": "10.64.16.5"}, "address: "),
        (ULA, {"address6": "fd4e:6f63::a40:2001"}, "10.64.32.1 .*not in this node's slice"),
        (ULA, {"address6": "fd4e:6f63::a40:1005", "address": "10.64.16.4"}, "a40:1004"),
        (ULA, {"address6": "fd4e:6f63::a40:1005", "mac": "02:4e:0a:40:10:04"}, "a40:1004"),
    ],
)
def test_an_ipv6_address_that_is_not_the_derived_one(
    tmp_path: Path, node: NodeNet, changes: dict[str, str], text: str
) -> None:
    state = State(tmp_path)
    with pytest.raises(InvalidConfig, match=text):
        allocate(state, 1, node, **changes)
    assert state.all() == []


@pytest.mark.parametrize("changes", [{}, {"address": "10.64.16.5"}, {"mac": "02:4e:0a:40:10:05"}])
def test_an_ipv6_address_means_the_ipv4_address_in_it(
    tmp_path: Path, changes: dict[str, str]
) -> None:
    changes["address6"] = "FD4E:6F63:0:0::0a40:1005"
    assert allocate(State(tmp_path), 1, ULA, **changes).address == "10.64.16.5"


def test_a_node_is_full_before_its_bridge_is(tmp_path: Path) -> None:
    state = State(tmp_path)
    wide = msgspec.structs.replace(NODE, slice="10.64.16.0/20")
    first = allocate(state, 0, wide)
    for number in range(1, allocation.CONTAINERS_MAX):
        name = f"{number:012x}@10.64.{17 + number // 256}.{number % 256}.json"
        (tmp_path / "attachments" / name).touch()
    with pytest.raises(NodeFull, match="this node has 1019 containers"):
        allocate(state, 1, wide)
    with pytest.raises(NodeFull):
        allocate(state, 1, wide, address="10.64.31.1")
    assert len(state.ids()) == 1019
    state.remove(first)
    assert allocate(state, 1, wide).phase == "adding"


@pytest.mark.parametrize(
    ("slice", "taken", "free"),
    [
        ("10.64.16.0/29", 0, 6),
        ("10.64.16.0/29", 6, 0),
        ("10.64.16.0/20", 19, 1000),
        ("10.64.0.0/12", 1019, 0),
    ],
)
def test_how_many_more(slice: str, taken: int, free: int) -> None:
    node = msgspec.structs.replace(NODE, slice=slice)
    assert allocation.free(node, {str(number) for number in range(taken)}) == free


def test_what_a_runtime_asked_for_is_remembered(tmp_path: Path) -> None:
    state = State(tmp_path)
    limits = Bandwidth(ingress_rate=8000, ingress_burst=8000)
    wanted = msgspec.structs.replace(request(1), runtime="podman", bandwidth=limits)
    made = state.allocate(wanted, NODE, netns_id=(4, 17), salt=SALT)
    again = State(tmp_path).get(made.id)
    assert again is not None
    assert (again.runtime, again.bandwidth) == ("podman", limits)


def test_a_file_from_before_runtimes_and_limits(tmp_path: Path) -> None:
    state = State(tmp_path)
    made = allocate(state, 1)
    path = tmp_path / "attachments" / f"{made.id}@{made.address}.json"
    fields = msgspec.json.decode(path.read_bytes())
    del fields["runtime"], fields["bandwidth"]
    path.write_bytes(msgspec.json.encode(fields))
    assert state.get(made.id) == made


def test_requests_that_can(tmp_path: Path) -> None:
    state = State(tmp_path)
    assert allocate(state, 1, address="10.64.16.6").address == "10.64.16.6"
    assert allocate(state, 2, mac="02:4e:0a:40:10:05").address == "10.64.16.5"
    assert allocate(state, 3).address == "10.64.16.1"


def test_an_attachment_is_allocated_once(tmp_path: Path) -> None:
    state = State(tmp_path)
    allocate(state, 1)
    with pytest.raises(InvalidConfig, match="already"):
        allocate(state, 1)


def test_what_a_dead_writer_left_is_removed(tmp_path: Path) -> None:
    state = State(tmp_path)
    left = tmp_path / "attachments" / f"{'0' * 12}@10.64.16.1.tmp"
    left.write_bytes(b'{"id": "0000')
    assert state.all() == []
    made = allocate(state, 1)
    assert made.address == "10.64.16.1"
    assert not left.exists()
    left = tmp_path / "attachments" / f"{made.id}@{made.address}.tmp"
    left.write_bytes(b'{"id": "')
    assert state.get(made.id) == made
    state.remove(made)
    assert list(left.parent.iterdir()) == []


def test_an_allocation_killed_anywhere_is_undone_by_a_removal(tmp_path: Path) -> None:
    """Whichever file it was about to touch; the removal is what DEL does to the state."""
    state = State(tmp_path)
    allocate(state, 1)
    usual = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    killed = 0
    while _allocate_and_die(state, call=killed):
        killed += 1
        if (left := state.get(request(2).id)) is not None:
            state.remove(left)
        else:
            state.sweep(request(2).id)
        assert {path: path.stat().st_ino for path in tmp_path.rglob("*")} == usual, killed
    assert killed >= 4  # the lock, two files, a rename


def _allocate_and_die(state: State, call: int) -> bool:
    """Allocate in a process that is killed at its `call`-th touch of a file; False if it lived."""

    def die() -> None:
        calls = itertools.count()

        def watch(event: str, _: object) -> None:
            if event in ("open", "os.rename", "os.remove") and next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        allocate(state, 2)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_the_node_is_left_for_those_without_the_daemon(tmp_path: Path) -> None:
    state = State(tmp_path / "deep" / "folder")
    with pytest.raises(NotAvailable, match="start it"):
        state.read_node()
    state.write_node(NODE)
    assert State(tmp_path / "deep" / "folder").read_node() == NODE


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(IOFailure, match="state folder"):
        State(tmp_path / "file")


def _allocate_some(folder: str, worker: int, count: int) -> list[str]:
    state = State(folder)
    wide = msgspec.structs.replace(NODE, slice="10.64.16.0/20")
    return [allocate(state, worker * 1000 + number, wide).address for number in range(count)]


def test_no_address_is_handed_out_twice(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(2, mp_context=spawn) as processes,
        ThreadPoolExecutor(4) as threads,
    ):
        work = [
            (processes if worker < 2 else threads).submit(_allocate_some, str(tmp_path), worker, 25)
            for worker in range(6)
        ]
        given_out = [address for job in work for address in job.result()]
    assert len(given_out) == len(set(given_out)) == 150
    assert {attachment.address for attachment in State(tmp_path).all()} == set(given_out)


def test_shared_and_exclusive(tmp_path: Path) -> None:
    one, other = State(tmp_path), State(tmp_path)
    with (
        one.shared(),
        other.shared(0),
        pytest.raises(TryAgain, match=r"lock has been locked for 0.02 s"),
        other.exclusive(0.02),
    ):
        pytest.fail("exclusive with shared")
    with one.exclusive(), pytest.raises(TryAgain), other.shared(0):
        pytest.fail("shared with exclusive")
    with other.exclusive(0):
        pass


def test_one_operation_per_attachment(tmp_path: Path) -> None:
    state = State(tmp_path)
    this, that = (names.attachment_id("mesh", name, "eth0") for name in ("this", "that"))
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with state.holding(this):
            entered.set()
            leave.wait(10)

    worker = threading.Thread(target=hold)
    worker.start()
    try:
        assert entered.wait(10)
        with state.holding(that, 0):
            pass
        with pytest.raises(TryAgain), state.holding(this, 0):
            pytest.fail("two at once")
    finally:
        leave.set()
        worker.join()
    with state.holding(this, 0):
        pass


def test_an_unreadable_file_keeps_its_address_and_can_be_taken_down(tmp_path: Path) -> None:
    state = State(tmp_path)
    made = allocate(state, 1)
    path = tmp_path / "attachments" / f"{made.id}@{made.address}.json"
    path.write_text('{"from": "another version"}')
    found = state.get(made.id)
    assert found is not None
    assert (found.phase, found.address, found.vh) == ("unreadable", made.address, made.vh)
    assert state.all() == [found]
    assert allocate(state, 2).address != made.address
    state.remove(found)
    assert state.get(made.id) is None


@pytest.mark.parametrize(
    "content",
    [b'{"id": "\xff"}', b'{"address": "10.64.16.9"}', b'{"id": "aaaaaaaaaaaa"}', b'{"salt": "x"}'],
)
def test_a_file_that_disagrees_with_its_name_can_be_taken_down(
    tmp_path: Path, content: bytes
) -> None:
    state = State(tmp_path)
    made = allocate(state, 1)
    path = tmp_path / "attachments" / f"{made.id}@{made.address}.json"
    if b"\xff" not in content:
        content = msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | json.loads(content))
    path.write_bytes(content)
    (found,) = state.all()
    assert (found.id, found.address, found.phase) == (made.id, made.address, "unreadable")
    state.remove(found)
    assert state.ids() == set()


@pytest.mark.parametrize("name", ["x.json", "zzzzzzzzzzzz@10.64.16.1.json", "0123456789ab@x.json"])
def test_a_file_of_another_name_is_not_ours(tmp_path: Path, name: str) -> None:
    state = State(tmp_path)
    (tmp_path / "attachments" / name).write_text("{}")
    assert (state.all(), state.ids()) == ([], set())
    assert allocate(state, 1) in state.all()
