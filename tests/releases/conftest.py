"""What the end-to-end tests stand on is what these stand on."""

from tests.e2e.conftest import _machine

__all__ = ["_machine"]
