"""The image: a root filesystem, its kernel and its initramfs, built once.

Rules
1. An image lives in a folder named by its recipe's digest; a folder with that
   name is complete, because it got the name by one rename at the very end.
2. One builder per recipe at a time, held by a lock that the kernel drops with
   the process; a second one waits and then finds the image.
3. Nothing ever writes to a finished image: boots use throw-away overlays.
4. The newest two recipes stay, so that going back and forth between two
   branches builds nothing.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab import kernel, sources
from tests.lab.recipe import SUITE, Recipe

KEEP = 2
# Sparse: room for a test's containers, paid for only when used.
SIZE = "8G"
PREFIX = "opt/noctule"
BARE = "srv/bare"
# Every manylinux level up to the image's glibc (2.36); pip takes them literally.
PLATFORMS = tuple(f"manylinux_2_{minor}_x86_64" for minor in range(36, 16, -1))


class BuildError(Exception):
    """A step of the build failed; the message says which and shows its output."""


@dataclass(frozen=True)
class Image:
    """A finished image on disk."""

    folder: Path

    @property
    def disk(self) -> Path:
        return self.folder / "root.ext4"

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinux"

    @property
    def initramfs(self) -> Path:
        return self.folder / "initramfs"


def cache_folder() -> Path:
    """Where images and answers about this machine are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "noctule" / "lab"


def ready(recipe: Recipe, cache: Path) -> Image:
    """The image of `recipe`, built now if nobody has yet."""
    image = Image(cache / recipe.digest)
    if not image.folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{recipe.digest}.lock"):
            if not image.folder.is_dir():
                _build(recipe, image, cache)
    os.utime(image.folder)  # so that pruning goes by last use
    return image


def native_packages(recipe: Recipe, cache: Path) -> Path:
    """A folder with the image's deps and dev, for this machine itself."""
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"{recipe.digest}.native"
    with _locked(cache / f"{recipe.digest}.lock"):
        if not folder.is_dir():
            progress = Progress()
            progress.phase("installing Python packages")
            scratch = cache / f"{recipe.digest}.native-new"
            shutil.rmtree(scratch, ignore_errors=True)
            _python(recipe, scratch)
            _compile(["/usr/bin/python3"], scratch / PREFIX)
            scratch.rename(folder)
    return folder / PREFIX


def stale(folders: dict[str, float], keep: int = KEEP) -> list[str]:
    """Names to remove, given each image's time of last use."""
    newest_first = sorted(folders, key=lambda name: folders[name], reverse=True)
    return newest_first[keep:]


def prune(cache: Path, current: str) -> None:
    """Remove what rule 4 no longer keeps; never the image `current`."""
    images = {
        p.name: p.stat().st_mtime for p in cache.iterdir() if p.is_dir() and "." not in p.name
    }
    images[current] = time.time()
    for name in stale(images):
        # A name of its own first, so that nobody finds half an image.
        doomed = cache / f"{name}.old"
        (cache / name).rename(doomed)
        shutil.rmtree(doomed)
        shutil.rmtree(cache / f"{name}.native", ignore_errors=True)


def _build(recipe: Recipe, image: Image, cache: Path) -> None:
    for leftover in cache.glob(f"{recipe.digest}.new-*"):
        shutil.rmtree(leftover)  # of a builder that was killed; we hold its lock
    progress = Progress()
    folder = Path(tempfile.mkdtemp(prefix=f"{recipe.digest}.new-", dir=cache))
    try:
        root = folder / "root"
        progress.phase(f"installing Debian {SUITE} ({len(recipe.packages)} packages)")
        _debootstrap(recipe, folder, root)
        progress.phase("installing Python packages")
        _python(recipe, root)
        progress.phase("compiling them")
        # By the image's own interpreter: only it knows its bytecode.
        _compile(["chroot", str(root), "python3"], Path("/") / PREFIX)
        progress.phase("making kernel, initramfs and disk")
        target = Image(folder)
        release = _kernel_release(root)
        packed = (root / f"boot/vmlinuz-{release}").read_bytes()
        target.kernel.write_bytes(kernel.uncompressed(packed))
        target.initramfs.write_bytes(kernel.initramfs(root, release))
        _run("mkfs.ext4", "-q", "-O", "^has_journal", "-d", str(root), str(target.disk), SIZE)
        shutil.rmtree(root)
        folder.chmod(0o755)
        folder.rename(image.folder)
        prune(cache, image.folder.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    progress.phase("image ready")


def _debootstrap(recipe: Recipe, folder: Path, root: Path) -> None:
    lines, options = sources.read()
    (folder / "sources.list").write_text("\n".join(lines) + "\n")
    (folder / "apt.conf").write_text("\n".join(options) + "\n")
    bare = folder / "bare"
    # Side by side, as most of their time is dpkg's, which uses one processor.
    with ThreadPoolExecutor() as pool:
        for done in [
            pool.submit(_mmdebstrap, "minbase", recipe.packages, folder, root),
            pool.submit(_mmdebstrap, "essential", recipe.bare, folder, bare),
        ]:
            done.result()
    bare.rename(root / BARE)
    (folder / "sources.list").unlink()
    (folder / "apt.conf").unlink()


def _mmdebstrap(variant: str, packages: tuple[str, ...], folder: Path, root: Path) -> None:
    # INITRD=No: Debian's initrd is slow to make, and ours is in kernel.py.
    _run(
        "env",
        "INITRD=No",
        "mmdebstrap",
        f"--variant={variant}",
        "--quiet",
        f"--include={','.join(packages)}",
        f"--aptopt={folder / 'apt.conf'}",
        # Manuals and translations are a third of the files and nobody reads them here.
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        SUITE,
        str(root),
        str(folder / "sources.list"),
    )


def _python(recipe: Recipe, root: Path) -> None:
    # From the host, so that the image needs no pip and the guest no network.
    for name, requirements in (("deps", recipe.deps), ("dev", recipe.dev)):
        target = root / PREFIX / name
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps"]
        command += ["--disable-pip-version-check", "--target", str(target), "--only-binary=:all:"]
        command += ["--implementation", "cp", "--python-version", "3.11"]
        for platform in PLATFORMS:
            command += ["--platform", platform]
        _run(*command, *requirements)


def _compile(python: list[str], prefix: Path) -> None:
    # Unchecked, because nothing edits these files, and each import saves a stat.
    command = [*python, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    _run(*command, f"{prefix}/deps", f"{prefix}/dev")


def _kernel_release(root: Path) -> str:
    releases = sorted(path.name for path in (root / "lib/modules").iterdir())
    if len(releases) != 1:
        raise BuildError(f"expected one kernel in the image, found {releases}")
    return releases[0]


def _run(*command: str) -> None:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise BuildError(
            f"'{shlex.join(command)[:200]}' failed ({done.returncode}):\n{done.stdout[-4000:]}"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Progress:
    """One line per phase on stderr, with the time since the start."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def phase(self, text: str) -> None:
        elapsed = time.monotonic() - self._start
        print(f"lab: [{elapsed:4.0f} s] {text}", file=sys.stderr, flush=True)
