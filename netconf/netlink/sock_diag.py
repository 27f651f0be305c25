"""Aborting TCP connections from outside the programs that hold them, as ``ss --kill`` does.

1. A socket is found by its addresses and ports, and aborted with ECONNABORTED. Which end of a
   connection is in the namespace is not known, so both are looked for.
2. The kernel looks among the connected sockets first, and then among the *listeners* on the local
   port: a connection that ended lately, or one looked for from its wrong end, would take a
   listener with it. So a socket is looked up first, and aborted by its cookie if it is connected.
3. A dial under way (SYN_SENT) is left alone: its next SYN is a new flow, and finds another replica.
   So is what no program holds any more; Linux before 6.11 may keep such a socket for ever if it is
   aborted (tcp_abort purges what its timers wait for).
4. A look-up by IPv4 addresses finds sockets of AF_INET6 too, as packets do.
5. A socket bound to a device is found only with that device's index; any other with any index.

Source: include/uapi/linux/sock_diag.h, inet_diag.h; net/core/sock_diag.c; net/ipv4/inet_diag.c
(inet_diag_find_one_icsk, inet_diag_cmd_exact); tcp_diag_destroy and tcp_abort in net/ipv4.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Final

from netconf.namespace import Namespace
from netconf.netlink.socket import NLM_F_ACK, NLM_F_REQUEST
from netconf.nft.encoding import HEADER, TcpConnection

NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY: Final = 20
SOCK_DESTROY: Final = 21

INET_DIAG_NOCOOKIE: Final = b"\xff" * 8

TCP_ESTABLISHED: Final = 1
TCP_FIN_WAIT1: Final = 4
TCP_FIN_WAIT2: Final = 5
TCP_CLOSE_WAIT: Final = 8
"""include/net/tcp_states.h"""

AT_ONCE: Final = 32
"""Connections in one datagram: two answers to each, of up to 2 KiB as the kernel counts them, must
fit the socket's default buffer of 208 KiB."""

RECEIVE_BYTES: Final = 8192

NO_ERROR: Final = bytes(4)

_REQUEST = struct.Struct("=BBBxI")
"""inet_diag_req_v2 before its id: sdiag_family, sdiag_protocol, idiag_ext, idiag_states."""
_ENDS = struct.Struct("!HH16s16s")
"""inet_diag_sockid: idiag_sport, idiag_dport, idiag_src, idiag_dst; …"""
_REST = struct.Struct("=I8s")
"""… idiag_if, idiag_cookie."""
_FOUND = struct.Struct("=xB2x40x8s16xI")
"""inet_diag_msg: idiag_state, idiag_cookie (in its id), idiag_inode."""


def abort(netns: Namespace, ifindex: int, connections: Sequence[TcpConnection]) -> int:
    """Abort the sockets in `netns` of `connections` over the device `ifindex`; return how many.

    What ended by itself, and what the kernel refuses to abort, is left out. OSError if the kernel
    cannot be asked.
    """
    with netns.enter():
        opened = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG
        )
    aborted = 0
    with opened:
        opened.setblocking(False)
        for start in range(0, len(connections), AT_ONCE):
            ends = [
                end
                for one in connections[start : start + AT_ONCE]
                for end in (one, TcpConnection(*one[2:], *one[:2]))
            ]
            looked_up = _ask(
                opened,
                [
                    _message(SOCK_DIAG_BY_FAMILY, 0, end, ifindex, INET_DIAG_NOCOOKIE)
                    for end in ends
                ],
            )
            answers = _ask(
                opened,
                [
                    _message(SOCK_DESTROY, NLM_F_ACK, end, ifindex, cookie)
                    for end, answer in zip(ends, looked_up, strict=True)
                    if (cookie := _cookie(*answer)) is not None
                ],
            )
            aborted += sum(payload[:4] == NO_ERROR for _, payload in answers)
    return aborted


def _message(kind: int, flags: int, end: TcpConnection, ifindex: int, cookie: bytes) -> bytes:
    """Return a message about the socket whose own end is the source of `end`."""
    family = socket.AF_INET if len(end.source) == 4 else socket.AF_INET6
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0)
    body += _ENDS.pack(end.source_port, end.destination_port, end.source, end.destination)
    body += _REST.pack(ifindex, cookie)
    return HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | flags, 0, 0) + body


def _ask(opened: socket.socket, messages: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """Return type and payload of the one answer to each message, in their order.

    The kernel has answered them all when `send` returns.
    """
    if messages:
        opened.send(b"".join(messages))
    answers = (opened.recv(RECEIVE_BYTES) for _ in messages)
    return [(HEADER.unpack_from(answer)[1], answer[HEADER.size :]) for answer in answers]


def _cookie(kind: int, payload: bytes) -> bytes | None:
    """Return the cookie of the socket in an answer; None if there is none to abort."""
    if kind != SOCK_DIAG_BY_FAMILY:
        return None
    state, cookie, inode = _FOUND.unpack_from(payload)
    # One that waits to be accepted has no inode either, and is in one of the first two states.
    held = state in (TCP_ESTABLISHED, TCP_CLOSE_WAIT) or (
        state in (TCP_FIN_WAIT1, TCP_FIN_WAIT2) and inode
    )
    return cookie if held else None
