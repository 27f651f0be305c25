"""A skipped test is a failure in the lab, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
TESTS = {
    "test": "import pytest\ndef test_it():\n    pytest.skip('no macsec')\n",
    "mark": "import pytest\n@pytest.mark.skipif(True, reason='no macsec')\ndef test_it(): pass\n",
    "fixture": "import pytest\n@pytest.fixture\ndef it(): pytest.skip('no macsec')\n"
    "def test_it(it): pass\n",
    "module": "import pytest\npytest.skip('no macsec', allow_module_level=True)\n",
}
EXPECTED = "import pytest\n@pytest.mark.xfail\ndef test_it(): assert False\n"
FULL = "import pytest\n@pytest.mark.full\ndef test_it(): assert False\ndef test_other(): pass\n"


def outcome(folder: Path, text: str, lab: str, *arguments: str) -> tuple[int, str]:
    """Run pytest on a file with this text; return its status and what it printed."""
    (folder / "test_one.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider",
         "--strict-markers", "-rs", "-c", os.devnull, f"--rootdir={folder}", *arguments, folder],
        cwd=CHECKOUT, env=os.environ | {"NOCTULE_LAB": lab}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.parametrize("text", TESTS.values(), ids=TESTS.keys())
def test_skips(tmp_path: Path, text: str) -> None:
    status, said = outcome(tmp_path, text, "")
    assert status in (0, 5), said  # 5: a skipped module leaves no tests
    assert "1 skipped" in said
    status, said = outcome(tmp_path, text, "1")
    assert status in (1, 2), said
    assert "which has to provide for it: Skipped: no macsec" in said


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    assert outcome(tmp_path, EXPECTED, "1")[0] == 0


def test_what_is_for_full_size_only_is_left_out(tmp_path: Path) -> None:
    status, said = outcome(tmp_path, FULL, "1")
    assert (status, "1 deselected" in said) == (0, True), said
    assert outcome(tmp_path, FULL, "1", "--full")[0] == 1
