"""How large the crowds are, for all tests that make some."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--full``: crowds as large as what we promise; without it, as large as a build has time."""
    parser.addoption("--full", action="store_true", help="hundreds of containers, not dozens")


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether crowds are to be of full size (``make soak``)."""
    return bool(request.config.getoption("full"))
