"""The two frames a node sends in a container's name, so that the mesh knows the container.

1. A MAC that has never sent a frame is not in batman-adv's translation table, and unicast
   to it is dropped. `announce` is one broadcast from it: other nodes know it in 0.25 s.
2. An entry expires after 10 minutes of silence. `keep_alive` is one frame to a unicast
   MAC that nobody owns: learned from, then dropped, never flooded.
3. Both are empty, of EtherType 0x88B5 (IEEE Std 802 local experimental 1).
4. They enter the mesh device itself, not the container's port: a port that could announce
   could also carry a container's own plaintext, for a container with CAP_NET_ADMIN can
   switch its SecY's protection off.
5. A packet socket is kept open per namespace and process: closing one waits for an RCU
   grace period (packet_release, net/packet/af_packet.c), tens of milliseconds.
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
"""Ethernet's least payload."""

_sockets: dict[tuple[int, int] | None, socket.socket] = {}
_opening = threading.Lock()


def announce(mac: str) -> None:
    """Tell all nodes that `mac` is on the node of the thread's namespace; OSError."""
    _send(mac, BROADCAST)


def keep_alive(mac: str) -> None:
    """Remind batman-adv of a `mac` of this node; OSError."""
    _send(mac, NOBODY)


def _send(source: str, destination: str) -> None:
    with _opening:
        sender = _sender()
    header = bytes.fromhex((destination + source).replace(":", "")) + ETHERTYPE.to_bytes(2, "big")
    sender.sendto(header + PAYLOAD, (names.MESH, 0))


def _sender() -> socket.socket:
    here = identity(OWN)
    if here not in _sockets:
        # Protocol 0: it only sends; no received frame is copied to it.
        _sockets[here] = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    return _sockets[here]


def close() -> None:
    """Close the sockets, letting their namespaces go."""
    with _opening:
        while _sockets:
            _sockets.popitem()[1].close()
