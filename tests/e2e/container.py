"""A container without a runtime: a process in a network namespace of its own."""

from __future__ import annotations

import socket
import subprocess
from dataclasses import dataclass, field
from typing import Any

from tests.e2e.machine import socket_in


@dataclass
class Container:
    """A process in its own network namespace, and what CNI made of it."""

    name: str
    node: str
    service: str
    process: subprocess.Popen[str]
    ifname: str = "eth0"
    result: dict[str, Any] = field(default_factory=dict)
    add_ms: float = 0.0

    @property
    def netns(self) -> str:
        """Path of its network namespace."""
        return f"/proc/{self.process.pid}/ns/net"

    @property
    def address(self) -> str:
        """Its IPv4 address, without the prefix."""
        return str(self.result["ips"][0]["address"]).partition("/")[0]

    @property
    def address6(self) -> str:
        """Its IPv6 address, without the prefix."""
        return str(self.result["ips"][1]["address"]).partition("/")[0]

    def dial(self, address: str, port: int, timeout: float = 20.0) -> socket.socket:
        """Connect from inside; OSError as the kernel reports it."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket_in(self.netns, family=family)
        sock.settimeout(timeout)
        try:
            sock.connect((address, port))
        except OSError:
            sock.close()
            raise
        return sock

    def greet(self, address: str, port: int) -> str:
        """Connect and return the name that answers."""
        with self.dial(address, port) as sock, sock.makefile() as lines:
            return lines.readline().strip()

    def kill(self) -> None:
        """End the process, and with it the namespace."""
        self.process.kill()
        self.process.wait()
