"""The lab's command line."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tests.lab import image, kernel, kvm, machine, native, payload, recipe, sources


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(prog="python -m tests.lab", description="Boot a real kernel.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("image", help="build or reuse the image, print its path")
    run = verbs.add_parser("run", help="run a script as root in a fresh machine")
    shell = verbs.add_parser("shell", help="an interactive shell in a fresh machine")
    for verb in (run, shell):
        verb.add_argument("--cpus", type=int, default=2, metavar="N")
        verb.add_argument("--memory", default="4G")
        verb.add_argument(
            "--kernel",
            choices=(*recipe.KERNELS, recipe.NEWEST),
            help=f"which of Debian's kernels to boot; {recipe.NEWEST}'s is fetched when asked for",
        )
    run.add_argument("--timeout", type=float, metavar="SECONDS")
    run.add_argument("--icount", action="store_true", help="one cpu, one instruction is 1 ns")
    run.add_argument("--append", default="", metavar="WORDS", help="for the kernel's command line")
    run.add_argument("--native", action="store_true", help="on this machine's own kernel")
    run.add_argument("script", type=Path, metavar="SCRIPT")
    run.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS")
    return top


def main() -> int:
    """Do what the command line asks; return the script's exit status, or a status of the lab."""
    args = parser().parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        if args.verb == "image":
            print(_image().disk)
            return 0
        if args.verb == "shell":
            return _shell(args)
        if not args.script.is_file():
            return _failed(f"no such script: {args.script}")
        if args.native and (args.append or args.kernel):
            return _failed("--append and --kernel are for what is booted; leave out --native")
        return _run_native(args) if args.native else _run(args)
    except (image.BuildError, native.MissingError, sources.NoSourcesError) as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _image() -> image.Image:
    return image.ready(recipe.load(), image.cache_folder())


def _kernel(built: image.Image, name: str | None) -> kernel.Kernel:
    if name == recipe.NEWEST:
        return image.newest_kernel(recipe.load(), image.cache_folder())
    return built.kernel(name or next(iter(recipe.KERNELS)))


def _run(args: argparse.Namespace) -> int:
    built = _image()
    booted = _kernel(built, args.kernel)
    fast = not args.icount and kvm.works(booted, image.cache_folder())
    options = machine.Options(args.cpus, args.memory, args.icount, fast, args.append)
    with _workplace() as work:
        text, carried = payload.guest_command(args.script, args.arguments, recipe.CHECKOUT)
        files = {"command": text, "environment": payload.environment({"NOCTULE_LAB": "1"})}
        _stage_lab(work / "root", files, args.script if carried else None, built.python)
        log = work / "console"
        return _report(machine.run(_boot(built, booted, options, work), args.timeout, log), log)


def _shell(args: argparse.Namespace) -> int:
    if not sys.stdin.isatty():
        return _failed("a shell needs a terminal")
    built = _image()
    booted = _kernel(built, args.kernel)
    fast = kvm.works(booted, image.cache_folder())
    options = machine.Options(args.cpus, args.memory, False, fast)
    with _workplace() as work:
        size = os.get_terminal_size(0)
        terminal = f"stty rows {size.lines} cols {size.columns}\ncd {payload.CHECKOUT}\n"
        extra = {"TERM": os.environ.get("TERM", "linux")}
        files = {"interactive": terminal, "environment": payload.environment(extra)}
        _stage_lab(work / "root", files, None, built.python)
        log = work / "console"
        return _report(machine.shell(_boot(built, booted, options, work), log), log)


def _run_native(args: argparse.Namespace) -> int:
    native.check()
    packages = image.native_packages(recipe.load(), image.cache_folder())
    with _workplace() as work:
        root = work / "root"
        (root / "mnt").mkdir(parents=True)
        (root / "usr").mkdir()
        payload.stage_code(recipe.CHECKOUT, root, Path("/usr/bin/python3"))
        text, carried = payload.guest_command(args.script, args.arguments, recipe.CHECKOUT)
        if carried:
            text = text.replace(f"/run/lab/{args.script.name}", str(args.script.resolve()))
        extra = {"NOCTULE_BUILD": str(recipe.CHECKOUT / "build")}
        script = native.preparation(root, packages) + payload.environment(extra) + text
        return _report(native.run(script, args.timeout), None)


def _stage_lab(root: Path, files: dict[str, str], script: Path | None, python: Path) -> None:
    """Put what the guest's init reads into run/lab below `root`, and Noctule into `root`."""
    lab = root / "run/lab"
    lab.mkdir(parents=True)
    for name, text in files.items():
        (lab / name).write_text(text)
    shutil.copy(recipe.LAB / "guest/init.sh", lab / "init")
    (lab / "init").chmod(0o755)
    if script is not None:
        shutil.copy(script, lab / script.name)
    payload.stage_code(recipe.CHECKOUT, root, python)


def _boot(
    built: image.Image, booted: kernel.Kernel, options: machine.Options, work: Path
) -> list[str]:
    payload.pack(work / "root", work / "payload.tar")
    command = machine.base_command(booted, options)
    command += machine.disks(built, work / "payload.tar", booted)
    return command + machine.shared_folder(recipe.CHECKOUT)


def _report(ended: machine.Ended, log: Path | None) -> int:
    if ended.why:
        if log is not None and ended.status == machine.LAB_FAILED:
            print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
        print(f"lab: {ended.why}", file=sys.stderr)
    return ended.status


def _failed(why: str) -> int:
    print(f"lab: {why}", file=sys.stderr)
    return machine.LAB_FAILED


@contextmanager
def _workplace() -> Iterator[Path]:
    work = Path(tempfile.mkdtemp(prefix="noctule-lab-"))
    try:
        yield work
    finally:
        shutil.rmtree(work)


def _leave(number: int, _frame: FrameType | None) -> None:
    # Raise an exception (SystemExit), so that machines are ended and folders removed.
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
