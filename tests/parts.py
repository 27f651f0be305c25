"""``make test``: every part is run whatever becomes of the others, and all are reported.

1. A part is a target of the Makefile. It passes when make says so; what it printed tells how many
   tests it ran. A part that is no run of pytest counts as one test.
2. Groups run one after the other, the parts of one group two at a time, for two processors. What
   a part of several prints is shown whole when it is done.
3. A part that needs a failed one is not run, and counts as failed.
4. The end is a line for each part with its seconds, then the sums, alone on a line, as a test
   runner says them. The exit status is 0 only if every part passed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock

AT_ONCE = 2
"""Parts of a group that run at the same time."""
COUNTED = {"passed": "passed", "failed": "failed", "error": "failed", "errors": "failed",
           "skipped": "skipped"}  # fmt: skip
_CLOSING = re.compile(
    r"=*\s*((?:\d+ [a-z]+, )*\d+ (?:passed|failed|skipped|errors?|deselected|warnings?)"
    r"(?:, \d+ [a-z]+)*) in [0-9.]+s"
)
"""The line with which pytest ends."""


@dataclass(frozen=True)
class Part:
    """What to run, and what must have passed before."""

    name: str
    needs: tuple[str, ...] = ()


@dataclass
class Result:
    """What became of a part."""

    name: str
    seconds: float
    status: int
    counts: Counter[str] = field(default_factory=Counter)
    why: str = ""

    @property
    def passed(self) -> bool:
        """Whether the part as a whole did."""
        return self.status == 0 and not self.counts["failed"]

    def line(self) -> str:
        """Return the part's line of the summary."""
        said = [f"{self.counts[word]} {word}" for word in ("passed", "failed", "skipped")
                if self.counts[word]]  # fmt: skip
        verdict = "ok" if self.passed else "FAILED"
        return f"{self.name:<10} {verdict:<7} {self.seconds:6.0f} s  " + ", ".join(
            [*said, *([self.why] if self.why else [])]
        )


def counts(output: Iterable[str], status: int) -> Counter[str]:
    """Return how many tests passed, failed and were skipped (rule 1)."""
    found: Counter[str] = Counter()
    for line in output:
        if match := _CLOSING.match(line):
            for number, word in re.findall(r"(\d+) ([a-z]+)", match[1]):
                if word in COUNTED:
                    found[COUNTED[word]] += int(number)
    if not found:
        found["failed" if status else "passed"] = 1
    elif status and not found["failed"]:
        found["failed"] = 1  # the machine or the time ended, not a test
    return found


class Run:
    """All parts, in order; `command` says how a part is run."""

    def __init__(
        self, command: Callable[[str, bool], Sequence[str]], say: Callable[[str], None]
    ) -> None:
        """`command` takes a part's name and whether it is alone; `say` prints whole lines."""
        self._command = command
        self._say = say
        self._lock = Lock()
        self.results: dict[str, Result] = {}

    def __call__(self, *groups: Sequence[Part]) -> int:
        """Run the groups, each when the one before has ended; return the exit status."""
        for group in groups:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(self._part, group, [len(group) == 1] * len(group)))
        self._say("\n" + "".join(f"{one.line()}\n" for one in self.results.values()))
        sums = sum((one.counts for one in self.results.values()), Counter[str]())
        self._say(f"{sums['passed']} passed, {sums['failed']} failed\n")
        return 0 if all(one.passed for one in self.results.values()) else 1

    def _part(self, part: Part, alone: bool) -> None:
        missing = [name for name in part.needs if not self.results[name].passed]
        if missing:
            why = f"not run: {', '.join(missing)} failed"
            result = Result(part.name, 0.0, 1, Counter(failed=1), why)
        else:
            result = self._execute(part.name, alone)
        with self._lock:
            self.results[part.name] = result

    def _execute(self, name: str, alone: bool) -> Result:
        began = time.monotonic()
        self._say(f"--- {name}\n")
        output: list[str] = []
        with subprocess.Popen(
            self._command(name, alone), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace",
        ) as process:  # fmt: skip
            assert process.stdout is not None
            for line in process.stdout:
                output.append(line)
                if alone:
                    self._say(line)
        if not alone:
            self._say(f"--- {name} has ended\n{''.join(output)}")
        status = process.returncode
        return Result(name, time.monotonic() - began, status, counts(output, status))


def main() -> int:
    """Run the parts that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.parts")
    parser.add_argument(
        "groups",
        nargs="+",
        metavar="PART[:NEEDED,…][+PART…]",
        help="targets of the Makefile; those joined by + run two at a time",
    )
    groups = [[_part(text) for text in one.split("+")] for one in parser.parse_args().groups]

    def say(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    return Run(_make, say)(*groups)


def _make(name: str, alone: bool) -> list[str]:
    """Return the command of a part.

    Of two machines each gets one processor: emulated processors of one machine stop one another
    at every change of a page table, and with two each a process takes 1.5 times as long to start.
    """
    return ["make", "--no-print-directory", name, *([] if alone else ["CPUS=1"])]


def _part(text: str) -> Part:
    name, _, needs = text.partition(":")
    return Part(name, tuple(filter(None, needs.split(","))))


if __name__ == "__main__":
    sys.exit(main())
