"""An event loop whose clock is played: hours pass in no time, and in the same way each run.

1. Whatever is ready happens first; only then does the clock jump to the next timer. Sockets on
   loopback are real: what the kernel answers at once is ready before any time passes.
2. Not for what happens in threads: the clock does not wait for them.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class _Selector(selectors.DefaultSelector):
    """A selector that never waits, and says how long it should have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.waited = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout is None:
            return ready or super().select(timeout)
        self.waited += max(timeout, 0.0)
        return ready


class PlayedLoop(asyncio.SelectorEventLoop):
    """Its time begins at 1,000 s."""

    def __init__(self) -> None:
        self._played = _Selector()
        super().__init__(self._played)

    def time(self) -> float:
        return 1000.0 + self._played.waited

    def stop_for(self, seconds: float) -> None:
        """Let time pass in which nothing happens, as when the process was stopped."""
        self._played.waited += seconds


def play(scene: Coroutine[Any, Any, None]) -> None:
    """Run `scene` in a loop with a played clock."""
    with asyncio.Runner(loop_factory=PlayedLoop) as runner:
        runner.run(scene)


def loop() -> PlayedLoop:
    """Return the running loop."""
    running = asyncio.get_running_loop()
    assert isinstance(running, PlayedLoop)
    return running
