"""Messages to the service manager (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket


def tell(state: str) -> None:
    """Send a `state` such as ``READY=1`` to the service manager, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        sock.sendall(state.encode())


def watchdog() -> float | None:
    """Return the seconds without ``WATCHDOG=1`` after which the service manager ends this process;
    None if it does not watch it (sd_watchdog_enabled(3))."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        return int(os.environ["WATCHDOG_USEC"]) / 1e6
    except (KeyError, ValueError):
        return None
