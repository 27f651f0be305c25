"""How tests start ``noctulectl``: as an operator does, each time in a process of its own."""

from __future__ import annotations

import atexit
import functools
import json
import subprocess
import sys
from pathlib import Path

from tests.unit.cni_kit import ROOT
from tests.unit.model_kit import folder

LAUNCHER = """
import json, os, sys, tempfile
from daemon.ctl.main import main
for line in sys.stdin:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(error.fileno(), 2)
            sys.argv = ["noctulectl", *json.loads(line)]
            sys.exit(main())
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said = [os.pread(file.fileno(), 1 << 20, 0).decode() for file in (out, error)]
    print(json.dumps([status, *said]), flush=True)
"""
"""Each command is a process of its own; forking spares the imports, not the exit."""


@functools.cache
def _launcher() -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LAUNCHER]
    pipe = subprocess.PIPE
    launcher = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
    atexit.register(launcher.kill)
    return launcher


def run(*arguments: object) -> tuple[int, str, str]:
    """Start noctulectl; return exit status, stdout and stderr."""
    launcher = _launcher()
    assert launcher.stdin is not None
    assert launcher.stdout is not None
    launcher.stdin.write(json.dumps([str(one) for one in arguments]) + "\n")
    launcher.stdin.flush()
    status, out, error = json.loads(launcher.stdout.readline())
    return status, out, error


def refused(outcome: tuple[int, str, str], *words: str) -> None:
    """Assert exit status 1, and one sentence on stderr with all `words`."""
    status, out, error = outcome
    assert (status, out) == (1, ""), outcome
    assert error.startswith("noctulectl: "), error
    assert "Traceback" not in error
    for word in words:
        assert word in error, error


def key_folder(place: Path, last: bytes | None = b"") -> Path:
    """A folder with the authority's key, and what it signed last; None for no such file."""
    made = place / "pki"
    made.mkdir(exist_ok=True)
    (made / "authority.key").write_bytes((folder() / "authority.key").read_bytes())
    if last is not None:
        (made / "authority.policy").write_bytes(last)
    return made
