"""What goes into the image, and the name that follows from it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

LAB = Path(__file__).resolve().parent
CHECKOUT = LAB.parent.parent

SUITE = "trixie"
OLDER = "bookworm"
# The interpreter of SUITE, for which wheels are chosen.
PYTHON = "3.13"

# Kernels, each with the suite it is taken from.  The first is what boots unless told
# otherwise; the others of the image are what nodes of an older release run.
KERNELS = {"6.12": SUITE, "6.1": OLDER}
# The newest kernel there is, fetched only when asked for and again after this many days.
NEWEST = "sid"
NEWEST_DAYS = 7.0

PACKAGES = (
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
    "busybox-static",
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
    # For tests/clients/cri.py.
    "python3-grpcio",
    "runc",
)

# From OLDER, with what only OLDER has of its dependencies: Podman 5 speaks no CNI any more.
BORROWED = ("podman",)

# A node as small as one gets: systemd and what the package asks for, and neither Python
# nor this checkout.
BARE = ("kmod", "libexpat1", "libffi8", "libssl3", "systemd", "systemd-sysv")


@dataclass(frozen=True)
class Root:
    """One root filesystem: what mmdebstrap is asked for."""

    suite: str
    variant: str
    packages: tuple[str, ...]
    borrowed: tuple[str, ...] = ()
    """Packages that come from OLDER."""

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for roots that are built alike."""
        return self.suite, self.variant, sorted(self.packages), sorted(self.borrowed)


# By their place in the image.  The last has the nft of its release too, to compare with.
ROOTS = {
    ".": Root(SUITE, "minbase", PACKAGES, BORROWED),
    f"srv/{SUITE}": Root(SUITE, "essential", BARE),
    f"srv/{OLDER}": Root(OLDER, "essential", (*BARE, "nftables")),
}

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

    roots: Mapping[str, Root]
    kernels: Mapping[str, str]
    deps: tuple[str, ...]
    dev: tuple[str, ...]
    code: tuple[bytes, ...]

    @property
    def digest(self) -> str:
        """A name for this recipe: equal recipes, and only those, share it."""
        sha = hashlib.sha256()
        roots = [(place, root.identity) for place, root in self.roots.items()]
        for part in (roots, self.kernels.items(), self.deps, self.dev):
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
        roots=ROOTS,
        kernels=KERNELS,
        deps=requirements((packaging / "requirements.txt").read_text()),
        dev=for_guest(dev),
        code=tuple((LAB / name).read_bytes() for name in CODE),
    )


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    name = found.group() if found else ""
    return re.sub(r"[-_.]+", "-", name).lower()
