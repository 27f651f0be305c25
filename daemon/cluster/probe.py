"""Why a node's liveliness token went: its daemon, or the node (or the way to it).

A TCP connection to the node's fabric endpoint tells them apart, because the kernel answers
even when the daemon does not (RFC 9293, 3.10.7.1: a reset for a closed port). The node's
containers live on in the kernel when only the daemon died: their replicas stay reachable.
"""

from __future__ import annotations

import asyncio
import enum

from daemon.fabric.interface import parse_endpoint


class Probe(enum.Enum):
    """What a connection attempt says about a node."""

    ANSWERS = "answers"
    """Something listens: the daemon is there, or its listener's queue still is."""
    REFUSED = "refused"
    """The node's kernel is alive, though its daemon is not."""
    SILENT = "silent"
    """No answer in time, or no way there: the node may be dead."""


async def probe(endpoint: str, timeout: float) -> Probe:
    """Connect to ``tls/HOST:PORT`` without speaking TLS; at most `timeout` seconds.

    InvalidConfig if `endpoint` has another form.
    """
    host, port = parse_endpoint(endpoint)
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return Probe.REFUSED
    except OSError:  # TimeoutError too; unreachable, reset, a name that does not resolve
        return Probe.SILENT
    writer.transport.abort()  # a reset leaves nothing behind on either side
    return Probe.ANSWERS
