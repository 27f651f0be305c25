"""Structured logs: one event per line, as JSON on stderr, where systemd or a file takes it."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import msgspec

_encode = msgspec.json.Encoder(enc_hook=str).encode


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return _encode(fields).decode()


class Journal:
    """Writes events that all carry the same fields, such as the node's name."""

    def __init__(self, **fields: object) -> None:
        """Every line of this journal carries `fields`."""
        self._fields = fields
        self._log = logging.getLogger("noctule")

    def info(self, event: str, **fields: object) -> None:
        """Something happened that an operator may want to follow."""
        self._log.info(event, extra={"fields": {**self._fields, **fields}})

    def warning(self, event: str, **fields: object) -> None:
        """Something is wrong, and the daemon copes."""
        self._log.warning(event, extra={"fields": {**self._fields, **fields}})

    def error(self, event: str, *, exc: BaseException | None = None, **fields: object) -> None:
        """Something failed; with `exc`, its traceback is part of the line."""
        self._log.error(event, exc_info=exc, extra={"fields": {**self._fields, **fields}})


def start(level: str) -> None:
    """Send all log lines of this process, libraries' too, to stderr from `level` up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # aiohttp logs each request at INFO; ours carry what matters.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
