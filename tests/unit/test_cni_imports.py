"""A guard on the cost of a call: what the executable imports when the daemon answers.

Each module here is built into the interpreter, our own, or has its reason beside it. A new
one is a decision: `python3 -I -S -X importtime` says what it costs on every container start.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cni_kit import LAUNCHER, PACKAGES, ROOT, command, configuration, environment, previous, serving

OURS = {
    "cni", "cni.main", "cni.environment", "cni.config", "cni.fields", "cni.codec", "cni.client",
    "cni.errors", "cni.result",
}  # fmt: skip
INTERPRETER = {
    "__future__",  # a page of constants
    "_json",  # C: scanner and encoder
    "_socket",  # C: the socket
}
REPORT = """
import atexit, posix
def report():
    posix.write(2, " ".join(sorted(set(sys.modules) - before)).encode())
atexit.register(report)
before = set(sys.modules)
"""


def imported(verb: str, stdin: bytes) -> set[str]:
    code = LAUNCHER.format(root=str(ROOT), packages=PACKAGES, settings=REPORT)
    done = subprocess.run(
        [*command(), code],
        env=environment(verb),
        input=stdin,
        capture_output=True,
        check=True,
        timeout=60,
    )
    return set(done.stderr.decode().split())


@pytest.mark.parametrize(
    ("verb", "modules"),
    [
        ("ADD", {"cni.add"}),
        ("DEL", {"cni.delete"}),
        ("CHECK", {"cni.check", "cni.chain", "cni.dns"}),
        ("GC", {"cni.gc"}),
        ("STATUS", {"cni.status"}),
    ],
)
def test_what_a_call_imports(tmp_path: Path, verb: str, modules: set[str]) -> None:
    with serving(tmp_path / "d.sock") as daemon:
        config = configuration(daemon.socket)
        if verb == "CHECK":
            config["prevResult"] = previous()
        stdin = str({**config, "cni.dev/valid-attachments": []}).replace("'", '"').encode()
        assert imported(verb, stdin) - {"atexit"} <= OURS | modules | INTERPRETER


def test_what_version_imports() -> None:
    ours = {"cni", "cni.main", "cni.environment", "cni.codec", "cni.errors", "cni.result", "select"}
    assert imported("VERSION", b'{"cniVersion": "1.0.0"}') - {"atexit"} <= ours | INTERPRETER
