"""Podman and containerd, unmodified, each on a node of the lab.

1. A runtime runs in its node's network namespace. All that it keeps lies in one folder of its
   own, so several share a machine as if each had one.
2. What `close` cannot take away is an error: containers, processes, mounts. Processes are
   ended by pid, mounts by path.
3. A command that fails raises, with what it printed; nothing is tried twice.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

from netconf.names import NAMESERVER
from tests import vanishing
from tests.clients.image import IMAGE, image
from tests.e2e.cluster import NETWORK, Cluster
from tests.e2e.inventory import Bag, inventory
from tests.e2e.machine import run, until

PORT = 8080
"""Where `serving` listens: what the lab's policy says that api's port 80 leads to."""

_CONTAINERD = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = "{folder}/sock"
"""


def serving(name: str) -> list[str]:
    """Return the command of a container that answers HTTP on `PORT` with its `name`."""
    return ["sh", "-c", f"echo {name} >/index.html; exec httpd -f -p {PORT} -h /"]


def asking(host: str, times: int = 1) -> list[str]:
    """Return the command that fetches ``http://host/`` and prints each answer."""
    get = f"printf 'GET / HTTP/1.0\\r\\nHost: {host}\\r\\n\\r\\n' | nc {host} 80"
    return ["sh", "-c", f"i=0; while [ $i -lt {times} ]; do {get} || exit 1; i=$((i+1)); done"]


class Runtime(ABC):
    """What both have: a node, a folder, and the network in a file."""

    kind = ""

    def __init__(self, cluster: Cluster, node: str) -> None:
        """The runtime keeps its files in the node's folder."""
        self.cluster = cluster
        self.node = node
        self.folder = cluster.base / node / self.kind
        self._within = ["nsenter", f"--net=/run/netns/{node}"]
        # Podman takes a user's folder for its own, even root's.
        self._environment = {k: v for k, v in os.environ.items() if k != "XDG_RUNTIME_DIR"}

    def __enter__(self) -> Any:
        self.folder.mkdir()
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @abstractmethod
    def open(self) -> None:
        """Start, and load the image."""

    @abstractmethod
    def close(self) -> None:
        """Remove everything."""

    def network(self, **fields: Any) -> Path:
        """Write the network, with `fields` for our plugin; return the folder it is in."""
        folder = self.folder / "-".join(["net.d", *map(str, fields.values())])
        folder.mkdir(exist_ok=True)
        plugin = {
            "type": "noctule", "key": {"file": str(self.cluster.base / "mesh.key")},
            "socket": str(self.cluster.socket(self.node)),
            "capabilities": {"aliases": True, "ips": True, "mac": True}, **fields,
        }  # fmt: skip
        content = {"cniVersion": "1.0.0", "name": NETWORK, "plugins": [plugin]}
        (folder / "10-mesh.conflist").write_text(json.dumps(content))
        return folder

    def unmount(self) -> None:
        """Take away the mounts that the runtime keeps while it is installed."""

        def unmounted() -> bool:
            for mount in reversed(self.mounts()):
                run("umount", mount, check=False)  # the runtime may be at it too
            return not self.mounts()

        until(unmounted, f"the mounts of {self.kind} to go")

    def mounts(self) -> list[str]:
        """Return the mount points below the folder, in the order they were made."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        points = [line.split()[4] for line in lines]
        return [point for point in points if point.startswith(f"{self.folder}/")]


class Podman(Runtime):
    """Podman 4.3 with its CNI backend; a service is what ``--network-alias`` says."""

    kind = "podman"

    def open(self) -> None:
        """Load the image; Podman has no daemon to start."""
        self._locks = Path("/dev/shm/libpod_lock")
        self._found = self._locks.exists()
        self._command = [
            *self._within, "podman", "--root", f"{self.folder}/root",
            "--runroot", f"{self.folder}/run", "--tmpdir", f"{self.folder}/tmp",
            "--cgroup-manager", "cgroupfs", "--events-backend", "none",
            "--network-config-dir", str(self.network()),
        ]  # fmt: skip
        self("load", "--quiet", "--input", str(image(self.folder / "image.tar")))

    def __call__(self, *arguments: str) -> str:
        """Run ``podman …``; return what it printed."""
        done = run(*self._command, *arguments, env=self._environment)
        return str(done.stdout).strip()

    def run(self, name: str, alias: str, *command: str, options: tuple[str, ...] = ()) -> None:
        """Start a container in the background."""
        self("run", "--detach", "--name", name, "--network", NETWORK, "--network-alias", alias,
             *options, IMAGE, *command)  # fmt: skip

    def run_many(self, names: list[str], alias: str, *command: str) -> None:
        """Start containers, two at a time: as many as the machine has processors."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda name: self.run(name, alias, *command), names))

    def exec(self, name: str, *command: str) -> str:
        """Run a command inside; return what it printed."""
        return self("exec", name, *command)

    def inspect(self, name: str) -> Any:
        """Return what Podman says of a container."""
        return json.loads(self("inspect", name))[0]

    def remove(self, *names: str) -> None:
        """``podman rm --force``, without the ten seconds that it leaves a container to end."""
        self("rm", "--force", "--time", "0", *names)

    def close(self) -> None:
        """Remove everything."""
        self("rm", "--force", "--time", "0", "--all")
        until(lambda: not self.monitors(), "Podman's monitors to end")
        self.unmount()
        if not self._found:
            self._locks.unlink(missing_ok=True)

    def monitors(self) -> dict[str, int]:
        """Return the pid of each container's conmon, by the container's id."""
        found: dict[str, int] = {}
        for pid, words in _processes("conmon"):
            if f"{self.folder}/root" in " ".join(words):
                found[_after("-c", words)] = pid
        return found


class Containerd(Runtime):
    """A containerd, called by ``ctr run --cni``; a service is what the configuration says.

    ctr reads its network from /etc/cni/net.d, whatever it is told, and caches results in
    /var/lib/cni: it gets its own of both, in a mount namespace of its own. It writes no
    resolv.conf, so one is mounted.
    """

    kind = "containerd"
    namespace = "default"
    """containerd's own, for images and containers; not the kernel's."""

    def open(self) -> None:
        """Start containerd and load the image."""
        (self.folder / "config.toml").write_text(self.configuration())
        (self.folder / "resolv.conf").write_text(f"nameserver {NAMESERVER}\n")
        (self.folder / "cache").mkdir()
        for place in ("/etc/cni/net.d", "/var/lib/cni"):
            Path(place).mkdir(parents=True, exist_ok=True)
        self._execs = 0
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*self._within, "containerd", "--config", str(self.folder / "config.toml")],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._environment,
            )  # fmt: skip
        until((self.folder / "sock").exists, "containerd to listen")
        archive = str(image(self.folder / "image.tar"))
        self("--namespace", self.namespace, "image", "import", archive)

    def configuration(self) -> str:
        """Return containerd's configuration."""
        return _CONTAINERD.format(folder=self.folder)

    def command(self, *arguments: str, service: str = "web") -> list[str]:
        """Return the words of ``ctr …`` where the network's container is a `service`."""
        mounts = (
            f"mount --bind {self.network(service=service)} /etc/cni/net.d && "
            f'mount --bind {self.folder}/cache /var/lib/cni && exec "$@"'
        )
        return [
            *self._within, "unshare", "--mount", "--propagation", "private", "sh", "-c", mounts,
            "sh", "ctr", "--address", f"{self.folder}/sock", *arguments,
        ]  # fmt: skip

    def __call__(self, *arguments: str, service: str = "web") -> str:
        """Run ``ctr …``; return what it printed."""
        done = run(*self.command(*arguments, service=service), env=self._environment)
        return str(done.stdout).strip()

    def arguments(self, name: str, *command: str) -> list[str]:
        """Return the arguments that run a container."""
        resolv = f"type=bind,src={self.folder}/resolv.conf,dst=/etc/resolv.conf,options=rbind:ro"
        return ["--cni", "--mount", resolv, IMAGE, name, *command]

    def run(self, name: str, service: str, *command: str) -> None:
        """Start a container in the background."""
        self("run", "--detach", *self.arguments(name, *command), service=service)

    def foreground(self, name: str, service: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a container that ctr waits for, and detaches when it has ended."""
        words = self.command("run", "--rm", *self.arguments(name, *command), service=service)
        return subprocess.Popen(words, env=self._environment, stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL)  # fmt: skip

    def exec(self, name: str, *command: str) -> str:
        """Run a command inside; return what it printed."""
        self._execs += 1
        return self("task", "exec", "--exec-id", f"exec{self._execs}", name, *command)

    def pid(self, name: str) -> int:
        """Return the pid of a container's first process."""
        lines = self("task", "list").splitlines()[1:]
        return next(int(words[1]) for words in map(str.split, lines) if words[0] == name)

    def remove(self, *names: str) -> None:
        """Kill, and remove task and container."""
        for name in names:
            if name in self("task", "list", "--quiet").split():
                self("task", "remove", "--force", name)
            self("container", "remove", name)

    def shim(self, name: str) -> int:
        """Return the pid of a container's shim."""
        return next(
            pid
            for pid, words in _processes("containerd-shim-runc-v2")
            if f"{self.folder}/sock" in words and _after("-id", words) == name
        )

    def close(self) -> None:
        """Remove everything."""
        try:
            self.remove(*self("container", "list", "--quiet").split())
        finally:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
            self.unmount()


def leftovers(*runtimes: Runtime) -> list[str]:
    """Return a line for each mount of these and for each namespace that has a name."""
    names = [f"namespace {path.name}" for path in vanishing.listed(Path("/run/netns"))]
    return sorted(names + [mount for one in runtimes for mount in one.mounts()])


def replicas(cluster: Cluster, node: str) -> dict[str, Any]:
    """Return the replicas on `node`, by address."""
    return {one["address"]: one for one in cluster.status(node)["replicas"] if one["node"] == node}


def picture(*runtimes: Runtime) -> Bag:
    """All that could be left on the nodes of these."""
    bag: Bag = Bag()
    for one in runtimes:
        bag.update(inventory(one.cluster, one.node))
    bag.update(leftovers(*runtimes))
    return bag


def _processes(program: str) -> list[tuple[int, list[str]]]:
    """Return the pid and the command line of all that run a `program`."""
    found = [(pid, vanishing.words(pid)) for pid in vanishing.processes()]
    return [(pid, words) for pid, words in found if words and words[0].endswith(program)]


def _after(option: str, words: list[str]) -> str:
    """Return the word after `option`; "" without one, as in a process between fork and exec."""
    return dict(pairwise(words)).get(option, "")
