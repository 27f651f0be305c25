"""The smallest case that still fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic

from tests.fuzz.target import Case

PATIENCE = 20.0
"""Seconds. A case is small enough for a person long before."""


def minimise(case: Case, fails: Callable[[Case], bool]) -> Case:
    """Return `case` without what it does not need for `fails` to say so."""
    until = monotonic() + PATIENCE
    found = True
    while found:
        found = False
        for smaller in _smaller(case):
            if monotonic() > until:
                return case
            if fails(smaller):
                case, found = smaller, True
                break
    return case


def _smaller(case: Case) -> Iterator[Case]:
    """Yield what is left of `case` without a part of it, large parts first."""
    match case:
        case dict():
            for key in case:
                yield {other: value for other, value in case.items() if other != key}
            for key, value in case.items():
                yield from ({**case, key: smaller} for smaller in _smaller(value))
        case list():
            yield from _shorter(case)
            for index, value in enumerate(case):
                for smaller in _smaller(value):
                    yield [*case[:index], smaller, *case[index + 1 :]]
        case str() | bytes():
            yield from _shorter(case)
        case int() if case:
            yield 0


def _shorter(case: Case) -> Iterator[Case]:
    size = len(case)
    while size:
        for start in range(0, len(case), size):
            yield case[:start] + case[start + size :]
        size //= 2
