"""Probes of a node's kernel, and the addresses to send them to.

1. A TCP connection to the node's fabric endpoint tells a dead daemon from a dead node, because
   the kernel answers even when the daemon does not (RFC 9293, 3.10.7.1: a reset for a closed
   port). The containers live on in the kernel when only the daemon died.
2. A probe never waits for a name server. For a name it uses the addresses that the last look-up
   found. Names are looked up ahead of time and again every `LOOK_UP_AGAIN` seconds. A look-up that
   fails leaves the known addresses as they are, so the loss of a name server changes nothing.
3. A probe of a suspect node does not wait until the kernel asks for the next hop's link address
   again, because `netconf.netlink.next_hop` has it ask at once. So an answer comes as soon as the
   link is back.
4. Names are looked up in threads that do not delay the daemon's exit: without a name server, a
   look-up takes half a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterable

from daemon.fabric.interface import parse_endpoint
from daemon.process.workers import Pool
from netconf.errors import InvalidConfig
from netconf.netlink import links, next_hop

LOOK_UP_AGAIN = 60.0
"""Seconds between look-ups of a name whose addresses are known."""

ADDRESSES = 4
"""Addresses of one name that are probed at most."""


class Probe(enum.Enum):
    """What a connection attempt says about a node."""

    ANSWERS = "answers"
    """Something listens: the daemon is there, or its listener's queue still is."""
    REFUSED = "refused"
    """The node's kernel is alive, though its daemon is not."""
    SILENT = "silent"
    """No answer in time, or no way there: the node may be dead."""


async def probe(address: str, port: int, timeout: float) -> Probe:
    """Connect to an IP `address` without speaking TLS; at most `timeout` seconds."""
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(address, port)
    except ConnectionRefusedError:
        return Probe.REFUSED
    except OSError:  # TimeoutError too; unreachable, reset
        return Probe.SILENT
    writer.transport.abort()  # a reset leaves nothing behind on either side
    return Probe.ANSWERS


async def ask_again(pool: Pool, addresses: Iterable[str]) -> None:
    """Have the kernel ask at once for the link addresses of the next hops to these IP `addresses`.

    Only where they are unresolved; see `netconf.netlink.next_hop`. It runs in a thread of `pool`.
    """
    await pool.run(_ask_again, tuple(addresses))


def _ask_again(addresses: Iterable[str]) -> None:
    # If this fails, a probe may take a second longer, but its result is still right.
    with contextlib.suppress(OSError), links.open() as rtnl:
        for address in addresses:
            next_hop.ask_again(rtnl, address)


def look_up(name: str) -> tuple[str, ...]:
    """Return the addresses of a host `name`; blocks.

    OSError if there is no answer, ValueError (UnicodeError) if it is not a valid name.
    """
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    # A scope id ("fe80::1%eth0") is kept, because the address cannot be reached without it.
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


class Addresses:
    """The IP addresses of endpoints, as far as their names have been looked up."""

    def __init__(self, look_up: Callable[[str], tuple[str, ...]] = look_up) -> None:
        """`look_up` is called in a thread of its own."""
        self._look_up = look_up
        self._known: dict[str, tuple[str, ...]] = {}
        self._due: dict[str, float] = {}

    def of(self, endpoint: str) -> list[tuple[str, int]]:
        """Return the known addresses, with port, of ``tls/HOST:PORT``; never waits.

        Empty for an invalid endpoint, and for a name that has not been looked up yet.
        """
        if (parsed := _parse(endpoint)) is None:
            return []
        host, port = parsed
        addresses = (host,) if _is_address(host) else self._known.get(host, ())
        return [(address, port) for address in addresses[:ADDRESSES]]

    async def learn(self, endpoints: Iterable[str], now: float) -> None:
        """Look up the names in `endpoints` that are due at `now`, in seconds of any clock.

        They are looked up one after the other, so that a node that publishes many names keeps only
        one thread busy. A name without known addresses is due each time.
        """
        hosts = {parsed[0] for endpoint in endpoints if (parsed := _parse(endpoint)) is not None}
        names = {host for host in hosts if not _is_address(host)}
        self._known = {name: found for name, found in self._known.items() if name in names}
        for name in sorted(names):
            if name in self._known and now < self._due[name]:
                continue
            if found := await _in_thread(self._look_up, name):
                self._known[name], self._due[name] = found, now + LOOK_UP_AGAIN


def _parse(endpoint: str) -> tuple[str, int] | None:
    try:
        return parse_endpoint(endpoint)
    except InvalidConfig:  # the endpoint comes from another node's info and may be invalid
        return None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _in_thread(look_up: Callable[[str], tuple[str, ...]], name: str) -> tuple[str, ...]:
    """Return the addresses of `name`, none if that fails."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[tuple[str, ...]] = loop.create_future()

    def settle(found: tuple[str, ...]) -> None:
        if not answer.done():
            answer.set_result(found)

    def run() -> None:
        found: tuple[str, ...] = ()
        with contextlib.suppress(OSError, ValueError):
            found = look_up(name)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, found)

    threading.Thread(target=run, name="look-up", daemon=True).start()
    return await answer
