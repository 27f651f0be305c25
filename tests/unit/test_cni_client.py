"""The daemon is away, slow, dying or talking nonsense."""

from __future__ import annotations

import os
import socket
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from cni_kit import ATTACHED, configuration, dying, environment, previous, run, serving

NOT_RUN = "noctuled has not run since boot; start it: systemctl start noctuled"


@pytest.fixture(params=["no socket", "no folder", "nobody accepts", "a file"])
def absent(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A socket path where nobody listens."""
    path = tmp_path / "d.sock"
    match request.param:
        case "no folder":
            path = tmp_path / "missing" / "d.sock"
        case "nobody accepts":
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
        case "a file":
            path.touch()
    return path


def test_add_without_a_daemon_since_boot(absent: Path) -> None:
    run(environment("ADD"), configuration(absent)).failed(11, NOT_RUN)
    assert not (absent.parent.name == "missing" and absent.parent.exists())


def test_check_without_a_daemon_since_boot(absent: Path) -> None:
    config = configuration(absent, prevResult=previous())
    run(environment("CHECK"), config).failed(11, NOT_RUN)


def test_del_without_a_daemon_since_boot(absent: Path) -> None:
    run(environment("DEL"), configuration(absent)).succeeded()
    run(environment("DEL", CNI_NETNS=""), configuration(absent)).succeeded()


def test_del_with_a_wrong_socket_makes_no_state_folder(tmp_path: Path) -> None:
    run(environment("DEL"), configuration(tmp_path / "d.sock")).succeeded()
    run(environment("ADD"), configuration(tmp_path / "d.sock")).failed(11, NOT_RUN)
    assert list(tmp_path.iterdir()) == []


def test_status_without_a_daemon(absent: Path) -> None:
    run(environment("STATUS"), configuration(absent)).failed(
        50, "noctuled does not run", "systemctl start noctuled", "/run/noctule/keys/mesh.key",
        str(absent),
    )  # fmt: skip


def test_gc_without_a_daemon(absent: Path) -> None:
    config = configuration(absent, **{"cni.dev/valid-attachments": []})
    run(environment("GC"), config).succeeded()  # since boot there was nothing to collect
    run(environment("GC"), configuration(absent)).succeeded()
    assert not (absent.parent.name == "missing" and absent.parent.exists())


def test_a_path_that_is_no_stream_socket(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        run(environment("ADD"), configuration(path)).failed(5, str(path))
        run(environment("DEL"), configuration(path)).succeeded()


def _mute(done: threading.Event) -> Any:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        done.wait(60)
        handler.close_connection = True

    return answer


def _trickle(done: threading.Event) -> Any:
    """Answers a little at a time, each within the limit, for ever."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        try:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not done.wait(0.05):
                handler.wfile.write(b" ")
        except OSError:
            pass  # the executable has given up, as it should

    return answer


@pytest.mark.parametrize("manner", [_mute, _trickle])
@pytest.mark.parametrize(
    ("verb", "code"), [("ADD", 11), ("CHECK", 11), ("GC", 0), ("STATUS", 50), ("DEL", 0)]
)
def test_a_daemon_that_takes_too_long(tmp_path: Path, manner: Any, verb: str, code: int) -> None:
    done = threading.Event()
    with serving(tmp_path / "d.sock") as daemon:
        daemon.instead = manner(done)
        config = configuration(
            daemon.socket, prevResult=previous(), **{"cni.dev/valid-attachments": []}
        )
        outcome = run(environment(verb), config, answer=0.3)
        done.set()
    if code:
        outcome.failed(code, "0.3 s")
    else:
        outcome.succeeded()


def test_a_full_queue_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "d.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        waiting = []
        try:
            while True:
                client = socket.socket(socket.AF_UNIX)
                client.setblocking(False)
                waiting.append(client)
                client.connect(str(path))
        except BlockingIOError:
            pass
        run(environment("ADD"), configuration(path)).failed(11, "waiting")
        for client in waiting:
            client.close()


NONSENSE = {
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\n",
    "half a body": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
    "no length": b"HTTP/1.1 200 OK\r\n\r\n{}",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}",
    "huge length": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{}",
    "not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\nContent-Length: 2\r\n\r\n{}",
    "not JSON": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{]",
    "no object": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
    "an error without a code": b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}",
    "an error with code 0": b'HTTP/1.1 500 X\r\nContent-Length: 21\r\n\r\n{"code":0,"msg":"no"} ',
    "an error with code true": b"HTTP/1.1 500 X\r\nContent-Length: 24\r\n\r\n"
    b'{"code":true,"msg":"no"}',
    "an error with code 2^32": b"HTTP/1.1 500 X\r\nContent-Length: 30\r\n\r\n"
    b'{"code":4294967296,"msg":"no"}',
    "an error without words": b'HTTP/1.1 500 X\r\nContent-Length: 19\r\n\r\n{"code":7,"msg":""}',
    "an error in plain text": b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nNot found",
}


@pytest.mark.parametrize("name", NONSENSE)
@pytest.mark.parametrize(("verb", "code"), [("ADD", 11), ("CHECK", 11), ("STATUS", 50)])
def test_nonsense(tmp_path: Path, name: str, verb: str, code: int) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.wfile.write(NONSENSE[name])

    with serving(tmp_path / "d.sock") as daemon:
        daemon.instead = answer
        config = configuration(daemon.socket, prevResult=previous())
        run(environment(verb), config).failed(code)
        run(environment("DEL"), config).succeeded()


@pytest.mark.parametrize(
    "changes",
    [
        {"addresses": None},
        {"addresses": [1]},
        {"mtu": None},
        {"routes": "x"},
        {"mac": []},
        {"service": 1},
        {"nameserver": None},
    ],
)
def test_an_answer_to_attach_of_another_shape(tmp_path: Path, changes: dict[str, Any]) -> None:
    with serving(tmp_path / "d.sock") as daemon:
        daemon.replies["/v1/attach"] = (200, {**ATTACHED, **changes})
        run(environment("ADD"), configuration(daemon.socket)).failed(11, "attach")
        daemon.replies["/v1/attach"] = (200, {})
        run(environment("ADD"), configuration(daemon.socket)).failed(11, "address")


def test_a_daemon_that_dies_over_the_request(tmp_path: Path) -> None:
    with dying(tmp_path / "a.sock"):
        # The executable then works alone, and finds that no daemon has written node.json.
        run(environment("ADD"), configuration(tmp_path / "a.sock")).failed(11, NOT_RUN)
    with dying(tmp_path / "b.sock"):
        run(environment("DEL"), configuration(tmp_path / "b.sock")).succeeded()


def test_a_header_in_any_case_and_in_pieces(tmp_path: Path) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        for piece in (b"HTTP/1.1 200 OK\r", b"\ncontent-LENGTH:  2 \r\n", b"\r", b"\n{", b"}"):
            handler.wfile.write(piece)
            handler.wfile.flush()
            os.sched_yield()

    with serving(tmp_path / "d.sock") as daemon:
        daemon.instead = answer
        run(environment("DEL"), configuration(daemon.socket)).succeeded()
        assert len(daemon.requests) == 1
