"""The executable as a runtime sees it, and a peer that speaks the daemon's side of the socket.

1. Every test starts the real code in a process of its own, as packaging does: isolated,
   without site. Only the path of the code and the time limits come from here.
2. The peer is an HTTP server of the standard library: it judges our requests by the book.
"""

from __future__ import annotations

import json
import os
import socket as sockets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = [path for path in sys.path if path.endswith(("site-packages", "dist-packages", "deps"))]
"""Where this process found netconf's dependencies; packaging adds its own folder instead."""

LAUNCHER = """
import sys
sys.path.insert(0, {root!r})
sys.path += {packages!r}
{settings}
from cni.main import main
sys.exit(main())
"""

ATTACHED: dict[str, Any] = {
    "addresses": ["10.64.16.5/12"],
    "routes": ["10.80.0.0/16"],
    "mac": "02:4e:0a:40:10:05",
    "mtu": 1394,
    "nameserver": "127.0.0.78",
    "service": "web",
    "host": [
        {"name": "vh0123456789ab", "mac": "0a:4e:0a:40:10:05", "mtu": 1418},
        {"name": "vc0123456789ab", "mac": "02:4e:0a:40:10:05", "mtu": 1426},
    ],
}

NETNS = "/run/netns/nowhere"

RUNTIME = Path("/proc/self/exe").resolve().name
"""What the executable takes its caller for: this process."""


def environment(verb: str, **changes: str | None) -> dict[str, str]:
    """Return what a runtime sets for `verb`; a change of None removes the variable."""
    variables = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": "c0ffee",
        "CNI_NETNS": NETNS,
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "",
        "CNI_PATH": "/opt/cni/bin",
        **changes,
    }
    return {name: value for name, value in variables.items() if value is not None}


def configuration(socket: Any = "/nonexistent/socket", **changes: Any) -> dict[str, Any]:
    """Return a network configuration that works; a change of None removes the field."""
    fields = {
        "cniVersion": "1.1.0",
        "name": "mesh",
        "type": "noctule",
        "service": "web",
        "key": {"file": "/run/noctule/keys/mesh.key"},
        "socket": str(socket) if isinstance(socket, Path) else socket,
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not None}


def previous(**changes: Any) -> dict[str, Any]:
    """Return the result of the ADD that `ATTACHED` answers."""
    return {
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "eth0", "mac": "02:4e:0a:40:10:05", "mtu": 1394, "sandbox": NETNS},
            *ATTACHED["host"],
        ],
        "ips": [{"address": "10.64.16.5/12", "interface": 0}],
        "routes": [{"dst": "10.80.0.0/16"}],
        "dns": {"nameservers": ["127.0.0.78"]},
        **changes,
    }


@dataclass
class Outcome:
    """What the process left behind."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> dict[str, Any]:
        """Stdout, which must be one JSON object and nothing else."""
        value = json.loads(self.stdout)
        assert isinstance(value, dict)
        return value

    def failed(self, code: int, *words: str) -> None:
        """Assert the error `code`, with all `words` in its message or details."""
        assert self.status == 1, self
        error = self.json
        assert set(error) == {"cniVersion", "code", "msg", "details"}, error
        assert error["code"] == code, error
        for word in words:
            assert word in error["msg"] + error["details"], error

    def succeeded(self) -> None:
        """Assert success without output."""
        assert (self.status, self.stdout) == (0, ""), self


def command(netns: str = "") -> list[str]:
    """Return the command that runs Python code as packaging does, in the namespace `netns`."""
    enter = ["nsenter", f"--net={netns}", "--"] if netns else []
    return [*enter, sys.executable, "-I", "-S", "-c"]


def run(
    variables: dict[str, str],
    stdin: bytes | dict[str, Any] | int = b"",
    *,
    answer: float = 20.0,
    netns: str = "",
) -> Outcome:
    """Start the executable; `answer` is its time limit for the daemon, in seconds.

    It runs in the network namespace at the path `netns`, if given.
    """
    settings = "" if answer == 20.0 else f"import cni.client; cni.client.ANSWER = {answer}"
    code = LAUNCHER.format(root=str(ROOT), packages=PACKAGES, settings=settings)
    data: dict[str, Any] = (
        {"stdin": stdin}
        if isinstance(stdin, int)
        else {"input": json.dumps(stdin).encode() if isinstance(stdin, dict) else stdin}
    )
    done = subprocess.run(
        [*command(netns), code],
        env={os.fsdecode(name): value for name, value in variables.items()},
        capture_output=True,
        timeout=120,
        check=False,
        **data,
    )
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


Reply = tuple[int, Any]


@dataclass
class Daemon:
    """The daemon's side: records requests, and replies what the test says."""

    socket: Path
    replies: dict[str, Reply] = field(default_factory=dict)
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    instead: Callable[[BaseHTTPRequestHandler], None] | None = None
    """Called in place of a reply: to answer nonsense, or late, or never."""

    def reply(self, target: str) -> Reply:
        """Return the reply to `target`."""
        return self.replies.get(target, (200, ATTACHED if target == "/v1/attach" else {}))

    @property
    def body(self) -> Any:
        """The body of the only request."""
        ((_, _, body),) = self.requests
        return body


class _Server(ThreadingUnixStreamServer):
    daemon_threads = True
    daemon: Daemon


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _serve(self) -> None:
        daemon = self.server.daemon
        length = int(self.headers.get("Content-Length", "0"))
        body = json.loads(self.rfile.read(length)) if length else None
        daemon.requests.append((self.command, self.path, body))
        if daemon.instead is not None:
            daemon.instead(self)
            return
        status, answer = daemon.reply(self.path)
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _serve  # noqa: N815  the names http.server calls

    def log_message(self, format: str, *args: Any) -> None:
        """Stay quiet."""


@contextmanager
def serving(socket: Path) -> Iterator[Daemon]:
    """Serve the daemon's API on `socket`."""
    with _Server(str(socket), _Handler) as server:
        server.daemon = Daemon(socket)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.daemon
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def dying(path: Path) -> Iterator[None]:
    """A daemon that takes one request and dies over it, as if killed."""
    with sockets.socket(sockets.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                listener.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()
