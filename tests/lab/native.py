"""The same script on this machine's own kernel, leaving the machine as it was.

Everything the script can touch by accident is its own: mounts, processes,
network and host name are unshared, and Noctule is installed onto overlays of
/opt and /usr/local that vanish with the last process.
"""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from tests.lab import machine
from tests.lab.payload import PREFIX

# What a mesh node needs of its kernel, each with the command that really makes one.
NEEDED = {
    "veth": "ip link add lab0 type veth peer name lab1",
    "bridge": "ip link add lab2 type bridge",
    "batman-adv": "ip link add lab3 type batadv",
    "MACsec": "ip link add link lab0 lab4 type macsec",
    "GENEVE": "ip link add lab5 type geneve id 7 remote 192.0.2.1",
    "nftables": "nft add table inet lab",
}

UNSHARE = (
    "unshare",
    "--mount",
    "--pid",
    "--net",
    "--uts",
    "--fork",
    "--kill-child",
    "--mount-proc",
)


class MissingError(Exception):
    """This machine's kernel cannot make what the lab needs."""


def missing() -> list[str]:
    """Names of what this kernel lacks, found by trying in a throw-away namespace."""
    attempts = [f"{command} || echo {name} >&3" for name, command in NEEDED.items()]
    script = "exec 3>&1 >/dev/null 2>&1\n" + "\n".join(attempts)
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode and not done.stdout:
        return list(NEEDED)  # not even a namespace
    return done.stdout.split()


def check() -> None:
    """Raise, naming what is missing, unless this machine can stand in for the lab's."""
    if lacking := missing():
        raise MissingError(
            f"this machine cannot make: {', '.join(lacking)}; "
            "run as root with those in its kernel, or without --native"
        )


def preparation(root: Path, packages: Path) -> str:
    """Shell text that, in fresh namespaces, makes this machine look like the lab's.

    `root` holds what is to be installed, `packages` the Python packages.
    """
    stage, prefix = shlex.quote(str(root)), shlex.quote(str(PREFIX))
    lines = [
        "set -e",
        # A file system of our own: the overlays' upper layers must not be on one.
        f"mount -t tmpfs lab {stage}/mnt",
        f"cp -a {stage}/opt {stage}/usr {stage}/mnt/",
        f"mkdir -p {stage}/mnt/usr/local {stage}/mnt/work/opt {stage}/mnt/work/local",
    ]
    for target, work in (("/opt", "opt"), ("/usr/local", "local")):
        layers = f"lowerdir={target},upperdir={stage}/mnt{target},workdir={stage}/mnt/work/{work}"
        lines.append(f"mount -t overlay -o {layers} lab {target}")
    for name in ("deps", "dev"):
        lines.append(f"mkdir -p {prefix}/{name}")
        lines.append(f"mount --bind {shlex.quote(str(packages / name))} {prefix}/{name}")
    lines += [
        "mkdir -p /run/netns /run/noctule",
        "mount -t tmpfs lab /run/netns",
        "mount -t tmpfs lab /run/noctule",
        # Of the new network namespace, as /sys/class/net is.
        "mount -t sysfs sysfs /sys",
        "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        "ip link set lo up",
        "hostname lab",
        "set +e",
    ]
    return "\n".join(lines) + "\n"


def run(script: str, timeout: float | None) -> machine.Ended:
    """Run shell text in fresh namespaces; nothing it starts outlives it."""
    process = machine.spawn([*UNSHARE, "bash", "-c", script], None)
    try:
        return machine.Ended(process.wait(timeout), 0.0)
    except subprocess.TimeoutExpired:
        return machine.Ended(machine.TIMED_OUT, 0.0, f"timed out after {timeout:g} s")
    finally:
        machine.kill(process)
