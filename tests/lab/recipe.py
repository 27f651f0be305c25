"""What goes into the image, and the name that follows from it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

LAB = Path(__file__).resolve().parent
CHECKOUT = LAB.parent.parent

SUITE = "bookworm"

PACKAGES = (
    "linux-image-amd64",
    # busybox, statically linked, is all the userland the initramfs has.
    "busybox-static",
    # What Noctule runs on.
    "batctl",
    "ca-certificates",
    "conntrack",
    "iproute2",
    "kmod",
    "nftables",
    "procps",
    "python3",
    "udev",
    # What its tests observe it with.
    "bash",
    "dbus",
    "ethtool",
    "iperf3",
    "iputils-ping",
    "jq",
    "make",
    "netcat-openbsd",
    "socat",
    "tcpdump",
    # Who calls it.
    "containerd",
    "containernetworking-plugins",
    "crun",
    "docker.io",
    "podman",
    # For tests/clients/cri.py.
    "python3-grpcio",
    "runc",
)

# The second root, /srv/bare: a node as small as one gets, which has systemd and what the
# package asks for, and neither Python nor this checkout.
BARE = ("kmod", "systemd", "systemd-sysv")

# The part of requirements-dev.txt a guest needs; linters stay on the host, so
# that bumping one does not rebuild every image.
GUEST_DEV = frozenset(
    {
        "hypothesis",
        "iniconfig",
        "packaging",
        "pluggy",
        "pygments",
        "pytest",
        "pytest-timeout",
        "sortedcontainers",
    }
)

# The code that decides what an image contains.  What only decides how one is
# booted is not here: editing it must not cost anybody a rebuild.
CODE = ("recipe.py", "sources.py", "image.py", "kernel.py")


@dataclass(frozen=True)
class Recipe:
    """Everything an image's content follows from."""

    packages: tuple[str, ...]
    bare: tuple[str, ...]
    deps: tuple[str, ...]
    dev: tuple[str, ...]
    code: tuple[bytes, ...]

    @property
    def digest(self) -> str:
        """A name for this recipe: equal recipes, and only those, share it."""
        sha = hashlib.sha256()
        for part in (self.packages, self.bare, self.deps, self.dev):
            sha.update(repr(sorted(part)).encode())
        for text in self.code:
            sha.update(hashlib.sha256(text).digest())
        return sha.hexdigest()[:16]


def requirements(text: str) -> tuple[str, ...]:
    """The requirement lines of a pip file, without comments."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return tuple(line for line in lines if line)


def for_guest(lines: tuple[str, ...]) -> tuple[str, ...]:
    """Those development requirements that a guest needs."""
    return tuple(line for line in lines if _name(line) in GUEST_DEV)


def load(checkout: Path = CHECKOUT) -> Recipe:
    """The recipe this checkout asks for."""
    packaging = checkout / "packaging"
    dev = requirements((packaging / "requirements-dev.txt").read_text())
    return Recipe(
        packages=PACKAGES,
        bare=BARE,
        deps=requirements((packaging / "requirements.txt").read_text()),
        dev=for_guest(dev),
        code=tuple((LAB / name).read_bytes() for name in CODE),
    )


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    name = found.group() if found else ""
    return re.sub(r"[-_.]+", "-", name).lower()
