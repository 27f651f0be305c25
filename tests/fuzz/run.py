"""Running cases of one target: counted, watched, and looked over for what they left."""

from __future__ import annotations

import faulthandler
import gc
import importlib
import signal
import tempfile
import threading
import traceback
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import monotonic
from types import FrameType

from tests.fuzz.minimise import minimise
from tests.fuzz.target import Case, Target, Wrong

BUSY = 1.0
"""Seconds of CPU that one case may take; CPU, because the machine has other things to do."""

BLOCKED = 20.0
"""Seconds that one case may wait, for whatever."""

STUCK = 120.0
"""Seconds for a hundred cases, after which a process that cannot even take a signal ends, with a
traceback."""


MEMORY = "/dev/shm"
"""For files: what is fuzzed keeps them in memory too, and a disk would be what is measured."""


class Hang(BaseException):
    """One case took too long; no handler of errors may swallow it."""


@dataclass
class Report:
    """What became of the cases."""

    target: str
    cases: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)
    """Traceback and smallest case, for people, by what tells failures apart."""


@dataclass(frozen=True)
class Traces:
    """What a process has open."""

    descriptors: tuple[str, ...]
    threads: tuple[str, ...]

    @classmethod
    def now(cls) -> Traces:
        """Look, after what nobody refers to is gone."""
        gc.collect()
        found = []
        for fd in list(Path("/proc/self/fd").iterdir()):
            with suppress(FileNotFoundError):  # what listed them
                found.append(f"{fd.name} {fd.readlink()}")
        return cls(tuple(sorted(found)), tuple(sorted(t.name for t in threading.enumerate())))


def run(name: str, seed: int, first: int, count: int) -> Report:
    """Run cases `first` … of the target `name`, until one fails."""
    report = Report(name)
    module = importlib.import_module(f"tests.fuzz.targets.{name}")
    memory = MEMORY if Path(MEMORY).is_dir() else None
    with tempfile.TemporaryDirectory(prefix="noctule-fuzz-", dir=memory) as folder:
        before = Traces.now()
        started = monotonic()
        place = Path(folder) / "own"
        place.mkdir()
        with _watching(), module.target(place) as target:
            _run(target, report, range(first, first + count), seed)
        report.seconds = monotonic() - started
        after = Traces.now()
        left = sorted(set(after.descriptors) - set(before.descriptors))
        left += sorted(set(after.threads) - set(before.threads))
        left += sorted(str(path) for path in place.rglob("*"))
        if left and not report.failures:
            report.failures["left"] = f"{name}: left behind: {', '.join(left)}"
    return report


def _run(target: Target, report: Report, numbers: range, seed: int) -> None:
    random = Random()
    base = (zlib.crc32(report.target.encode()) << 64) + (seed << 40)
    for number in numbers:
        if report.cases % 100 == 0:
            faulthandler.dump_traceback_later(STUCK, exit=True)
        random.seed(base + number)
        case = target.draw(random)
        report.cases += 1
        try:
            report.outcomes[_timed(target, case)] += 1
        except (Exception, Hang) as problem:
            story = _story(target, report.target, number, seed, case, problem)
            report.failures[_kind(problem)] = story
            return


def _timed(target: Target, case: Case) -> str:
    signal.setitimer(signal.ITIMER_PROF, BUSY)
    signal.setitimer(signal.ITIMER_REAL, BLOCKED)
    try:
        return target.run(case)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def _watching() -> Iterator[None]:
    def late(number: int, _frame: FrameType | None) -> None:
        raise Hang("no end" if number == signal.SIGALRM else f"more than {BUSY:g} s of CPU")

    before = {each: signal.signal(each, late) for each in (signal.SIGPROF, signal.SIGALRM)}
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        for each, handler in before.items():
            signal.signal(each, handler)


def _story(
    target: Target, name: str, number: int, seed: int, case: Case, problem: BaseException
) -> str:
    kind = _kind(problem)

    def fails(smaller: Case) -> bool:
        try:
            _timed(target, smaller)
        except (Exception, Hang) as other:
            return _kind(other) == kind
        return False

    smallest = case if isinstance(problem, Hang) else minimise(case, fails)
    return (
        f"{''.join(traceback.format_exception(problem))}\n"
        f"{name}: {type(problem).__name__} in case {number} of seed {seed}, at its smallest:\n"
        f"{smallest!r}\n"
        f"again: python -m tests.fuzz {name} --seed {seed} --case {number}"
    )


def _kind(problem: BaseException) -> str:
    """Tell failures apart: by what was raised, and where or which promise."""
    if isinstance(problem, Wrong):
        return str(problem).partition(":")[0]
    frames = traceback.extract_tb(problem.__traceback__)
    ours = [f for f in frames if "site-packages" not in f.filename and "/fuzz/" not in f.filename]
    place = f" at {ours[-1].filename}:{ours[-1].lineno}" if ours else ""
    return type(problem).__name__ + place
