"""What is copied into the guest at each boot: this checkout, Noctule installed from it, the script.

The host prepares it as a tree of files for the guest's root and packs it into one tar, which is the
guest's second disk. The guest unpacks it onto its own disk, because importing Python modules from
a shared folder is ten times slower.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

PREFIX = Path("/opt/noctule")
CHECKOUT = PREFIX / "checkout"
PACKAGES = ("cni", "netconf", "daemon")

ENVIRONMENT = {
    "PATH": "/opt/cni/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYTHONPATH": ":".join(
        [*(str(PREFIX / name) for name in ("lib", "deps", "dev")), "/usr/lib/python3/dist-packages"]
    ),
    "NOCTULE_CHECKOUT": str(CHECKOUT),
    # What was built on the host for tests; git ignores it, so it is not in the guest's checkout.
    "NOCTULE_BUILD": "/src/build",
}


def source_files(checkout: Path) -> list[Path]:
    """Return every file that git tracks or would offer to add; without git, every visible file."""
    if not (checkout / ".git").exists():
        paths = {path.relative_to(checkout) for path in checkout.rglob("*")}
        return sorted(path for path in paths if (checkout / path).is_file() and _visible(path))
    # safe.directory: root may run the lab on another user's checkout, which git refuses otherwise.
    command = ["git", "-c", "safe.directory=*", "-C", str(checkout)]
    command += ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    paths = {Path(os.fsdecode(name)) for name in listing.split(b"\0") if name}
    # git also lists files whose deletion was not committed; leave those out.
    return sorted(path for path in paths if (checkout / path).is_file())


def _visible(path: Path) -> bool:
    return not any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def stage_code(checkout: Path, root: Path, python: Path) -> None:
    """Put the checkout, and Noctule installed from it, under `root`; `python` compiles both."""
    copy = root / CHECKOUT.relative_to("/")
    for path in source_files(checkout):
        target = copy / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(checkout / path, target)
    command = [str(python), "-m", "compileall", "-qq", "--invalidation-mode", "unchecked-hash"]
    # check=False: the script that imports a module with a syntax error reports it.
    subprocess.run([*command, "-s", str(root), "-p", "/", str(copy)], check=False)
    if any((copy / name).is_dir() for name in PACKAGES):
        install = ["bash", str(copy / "packaging/install.sh"), "--no-deps"]
        install += ["--prefix", str(PREFIX), "--root", str(root)]
        compiler = os.environ | {"PYTHON": str(python)}
        subprocess.run(install, check=True, stdout=subprocess.DEVNULL, env=compiler)


def guest_command(script: Path, arguments: Sequence[str], checkout: Path) -> tuple[str, bool]:
    """Return the shell text that runs `script` in the guest, and whether it has to be copied there.

    A script of the checkout runs from the guest's copy of the checkout, so that it finds the files
    beside it. Any other script is copied to /run/lab.
    """
    script = script.resolve()
    inside = script.is_relative_to(checkout)
    path = CHECKOUT / script.relative_to(checkout) if inside else Path("/run/lab") / script.name
    words = [str(path), *arguments]
    if not os.access(script, os.X_OK):
        words.insert(0, "bash")
    return f"cd {CHECKOUT}\nexec {shlex.join(words)}\n", not inside


def environment(extra: dict[str, str]) -> str:
    """Return shell text that exports the environment of every script, and `extra` variables."""
    both = ENVIRONMENT | extra
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in both.items())


def pack(root: Path, tar: Path) -> None:
    """Write everything under `root` to the file `tar`, as owned by root."""
    with tarfile.open(tar, "w") as archive:
        archive.add(root, arcname=".", filter=_as_root)


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    if member.isdir():  # do not let the host's umask decide
        member.mode = 0o755
    return member
