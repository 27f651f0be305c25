"""Commands, sockets and waiting, in one machine with several network namespaces."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any

from netconf.namespace import Namespace

PATIENCE = 90.0
"""Seconds for anything that is waited for: emulated machines are slow, broken ones forever."""


def run(*command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; with `check`, its failure says what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=330, **options)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def until(condition: Callable[[], Any], what: str, limit: float = PATIENCE) -> Any:
    """Return the first true result of `condition`; AssertionError after `limit` seconds."""
    end = time.monotonic() + limit
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > end:
            raise AssertionError(f"waited {limit:.0f} s in vain for: {what}")
        time.sleep(0.02)


def inside(namespace: str, *command: str, check: bool = True, **options: Any) -> Any:
    """Run a command in the network namespace at a path."""
    return run("nsenter", f"--net={namespace}", *command, check=check, **options)


def socket_in(
    namespace: str,
    kind: socket.SocketKind = socket.SOCK_STREAM,
    family: socket.AddressFamily = socket.AF_INET,
) -> socket.socket:
    """Return a socket that belongs to the namespace at a path."""
    with Namespace.open(namespace) as opened, opened.enter():
        return socket.socket(family, kind)
