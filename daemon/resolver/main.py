"""``noctule-resolver``: serves names in all containers of one node until told to stop.

Exit status 0 after SIGTERM or SIGINT, 1 when it could not start; the reason is one log line.
Of ``node.yaml`` it reads only ``paths.state``: the rest is for the daemon, and the modules that
check it would need more memory than all of this process.
"""

from __future__ import annotations

import argparse
import signal
import socket
from pathlib import Path

import msgspec

from daemon import journal, yamlfile
from daemon.paths import Paths
from daemon.process import descriptors, systemd
from daemon.resolver.server import Server
from netconf.errors import InvalidConfig, IOFailure, NoctuleError


class NodeFile(msgspec.Struct):
    """The part of ``node.yaml`` that matters here."""

    paths: Paths = msgspec.field(default_factory=Paths)


def main() -> int:
    """Run the resolver; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="noctule-resolver", description="The name server of all containers of one node."
    )
    parser.add_argument("--config", type=Path, default=Path("/etc/noctule/node.yaml"))
    parser.add_argument("--log", default="info", choices=["debug", "info", "warning", "error"])
    arguments = parser.parse_args()
    journal.start(arguments.log)
    log = journal.Journal(program="noctule-resolver")
    try:
        folder = state_folder(arguments.config)
        descriptors.allow_most()
        with Server(folder, log) as server:
            server.serve(
                _stopped(), lambda: systemd.tell("READY=1"), lambda: systemd.tell("WATCHDOG=1")
            )
    except NoctuleError as error:
        log.error("cannot run", error=error.message, details=error.details)
        return 1
    log.info("stopped")
    return 0


def state_folder(path: Path) -> Path:
    """Return ``paths.state`` of the configuration at `path`.

    Raises IOFailure, DecodeFailure or InvalidConfig.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise IOFailure(f"cannot read {path}: {error}; give the file with --config") from error
    folder = Path(yamlfile.load(text, path.name, NodeFile).paths.state)
    if not folder.is_absolute():
        raise InvalidConfig(
            f'{path.name}: paths.state: "{folder}" is relative; give an absolute path'
        )
    return folder


def _stopped() -> socket.socket:
    """Return a socket that can be read once SIGTERM or SIGINT has come."""
    heard, signalled = socket.socketpair()
    signalled.setblocking(False)
    signal.set_wakeup_fd(signalled.detach())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return heard
