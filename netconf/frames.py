"""The two frames that a node sends with a container's MAC as source, so that the mesh knows it.

1. batman-adv drops unicast to a MAC that is not in its translation table, and a MAC gets there by
   sending. So `announce` sends one broadcast frame from the container's MAC; other nodes know the
   MAC 0.25 s later.
2. An entry expires after 10 minutes without a frame. So `keep_alive` sends one frame to a unicast
   MAC that nobody owns: batman-adv refreshes the entry of the sender and then drops the frame,
   without flooding it.
3. Both frames are empty and have EtherType 0x88B5 (IEEE Std 802, local experimental 1).
4. They are sent on the mesh device itself, not on the container's port. So the host filter need not
   let anything but MACsec through that port: a container with CAP_NET_ADMIN could switch its SecY's
   protection off and send plaintext through such an exception.
5. One packet socket per namespace and process stays open, because closing one waits for an RCU
   grace period of tens of milliseconds (packet_release, net/packet/af_packet.c).
"""

from __future__ import annotations

import socket
import threading

from netconf import names
from netconf.namespace import OWN, identity

ETHERTYPE = 0x88B5
BROADCAST = "ff:ff:ff:ff:ff:ff"
NOBODY = "02:4e:00:00:00:00"
"""A replica's MAC for the address 0.0.0.0, which no replica can have."""

PAYLOAD = bytes(46)
"""The shortest payload of an Ethernet frame, in bytes."""

_sockets: dict[tuple[int, int] | None, socket.socket] = {}
_opening = threading.Lock()


def announce(mac: str) -> None:
    """Tell all nodes that `mac` is on this node, whose namespace the thread is in; OSError."""
    _send(mac, BROADCAST)


def keep_alive(mac: str) -> None:
    """Refresh the entry of a `mac` of this node in batman-adv's translation table; OSError."""
    _send(mac, NOBODY)


def _send(source: str, destination: str) -> None:
    with _opening:
        sender = _sender()
    header = bytes.fromhex((destination + source).replace(":", "")) + ETHERTYPE.to_bytes(2, "big")
    sender.sendto(header + PAYLOAD, (names.MESH, 0))


def _sender() -> socket.socket:
    here = identity(OWN)
    if here not in _sockets:
        # Protocol 0, because the socket only sends: the kernel then copies no received frame to it.
        _sockets[here] = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    return _sockets[here]


def close() -> None:
    """Close all sockets, so that they no longer keep their namespaces alive."""
    with _opening:
        while _sockets:
            _sockets.popitem()[1].close()
