"""The README's first command, as a test: every line of the demo holds."""

from __future__ import annotations

from tests.e2e import demo


def test_every_line_holds() -> None:
    assert demo.main() == 0
