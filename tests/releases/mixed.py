"""A cluster whose nodes, and whose executables, are of one release or the other.

1. The old release is installed by its own installer, under a root of its own. It uses the Python
   packages that the lab has for this one, and Debian 12's libnftables: 0.1.0 runs with no other.
2. A node's daemon, resolver and noctulectl are of the node's release (`Mixed.of`). A call may be
   made with either executable.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.compat.released import CHECKOUT, tree
from tests.e2e.cluster import PLUGIN, Cluster

OLD, NEW = "old", "new"
PREFIX = Path("/opt/released")
ROOT = Path("/opt/released-root")
PACKAGES = Path("/opt/noctule/deps")
"""Where the lab has the Python packages (tests/lab)."""
DEBIAN_12 = Path("/srv/bookworm/usr/lib/x86_64-linux-gnu")
LIBRARIES = ("libnftables.so.1", "libnftnl.so.11")
PROGRAMS = ("opt/cni/bin/noctule", "usr/local/bin/noctuled", "usr/local/bin/noctulectl",
            "usr/local/bin/noctule-resolver")  # fmt: skip


def install() -> None:
    """Install the old release beside this one; once is enough for a machine."""
    if PREFIX.exists():
        return
    old = tree()
    mine, theirs = (
        (folder / "packaging/requirements.txt").read_text() for folder in (CHECKOUT, old)
    )
    assert mine == theirs, "the releases need different packages: give the old one its own"
    subprocess.run(
        ["bash", old / "packaging/install.sh", "--no-deps", "--prefix", PREFIX, "--root", ROOT],
        check=True, capture_output=True,
    )  # fmt: skip
    home = ROOT / PREFIX.relative_to("/")
    (home / "deps").symlink_to(PACKAGES)
    shutil.copy(Path(__file__).parent / "nftables.py", home / "lib")
    (home / "so").mkdir()
    for name in LIBRARIES if DEBIAN_12.is_dir() else ():  # else this machine's own will do
        (home / "so" / name).symlink_to(DEBIAN_12 / name)
    for name in PROGRAMS:
        wrapper = home / Path(name).name
        wrapper.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={PREFIX}/so exec {ROOT}/{name} "$@"\n')
        wrapper.chmod(0o755)
    PREFIX.symlink_to(home)


class Mixed(Cluster):
    """A cluster of both releases."""

    def __init__(self, **of: str) -> None:
        """`of` says of which release each node is."""
        install()
        super().__init__()
        self.of = of
        self._calls = ""

    def program(self, node: str, name: str) -> str:
        """Return the path of a node's program."""
        return str(PREFIX / name) if self.of[node] == OLD else super().program(node, name)

    def plugin(self, node: str) -> list[str]:
        """Return the command that runs the executable, by default that of the node's release."""
        old = (self._calls or self.of[node]) == OLD
        path = PREFIX / "noctule" if old else PLUGIN
        return ["nsenter", f"--net=/run/netns/{node}", str(path)]

    @contextmanager
    def calling(self, release: str) -> Iterator[None]:
        """Run executables of this release inside the block."""
        before, self._calls = self._calls, release
        try:
            yield
        finally:
            self._calls = before

    def turn(self, node: str, release: str) -> None:
        """Upgrade or downgrade a node under its containers: daemon and resolver are replaced."""
        self.kill(node)
        self.kill_resolver(node)
        self.of[node] = release
        self.start(node)
