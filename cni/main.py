"""The executable ``noctule``: from CNI_COMMAND to a verb, from a verb to stdout and exit code.

CNI specification 1.1.0, section 2.

1. Without CNI_COMMAND: the about text on stderr, exit code 0, as the reference library does.
2. The environment is validated before stdin is read, and stdin before the verb runs.
3. Success is exit code 0 and at most one JSON object on stdout; failure is exit code 1 and
   the error object on stdout. Nothing else is ever written there.
4. VERSION needs no network configuration and no other variable. It answers with the version that
   it reads from stdin. If nothing comes within `SILENCE` seconds it answers with the latest: stdin
   may be a terminal or a pipe that nobody closes, and the reference library does not read it.
5. The process may be killed at any time. What it did until then is recorded in the state that
   ``netconf`` or the daemon keeps, and the next call completes or undoes it.
"""

from __future__ import annotations

from posix import read as read_fd
from posix import write
from time import monotonic

from cni import environment
from cni.codec import decode, encode, matched
from cni.errors import INTERNAL, INVALID_ENVIRONMENT, IO_FAILURE, Failure
from cni.result import LATEST, SUPPORTED

TYPE_CHECKING = False  # the name that type checkers look for; importing typing costs 8 ms
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni.config import Network

    Verb = Callable[[environment.Environment, Network], dict[str, object] | None]

SILENCE = 1.0
"""Seconds. A runtime that passes something on stdin writes it before or just after exec."""

ABOUT = f"""\
CNI plugin noctule: one encrypted interface on one flat, mesh-routed network
CNI protocol versions supported: {", ".join(SUPPORTED)}
"""


def _add() -> Verb:
    from cni.add import add

    return add


def _delete() -> Verb:
    from cni.delete import delete

    return delete


def _check() -> Verb:
    from cni.check import check

    return check


def _gc() -> Verb:
    from cni.gc import collect

    return collect


def _status() -> Verb:
    from cni.status import status

    return status


# A process serves one verb, so it imports only the module of that verb.
VERBS: dict[str, Callable[[], Verb]] = {
    "ADD": _add,
    "DEL": _delete,
    "CHECK": _check,
    "GC": _gc,
    "STATUS": _status,
}


def main() -> int:
    """Serve the one call that the process was started for; return the exit code."""
    verb = environment.command()
    if not verb:
        return _put(2, ABOUT)
    data = b""
    try:
        if verb == "VERSION":
            return _put(1, encode(_version()) + "\n")
        if verb not in VERBS:
            raise Failure(
                INVALID_ENVIRONMENT,
                f"CNI_COMMAND: unknown verb {verb!r}; known are {', '.join(VERBS)}, VERSION",
            )
        call = environment.read(verb)
        data = _stdin()
        from cni import config

        shape = VERBS[verb]()(call, config.read(data, verb))
        text = encode(shape) + "\n" if shape is not None else ""
    except Failure as failure:
        return _fail(failure, data)
    except Exception as problem:
        return _fail(_unexpected(problem), data)
    return _put(1, text)


def _stdin() -> bytes:
    data = bytearray()
    try:
        while part := read_fd(0, 65536):
            data += part
    except OSError as problem:
        raise Failure(
            IO_FAILURE, "cannot read the network configuration from stdin", str(problem)
        ) from None
    return bytes(data)


def _version() -> dict[str, object]:
    return {"cniVersion": _asked() or LATEST, "supportedVersions": list(SUPPORTED)}


def _asked() -> str:
    # Imported here, because only VERSION waits for stdin with a time limit.
    from select import POLLIN, poll

    until = monotonic() + SILENCE
    stdin = poll()
    stdin.register(0, POLLIN)
    received = b""
    try:
        while stdin.poll(max(0.0, until - monotonic()) * 1000) and len(received) < 1 << 20:
            part = read_fd(0, 65536)
            if not part:
                break
            received += part
        value = decode(received)
    except (OSError, ValueError):
        return ""
    asked = matched(value, ("cniVersion",)).get("cniVersion") if isinstance(value, dict) else None
    return asked if isinstance(asked, str) else ""


def _fail(failure: Failure, data: bytes) -> int:
    """Write the error in the version of the network configuration `data`, if that has one."""
    from cni import config

    _put(1, encode(failure.shape(config.version_of(data) or LATEST)) + "\n")
    return 1


def _unexpected(problem: Exception) -> Failure:
    """Return the Failure for an exception that is a bug, with its type and place in the code."""
    trace, place = problem.__traceback__, ""
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return Failure(
        INTERNAL,
        "internal error; please report it with the details",
        f"{type(problem).__name__}: {problem} at {place}",
    )


def _put(stream: int, text: str) -> int:
    """Write all of `text`; return the exit code, which is 1 if it cannot be written."""
    data = text.encode()
    try:
        while data:
            data = data[write(stream, data) :]
    except OSError:
        return 1
    return 0
