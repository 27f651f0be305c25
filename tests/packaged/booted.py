"""Nodes that boot: each runs systemd as process 1, on a root without Python, on this kernel.

1. A root has Debian's essential packages and what the package asks for, and lies under an
   overlay that is thrown away. The checkout cannot be seen from inside.
2. What is started here as a runtime would start it runs inside; what only observes (sockets in
   containers, questions to the daemon) runs outside, where there is Python.
3. A container is a network namespace with a path in the node's ``/run/netns``, made after the
   daemon has started, so that its sandbox must let new mounts in.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from tests import vanishing
from tests.e2e.cluster import PLUGIN, Cluster
from tests.e2e.container import Container
from tests.e2e.machine import run, until

TRIXIE, BOOKWORM = Path("/srv/trixie"), Path("/srv/bookworm")
BOOKWORM_GLIBC = (2, 36)
SECRET = "/run/secrets/mesh.key"
"""Of another user, as a container's secret may be."""
SOCKET = "/run/noctule/noctuled.sock"
STARTING = 300.0
"""Seconds for a unit to start."""


def oldest_root(package: Path) -> Path:
    """Return the root of the oldest release on which a package runs: not one older than where
    it was built, as its dependency on the C library says."""
    fields = run("dpkg-deb", "--field", str(package), "Depends").stdout
    needed = re.search(r"\blibc6 \(>= (\d+)\.(\d+)\)", fields)
    assert needed, f"the package depends on no C library: {fields}"
    major, minor = needed.groups()
    return BOOKWORM if (int(major), int(minor)) <= BOOKWORM_GLIBC else TRIXIE


class Inside(Container):
    """A namespace of a booted node; nothing runs in it."""

    def __init__(self, cluster: Booted, name: str, node: str, service: str) -> None:
        """Make the namespace. The base class's process does not exist."""
        self.name, self.node, self.service = name, node, service
        self.ifname, self.result, self.add_ms = "eth0", {}, 0.0
        self.path = f"/run/netns/{name}"
        self._cluster = cluster
        cluster.sh(node, f"mkdir -p /run/netns; touch {self.path}; unshare --net={self.path} true")

    @property
    def netns(self) -> str:
        """Path of its network namespace, from outside."""
        return str(self._cluster.within(self.node, self.path))

    def kill(self) -> None:
        """Take the path away."""
        self._cluster.sh(self.node, f"umount {self.path}; rm -f {self.path}", check=False)


class Booted(Cluster):
    """A cluster whose nodes boot."""

    def __init__(self) -> None:
        super().__init__()
        self._machines: dict[str, subprocess.Popen[bytes]] = {}
        self._init: dict[str, int] = {}

    def close(self) -> None:
        """End the machines and remove everything."""
        for container in self.containers.values():
            container.kill()
        self.containers.clear()
        for machine in self._machines.values():
            machine.kill()
            machine.wait()
        super().close()
        for node in self._machines:
            _remove_cgroup(Path("/sys/fs/cgroup") / node)

    def boot(self, nodes: dict[str, Path]) -> None:
        """Start a machine on each node's root, and wait until all its units have started."""
        for node, root in nodes.items():
            work = self.base / "machine" / node
            work.mkdir(parents=True)
            with (work / "console").open("wb") as console:
                self._machines[node] = subprocess.Popen(
                    [Path(__file__).parent / "boot.sh", node, root, work],
                    stdout=console,
                    stderr=console,
                )
        for node in nodes:
            self._init[node] = until(lambda n=node: self._systemd(n), f"systemd of {node}")
            until(lambda n=node: self._running(n), f"{node} to boot")

    def _systemd(self, node: str) -> int:
        parent = self._machines[node].pid
        if self._machines[node].poll() is not None:
            console = self.base / "machine" / node / "console"
            raise AssertionError(f"{node} did not boot: {console.read_text()}")
        # The child is first a shell, which runs commands of its own, and then systemd.
        return next((c for c in vanishing.children(parent) if vanishing.name(c) == "systemd"), 0)

    def _running(self, node: str) -> bool:
        return (
            self.command(node, "systemctl", "is-system-running", check=False).stdout == "running\n"
        )

    def within(self, node: str, path: str) -> Path:
        """Return where a file of `node` is seen from outside."""
        return Path(f"/proc/{self._init[node]}/root{path}")

    def command(self, node: str, *command: str, check: bool = True, **options: Any) -> Any:
        """Run a command inside."""
        return run(*self.enter(node), *command, check=check, **options)

    def enter(self, node: str) -> list[str]:
        """Return what before a command makes it run inside."""
        flags = ["--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup"]
        return ["nsenter", "--target", str(self._init[node]), *flags]

    def sh(self, node: str, script: str, check: bool = True) -> str:
        """Run a shell script inside; return what it printed."""
        return str(self.command(node, "sh", "-ec", script, check=check).stdout)

    def configure(self, node: str) -> None:
        """Put the node's configuration, keys and secret where the package expects them."""
        etc, outside = self.within(node, "/etc/noctule"), str(self.base)
        self.sh(node, f"mkdir -p {Path(SECRET).parent}")
        text = self.node_yaml(node)
        for mine, theirs in (
            (f"{outside}/{node}/run", "/run/noctule"),
            (f"{outside}/{node}/cache", "/var/lib/noctule"),
            (f"{outside}/pki", "/etc/noctule/pki"),
        ):
            text = text.replace(mine, theirs)
        (etc / "pki").mkdir()
        for name in ("ca.crt", "authority.crt", f"{node}.crt", f"{node}.key"):
            (etc / "pki" / name).write_bytes((self.base / "pki" / name).read_bytes())
        secret = self.within(node, SECRET)
        secret.write_bytes((self.base / "mesh.key").read_bytes())
        os.chown(secret, 1000, 1000)
        secret.chmod(0o400)
        # The package's limit is for a node; two that boot by emulation beside other load need
        # many times as long.
        slow = self.within(node, "/etc/systemd/system/noctuled.service.d")
        slow.mkdir(parents=True)
        (slow / "slow.conf").write_text(f"[Service]\nTimeoutStartSec={STARTING:.0f}\n")
        self.sh(node, "systemctl daemon-reload")
        # Last: from now on systemd starts the daemon.
        (etc / "node.yaml").write_text(text)

    def start(self, *nodes: str) -> None:
        """Start the units, side by side, and wait until they are ready."""
        for node in nodes:
            self.sh(node, f"systemctl start --no-block {' '.join(self.units(node))}")
        for node in nodes:
            for unit in self.units(node):
                until(lambda n=node, u=unit: self.active(n, u), f"{unit} of {node}", STARTING)

    def active(self, node: str, unit: str) -> bool:
        """Tell whether a unit has started."""
        done = self.command(node, "systemctl", "is-active", unit, check=False)
        return bool(done.stdout == "active\n")

    def units(self, node: str) -> list[str]:
        """Return the names of the package's units."""
        found = self.within(node, "/lib/systemd/system").glob("noctule*.service")
        return sorted(path.name for path in found)

    def pid(self, node: str, unit: str) -> int:
        """Return the main process of a unit, as numbered inside; 0 if there is none."""
        return int(self.sh(node, f"systemctl show --property MainPID --value {unit}"))

    def launch(self, name: str, node: str, service: str, *_ports: int) -> Container:
        """Make a container; it has no process, and so no ports."""
        self.containers[name] = Inside(self, name, node, service)
        return self.containers[name]

    def socket(self, node: str) -> Path:
        """Path of the daemon's socket, from outside."""
        return self.within(node, SOCKET)

    def log(self, node: str) -> str:
        """What the units wrote."""
        if node not in self._init:
            return ""
        return self.sh(node, "journalctl --no-pager -o cat -u 'noctule*'", check=False)

    def config(self, container: Container, **fields: Any) -> dict[str, Any]:
        """Return the network configuration, with the paths of the inside."""
        inside = {"key": {"file": SECRET}, "socket": SOCKET}
        return super().config(container, **inside | fields)

    def environment(self, command: str, container: Container, **variables: str) -> dict[str, str]:
        """Return the environment of the CNI specification, with the path of the inside."""
        assert isinstance(container, Inside)
        return super().environment(command, container, **{"CNI_NETNS": container.path} | variables)

    def plugin(self, node: str) -> list[str]:
        """Return the command that runs the executable inside."""
        return [*self.enter(node), PLUGIN]


def _remove_cgroup(folder: Path) -> None:
    """Remove a group and those in it; a process that ends just now may keep one for a moment."""

    def removed() -> bool:
        for path in reversed(vanishing.below(folder)):
            with contextlib.suppress(OSError):  # the files of a group are not removed, it is
                path.rmdir()
        with contextlib.suppress(OSError):
            folder.rmdir()
        return not folder.exists()

    until(removed, f"{folder} to be empty")
