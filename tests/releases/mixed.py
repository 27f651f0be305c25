"""A cluster whose nodes, and whose executables, are of one release or the other.

1. The old release is installed by its own installer, under a root of its own; it uses the Python
   packages that the lab has for this one.
   Release 0.1.0 is for Debian 12, and does not start with nft 1.1: it loads its rulesets with
   Debian 12's library, from the root of that release that the lab has.
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
NFTABLES = Path("/usr/lib/python3/dist-packages/nftables")
LIBNFTABLES = "libnftables.so.1"
OLDER_LIBNFTABLES = f"/srv/bookworm/usr/lib/x86_64-linux-gnu/{LIBNFTABLES}"
_EXECUTABLES = {name: ROOT / "usr/local/bin" / name
                for name in ("noctuled", "noctulectl", "noctule-resolver")}  # fmt: skip


def install() -> None:
    """Install the old release beside this one; once is enough for a machine."""
    if PREFIX.exists():
        return
    old = tree()
    mine, theirs = (
        (folder / "packaging/requirements.txt").read_text() for folder in (CHECKOUT, old)
    )
    assert mine == theirs, "the releases need different packages: give the old one its own"
    # A copy: an installer compiles what is beside it, and the tree may be read-only.
    subprocess.run(
        ["bash", old / "packaging/install.sh", "--no-deps", "--prefix", PREFIX, "--root", ROOT],
        check=True, capture_output=True,
    )  # fmt: skip
    installed = ROOT / PREFIX.relative_to("/")
    (installed / "deps").symlink_to(PACKAGES)
    module = shutil.copytree(NFTABLES, installed / "lib/nftables") / "nftables.py"
    text = module.read_text()
    assert text.count(f'"{LIBNFTABLES}"') == 1, f"{module} loads its library in another way"
    module.write_text(text.replace(LIBNFTABLES, OLDER_LIBNFTABLES))
    PREFIX.symlink_to(installed)


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
        return str(_EXECUTABLES[name]) if self.of[node] == OLD else super().program(node, name)

    def plugin(self, node: str) -> list[str]:
        """Return the command that runs the executable, by default that of the node's release."""
        old = (self._calls or self.of[node]) == OLD
        path = str(ROOT / PLUGIN.lstrip("/")) if old else PLUGIN
        return ["nsenter", f"--net=/run/netns/{node}", path]

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
