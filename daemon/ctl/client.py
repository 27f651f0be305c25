"""HTTP to one daemon over its unix socket, for a person at a terminal."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path
from typing import TypeVar

import msgspec

from netconf.errors import DecodeFailure, IOFailure, NoctuleError

T = TypeVar("T")

ANSWER_WITHIN = 30.0
"""Seconds for an answer, except to ``verify``."""
VERIFY_WITHIN = 300.0
"""Seconds for an answer to ``verify``. A thousand containers are read back in a few seconds, on a
slow board in a minute."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, within: float) -> None:
        super().__init__("noctuled", timeout=within)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Refused(NoctuleError):
    """The daemon answered with an error of its own."""


class _Problem(msgspec.Struct):
    code: int
    msg: str
    details: str = ""


def ask(
    path: Path,
    method: str,
    target: str,
    kind: type[T],
    body: bytes | None = None,
    *,
    within: float = ANSWER_WITHIN,
) -> T:
    """Return the daemon's answer to `method` `target`, decoded as a `kind`.

    Waits at most `within` seconds. Raises IOFailure if no daemon answers at `path`, Refused if it
    answers with an error, and DecodeFailure if the answer cannot be decoded.
    """
    connection = _Connection(path, within)
    try:
        connection.request(method, target, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise IOFailure(
            f"no daemon answers at {path}: {error}; is noctuled running? "
            "(--config or --socket chooses another)"
        ) from error
    finally:
        connection.close()
    try:
        if response.status == 200:
            return msgspec.json.decode(answer, type=kind)
        problem = msgspec.json.decode(answer, type=_Problem)
    except (msgspec.MsgspecError, ValueError) as error:
        raise DecodeFailure(
            f"the answer of {path} (status {response.status}) is not noctuled's: {error}; "
            "use the noctulectl of its version"
        ) from error
    raise Refused(problem.msg, details=problem.details)
