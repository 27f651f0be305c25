"""``python -m tests.fuzz [TARGET ...] [--cases N] [--seed N] [--case N]``"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from time import monotonic

from tests.fuzz import TARGETS
from tests.fuzz.run import Report, run

CHUNKS = 8
"""Parts of each target: enough that processors end at the same time."""


def main() -> int:
    """Run; print a line for each target; return 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--cases", type=int, default=1_000_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run this one case of each target")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    given = parser.parse_args()
    names = given.targets or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    if given.case is not None:
        reports = [run(name, given.seed, given.case, 1) for name in names]
        return _tell(reports, 0.0)
    started = monotonic()
    reports = _parallel(names, given.cases, given.seed, given.jobs)
    return _tell(reports, monotonic() - started)


def _chunks(names: list[str], cases: int) -> Iterator[tuple[str, int, int]]:
    """Yield (target, first, count), the parts of the slow targets first."""
    total = sum(TARGETS[name] for name in names)
    for name in sorted(names, key=TARGETS.__getitem__):
        mine = -(-cases * TARGETS[name] // total)
        size = -(-mine // CHUNKS)
        for first in range(0, mine, size):
            yield name, first, min(size, mine - first)


def _parallel(names: list[str], cases: int, seed: int, jobs: int) -> list[Report]:
    together: dict[str, Report] = defaultdict(lambda: Report(""))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        waiting = [
            pool.submit(run, name, seed, first, n) for name, first, n in _chunks(names, cases)
        ]
        for done in as_completed(waiting):
            part = done.result()
            whole = together[part.target]
            whole.target = part.target
            whole.cases += part.cases
            whole.seconds += part.seconds
            whole.outcomes += part.outcomes
            whole.failures |= part.failures
    return [together[name] for name in names]


def _tell(reports: list[Report], seconds: float) -> int:
    for report in reports:
        counts = ", ".join(f"{what} {n:,}" for what, n in sorted(report.outcomes.items()))
        rate = report.cases / report.seconds if report.seconds else 0
        print(f"{report.target:16} {report.cases:>9,} cases {rate:>8,.0f}/s  {counts}")
    failures = [failure for report in reports for failure in report.failures.values()]
    for failure in failures:
        print(f"\n{failure}", file=sys.stderr)
    cases = sum(report.cases for report in reports)
    print(
        f"{cases:,} cases in {seconds:.0f} s: "
        + (f"{len(failures)} FAILURES" if failures else "no traceback, no hang, nothing left")
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
