"""One question to the daemon on its unix socket, and its answer.

1. HTTP/1.1 (RFC 9112), one request per connection. Written by hand, over the C module
   ``_socket``: ``http.client`` costs 30 ms to import and ``socket`` 9 ms, and both serve
   cases that a local socket does not have.
2. Nobody listens: `Absent`; nothing was sent, so the caller may do the work itself.
3. Somebody listens but does not answer within `ANSWER` seconds: `Late`; the daemon may still
   be doing the work.
4. The connection ends without an answer that makes sense: `Lost`; the work may be half done.
5. The socket's path is unusable, such as no socket at all: `Unreachable`.
6. An answer that is an error is raised as the `Failure` it describes.
7. The daemon may be of the release before or after (docs/design.md, "Releases side by side"). A
   field that 0.1.0 does not know is sent only where it is asked for; a DEL says only whose it is.
   A daemon that refuses the shape of a DEL or GC has not understood it: `Misunderstood`. What
   later releases add to an answer is optional here.
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
"""Seconds. An attach takes milliseconds; a node that starts hundreds of containers at once
queues them for seconds; and runtimes give up on a plugin only after minutes."""

DYING = 1.0
"""Seconds that `listening` waits. The kernel closes what a killed process had open within
milliseconds. Only a call whose answer broke off waits for this."""

_LARGEST = 64 << 20  # bytes of an answer; the status of a large cluster is the longest


class Silence(Exception):
    """The daemon did not answer; the message says how."""

    code = TRY_AGAIN_LATER

    def failure(self) -> Failure:
        """Return what a runtime is told if nobody but the daemon can do the work."""
        return Failure(self.code, "noctuled does not answer; is it running?", str(self))


class Absent(Silence):
    """Nobody listens on the socket."""


class Unreachable(Silence):
    """The socket's path cannot be connected to, whoever listens."""

    code = IO_FAILURE


class Late(Silence):
    """Somebody listens, but the answer did not come in time."""


class Lost(Silence):
    """The connection ended without an answer that makes sense."""


class Misunderstood(Silence):
    """A daemon of another release does not know what it is asked."""


class Candidate:
    """A name that may be the replica's service, and where it came from."""

    __slots__ = ("name", "origin")

    def __init__(self, name: str, origin: str) -> None:
        """`origin`: ``args.cni.service``, ``CNI_ARGS NOCTULE_SERVICE``, ``annotation``, ``alias``,
        ``pod name`` or ``service``. Only an alias counts just where policy knows it.
        """
        self.name = name
        self.origin = origin


class AttachRequest:
    """An attachment that a runtime speaks of: the body of attach, detach and check."""

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
        """`netns` is a path, empty on DEL if it is gone; `address` dotted IPv4; `mac` ``aa:…``.

        `bandwidth` has the keys of ``netconf.netlink.shaping.Bandwidth``.
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
        """Return which attachment is meant: all that a daemon of any release wants of a DEL."""
        return {
            "container": self.container,
            "ifname": self.ifname,
            "netns": self.netns,
            "network": self.network,
        }


class Attached:
    """What an attachment got, as a runtime wants to know it."""

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
    """Ask the daemon at the socket `path` to attach; Silence or Failure if it does not."""
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
    """Ask the daemon to undo an attachment."""
    _undo(path, "/v1/detach", request.whose())


def check(path: str, request: AttachRequest) -> None:
    """Ask the daemon whether the kernel still has all of an attachment."""
    _ask(path, "POST", "/v1/check", request.body())


def collect(path: str, network: str, valid: list[tuple[str, str]], runtime: str) -> None:
    """Ask the daemon to undo what `runtime` attached to `network`.

    All but `valid`, pairs of container and ifname.
    """
    pairs = [{"containerID": container, "ifname": ifname} for container, ifname in valid]
    _undo(path, "/v1/gc", {"network": network, "valid": pairs, "runtime": runtime})


def _undo(path: str, target: str, body: dict[str, object]) -> None:
    """Ask for what the caller can do itself; Misunderstood if the daemon does not know how."""
    try:
        _ask(path, "POST", target, body)
    except Failure as failure:
        # Nothing in the body is the user's, so its shape is all that these codes can mean.
        if failure.code in (UNSUPPORTED_FIELD, DECODING_FAILURE, INVALID_CONFIG):
            raise Misunderstood(failure.message) from None
        raise


def ready(path: str, key_file: str) -> None:
    """Ask the daemon whether it can attach with the secret `key_file`; Failure says why not."""
    _ask(path, "POST", "/v1/ready", {"key_file": key_file})


def listening(path: str) -> bool:
    """Say whether anybody accepts connections at the socket `path` now, and lives.

    The kernel closes what a killed process had open in an order of its own: for a moment its
    listener may take a connection still, and then cuts it off. A living daemon is silent until
    it is asked something.
    """
    connection = Socket(AF_UNIX, SOCK_STREAM)
    try:
        connection.settimeout(DYING)
        connection.connect(path)
        return bool(connection.recv(1))
    except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError):
        return False
    except OSError:
        return True  # silence, or a full queue
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
        # A unix socket connects at once or not at all: with a time limit set, a full queue is
        # EAGAIN, not a wait.
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
