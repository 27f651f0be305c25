"""The interface of a fabric: what the daemon may call, and the callbacks it gets.

1. Every callback runs in the asyncio loop's thread, one at a time.
2. ``publish`` never blocks and guarantees nothing: a record may be lost. A node that learns that
   another one is alive asks it for what was missed (``ask``).
3. Records may reach ``on_record`` twice, in another order, or not at all. The listener checks
   versions and signatures. The key is always a plain record key of this cluster, without wildcards.
4. ``on_alive`` is called once per change, first for every node already present, never for
   the node itself. After ``on_alive(n, True)`` that node can be asked.
   ``on_returned`` is called for a node that stayed alive although the link to it was replaced.
5. ``ask`` returns all replies of one node, whole and in order, or raises.
6. When a fabric reopens its session (for new endpoints, nodes or certificates), it calls
   ``on_returned`` and not ``on_alive`` for the nodes that come back within the settling time; and
   so do the fabrics of those nodes.
7. ``close`` always returns, may be repeated, and there are no callbacks afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv6Address
from typing import Protocol

import msgspec

from daemon.model.keys import check_name
from netconf.errors import InvalidConfig, TryAgain

MAX_PAYLOAD = 60_000
"""Bytes of one record, question or reply. With its headers it stays below the 65,536 bytes up to
which a receiver joins fragments (one batch on a TLS link has 49,152)."""

LEASE_MS = 500
"""Milliseconds of silence after which a peer counts as gone. In a trial 300 raised false alarms at
5 % loss, 500 none at 15 %."""


class FabricError(TryAgain):
    """The fabric could not do what was asked now; the message names the node and the reason."""


class NotOpenError(FabricError):
    """The fabric is not open yet, or not any more."""


class FabricRefusedError(FabricError):
    """The peer itself answered that it refuses the question, or could not answer it."""


class FabricTimeoutError(FabricError, TimeoutError):
    """No whole answer came in the time given."""


class Counters(msgspec.Struct):
    """What the fabric did and refused since it was made; for metrics."""

    published: int = 0
    """Records handed to the network."""
    unsent: int = 0
    """Records published while there was no session: the next Sync carries them."""
    received: int = 0
    """Records handed to the listener."""
    rejected: int = 0
    """Messages refused for their key, kind or size."""
    overflowed: int = 0
    """Records and questions dropped because the daemon could not keep up."""
    reopened: int = 0
    """Sessions opened after the first."""
    splits: int = 0
    """How many of them replaced a link that carried nothing (see ``link_repair``)."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Where and as whom a node joins the fabric."""

    cluster: str
    """The cluster's name: the root of all its keys."""
    node: str
    """This node's id: the common name of its certificate."""
    listen: tuple[str, ...]
    """Endpoints ``tls/HOST:PORT``; HOST is a name, an IPv4 address or ``[IPv6 address]``."""
    connect: tuple[str, ...] = ()
    """Endpoints of all other nodes: peers relay nothing, and only listed endpoints are
    dialled again after a partition."""
    ca: str
    """File of the PEM certificates that every node's certificate is verified against."""
    certificate: str
    """File of this node's PEM certificate (chain)."""
    key: str
    """File of its PEM private key."""
    nodes: frozenset[str] | None = None
    """The common names that may send messages, each only for itself. With None any certificate of
    the CA may send messages in the name of any node of the cluster (records are signed anyway)."""
    verify_names: bool = True
    """Whether the dialled address must be in the peer's certificate. Off only for Swarm's
    certificates, which hold no address; then `nodes` keeps strangers from sending anything."""
    lease_ms: int = LEASE_MS
    """Milliseconds of silence after which a peer counts as gone."""

    def __post_init__(self) -> None:
        check_name("cluster", self.cluster)
        check_name("node", self.node)
        for name in self.nodes or ():
            check_name("nodes", name)
        for endpoint in self.listen:
            parse_endpoint(endpoint, field="fabric.listen")
        for endpoint in self.connect:
            parse_endpoint(endpoint, field="fabric.connect")


class Listener(Protocol):
    """The callbacks of a fabric."""

    def on_record(self, key: str, value: bytes) -> None:
        """A record was published under the full `key` by someone else."""

    def on_alive(self, node: str, alive: bool) -> None:
        """`node` appeared, or its token vanished (daemon, node or network: use a probe)."""

    def on_returned(self, node: str) -> None:
        """`node` was out of reach, but too shortly to count as gone: what was published meanwhile,
        on either side, may be lost."""

    async def on_ask(self, question: bytes) -> list[bytes]:
        """Answer another node's `question`; each reply at most `MAX_PAYLOAD` bytes. The message of
        a NoctuleError is sent to the asker."""


class Fabric(Protocol):
    """One node's place in the fabric."""

    @property
    def counters(self) -> Counters:
        """What was sent, received and refused."""

    async def open(self, listener: Listener) -> None:
        """Join. FabricError if listening fails, InvalidConfig if the identity is unusable."""

    def publish(self, key: str, value: bytes) -> None:
        """Send a record to all nodes; call it in the loop's thread.

        FabricError only for a wrong key or size.
        """

    async def ask(self, node: str, question: bytes, timeout: float) -> list[bytes]:
        """Return what `node` answers within `timeout` seconds; FabricTimeoutError if it does not,
        FabricRefusedError if it answers with an error, FabricError if it cannot be asked."""

    async def reconfigure(self, endpoints: Sequence[str], nodes: frozenset[str] | None) -> bool:
        """Use these endpoints and nodes, and reread the identity's files; True if something
        had changed and the session was reopened. If the files cannot be used, the log says so and
        what was read before stays in use."""

    async def close(self) -> None:
        """Leave the fabric (rule 7)."""


def parse_endpoint(endpoint: str, *, field: str = "endpoint") -> tuple[str, int]:
    """Return host and port of ``tls/HOST:PORT``; InvalidConfig names `field` and the fix.

    An IPv6 address stands in brackets (RFC 3986, 3.2.2), and is returned without them.
    """
    protocol, slash, rest = endpoint.partition("/")
    host, colon, port = rest.rpartition(":")
    if protocol != "tls" or not slash or not colon or not host or not port.isdecimal():
        raise InvalidConfig(f"{field}: {endpoint!r} is not of the form tls/HOST:PORT")
    if len(port) > 5 or not 0 < int(port) < 65536:  # int() takes 4,300 digits at most
        raise InvalidConfig(f"{field}: {endpoint!r}: the port must be 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        return _ipv6(host[1:-1], f"{field}: {endpoint!r}"), int(port)
    if not {"[", "]", ":"}.isdisjoint(host):
        raise InvalidConfig(f"{field}: {endpoint!r}: write an IPv6 address as tls/[ADDRESS]:PORT")
    return host, int(port)


def _ipv6(text: str, where: str) -> str:
    try:
        address = IPv6Address(text)
    except ValueError as error:
        raise InvalidConfig(f"{where}: {error}; write tls/[2001:db8::1]:PORT") from error
    if address.scope_id is not None or address.is_link_local:
        raise InvalidConfig(
            f"{where}: peers cannot dial a link-local address; use a global or unique local one"
        )
    return str(address)
