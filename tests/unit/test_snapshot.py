"""What a restarted daemon starts from: whole files, verified again, and tolerated when broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.cluster.snapshot import Snapshot
from daemon.model.store import Store
from netconf.errors import IOFailure
from tests.unit.model_kit import KEYS, NOW, filled, policy, record, replica, store


def saved(folder: Path, known: Store) -> Snapshot:
    return Snapshot(folder / "state", folder / "cache", known)


def save(folder: Path, known: Store) -> None:
    saved(folder, known).write(known.contents(), known.envelope(KEYS.policy), known.revision)


def loaded(folder: Path) -> tuple[Store, list[str]]:
    found = store()
    return found, saved(folder, found).load()


def test_everything_comes_back(tmp_path: Path) -> None:
    known = filled(record("n2", 2, replica("n2", 5)))
    save(tmp_path, known)
    found, problems = loaded(tmp_path)
    assert problems == []
    assert found.dump() == known.dump()


def test_nothing_saved_is_nothing_wrong(tmp_path: Path) -> None:
    found, problems = loaded(tmp_path)
    assert (found.records(), problems) == ([], [])


def test_the_policy_survives_a_reboot_that_takes_the_snapshot(tmp_path: Path) -> None:
    save(tmp_path, filled())
    (tmp_path / "state" / "records").unlink()
    found, problems = loaded(tmp_path)
    assert problems == []
    assert found.policy() == policy()
    assert found.infos() == {}


def test_the_newer_policy_wins_wherever_it_lies(tmp_path: Path) -> None:
    known = filled()
    save(tmp_path, known)
    old = (tmp_path / "cache" / "policy").read_bytes()
    known.offer(record("authority", 2, policy(version=2)), NOW)
    save(tmp_path, known)
    (tmp_path / "cache" / "policy").write_bytes(old)
    found, problems = loaded(tmp_path)
    assert found.policy() == policy(version=2)
    assert problems == []


@pytest.mark.parametrize("content", [b"\x00garbage", b"\xc0", b"\x93" * 20])
def test_a_corrupt_snapshot_costs_only_itself(tmp_path: Path, content: bytes) -> None:
    save(tmp_path, filled())
    (tmp_path / "state" / "records").write_bytes(content)
    found, problems = loaded(tmp_path)
    assert found.policy() == policy()
    assert len(problems) == 1
    assert problems[0].startswith("snapshot: ")


def test_a_truncated_snapshot_is_a_problem_and_no_traceback(tmp_path: Path) -> None:
    save(tmp_path, filled())
    path = tmp_path / "state" / "records"
    path.write_bytes(path.read_bytes()[:-100])
    assert loaded(tmp_path)[1]


def test_what_no_longer_verifies_is_named(tmp_path: Path) -> None:
    known = filled()
    forged = record("n2", 7, replica("n2", 5))
    dump = known.dump().replace(known.records()[0], known.records()[0][:-1] + b"\x00")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "records").write_bytes(dump)
    found, problems = loaded(tmp_path)
    assert problems == [f"{KEYS.info('n1')}: bad signature"]
    assert "n1" not in found.infos()
    assert found.offer(forged, NOW).changed


def test_a_forged_policy_in_the_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    good = record("authority", 1, policy())
    (tmp_path / "cache" / "policy").write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    found, problems = loaded(tmp_path)
    assert found.policy() is None
    assert "bad signature" in problems[0]
    assert str(tmp_path / "cache" / "policy") in problems[0]


def test_a_folder_in_the_files_place_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "state" / "records").mkdir(parents=True)
    assert "cannot read" in loaded(tmp_path)[1][0]


def test_the_folder_is_made_and_private(tmp_path: Path) -> None:
    save(tmp_path / "deep", filled())
    assert (tmp_path / "deep" / "state").stat().st_mode & 0o777 == 0o700


def test_a_crash_while_writing_leaves_the_old_one(tmp_path: Path) -> None:
    save(tmp_path, filled())
    (tmp_path / "state" / ".records.new").write_bytes(b"half of someth")
    found, problems = loaded(tmp_path)
    assert problems == []
    assert len(found.infos()) == 3
    save(tmp_path, found)
    assert loaded(tmp_path)[1] == []


def test_a_disk_that_refuses_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    known = filled()
    with pytest.raises(IOFailure, match=r"cannot write .*cache/policy: "):
        save(tmp_path, known)


def test_after_a_failure_the_policy_is_written_the_next_time(tmp_path: Path) -> None:
    blocked = tmp_path / "cache"
    blocked.write_text("")
    known = filled()
    keeper = saved(tmp_path, known)
    with pytest.raises(IOFailure):
        keeper.write(known.contents(), known.envelope(KEYS.policy), known.revision)
    blocked.unlink()
    keeper.write(known.contents(), known.envelope(KEYS.policy), known.revision)
    assert (blocked / "policy").read_bytes() == known.envelope(KEYS.policy)


def test_what_says_nothing_new_is_not_written_again(tmp_path: Path) -> None:
    known = filled(record("n2", 2, replica("n2", 5)))
    keeper = saved(tmp_path, known)

    def write() -> tuple[bool, bool]:
        """Save; tell which of records and policy was written."""
        files = tmp_path / "state" / "records", tmp_path / "cache" / "policy"
        for file in files:
            file.unlink(missing_ok=True)
        keeper.write(known.contents(), known.envelope(KEYS.policy), known.revision)
        return files[0].exists(), files[1].exists()

    assert write() == (True, True)
    assert write() == (False, False)
    for version in range(3, 6):
        assert known.offer(record("n2", version, known.manifest("n2")), NOW).changed
        assert write() == (False, False)
    known.offer(record("n2", 6, replica("n2", 6)), NOW)
    assert write() == (True, False)
    known.offer(record("authority", 2, policy(version=2)), NOW)
    assert write() == (True, True)
