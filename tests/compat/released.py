"""The release before this one: its tree, taken out of git once, and its code in a process.

1. `COMMIT` is that release. Its tree lies in ``build/released/COMMIT``, complete because it got
   that name by one rename; another commit is another folder.
2. Its modules are loaded by `SIDE`, a script that is written against them, in a process whose
   path has that tree and not this checkout. Questions and answers are pickled plain values.
3. Nothing is skipped: a clone without that commit (a shallow one) is an error that says so.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

COMMIT = "7f7e6e71bc5ef4729cf6c8951442b574cc33084c"
"""Release 0.1.0."""
VERSION = "0.1.0"
CHECKOUT = Path(__file__).parents[2]
SIDE = Path(__file__).parent / "side.py"
PARTS = ("cni", "daemon", "netconf", "packaging", "pyproject.toml")


def tree() -> Path:
    """Return the folder with the old release's code, taken out of git if need be."""
    # In the lab's machine, where there is no git, the host has put it (Makefile, `released`).
    built = Path(os.environ.get("NOCTULE_BUILD", CHECKOUT / "build")) / "released"
    folder = built / COMMIT
    if folder.is_dir():
        return folder
    built.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=built))
    try:
        git = ["git", "-c", "safe.directory=*", "-C", str(CHECKOUT)]
        archive = subprocess.run(
            [*git, "archive", COMMIT, *PARTS], capture_output=True, check=False
        )
        if archive.returncode != 0:
            raise RuntimeError(
                f"cannot take release {VERSION} (commit {COMMIT[:7]}) out of git: "
                f"{archive.stderr.decode().strip()}; a shallow clone needs git fetch --unshallow"
            )
        subprocess.run(["tar", "-x", "-C", new], input=archive.stdout, check=True)
        new.chmod(0o755)
        try:
            new.rename(folder)
        except OSError:
            if not folder.is_dir():  # else somebody else was faster
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder


def path() -> list[str]:
    """Return the import path of the old release: its tree and the packages that both use."""
    return [str(tree()), sysconfig.get_path("purelib")]


class Released:
    """A process that runs the old release's code; a context manager that ends it."""

    def __enter__(self) -> Released:
        self._process = subprocess.Popen(
            [sys.executable, "-IS", "-c", _START.format(path=path(), side=str(SIDE))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def __call__(self, function: str, *arguments: Any) -> Any:
        """Call a function of `SIDE`; AssertionError with the traceback if it raises."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump((function, arguments), self._process.stdin)
        self._process.stdin.flush()
        fine, answer = pickle.load(self._process.stdout)
        assert fine, f"{function} of release {VERSION} raised:\n{answer}"
        return answer


_START = """\
import sys
sys.path = {path} + [p for p in sys.path if 'site-packages' not in p]
import runpy
runpy.run_path({side!r}, run_name='__main__')
"""


if __name__ == "__main__":
    print(tree())
