"""A small part of the fuzzing, the same each time: see tests/fuzz."""

from __future__ import annotations

import os

import pytest

from tests.fuzz import TARGETS
from tests.fuzz.run import run

CASES_PER_SHARE = 10
AT_LEAST = 100
"""Cases; well under a second for each target on an idle machine."""


@pytest.mark.parametrize("target", TARGETS)
def test_some_cases(target: str) -> None:
    if target == "api_requests" and os.geteuid() != 0:
        pytest.skip("only root may use the socket")
    cases = max(AT_LEAST, CASES_PER_SHARE * TARGETS[target])
    report = run(target, 0, 0, cases)
    assert not report.failures, "\n".join(report.failures.values())
    assert report.cases == cases
