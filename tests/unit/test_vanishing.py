"""What ends while somebody asks about it: an answer each time, never an error."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import vanishing
from tests.e2e.machine import until

LOOKS = 400
"""The way of before met an ended child in one look of ten."""


@pytest.fixture
def busy() -> Iterator[int]:
    """The pid of a process whose children live for a millisecond each."""
    with subprocess.Popen(["sh", "-c", "while :; do /bin/true; done"]) as parent:
        yield parent.pid
        parent.kill()


def test_children_that_end_between_two_reads(busy: int) -> None:
    until(lambda: vanishing.children(busy), "the first child")
    seen = {vanishing.name(child) for _ in range(LOOKS) for child in vanishing.children(busy)}
    assert seen <= {None, "sh", "true"}
    assert seen & {"sh", "true"}


def test_all_processes_while_some_end(busy: int) -> None:
    for _ in range(20):
        for pid in vanishing.processes():
            vanishing.words(pid)
            vanishing.inode(Path(f"/proc/{pid}"))
        assert busy in vanishing.processes()
    assert vanishing.words(busy)[0] == "sh"


def test_a_process_that_ends_between_open_and_read() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        descriptor = os.open(f"/proc/{process.pid}/cmdline", os.O_RDONLY)
        process.kill()
    try:
        with pytest.raises(ProcessLookupError):
            os.read(descriptor, 100)
        assert vanishing.present(lambda: os.read(descriptor, 100)) is None
    finally:
        os.close(descriptor)
    gone = Path(f"/proc/{process.pid}")
    assert (vanishing.read(gone / "comm"), vanishing.link(gone / "exe")) == (None, None)
    assert (vanishing.name(process.pid), vanishing.inode(gone)) == (None, None)
    assert (vanishing.words(process.pid), vanishing.children(process.pid)) == ([], [])
    assert list(vanishing.descriptors(process.pid)) == []


def test_folders_that_go_while_they_are_walked(tmp_path: Path) -> None:
    stop = threading.Event()

    def churn() -> None:
        deep = tmp_path / "a" / "b"
        while not stop.is_set():
            deep.mkdir(parents=True)
            deep.rmdir()
            deep.parent.rmdir()

    worker = threading.Thread(target=churn)
    worker.start()
    try:
        found = {path for _ in range(LOOKS) for path in vanishing.below(tmp_path)}
        listed = {path for _ in range(LOOKS) for path in vanishing.listed(tmp_path / "a")}
    finally:
        stop.set()
        worker.join()
    assert found | listed <= {tmp_path / "a", tmp_path / "a" / "b"}
    assert vanishing.below(tmp_path) == []


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        vanishing.read(tmp_path)
