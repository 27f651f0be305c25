"""The lab's command line."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.lab import image, machine, payload, recipe


def parser() -> argparse.ArgumentParser:
    """What the lab understands."""
    top = argparse.ArgumentParser(prog="python -m tests.lab", description="Boot a real kernel.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("image", help="build or reuse the image, print its folder")
    run = verbs.add_parser("run", help="run a script as root in a fresh machine")
    shell = verbs.add_parser("shell", help="an interactive shell in a fresh machine")
    for verb in (run, shell):
        verb.add_argument("--cpus", type=int, default=2)
        verb.add_argument("--memory", default="4G")
    run.add_argument("--timeout", type=float, metavar="SECONDS")
    run.add_argument("--icount", action="store_true", help="one cpu, one instruction per nanosecond")
    run.add_argument("--native", action="store_true", help="on this machine's own kernel")
    run.add_argument("script", type=Path)
    run.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS")
    return top


def main() -> int:
    args = parser().parse_args()
    built = image.ready(recipe.load(), image.cache_folder())
    if args.verb == "image":
        print(built.folder)
        return 0
    work = Path(tempfile.mkdtemp(prefix="noctule-lab-"))
    try:
        root = work / "root"
        lab = root / "run/lab"
        lab.mkdir(parents=True)
        text, carried = payload.guest_command(args.script, args.arguments, recipe.CHECKOUT)
        (lab / "command").write_text(text)
        (lab / "environment").write_text(payload.environment({}))
        shutil.copy(recipe.LAB / "init.sh", lab / "init")
        (lab / "init").chmod(0o755)
        if carried:
            shutil.copy(args.script, lab / args.script.name)
        payload.stage_code(recipe.CHECKOUT, root)
        payload.pack(root, work / "payload.tar")
        options = machine.Options(args.cpus, args.memory, args.icount)
        command = machine.base_command(built, options)
        command += machine.disks(built, work / "payload.tar")
        command += machine.shared_folder(recipe.CHECKOUT)
        ended = machine.run(command, args.timeout, work / "console")
        if ended.why:
            print(f"lab: {ended.why}", file=sys.stderr)
            print((work / "console").read_text(errors="replace")[-3000:], file=sys.stderr)
        return ended.status
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    sys.exit(main())
