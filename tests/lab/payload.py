"""What each boot brings along: this checkout, installed, and the script to run.

Staged on the host as a tree of the guest's root, in one tar that is the guest's
second disk.  The code lands on the guest's own disk, because imports over a
shared folder are ten times slower.
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
    # What git does not know, and was built for tests on the host.
    "NOCTULE_BUILD": "/src/build",
}


def source_files(checkout: Path) -> list[Path]:
    """Every file git knows or would offer to add; without git, every visible one."""
    if not (checkout / ".git").exists():
        paths = {path.relative_to(checkout) for path in checkout.rglob("*")}
        return sorted(path for path in paths if (checkout / path).is_file() and _visible(path))
    # Root may well run the lab on somebody else's checkout, which git minds.
    command = ["git", "-c", "safe.directory=*", "-C", str(checkout)]
    command += ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    paths = {Path(os.fsdecode(name)) for name in listing.split(b"\0") if name}
    # git still lists what has been deleted but not committed.
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
    # A syntax error is the script's to report.
    subprocess.run([*command, "-s", str(root), "-p", "/", str(copy)], check=False)
    if any((copy / name).is_dir() for name in PACKAGES):
        install = ["bash", str(copy / "packaging/install.sh"), "--no-deps"]
        install += ["--prefix", str(PREFIX), "--root", str(root)]
        compiler = os.environ | {"PYTHON": str(python)}
        subprocess.run(install, check=True, stdout=subprocess.DEVNULL, env=compiler)


def guest_command(script: Path, arguments: Sequence[str], checkout: Path) -> tuple[str, bool]:
    """The shell text that runs `script` in the guest, and whether it must be carried.

    A script of the checkout runs where the guest's copy of it lies, so that it
    finds its neighbours; any other is carried along.
    """
    script = script.resolve()
    inside = script.is_relative_to(checkout)
    path = CHECKOUT / script.relative_to(checkout) if inside else Path("/run/lab") / script.name
    words = [str(path), *arguments]
    if not os.access(script, os.X_OK):
        words.insert(0, "bash")
    return f"cd {CHECKOUT}\nexec {shlex.join(words)}\n", not inside


def environment(extra: dict[str, str]) -> str:
    """Shell text that exports what every script finds in its environment."""
    both = ENVIRONMENT | extra
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in both.items())


def pack(root: Path, tar: Path) -> None:
    """One tar of everything under `root`, owned by root."""
    with tarfile.open(tar, "w") as archive:
        archive.add(root, arcname=".", filter=_as_root)


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    if member.isdir():  # whatever umask the host has
        member.mode = 0o755
    return member
