"""The name server of one attachment: UDP and TCP sockets inside its namespace (RFC 7766).

1. All containers share one loop, so the handling of each event does little and never waits: a few
   datagrams, one connection accepted, or one part of a message.
2. In one turn of `TURN` seconds an attachment may use `BUDGET` seconds of a processor. Then its
   sockets wait for the next turn, and the kernel drops what its buffers do not hold. So a container
   that floods its own name server costs the node a limited share of a processor.
3. A container may have `CONNECTIONS` connections; one more replaces the one that was silent
   longest. A connection that completes no query in `PATIENCE` seconds is closed, and so is one
   whose client does not read its answers.
4. If anything is wrong with a socket (a container with CAP_NET_ADMIN may destroy it), all of them
   are closed and `closed` is set. The server opens them again a little later.
5. Open sockets keep the namespace alive, so the server closes them when the namespace has lost its
   path. We close connections by a reset, because after a normal close TCP's remaining work would
   keep the namespace alive too.
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import struct
import time
from collections.abc import Callable

from daemon.resolver.answer import UDP_SIZE, Zone, answer
from netconf.names import NAMESERVER
from netconf.namespace import Namespace

PORT = 53
DATAGRAMS = 4
"""Datagrams that are answered in a row before other sockets are served."""
TURN = 0.05
"""Seconds: the longest time for which an attachment that has used its `BUDGET` waits."""
BUDGET = TURN / 10
"""Seconds of processor time in one turn: enough for thousands of queries a second, many times what
a busy client without a cache asks (tests/bench/resolver.py)."""
CONNECTIONS = 8
"""Open at a time for one container: libc uses one, and only after a truncated answer."""
PATIENCE = 5.0
"""Seconds for a query over TCP, which only crosses the container's own loopback."""
BACKLOG = 8
UNREAD = 16384
"""Bytes of answers that the kernel buffers for a TCP client that does not read them yet."""
FREEBIND = 15
"""IP_FREEBIND, include/uapi/linux/in.h: the runtime may bring ``lo`` up after ADD."""
LENGTH = struct.Struct("!H")
"""The length before each message over TCP (RFC 1035 4.2.2)."""
RESET = struct.pack("ii", 1, 0)
"""A struct linger that is on with 0 seconds: closing the socket then sends a reset."""

Handler = Callable[[], None]


class Gone(Exception):
    """There is no namespace at the path, or another one than was attached."""


class Turns:
    """Counts the loop's turns, and keeps the name servers that wait for the next one."""

    def __init__(self) -> None:
        self.number = 0
        self._waiting: list[NameServer] = []

    @property
    def awaited(self) -> bool:
        """Whether anyone waits for the next turn."""
        return bool(self._waiting)

    def wait(self, attachment: NameServer) -> None:
        """Resume `attachment` at the next turn."""
        self._waiting.append(attachment)

    def next(self) -> None:
        """Begin the next turn."""
        self.number += 1
        waiting, self._waiting = self._waiting, []
        for attachment in waiting:
            attachment.resume()


class NameServer:
    """The name server of one container."""

    def __init__(
        self,
        netns: str,
        netns_id: tuple[int, int],
        zone: Zone | None,
        selector: selectors.BaseSelector,
        turns: Turns,
    ) -> None:
        """Listen in the namespace at the path `netns`, if it has the identity `netns_id`.

        Raises Gone if it has another identity, OSError if the sockets cannot be opened.
        """
        self.zone = zone
        self.closed = False
        self.waiting = False
        """Whether it waits for the next turn, so that events of its sockets are not handled."""
        self._selector = selector
        self._turns = turns
        self._turn = 0
        self._spent = 0.0
        self._watched: dict[socket.socket, Handler] = {}
        self._connections: list[Connection] = []
        self._udp, self._tcp = _listen(netns, netns_id)
        self._watch(self._udp, self._datagrams)
        self._watch(self._tcp, self._accept)

    def close(self) -> None:
        """Close all sockets, so that the namespace can go. May be repeated."""
        self.closed = True
        for connection in list(self._connections):
            self._hang_up(connection)
        for sock in list(self._watched):
            self._unwatch(sock)

    def resume(self) -> None:
        """Handle events again, because a new turn has begun."""
        self.waiting = False
        for sock, handler in self._watched.items():
            self._selector.register(sock, selectors.EVENT_READ, (self, handler))

    def spend(self, seconds: float) -> None:
        """Count processor time of this attachment; when its `BUDGET` is used up, make it wait."""
        if self._turn != self._turns.number:
            self._turn, self._spent = self._turns.number, 0.0
        self._spent += seconds
        if self._spent >= BUDGET and not (self.closed or self.waiting):
            for sock in self._watched:
                self._selector.unregister(sock)
            self.waiting = True
            self._turns.wait(self)

    def hurry(self, now: float) -> None:
        """Close the connections whose `PATIENCE` has run out; `now` is of time.monotonic."""
        for connection in list(self._connections):
            if connection.until < now:
                self._hang_up(connection)

    # --- UDP

    def _datagrams(self) -> None:
        for _ in range(DATAGRAMS):
            try:
                query, client = self._udp.recvfrom(UDP_SIZE)
            except BlockingIOError:
                return
            except OSError:
                self.close()
                return
            answered = answer(query, self.zone)
            if answered is not None:
                # Ignore it if the container's own filter or a full buffer refuses the answer.
                with contextlib.suppress(OSError):
                    self._udp.sendto(answered, client)

    # --- TCP

    def _accept(self) -> None:
        try:
            sock, _ = self._tcp.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in (errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                self.spend(BUDGET)
            else:
                self.close()
            return
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD)
        if len(self._connections) == CONNECTIONS:
            self._hang_up(min(self._connections, key=lambda c: c.until))
        connection = Connection(sock)
        self._connections.append(connection)
        self._watch(sock, lambda: self._read(connection))

    def _read(self, connection: Connection) -> None:
        try:
            part = connection.sock.recv(connection.missing())
        except BlockingIOError:
            return
        except OSError:
            part = b""
        if not part:
            self._hang_up(connection, reset=False)
            return
        connection.data += part
        missing = connection.missing()
        if missing < 0 or (missing == 0 and not connection.answer(self.zone)):
            self._hang_up(connection)

    def _hang_up(self, connection: Connection, reset: bool = True) -> None:
        if connection not in self._connections:
            return  # an event before this one has closed it
        self._connections.remove(connection)
        if reset:
            with contextlib.suppress(OSError):
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._unwatch(connection.sock)

    # --- how

    def _watch(self, sock: socket.socket, handler: Handler) -> None:
        self._watched[sock] = handler
        self._selector.register(sock, selectors.EVENT_READ, (self, handler))

    def _unwatch(self, sock: socket.socket) -> None:
        del self._watched[sock]
        with contextlib.suppress(KeyError):  # while it waits for the next turn
            self._selector.unregister(sock)
        sock.close()


class Connection:
    """One TCP connection, and the part of a query that has come."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.data = b""
        self.until = time.monotonic() + PATIENCE

    def missing(self) -> int:
        """Return how many bytes to read next, no more than belong to this query; negative
        if it is too long."""
        if len(self.data) < LENGTH.size:
            return LENGTH.size - len(self.data)
        (length,) = LENGTH.unpack_from(self.data)
        return LENGTH.size + length - len(self.data) if length <= UDP_SIZE else -1

    def answer(self, zone: Zone | None) -> bool:
        """Answer the query that is complete; tell whether the whole answer could be sent."""
        answered = answer(self.data[LENGTH.size :], zone)
        self.data = b""
        self.until = time.monotonic() + PATIENCE
        if answered is None:
            return False
        message = LENGTH.pack(len(answered)) + answered
        try:
            return self.sock.send(message) == len(message)
        except OSError:
            return False


def _listen(netns: str, netns_id: tuple[int, int]) -> tuple[socket.socket, socket.socket]:
    with Namespace.open(netns) as opened, contextlib.ExitStack() as made:
        if opened.identity != netns_id:
            raise Gone
        with opened.enter():
            udp = made.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            tcp = made.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # after an end of ours
        for sock in (udp, tcp):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_IP, FREEBIND, 1)
            sock.bind((NAMESERVER, PORT))
        tcp.listen(BACKLOG)
        made.pop_all()
    return udp, tcp
