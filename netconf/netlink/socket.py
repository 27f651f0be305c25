"""One synchronous netlink socket, opened in any namespace.

1. A socket belongs to the namespace of the thread that opened it, for good: opening
   needs ``setns``, using it does not.
2. Several requests may travel in one ``sendmsg``; the kernel runs them in order and does
   not stop at an error. `batch` reads every answer, then raises the first error.
3. An error is an OSError whose text includes the kernel's own words (extended ACK).
   Callers name the operation with `doing`, which makes it a KernelFailure.
4. A dump the kernel marks as interrupted (NLM_F_DUMP_INTR) is taken again.
5. A dump has a limit, because others fill the tables too: whoever is in a namespace adds neighbours
   by the million. Beyond it nothing is decoded or kept, and the dump fails.
6. A socket is used by one thread at a time.

Source: Documentation/userspace-api/netlink/intro.rst, include/uapi/linux/netlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import NamedTuple

from netconf.errors import KernelFailure
from netconf.namespace import Namespace
from netconf.uapi.messages import ctrlmsg, nlmsg

NETLINK_ROUTE = 0
NETLINK_GENERIC = 16

NLMSG_NOOP = 0x1
NLMSG_ERROR = 0x2
NLMSG_DONE = 0x3

NLM_F_REQUEST = 0x1
NLM_F_MULTI = 0x2
NLM_F_ACK = 0x4
NLM_F_ECHO = 0x8
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400

NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLMSGERR_ATTR_MSG = 1

SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NETLINK_GET_STRICT_CHK = 12

GENL_ID_CTRL = 0x10
CTRL_CMD_GETFAMILY = 3

RECEIVE_BYTES = 1 << 16
"""The kernel builds dump messages of at most 32 KiB (net/netlink/af_netlink.c)."""

ANSWER_SECONDS = 30
"""The kernel answers at once unless it waits for its own locks; no answer in 30 s means a bug."""

DUMP_ATTEMPTS = 10
"""How often a dump is tried; if the table changed during each, EBUSY is raised."""

DUMP_MOST = 8192
"""Messages of one dump. Ours are at most some thousands: a bridge has 1,024 ports, a node announces
1,676 clients, and a container has a neighbour or two for each of its peers."""

_header = struct.Struct("=IHHII")


class NetlinkRequest(NamedTuple):
    """One message to send: nlmsg_type, the message, and flags besides REQUEST and ACK."""

    type: int
    message: nlmsg
    flags: int = 0


class Netlink:
    """A netlink socket of one protocol in one namespace; a context manager."""

    def __init__(self, protocol: int, netns: Namespace | None = None) -> None:
        """Open a socket in `netns`, or in the calling thread's namespace."""
        if netns is None:
            self._socket = self._open(protocol)
        else:
            with netns.enter():
                self._socket = self._open(protocol)
        self._sequence = 0

    @staticmethod
    def _open(protocol: int) -> socket.socket:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            opened.setsockopt(SOL_NETLINK, option, 1)
        opened.settimeout(ANSWER_SECONDS)
        opened.bind((0, 0))
        return opened

    def close(self) -> None:
        """Close the socket; repeatable."""
        self._socket.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def request(self, type: int, message: nlmsg, flags: int = 0) -> list[nlmsg]:
        """Send one message, wait for its ACK, and return the answers before it; OSError."""
        return self.batch([NetlinkRequest(type, message, flags)])[0]

    def batch(self, requests: Sequence[NetlinkRequest]) -> list[list[nlmsg]]:
        """Send all `requests` in one go; return each one's answers, or raise OSError."""
        first = self._sequence + 1
        self._send(requests, NLM_F_REQUEST | NLM_F_ACK)
        classes = [request.message.__class__ for request in requests]
        answers: list[list[nlmsg]] = [[] for _ in requests]
        failure: OSError | None = None
        waiting = set(range(len(requests)))
        while waiting:
            for kind, flags, sequence, data in self._receive():
                index = sequence - first
                if index not in waiting:
                    continue
                if kind == NLMSG_ERROR:
                    waiting.discard(index)
                    failure = failure or _error(flags, data)
                else:
                    answers[index].append(_decode(classes[index], data))
        if failure is not None:
            raise failure
        return answers

    def dump(self, type: int, message: nlmsg, most: int = DUMP_MOST) -> list[nlmsg]:
        """Dump a whole table; a consistent picture of it, or OSError (EBUSY).

        OSError EOVERFLOW if it has more than `most` messages; the socket can be used further.
        """
        for _ in range(DUMP_ATTEMPTS):
            answers, consistent = self._dump(NetlinkRequest(type, message), most)
            if consistent:
                return answers
        raise OSError(errno.EBUSY, "the table changed during every dump")

    def _dump(self, request: NetlinkRequest, most: int) -> tuple[list[nlmsg], bool]:
        self._send([request], NLM_F_REQUEST | NLM_F_DUMP)
        answers: list[nlmsg] = []
        consistent = True
        count = 0
        while True:
            for kind, flags, sequence, data in self._receive():
                if sequence != self._sequence:
                    continue
                if flags & NLM_F_DUMP_INTR and kind != NLMSG_ERROR:
                    consistent = False
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    failure = _error(flags, data)
                    if failure is not None:
                        raise failure
                    if count > most:
                        raise OSError(errno.EOVERFLOW, f"the table has {count} entries, not {most}")
                    return answers, consistent
                count += 1
                if count > most:
                    # Read on to the end: while a dump is under way the kernel refuses the next.
                    answers.clear()
                    continue
                answers.append(_decode(request.message.__class__, data))

    def _send(self, requests: Sequence[NetlinkRequest], flags: int) -> None:
        parts = bytearray()
        for request in requests:
            self._sequence += 1
            message = request.message
            message["header"] = {
                "type": request.type,
                "flags": request.flags | flags,
                "sequence_number": self._sequence,
                "pid": 0,
            }
            message.reset()
            message.encode()
            parts += message.data
            parts += bytes(-len(parts) % 4)
        self._socket.sendto(parts, (0, 0))

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield (type, flags, sequence, whole message) of one datagram."""
        data = self._socket.recv(RECEIVE_BYTES)
        offset = 0
        while offset + _header.size <= len(data):
            length, kind, flags, sequence, _ = _header.unpack_from(data, offset)
            yield kind, flags, sequence, data[offset : offset + length]
            offset += (length + 3) & ~3


def _decode(message_class: type[nlmsg], data: bytes) -> nlmsg:
    message = message_class(data)
    message.decode()
    return message


def _error(flags: int, data: bytes) -> OSError | None:
    """Return the error in an NLMSG_ERROR or NLMSG_DONE message; None for success."""
    if len(data) < _header.size + 4:
        return None
    (code,) = struct.unpack_from("=i", data, _header.size)
    if code >= 0:
        return None
    text = os.strerror(-code)
    if flags & NLM_F_ACK_TLVS:
        kind = _header.unpack_from(data)[1]
        # struct nlmsgerr repeats the request's header (capped); NLMSG_DONE does not.
        offset = _header.size + 4 + (_header.size if kind == NLMSG_ERROR else 0)
        while offset + 4 <= len(data):
            length, attribute = struct.unpack_from("=HH", data, offset)
            if attribute == NLMSGERR_ATTR_MSG:
                said = data[offset + 4 : offset + length].rstrip(b"\0").decode(errors="replace")
                text = f"{text} ({said})"
            offset += max((length + 3) & ~3, 4)
    return OSError(-code, text)


_families: dict[str, int] = {}


def family_id(genl: Netlink, name: str) -> int:
    """Return the number of a generic netlink family; the kernel is asked once per process.

    The kernel loads the family's module if needed. OSError ENOENT if it has no such family.
    """
    if name not in _families:
        message = ctrlmsg()
        message["cmd"] = CTRL_CMD_GETFAMILY
        message["version"] = 1
        message["attrs"] = [("CTRL_ATTR_FAMILY_NAME", name)]
        (answer,) = genl.request(GENL_ID_CTRL, message)
        _families[name] = int(answer.get_attr("CTRL_ATTR_FAMILY_ID"))
    return _families[name]


@contextmanager
def doing(operation: str) -> Iterator[None]:
    """Turn an OSError inside into a KernelFailure that names the `operation`."""
    try:
        yield
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, "no errno")
        raise KernelFailure(
            f"the kernel refused to {operation}: {error.strerror or error}",
            details=f"{code} while trying to {operation}",
        ) from error
