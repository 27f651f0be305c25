"""What the model's tests share lasts as long as the process that made it, forks or not."""

from __future__ import annotations

import atexit
import multiprocessing

from tests.unit.model_kit import folder


def _clear() -> None:
    """What `multiprocessing` of Python 3.13 does first in a forked child."""
    atexit._clear()


def test_a_forked_child_leaves_the_certificates() -> None:
    made = folder()
    for child in (_clear, atexit._run_exitfuncs):
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        assert process.exitcode == 0
        assert (made / "ca.crt").exists(), child
