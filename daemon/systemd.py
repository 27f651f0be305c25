"""What the service manager is told (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket


def tell(state: str) -> None:
    """Say something such as ``READY=1`` to the service manager, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        sock.sendall(state.encode())
