"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from netconf import files
from netconf.errors import IOFailure


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_file_is_replaced_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.replace(path, b"old")
    with path.open("rb") as reader:
        files.replace(path, b"new and longer")
        assert reader.read() == b"old"  # who had it open sees the old one, not a mixture
    assert path.read_bytes() == b"new and longer"
    assert mode(path) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_dead_writer_left_beside_is_overwritten(tmp_path: Path) -> None:
    path, beside = tmp_path / "file", tmp_path / "file.tmp"
    beside.write_bytes(b"half of something much longer")
    files.replace(path, b"whole", mode=0o644, sync=False, beside=beside)
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("sync", [True, False])
def test_only_what_must_survive_a_power_cut_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    files.replace(tmp_path / "file", b"x", sync=sync)
    assert len(synced) == sync


def test_a_disk_that_refuses_keeps_the_old_file_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    files.replace(path, b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(IOFailure, match=r"cannot write .*file: No space left on device"):
        files.replace(path, b"new")
    assert path.read_bytes() == b"old"
    with pytest.raises(IOFailure, match=r"cannot write .*other: No space"):
        files.create(tmp_path / "other", b"new")
    assert not (tmp_path / "other").exists()


def test_a_new_file_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.create(path, b"first", mode=0o640)
    assert mode(path) == 0o640
    with pytest.raises(IOFailure, match=r"cannot write .*file: File exists"):
        files.create(path, b"second")
    assert path.read_bytes() == b"first"
