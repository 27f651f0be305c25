"""All parts run and are reported, whatever becomes of each."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.parts import Part, Run, counts

PYTEST = "============ {} in 3.21s ============"
SCRIPTS = {
    "good": f"echo '{PYTEST.format('3 passed, 1 skipped, 2 warnings')}'",
    "bad": f"echo '{PYTEST.format('2 failed, 1 passed, 1 error')}'; exit 1",
    "lint": "echo all is well",
    "broken": "echo no such file >&2; exit 2",
    "late": "echo 'half of it'; exit 124",
    "killed": "kill -9 $$",
    "quiet": "echo '7 passed in 0.10s (0:00:01)'",
    "dead": f"echo '{PYTEST.format('5 passed')}'; exit 125",
}


def run(*groups: list[Part]) -> tuple[int, list[str]]:
    """Run parts that are shell scripts; return the status and the lines."""
    said: list[str] = []
    status = Run(lambda name, _: ["sh", "-c", SCRIPTS[name]], said.append)(*groups)
    return status, "".join(said).splitlines()


def words(lines: list[str]) -> dict[str, tuple[str, str]]:
    """Return verdict and remark of each part, from the summary."""
    found = (re.fullmatch(r"(\w+) +(ok|FAILED) +\d+ s *(.*)", line) for line in lines)
    return {match[1]: (match[2], match[3]) for match in found if match}


def test_all_parts_run_and_the_status_says_whether_all_passed() -> None:
    status, lines = run([Part("lint")], [Part("good"), Part("quiet")])
    assert (status, lines[-1]) == (0, "11 passed, 0 failed")
    assert words(lines) == {
        "lint": ("ok", "1 passed"),
        "good": ("ok", "3 passed, 1 skipped"),
        "quiet": ("ok", "7 passed"),
    }


@pytest.mark.parametrize("order", [*itertools.permutations(["bad", "broken", "late"])])
def test_a_failure_stops_nobody(order: tuple[str, ...]) -> None:
    first, second, third = map(Part, order)
    status, lines = run([first], [second, third, Part("good")], [Part("quiet")])
    assert status == 1
    assert lines[-1] == f"{1 + 3 + 7} passed, {3 + 1 + 1} failed"
    assert words(lines) == {
        "bad": ("FAILED", "1 passed, 3 failed"),
        "broken": ("FAILED", "1 failed"),
        "late": ("FAILED", "1 failed"),
        "good": ("ok", "3 passed, 1 skipped"),
        "quiet": ("ok", "7 passed"),
    }
    assert "no such file" in lines
    assert "half of it" in lines


def test_what_a_failed_part_was_needed_for_is_named() -> None:
    status, lines = run(
        [Part("broken")], [Part("lint")],
        [Part("good", needs=("lint", "broken")), Part("quiet", needs=("lint",))],
    )  # fmt: skip
    assert (status, lines[-1]) == (1, "8 passed, 2 failed")
    assert words(lines)["good"] == ("FAILED", "1 failed, not run: broken failed")
    assert words(lines)["quiet"] == ("ok", "7 passed")


@pytest.mark.parametrize("name", ["killed", "dead"])
def test_a_part_that_fails_without_a_failed_test(name: str) -> None:
    status, lines = run([Part(name)])
    assert status == 1
    assert lines[-1].endswith("passed, 1 failed")


def test_what_pytest_itself_says_is_understood(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): pytest.skip('x')\n"
    )
    for quiet in ([], ["-q"]):
        command = [sys.executable, "-m", "pytest", *quiet, "-c", os.devnull, tmp_path]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert counts(done.stdout.splitlines(), 0) == Counter(passed=1, skipped=1), done.stdout
