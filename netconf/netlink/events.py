"""Notifications of changes to links and addresses, which the kernel sends to rtnetlink's groups.

1. `LinkEvents.read` never blocks. It tells only *that* something changed; callers then ask the
   kernel for the present state, because queued messages may be outdated.
2. Only a link's name, flags and master are decoded, because a busy node sends hundreds of messages
   a second about its containers' links.
3. If the queue overflowed (ENOBUFS), events were lost and anything may have changed
   (`Changes.lost`).

Source: net/core/rtnetlink.c, Documentation/userspace-api/netlink/intro.rst (Notifications).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import msgspec

from netconf.netlink.socket import NETLINK_ROUTE, RECEIVE_BYTES

RTM_NEWLINK, RTM_DELLINK = 16, 17
RTM_NEWADDR, RTM_DELADDR = 20, 21
RTMGRP_LINK = 0x1
RTMGRP_IPV4_IFADDR = 0x10
RTMGRP_IPV6_IFADDR = 0x100
IFF_UP = 0x1
IFLA_IFNAME = 3
IFLA_MASTER = 10

_header = struct.Struct("=IHHII")
_link = struct.Struct("=BxHiII")
_attribute = struct.Struct("=HH")


class Changes(msgspec.Struct):
    """What happened since the last `read`."""

    links: set[str] = msgspec.field(default_factory=set)
    """Names of links that were made, changed or deleted."""
    off: set[str] = msgspec.field(default_factory=set)
    """Names of links that a message reported as down or deleted."""
    free: set[str] = msgspec.field(default_factory=set)
    """Names of links that a message reported as belonging to no bridge or mesh."""
    addresses: bool = False
    """Whether some link got or lost an address."""
    lost: bool = False
    """Whether events were lost (rule 3)."""


class LinkEvents:
    """A subscription to the events of the namespace that the thread is in when it makes it."""

    def __init__(self) -> None:
        """Subscribe; OSError."""
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            NETLINK_ROUTE,
        )
        self._socket.bind((0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))

    def fileno(self) -> int:
        """Return the descriptor, which becomes readable when something has changed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the subscription; repeatable."""
        self._socket.close()

    def read(self) -> Changes:
        """Return what happened since the last call; empty `Changes` if nothing did. OSError."""
        changes = Changes()
        while True:
            try:
                data = self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return changes
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                changes.lost = True
                continue
            note(changes, data)


def note(changes: Changes, data: bytes) -> None:
    """Add the changes that the datagram `data` reports to `changes`."""
    offset = 0
    while offset + _header.size <= len(data):
        length, kind, *_ = _header.unpack_from(data, offset)
        if length < _header.size:
            return
        message = data[offset + _header.size : offset + length]
        offset += (length + 3) & ~3
        if kind in (RTM_NEWADDR, RTM_DELADDR):
            changes.addresses = True
        elif kind in (RTM_NEWLINK, RTM_DELLINK) and len(message) >= _link.size:
            _note_link(changes, message, gone=kind == RTM_DELLINK)


def _note_link(changes: Changes, message: bytes, *, gone: bool) -> None:
    family, _, _, flags, _ = _link.unpack_from(message)
    found = dict(_attributes(message))
    name = found.get(IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
    changes.links.add(name)
    # A bridge's messages about its ports (AF_BRIDGE) do not carry the port's own state.
    if family == socket.AF_UNSPEC:
        if gone or not flags & IFF_UP:
            changes.off.add(name)
        if IFLA_MASTER not in found:
            changes.free.add(name)


def _attributes(message: bytes) -> Iterator[tuple[int, bytes]]:
    offset = _link.size
    while offset + _attribute.size <= len(message):
        length, kind = _attribute.unpack_from(message, offset)
        if length < _attribute.size:
            return
        yield kind, message[offset + _attribute.size : offset + length]
        offset += (length + 3) & ~3
