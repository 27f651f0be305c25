"""The executable's client of the daemon: one request on its unix socket, and the answer.

1. The protocol is HTTP/1.1 (RFC 9112), one request per connection. It is written by hand over
   the C module ``_socket``, because ``http.client`` costs 30 ms to import and ``socket`` 9 ms,
   and both serve cases that a local socket does not have.
2. If nobody listens, `Absent` is raised. Nothing was sent, so the caller may do the work itself.
3. If somebody listens but does not answer within `ANSWER` seconds, `Late` is raised. The daemon
   may still be doing the work.
4. If the connection ends without an answer, or the answer makes no sense, `Lost` is raised. The
   work may be half done.
5. If the socket's path cannot be connected to (it is no socket, for example), `Unreachable` is
   raised. Nothing was sent.
6. If the daemon answers with an error, the `Failure` that it describes is raised.
7. The daemon may be of the release before or after (docs/design.md, "Releases side by side").
   So a field that 0.1.0 does not know is sent only where the configuration asks for it, and a DEL
   names only the attachment. If a daemon refuses the shape of a DEL or GC, it has not understood
   the request, and `Misunderstood` is raised. Fields that later releases add to an answer are
   optional here.
"""

from __future__ import annotations

from _socket import AF_UNIX, SOCK_STREAM
from _socket import socket as Socket  # noqa: N812  a class, whatever its name
from time import monotonic

from cni.codec import decode, encode
from cni.errors import (
    DECODING_FAILURE,
    INVALID_CONFIG,
    IO_FAILURE,
    TRY_AGAIN_LATER,
    UNSUPPORTED_FIELD,
    Failure,
    relayed,
)

TYPE_CHECKING = False  # the name that type checkers look for; importing typing costs 8 ms
if TYPE_CHECKING:
    from typing import TypeGuard

ANSWER = 20.0
"""Seconds. One attach takes milliseconds, but a node that starts hundreds of containers at once
queues them for seconds. Runtimes give up on a plugin only after minutes."""

DYING = 1.0
"""Seconds that `listening` waits. The kernel closes what a killed process had open within
milliseconds. Only a call whose answer broke off waits for this."""

_LARGEST = 64 << 20  # bytes of an answer; the status of a large cluster is the longest


class Silence(Exception):
    """The daemon did not answer; the message says how."""

    code = TRY_AGAIN_LATER

    def failure(self) -> Failure:
        """Return the Failure for the runtime, where only the daemon could have done the work."""
        return Failure(self.code, "noctuled does not answer; is it running?", str(self))


class Absent(Silence):
    """Nobody listens on the socket."""


class Unreachable(Silence):
    """The socket's path cannot be connected to, whoever listens."""

    code = IO_FAILURE


class Late(Silence):
    """Somebody listens, but did not answer within `ANSWER` seconds."""


class Lost(Silence):
    """The connection ended without an answer that makes sense."""


class Misunderstood(Silence):
    """A daemon of another release does not understand the request."""


class Candidate:
    """A name that may be the replica's service, and where it came from."""

    __slots__ = ("name", "origin")

    def __init__(self, name: str, origin: str) -> None:
        """`origin` is ``args.cni.service``, ``CNI_ARGS NOCTULE_SERVICE``, ``annotation``,
        ``alias``, ``pod name`` or ``service``. The daemon skips an alias that is not a service of
        the policy; a name of any other origin is used as it is.
        """
        self.name = name
        self.origin = origin


class AttachRequest:
    """The attachment that a runtime asks for or about: the body of attach, detach and check."""

    __slots__ = (
        "address", "address6", "bandwidth", "container", "ifname", "key_file", "mac", "netns",
        "network", "runtime", "services",
    )  # fmt: skip

    def __init__(
        self,
        container: str,
        ifname: str,
        netns: str,
        network: str,
        services: list[Candidate],
        key_file: str,
        address: str | None,
        mac: str | None,
        address6: str | None = None,
        runtime: str = "",
        bandwidth: dict[str, int] | None = None,
    ) -> None:
        """`netns` is a path, and empty on DEL if the namespace is gone. `address` is dotted IPv4,
        `address6` IPv6, `mac` six hex octets with colons, each None if the daemon is to choose.

        `bandwidth` has the keys of ``netconf.netlink.shaping.Bandwidth``: rates in bits per
        second, bursts in bits.
        """
        self.container = container
        self.ifname = ifname
        self.netns = netns
        self.network = network
        self.services = services
        self.key_file = key_file
        self.address = address
        self.mac = mac
        self.address6 = address6
        self.runtime = runtime
        self.bandwidth = bandwidth

    def body(self) -> dict[str, object]:
        """Return the request as JSON values."""
        return self.whose() | {
            "services": [{"name": one.name, "from": one.origin} for one in self.services],
            "key_file": self.key_file,
            "address": self.address,
            "mac": self.mac,
            "address6": self.address6,
            "runtime": self.runtime,
            "bandwidth": self.bandwidth,
        }

    def whose(self) -> dict[str, object]:
        """Return the fields that identify the attachment: a DEL sends no others (rule 7)."""
        return {
            "container": self.container,
            "ifname": self.ifname,
            "netns": self.netns,
            "network": self.network,
        }


class Attached:
    """What the daemon or the fallback attached: the values that go into a CNI result."""

    __slots__ = ("addresses", "host", "mac", "mtu", "nameserver", "routes", "service")

    def __init__(
        self,
        addresses: list[str],
        routes: list[str],
        mac: str,
        mtu: int,
        nameserver: str,
        service: str,
        host: list[dict[str, object]],
    ) -> None:
        """`addresses` and `routes` in CIDR notation, IPv4 first; `mtu` bytes.

        `nameserver` is an address inside the container's namespace. `host` are the interfaces
        on the node, each with ``name``, ``mac`` and ``mtu``.
        """
        self.addresses = addresses
        self.routes = routes
        self.mac = mac
        self.mtu = mtu
        self.nameserver = nameserver
        self.service = service
        self.host = host


def attach(path: str, request: AttachRequest) -> Attached:
    """Ask the daemon at the socket `path` to attach.

    Raises Silence if it does not answer, and Failure if it answers with an error.
    """
    answer = _ask(path, "POST", "/v1/attach", request.body())
    try:
        addresses, routes, mac = answer["addresses"], answer["routes"], answer["mac"]
        mtu, nameserver, service = answer["mtu"], answer["nameserver"], answer["service"]
        host = answer["host"]
    except KeyError as missing:
        raise Lost(f"the answer to attach has no field {missing}") from None
    if (
        _texts(addresses) and _texts(routes) and isinstance(mac, str)
        and isinstance(mtu, int) and isinstance(nameserver, str) and isinstance(service, str)
        and _interfaces(host)
    ):  # fmt: skip
        return Attached(list(addresses), list(routes), mac, mtu, nameserver, service, list(host))
    raise Lost(f"the answer to attach has a field of the wrong type: {encode(answer)}")


def _texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _interfaces(value: object) -> TypeGuard[list[dict[str, object]]]:
    return isinstance(value, list) and all(
        isinstance(one, dict)
        and isinstance(one.get("name"), str)
        and isinstance(one.get("mac"), str)
        and isinstance(one.get("mtu"), int)
        for one in value
    )


def detach(path: str, request: AttachRequest) -> None:
    """Ask the daemon to undo an attachment. Raises as `attach` does, and Misunderstood (rule 7)."""
    _undo(path, "/v1/detach", request.whose())


def check(path: str, request: AttachRequest) -> None:
    """Ask the daemon whether the kernel still has all of an attachment; Failure says what differs.

    Raises Silence if it does not answer.
    """
    _ask(path, "POST", "/v1/check", request.body())


def collect(path: str, network: str, valid: list[tuple[str, str]], runtime: str) -> None:
    """Ask the daemon to undo what `runtime` attached to `network`, except `valid`.

    `valid` are pairs of container id and interface name. Raises as `detach` does.
    """
    pairs = [{"containerID": container, "ifname": ifname} for container, ifname in valid]
    _undo(path, "/v1/gc", {"network": network, "valid": pairs, "runtime": runtime})


def _undo(path: str, target: str, body: dict[str, object]) -> None:
    """Send a DEL or GC, which the caller can also do itself if this raises Misunderstood."""
    try:
        _ask(path, "POST", target, body)
    except Failure as failure:
        # The body holds nothing that the user configured. So these codes can only mean that the
        # daemon does not accept the shape of the request.
        if failure.code in (UNSUPPORTED_FIELD, DECODING_FAILURE, INVALID_CONFIG):
            raise Misunderstood(failure.message) from None
        raise


def ready(path: str, key_file: str) -> None:
    """Ask the daemon whether it can attach with the secret `key_file` (a path).

    Raises Failure if it cannot, and Silence if it does not answer.
    """
    _ask(path, "POST", "/v1/ready", {"key_file": key_file})


def listening(path: str) -> bool:
    """Say whether a live process accepts connections at the socket `path`.

    When a process is killed, the kernel closes its descriptors in no given order, so its listener
    may still accept a connection for a moment and then cut it off. A live daemon sends nothing
    before it is asked something. So a connection that stays open and silent for `DYING` seconds
    is one to a live process.
    """
    connection = Socket(AF_UNIX, SOCK_STREAM)
    try:
        connection.settimeout(DYING)
        connection.connect(path)
        return bool(connection.recv(1))
    except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError):
        return False
    except OSError:
        return True  # the time limit passed in silence, or the listener's queue is full
    finally:
        connection.close()


def _ask(path: str, method: str, target: str, body: dict[str, object] | None) -> dict[str, object]:
    content = encode(body).encode() if body is not None else b""
    head = (
        f"{method} {target} HTTP/1.1\r\nHost: noctuled\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    status, answer = _exchange(path, head.encode() + content)
    try:
        value = decode(answer)
    except ValueError as problem:
        raise Lost(f"{method} {target} answered {status}, not in JSON: {problem}") from None
    if not isinstance(value, dict):
        raise Lost(f"{method} {target} answered {status} with JSON that is no object")
    if status == 200:
        return value
    failure = relayed(value)
    if failure is not None:
        raise failure
    raise Lost(f"{method} {target} answered {status} without an error code")


def _exchange(path: str, request: bytes) -> tuple[int, bytes]:
    """Send `request`; return the status and the body of the answer."""
    until = monotonic() + ANSWER
    connection = Socket(AF_UNIX, SOCK_STREAM)
    try:
        connection.settimeout(ANSWER)
        # A unix socket connects at once or not at all: with a time limit set, connecting to a
        # full queue fails with EAGAIN instead of waiting.
        connection.connect(path)
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as problem:
        connection.close()
        raise Absent(f"nobody listens on {path}: {problem.strerror}") from None
    except BlockingIOError:
        connection.close()
        raise Late(f"{path} has too many connections waiting") from None
    except OSError as problem:
        connection.close()
        raise Unreachable(f"socket: cannot connect to {path!r}: {problem}") from None
    try:
        connection.sendall(request)
        return _answer(connection, until)
    except TimeoutError:
        raise Late(f"no answer on {path} within {ANSWER:g} s") from None
    except OSError as problem:
        raise Lost(f"the connection to {path} broke: {problem}") from None
    finally:
        connection.close()


def _answer(connection: Socket, until: float) -> tuple[int, bytes]:
    received = bytearray()
    while (end := received.find(b"\r\n\r\n")) < 0:
        _receive(connection, until, received)
    lines = bytes(received[:end]).decode("latin-1").split("\r\n")
    version, _, status = lines[0].partition(" ")
    length = -1
    for line in lines[1:]:
        name, _, value = line.partition(":")
        if name.lower() == "content-length" and _digits(value.strip()):
            length = int(value)
    if not version.startswith("HTTP/1.") or not _digits(status[:3]) or not 0 <= length < _LARGEST:
        raise Lost(f"an answer that is not HTTP with a Content-Length: {lines[0][:80]!r}")
    start = end + 4
    while len(received) < start + length:
        _receive(connection, until, received)
    return int(status[:3]), bytes(received[start : start + length])


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _receive(connection: Socket, until: float, received: bytearray) -> None:
    left = until - monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)
    part = connection.recv(65536)
    if not part:
        raise Lost("the connection ended before the answer did")
    received += part
    if len(received) > _LARGEST + 65536:
        raise Lost("an answer without end")
