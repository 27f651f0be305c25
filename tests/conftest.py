"""What all tests have in common: how large their crowds are, and that the lab skips nothing.

1. A test that is for crowds of full size only is marked ``full`` and left out without ``--full``.
2. In the lab's machine a test that skips has failed: whatever it misses (a module, a program,
   root), the lab has to provide. On other machines a skip says what they lack.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TypeVar

import pytest

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

LAB = "NOCTULE_LAB"
"""Environment: set in the lab's machine (tests/lab)."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--full``: crowds as large as what we promise; without it, as large as a build has time."""
    parser.addoption("--full", action="store_true", help="hundreds of containers, not dozens")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker of rule 1."""
    config.addinivalue_line("markers", "full: takes too long for a build; only with --full")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what rule 1 says."""
    if config.getoption("full"):
        return
    out = [item for item in items if item.get_closest_marker("full")]
    if out:
        items[:] = [item for item in items if item not in out]
        config.hook.pytest_deselected(items=out)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Rule 2, for a test."""
    return _never_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Rule 2, for a module."""
    return _never_skipped((yield))


def _never_skipped(report: Report) -> Report:
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get(LAB):
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"not possible in the lab, which has to provide for it: {why}"
    return report


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether crowds are to be of full size (``make soak``)."""
    return bool(request.config.getoption("full"))
