"""The image: root filesystems on one disk, and the kernels to boot it with, built once.

Rules
1. An image lives in a folder named by its recipe's digest; a folder with that
   name is complete, because it got the name by one rename at the very end.
2. One builder per recipe at a time, held by a lock that the kernel drops with
   the process; a second one waits and then finds the image.
3. Nothing ever writes to a finished image: boots use throw-away overlays.
4. The newest two recipes stay, so that going back and forth between two
   branches builds nothing.
5. No root filesystem has a kernel.  Each kernel has its modules on a disk of its
   own, so that any of them boots the same image.
6. What the guest will execute as bytecode is compiled by the guest's interpreter,
   which the image keeps for the host to run.
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
from tests.lab.kernel import Kernel
from tests.lab.recipe import NEWEST, NEWEST_DAYS, OLDER, PYTHON, Recipe, Root

KEEP = 2
# Sparse: room for a test's containers, paid for only when used.
SIZE = "8G"
PREFIX = "opt/noctule"
# Every manylinux level up to glibc 2.36, Debian 12's; pip takes them literally.
PLATFORMS = tuple(f"manylinux_2_{minor}_x86_64" for minor in range(36, 16, -1))
# Manuals and translations are a third of the files and nobody reads them here.
LEFT_OUT = tuple(f"/usr/share/{name}/*" for name in ("doc", "locale", "man"))
# Apt prefers the root's own release, but for what is borrowed with its dependencies.
PIN = """\
Package: *
Pin: release n={older}*
Pin-Priority: 100

Package: {borrowed}
Pin: release n={older}*
Pin-Priority: 1001
"""


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
    def python(self) -> Path:
        """The guest's interpreter, for this machine to run."""
        return self.folder / "python/python3"

    def kernel(self, name: str) -> Kernel:
        """One of the recipe's kernels."""
        return Kernel(self.folder / "kernels" / name)


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


def newest_kernel(recipe: Recipe, cache: Path) -> Kernel:
    """The newest kernel that Debian has, fetched now unless that was done lately."""
    folder = cache / f"{recipe.digest}.{NEWEST}"
    with _locked(cache / f"{recipe.digest}.lock"):
        if folder.is_dir() and time.time() - folder.stat().st_mtime > NEWEST_DAYS * 86400:
            shutil.rmtree(folder)
        if not folder.is_dir():
            progress = Progress()
            progress.phase(f"fetching the kernel of {NEWEST}")
            with tempfile.TemporaryDirectory(prefix=f"{recipe.digest}.new-", dir=cache) as work:
                _kernel(NEWEST, Path(work) / "tree", Kernel(Path(work) / "made"))
                (Path(work) / "made").rename(folder)
    return Kernel(folder)


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
            # .venv is of /usr/bin/python3, which runs them.
            _python(recipe, scratch, f"{sys.version_info.major}.{sys.version_info.minor}")
            _compile(Path("/usr/bin/python3"), scratch)
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
        for beside in ("native", NEWEST):
            shutil.rmtree(cache / f"{name}.{beside}", ignore_errors=True)


def _build(recipe: Recipe, image: Image, cache: Path) -> None:
    for leftover in cache.glob(f"{recipe.digest}.new-*"):
        shutil.rmtree(leftover)  # of a builder that was killed; we hold its lock
    progress = Progress()
    folder = Path(tempfile.mkdtemp(prefix=f"{recipe.digest}.new-", dir=cache))
    try:
        root = folder / "root"
        progress.phase(
            f"installing Debian: {len(recipe.roots)} roots, {len(recipe.kernels)} kernels"
        )
        _debian(recipe, folder, root)
        progress.phase("installing Python packages")
        _python(recipe, root, PYTHON)
        progress.phase("compiling them")
        _keep_interpreter(root, folder / "python")
        _compile(Image(folder).python, root)
        progress.phase("making the disk")
        disk = str(Image(folder).disk)
        _run("mkfs.ext4", "-q", "-O", "^has_journal", "-d", str(root), disk, SIZE)
        shutil.rmtree(root)
        folder.chmod(0o755)
        folder.rename(image.folder)
        prune(cache, image.folder.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    progress.phase("image ready")


def _debian(recipe: Recipe, folder: Path, root: Path) -> None:
    """Make all root filesystems and kernels."""
    trees = {place: folder / f"tree{number}" for number, place in enumerate(recipe.roots)}
    # Side by side, as most of their time is dpkg's, which uses one processor; the
    # largest first, so that none is left to run alone at the end.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(_root, made, trees[place]) for place, made in recipe.roots.items()]
        for name, suite in recipe.kernels.items():
            tree, made = folder / f"kernel-{name}", Image(folder).kernel(name)
            jobs.append(pool.submit(_kernel, suite, tree, made))
        for job in jobs:
            job.result()
    for place, tree in trees.items():  # the image's own root comes first
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        tree.rename(root if place == "." else root / place)


def _root(wanted: Root, target: Path) -> None:
    _mmdebstrap(wanted.suite, wanted.variant, wanted.packages, target, borrowed=wanted.borrowed)


def _kernel(suite: str, tree: Path, made: Kernel) -> None:
    """Fetch the kernel of a release into `made`; `tree` is where its packages are unpacked."""
    made.folder.mkdir(parents=True)
    hardware = [f"/usr/lib/modules/*/kernel/{name}/*" for name in kernel.HARDWARE]
    hardware += [f"/lib/modules/*/kernel/{name}/*" for name in kernel.HARDWARE]
    packages = ("linux-image-amd64", "busybox-static")
    _mmdebstrap(suite, "extract", packages, tree, left_out=(*LEFT_OUT, *hardware))
    modules = tree / "usr/lib/modules"
    [release] = sorted(path.name for path in modules.iterdir())
    kernel.unpack_modules(modules / release)
    _run("depmod", "--basedir", str(tree), release)
    made.image.write_bytes(kernel.uncompressed(kernel.packed(tree).read_bytes()))
    made.initramfs.write_bytes(kernel.initramfs(tree, release))
    # As little room as its files take; nobody writes to it.
    blocks = sum(path.stat().st_blocks for path in modules.rglob("*")) // 2
    size = f"{blocks * 5 // 4 + 16384}k"
    _run("mkfs.ext4", "-q", "-O", "^has_journal", "-d", str(modules), str(made.modules), size)
    shutil.rmtree(tree)


def _mmdebstrap(
    suite: str,
    variant: str,
    packages: tuple[str, ...],
    target: Path,
    *,
    left_out: tuple[str, ...] = LEFT_OUT,
    borrowed: tuple[str, ...] = (),
) -> None:
    lines, options = sources.read(suite)
    with tempfile.TemporaryDirectory() as given:
        files = {name: Path(given) / name for name in ("sources.list", "apt.conf", "pin")}
        command = ["mmdebstrap", f"--variant={variant}", "--quiet", f"--aptopt={files['apt.conf']}"]
        command += [f"--include={','.join((*packages, *borrowed))}"]
        command += [f"--dpkgopt=path-exclude={pattern}" for pattern in left_out]
        if variant == "extract":
            # Where no package's script has made these links, files would lie beside them.
            command.append(
                "--setup-hook=for name in bin sbin lib lib64; do "
                'mkdir -p "$1/usr/$name"; ln -s "usr/$name" "$1/$name"; done'
            )
        if borrowed:
            lines += sources.read(OLDER)[0]
            files["pin"].write_text(PIN.format(older=OLDER, borrowed=" ".join(borrowed)))
            pin = '"$1/etc/apt/preferences.d/borrowed"'
            command.append(f"--setup-hook=install -D -m 644 {shlex.quote(str(files['pin']))} {pin}")
        files["sources.list"].write_text("\n".join(lines) + "\n")
        files["apt.conf"].write_text("\n".join(options) + "\n")
        Path(given).chmod(0o755)
        _run(*command, suite, str(target), str(files["sources.list"]))


def _keep_interpreter(root: Path, folder: Path) -> None:
    """Copy the interpreter of `root`, with a command that runs it on whatever this machine is.

    Its own loader and C library come along, as the host's may be older.
    """
    (folder / "lib").mkdir(parents=True)
    (folder / "bin").mkdir()
    name = f"python{PYTHON}"
    standard = shutil.ignore_patterns("test", "idlelib", "ensurepip", "__pycache__")
    shutil.copytree(root / "usr/lib" / name, folder / "lib" / name, symlinks=True, ignore=standard)
    shutil.copy(root / "usr/bin" / name, folder / "bin")
    libraries = root / "usr/lib/x86_64-linux-gnu"
    for needed in ("libc.so.6", "libm.so.6", "libz.so.1", "libexpat.so.1"):
        shutil.copy(libraries / needed, folder / "lib")
    shutil.copy(libraries / "ld-linux-x86-64.so.2", folder / "lib/loader")
    command = folder / "python3"
    command.write_text(
        "#!/bin/sh\n"
        'here=$(dirname "$(realpath "$0")")\n'
        'PYTHONHOME=$here exec "$here/lib/loader" --library-path "$here/lib" '
        f'"$here/bin/{name}" "$@"\n'
    )
    command.chmod(0o755)


def _python(recipe: Recipe, root: Path, version: str) -> None:
    # From the host, so that the image needs no pip and the guest no network.
    for name, requirements in (("deps", recipe.deps), ("dev", recipe.dev)):
        target = root / PREFIX / name
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps"]
        command += ["--disable-pip-version-check", "--target", str(target), "--only-binary=:all:"]
        command += ["--implementation", "cp", "--python-version", version]
        for platform in PLATFORMS:
            command += ["--platform", platform]
        _run(*command, *requirements)


def _compile(python: Path, root: Path) -> None:
    """Compile Noctule's packages below `root`, as seen from there."""
    # Unchecked, because nothing edits these files, and each import saves a stat.
    command = [str(python), "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    command += ["-s", str(root), "-p", "/"]
    _run(*command, *(str(root / PREFIX / name) for name in ("deps", "dev")))


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
