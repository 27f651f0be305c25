"""Running a script on this machine's own kernel without changing the machine.

The script gets mounts, processes, network and host name of its own (unshare), and Noctule is
installed onto overlays of /opt and /usr/local. All of that vanishes with the script's last process.
"""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from tests.lab import machine
from tests.lab.payload import PREFIX

# What a mesh node needs of its kernel, each with a command that makes one.
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
    """Return the names of what this kernel cannot make, found by trying in a new namespace."""
    attempts = [f"{command} || echo {name} >&3" for name, command in NEEDED.items()]
    script = "exec 3>&1 >/dev/null 2>&1\n" + "\n".join(attempts)
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode and not done.stdout:
        return list(NEEDED)  # not even the namespace could be made
    return done.stdout.split()


def check() -> None:
    """Raise MissingError, which names what is missing, unless this kernel can make everything."""
    if lacking := missing():
        raise MissingError(
            f"this machine cannot make: {', '.join(lacking)}; "
            "run as root with those in its kernel, or without --native"
        )


def preparation(root: Path, packages: Path) -> str:
    """Return shell text that makes this machine look like the lab's, to be run in new namespaces.

    `root` is the folder with what is to be installed, `packages` the one with Python packages.
    """
    stage, prefix = shlex.quote(str(root)), shlex.quote(str(PREFIX))
    lines = [
        "set -e",
        # A file system for the overlays' upper layers, which must not be on an overlay themselves.
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
        # Mount /sys anew, so that /sys/class/net shows the new network namespace.
        "mount -t sysfs sysfs /sys",
        "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        "ip link set lo up",
        "hostname lab",
        "set +e",
    ]
    return "\n".join(lines) + "\n"


def run(script: str, timeout: float | None) -> machine.Ended:
    """Run shell text in new namespaces; every process that it started ends with it.

    `timeout` is in seconds.
    """
    process = machine.spawn([*UNSHARE, "bash", "-c", script], None)
    try:
        return machine.Ended(process.wait(timeout), 0.0)
    except subprocess.TimeoutExpired:
        return machine.Ended(machine.TIMED_OUT, 0.0, f"timed out after {timeout:g} s")
    finally:
        machine.kill(process)
