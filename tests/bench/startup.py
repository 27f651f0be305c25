"""What it costs to start the plugin: the package's executable against the script it stands for.

::

    python3 -m tests.bench.startup [--rounds N] [--bundle FILE]

Needs no root and no kernel of ours: VERSION answers before anything is asked of a daemon. Five
contenders take turns, so that whatever else the machine does meets all of them: `true`, which is
what a process costs; the interpreter alone, as ``python3 -I -S -c pass``; the script that
``packaging/install.sh`` writes; the package's executable; and, where somebody left one, a plain
PyInstaller build (``--plain FILE``). Whole processes, from posix_spawn to wait; p50, p99, and the
ratio of medians to the script's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
BUNDLE = CHECKOUT / "dist/noctule/noctule"
PYTHON = "/usr/bin/python3"
ENVIRONMENT = {"CNI_COMMAND": "VERSION", "PATH": "/usr/bin:/bin"}
WARM = 5
"""Calls of each that are not counted: they fill the page cache."""


def script(folder: Path) -> Path:
    """Install this checkout below `folder` as on a node; return the plugin's path."""
    subprocess.run(
        ["bash", CHECKOUT / "packaging/install.sh", "--no-deps", "--root", folder],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    path = folder / "opt/cni/bin/noctule"
    # It names its modules' place on a node, which is below `folder` here.
    path.write_text(path.read_text().replace('"/opt/noctule/', f'"{folder}/opt/noctule/'))
    return path


def call(command: list[str], sink: int) -> float:
    """Run one process to its end; return the milliseconds it took. SystemExit if it fails."""
    reader, writer = os.pipe()
    os.write(writer, b'{"cniVersion": "1.0.0"}')
    os.close(writer)
    actions = [(os.POSIX_SPAWN_DUP2, reader, 0), (os.POSIX_SPAWN_DUP2, sink, 1)]
    began = time.perf_counter()
    process = os.posix_spawn(command[0], command, ENVIRONMENT, file_actions=actions)
    _, status = os.waitpid(process, 0)
    took = (time.perf_counter() - began) * 1e3
    os.close(reader)
    if status != 0:
        sys.exit(f"{command[0]}: status {status}")
    return took


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What starting the plugin costs.")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="the package's executable")
    parser.add_argument("--plain", type=Path, help="another build of it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        contenders = {
            "true": ["/bin/true"],
            "python3 -I -S -c pass": [PYTHON, "-I", "-S", "-c", "pass"],
            "script": [str(script(Path(folder)))],
            "package": [str(arguments.bundle)],
        }
        if arguments.plain:
            contenders["plain"] = [str(arguments.plain)]
        times: dict[str, list[float]] = {name: [] for name in contenders}
        with Path("/dev/null").open("wb") as sink:
            for turn in range(WARM + arguments.rounds):
                for name, command in contenders.items():
                    took = call(command, sink.fileno())
                    if turn >= WARM:
                        times[name].append(took)
    base = statistics.median(times["script"])
    for name, values in times.items():
        p50, p99 = statistics.median(values), statistics.quantiles(values, n=100)[98]
        print(f"{name:22} p50 {p50:6.2f} ms  p99 {p99:6.2f} ms  {p50 / base:5.2f} x script")


if __name__ == "__main__":
    main()
