"""One netfilter socket in one namespace: all-or-nothing batches, dumps, flow deletion.

1. The kernel has applied or refused all of a batch when ``sendmsg`` returns
   (net/netfilter/nfnetlink.c, nfnetlink_rcv_batch); errors then wait in the socket, one per
   refused message, and silence is success. So no acknowledgement is asked for.
2. The socket is drained before each request: an answer never meets a later question.
3. Keep the socket open: an element then costs microseconds, while closing one after a
   delete waits 10 to 20 ms for the kernel to free what was deleted (nft_rcv_nl_event), so
   another thread does that. An open socket keeps its namespace alive: its owner closes it
   when the container goes.
4. One thread at a time uses a socket.
5. What a container's namespace holds is not ours to trust: reading it has limits, in size
   (`most_parts`) and in time (`NftSocket.within`). Rule 2 would read a dump that was given up to
   its end, and the kernel walk the set for each part of it. So another socket of the same namespace
   takes the place of the one that asked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import math
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from typing import Final, Protocol

from netconf.errors import UnknownContainer
from netconf.namespace import Namespace
from netconf.nft.elements import NFPROTO_BRIDGE, Element, Key, Set
from netconf.nft.encoding import (
    HEADER,
    IPCTNL_MSG_CT_DELETE,
    IPCTNL_MSG_CT_GET,
    NFGEN,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    Batch,
    Change,
    Flows,
    Message,
    TcpConnection,
    attribute,
    attributes,
    decode_counter,
    decode_elements,
    encode_change,
    encode_flow_delete,
    encode_flows,
    envelope,
    mark_in,
    matches,
    message,
    nftables,
    string,
    tcp_connection,
)
from netconf.uapi import nf_tables as nf

__all__ = ["Batch", "BatchError", "Enterable", "Flows", "NftSocket"]

NETLINK_NETFILTER: Final = 12
SOL_NETLINK: Final = 270
NETLINK_CAP_ACK: Final = 10
NETLINK_EXT_ACK: Final = 11
NLMSGERR_ATTR_OFFS: Final = 2
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLM_F_DUMP_INTR: Final = 0x10
SO_SNDBUFFORCE: Final = 32

RECEIVE_BUFFER: Final = 1 << 17
"""Bytes: more than any datagram of a dump has (the kernel makes them of at most 32 KiB)."""

MOST_PARTS: Final = 200
"""Messages of 32 KiB in which one set of a container is dumped. For each the kernel walks the set
from its beginning, so the time grows with the square: 200 take a second or two, 2,000 minutes. We
write into the largest set (`LB6`, 476 elements in a message) 64 slots for each port of each service
that the container dials: 200 messages hold those of 1,400 ports. A peer (`PEER6`, 819 in one) is
one of some thousands of replicas in the cluster."""

MOST_HOST_PARTS: Final = 2000
"""The same for the host filter, which nobody but us fills: 1,019 containers with 1,024 peers each
are 2 million pairs, 1,157 in a message."""

TOO_MUCH: Final = frozenset({errno.EFBIG, errno.ETIMEDOUT})
"""What a dump fails with that reached a limit (rule 5)."""

SIOCGSKNS: Final = 0x894C
"""linux/sockios.h: return a descriptor of a socket's namespace."""

SEND_SLACK: Final = 4096
"""Bytes of the send buffer that the kernel needs itself (af_netlink.c, netlink_sendmsg)."""

FLOWS_AT_ONCE: Final = 500
"""Deletions in one datagram. Each may be answered by an error, and all errors must fit into the
socket's receive buffer."""

DUMP_ATTEMPTS: Final = 8
"""How often a dump is tried at most, if changes keep interrupting it (NLM_F_DUMP_INTR)."""


class Enterable(Protocol):
    """A namespace to open a socket in (`netconf.namespace.Namespace`)."""

    def enter(self) -> AbstractContextManager[object]:
        """Run the body with the calling thread in the namespace."""


class BatchError(OSError):
    """The kernel refused a batch, so nothing was changed.

    `change` and `element` are those that it refused, None if it did not say which.
    """

    def __init__(self, code: int, change: Change | None, element: Element | None) -> None:
        where = "" if change is None else f" ({change.verb} {change.set.name} {element or ''})"
        super().__init__(code, f"{os.strerror(code)}{where}")
        self.change = change
        self.element = element


def most_parts(target: Set) -> int:
    """Return in how many messages a set may be dumped."""
    return MOST_HOST_PARTS if target.family == NFPROTO_BRIDGE else MOST_PARTS


class NftSocket:
    """A NETLINK_NETFILTER socket, which stays in the namespace in which it was opened."""

    def __init__(self, namespace: Enterable | None = None) -> None:
        """Open it in `namespace`, or in the calling thread's own; OSError if refused."""
        self._deadline = math.inf
        self._sequence = 0
        self._deleted = False
        self._closed = False
        self._open(namespace)

    def _open(self, namespace: Enterable | None) -> None:
        with namespace.enter() if namespace is not None else contextlib.nullcontext():
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self._socket.setblocking(False)
        # Ask for errors that do not repeat the refused message but give the offset of the refused
        # element in it.
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self._send_buffer = 0

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Have dumps in the body fail with TimeoutError (an OSError) once all took `seconds`."""
        self._deadline = time.monotonic() + seconds
        try:
            yield
        finally:
            self._deadline = math.inf

    def close(self) -> None:
        """Close the socket, not making the caller wait for the kernel (rule 3); repeatable.

        Whoever waited for its turn meanwhile gets UnknownContainer.
        """
        if self._closed:
            return
        self._closed = True
        if self._deleted:
            threading.Thread(target=self._socket.close, name="close-nft").start()
        else:
            self._socket.close()

    def send(self, batch: Batch) -> None:
        """Make all changes of `batch`, or none and raise BatchError (an OSError).

        ENOENT: a key to delete is not there; EEXIST: a map key is there with other data;
        ENFILE: the set is full.
        """
        if not batch.changes:
            return
        messages: list[Message] = []
        for change in batch.changes:
            messages += encode_change(change, self._sequence + 1 + len(messages))
        first = self._sequence + 1
        self._sequence += len(messages) + 1
        self._deleted |= any(change.verb == "delete" for change in batch.changes)
        self._transmit(envelope((one.raw for one in messages), self._sequence))
        for sequence, code, offset in self._errors():
            index = sequence - first
            if not 0 <= index < len(messages):
                raise BatchError(code, None, None)
            culprit = messages[index]
            found = None if offset is None else culprit.element_at(offset)
            raise BatchError(code, culprit.change, found)

    def transact(self, messages: Callable[[int], list[bytes]]) -> None:
        """Send messages as one batch; if it is refused, raise BatchError (an OSError).

        `messages` returns them encoded; it is called with the sequence number of the first.
        """
        encoded = messages(self._sequence + 1)
        self._sequence += len(encoded) + 1
        self._transmit(envelope(encoded, self._sequence))
        for _, code, _ in self._errors():
            raise BatchError(code, None, None)

    def dump(self, target: Set) -> dict[Key, Key]:
        """Return data by key of a map, or ``()`` by key of a set; OSError ENOENT if none, EFBIG
        if it is larger than any of ours; ForeignElementError."""
        return {key: data for (key, data), _ in self._elements(target)}

    def dump_counters(self, target: Set) -> dict[Key, int]:
        """Return packets by key of a set whose elements have counters; OSError as `dump`."""
        return {key: packets for (key, _), packets in self._elements(target)}

    def counters(self, family: int, table: str) -> dict[str, int]:
        """Return packets by name, for the named counters of a table."""
        body = string(nf.NFTA_OBJ_TABLE, table)
        body += attribute(nf.NFTA_OBJ_TYPE, struct.pack("!I", nf.NFT_OBJECT_COUNTER))
        found = {}
        for payload in self.dump_raw(nf.NFT_MSG_GETOBJ, family, body):
            parts = dict(attributes(payload))
            name = parts[nf.NFTA_OBJ_NAME].rstrip(b"\0").decode()
            # Check the table: not every kernel version filters by it.
            if parts[nf.NFTA_OBJ_TABLE].rstrip(b"\0").decode() == table:
                found[name] = decode_counter(parts[nf.NFTA_OBJ_DATA])
        return found

    def generation(self) -> int:
        """Return the number of nftables commits in this namespace, whoever made them."""

        def ask(sequence: int) -> bytes:
            kind = nftables(nf.NFT_MSG_GETGEN)
            return message(kind, NLM_F_REQUEST, sequence, socket.AF_UNSPEC, b"")

        (payload,) = self._request(ask)
        return int.from_bytes(dict(attributes(payload))[nf.NFTA_GEN_ID], "big")

    def delete_table(self, family: int, table: str) -> None:
        """Delete a table with everything in it; OSError ENOENT if there is none."""
        kind, body = nftables(nf.NFT_MSG_DELTABLE), string(nf.NFTA_TABLE_NAME, table)
        self._deleted = True
        self.transact(lambda number: [message(kind, NLM_F_REQUEST, number, family, body)])

    def delete_flows(self, flows: Flows) -> None:
        """Delete the conntrack entries selected by `flows`; it is no error if there are none."""
        if flows.direction is None:
            self._sequence += 1
            kind = IPCTNL_MSG_CT_DELETE
            self._delete_flows(encode_flows(kind, NLM_F_REQUEST, self._sequence, flows.mark))
            return
        found = [entry for entry in self._flows(flows.mark) if matches(entry, flows)]
        for start in range(0, len(found), FLOWS_AT_ONCE):
            self._sequence += 1
            some = found[start : start + FLOWS_AT_ONCE]
            self._delete_flows(b"".join(encode_flow_delete(one, self._sequence) for one in some))

    def _delete_flows(self, datagram: bytes) -> None:
        self._transmit(datagram)
        for _, code, _ in self._errors():
            if code != errno.ENOENT:  # ENOENT: the flow ended by itself meanwhile
                raise OSError(code, f"{os.strerror(code)} (delete flows)")

    def connections(self, flows: Collection[Flows], most: int) -> list[TcpConnection]:
        """Return the TCP connections of `flows`, `most` at most.

        One dump finds them all: each walks the table that all namespaces of the kernel share.
        """
        wanted: dict[int, list[Flows]] = {}
        for one in flows:
            wanted.setdefault(one.mark, []).append(one)
        if not wanted:
            return []
        entries = self._request(_flow_dump(next(iter(wanted)) if len(wanted) == 1 else None))
        found = (
            tcp_connection(entry)
            for entry in entries
            if any(matches(entry, one) for one in wanted.get(mark_in(entry), ()))
        )
        return list(itertools.islice(filter(None, found), most))

    def _flows(self, mark: int) -> list[bytes]:
        return self._retried(_flow_dump(mark))

    def _elements(self, target: Set) -> Iterator[tuple[Element, int]]:
        body = string(nf.NFTA_SET_ELEM_LIST_TABLE, target.table)
        body += string(nf.NFTA_SET_ELEM_LIST_SET, target.name)
        most = most_parts(target)
        for payload in self.dump_raw(nf.NFT_MSG_GETSETELEM, target.family, body, most):
            yield from decode_elements(target, payload)

    def get(self, kind: int, family: int, body: bytes) -> bytes | None:
        """Return the attributes of one object, None if there is none; `kind` as in `dump_raw`."""

        def ask(sequence: int) -> bytes:
            return message(nftables(kind), NLM_F_REQUEST, sequence, family, body)

        try:
            return next(self._request(ask), None)
        except FileNotFoundError:
            return None

    def dump_raw(self, kind: int, family: int, body: bytes, most: int | None = None) -> list[bytes]:
        """Return the attributes of each object of a dump; `kind` is an NFT_MSG_GET….

        OSError EFBIG if there are more than `most`.
        """

        def ask(sequence: int) -> bytes:
            flags = NLM_F_REQUEST | NLM_F_DUMP
            return message(nftables(kind), flags, sequence, family, body)

        return self._retried(ask, most)

    def _retried(self, ask: Callable[[int], bytes], most: int | None = None) -> list[bytes]:
        """Return the answers to a dump that no writer interrupted (rule 5)."""
        for attempt in range(DUMP_ATTEMPTS):
            found: list[bytes] = []
            try:
                for payload in self._request(ask):
                    if len(found) == most:
                        raise OSError(errno.EFBIG, f"there are more than {most} objects to read")
                    if time.monotonic() > self._deadline:
                        raise TimeoutError(errno.ETIMEDOUT, "there is too much to read in time")
                    found.append(payload)
                return found
            except InterruptedError:
                self._renew()
                if attempt == DUMP_ATTEMPTS - 1:
                    raise
            except OSError as error:
                if error.errno in TOO_MUCH:
                    self._renew()
                raise
        raise AssertionError("unreachable")

    def _renew(self) -> None:
        """Leave the socket, which is amid a dump, for another one of its namespace."""
        with Namespace(fcntl.ioctl(self._socket, SIOCGSKNS), "a socket's namespace") as namespace:
            former = self._socket
            self._open(namespace)
            former.close()

    def _request(self, ask: Callable[[int], bytes]) -> Iterator[bytes]:
        """Send one request; yield the payload behind nfgenmsg of each answer."""
        self._sequence += 1
        self._transmit(ask(self._sequence))
        while (datagram := self._receive()) is not None:
            for answer, answer_flags, _, payload in _messages(datagram):
                if answer in (NLMSG_ERROR, NLMSG_DONE):
                    code = -struct.unpack_from("=i", payload)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return
                if answer_flags & NLM_F_DUMP_INTR:
                    raise InterruptedError(errno.EINTR, "the dump was interrupted by a change")
                yield payload[NFGEN.size :]

    def _errors(self) -> Iterator[tuple[int, int, int | None]]:
        """Yield (sequence, errno, offset of the refused part in its message) of waiting errors."""
        while (datagram := self._receive()) is not None:
            for kind, _, sequence, payload in _messages(datagram):
                code = -struct.unpack_from("=i", payload)[0] if kind == NLMSG_ERROR else 0
                if code:
                    extended = dict(attributes(payload[4 + HEADER.size :]))
                    raw = extended.get(NLMSGERR_ATTR_OFFS)
                    yield sequence, code, None if raw is None else struct.unpack("=I", raw)[0]

    def _transmit(self, datagram: bytes) -> None:
        if self._closed:
            raise UnknownContainer("the attachment was taken down meanwhile")
        while self._receive() is not None:
            pass
        needed = len(datagram) + SEND_SLACK
        if needed > self._send_buffer:
            # The kernel doubles the number. SO_SNDBUF would be limited to net.core.wmem_max,
            # SO_SNDBUFFORCE is not.
            self._socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, max(needed, 1 << 17))
            self._send_buffer = max(needed, 1 << 17)
        self._socket.sendto(datagram, (0, 0))

    def _receive(self) -> bytes | None:
        try:
            return self._socket.recv(RECEIVE_BUFFER)
        except BlockingIOError:
            return None


def _flow_dump(mark: int | None) -> Callable[[int], bytes]:
    """Return what asks for the conntrack entries with `mark`, or for all."""
    flags = NLM_F_REQUEST | NLM_F_DUMP
    return lambda sequence: encode_flows(IPCTNL_MSG_CT_GET, flags, sequence, mark)


def _messages(datagram: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield (type, flags, sequence, payload) of each message in a datagram."""
    offset = 0
    while offset + HEADER.size <= len(datagram):
        length, kind, flags, sequence, _ = HEADER.unpack_from(datagram, offset)
        if length < HEADER.size:
            return
        yield kind, flags, sequence, datagram[offset + HEADER.size : offset + length]
        offset += length + -length % 4
