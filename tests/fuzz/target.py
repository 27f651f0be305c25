"""What a target is, and what it may come to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

from cni.errors import Failure
from netconf.errors import NoctuleError

Case = Any
"""Dicts, lists, strings, bytes, numbers and None: what `minimise` can make smaller."""


@dataclass(frozen=True)
class Target:
    """One way in: `draw` makes a case, `run` returns in a word what became of it."""

    draw: Callable[[Random], Case]
    run: Callable[[Case], str]


class Wrong(AssertionError):
    """The code kept running, but broke a promise."""


def require(condition: object, promise: str) -> None:
    """Raise Wrong with the `promise` that was broken, unless `condition`."""
    if not condition:
        raise Wrong(promise)


def outcome(call: Callable[[], object], begins: str = "") -> str:
    """Return ``value`` or ``error CODE``; the error's message must start with `begins`."""
    try:
        call()
    except NoctuleError as error:
        # Logs, terminals and the API take UTF-8; half a surrogate pair would break them.
        (error.message + error.details).encode()
        return judged(error.code, error.message, error.details, begins)
    except Failure as error:
        return judged(error.code, error.message, error.details, begins)
    return "value"


def judged(code: object, message: object, details: object, begins: str = "") -> str:
    """Return ``error CODE`` if an error is fit to be shown, else raise Wrong."""
    require(type(code) is int and 0 < code < 1000, f"the code is one of ours: {code}")
    require(isinstance(message, str) and isinstance(details, str), "an error is made of text")
    assert isinstance(message, str) and isinstance(details, str)
    require(message.startswith(begins) and len(message.split()) > 2, f"a sentence: {message!r}")
    require("please report" not in message, f"nothing is unforeseen: {message} {details}")
    require(len(message) < 100_000, "a sentence is not a dump of its input")
    return f"error {code}"


class _Log(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it as the daemon would print it."""
        self._lines.append(logging.Formatter().format(record))


@contextmanager
def logged() -> Iterator[list[str]]:
    """Offer the list of what is logged as an error, with its traceback if it has one."""
    lines: list[str] = []
    handler = _Log(lines)
    logging.getLogger().addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger().removeHandler(handler)
