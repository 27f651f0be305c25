"""The old release's process, one for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.compat.released import Released


@pytest.fixture(scope="session")
def old() -> Iterator[Released]:
    with Released() as process:
        yield process
