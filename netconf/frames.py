"""The two frames a node sends in a container's name, so that the mesh knows the container.

1. A MAC that has never sent a frame is not in batman-adv's translation table, and unicast
   to it is dropped. `announce` is one broadcast from it: other nodes know it in 0.25 s.
2. An entry expires after 10 minutes of silence. `keep_alive` is one frame to a unicast
   MAC that nobody owns: learned from, then dropped, never flooded.
3. Both are empty, of EtherType 0x88B5 (IEEE Std 802 local experimental 1), and the host
   filter lets a port send nothing else in the clear.
4. A packet socket is kept open per namespace and process: closing one waits for an RCU
   grace period (packet_release, net/packet/af_packet.c), tens of milliseconds.
"""

from __future__ import annotations

import socket
import threading

from netconf.namespace import OWN, identity

ETHERTYPE = 0x88B5
BROADCAST = "ff:ff:ff:ff:ff:ff"
NOBODY = "02:4e:00:00:00:00"
"""A replica's MAC for the address 0.0.0.0, which no replica can have."""

PAYLOAD = bytes(46)
"""Ethernet's least payload."""

_sockets: dict[tuple[int, int] | None, socket.socket] = {}
_opening = threading.Lock()


def announce(vc_name: str) -> None:
    """Send the announcement from the MAC of a link in the thread's namespace; OSError."""
    _send(vc_name, BROADCAST)


def keep_alive(vc_name: str) -> None:
    """Send the keep-alive from the MAC of a link in the thread's namespace; OSError."""
    _send(vc_name, NOBODY)


def _send(link: str, destination: str) -> None:
    with _opening:
        sender = _sender()
    # The kernel writes the source (the link's MAC) for a SOCK_DGRAM packet socket.
    octets = bytes.fromhex(destination.replace(":", ""))
    sender.sendto(PAYLOAD, (link, ETHERTYPE, 0, 0, octets))


def _sender() -> socket.socket:
    here = identity(OWN)
    if here not in _sockets:
        # Protocol 0: it only sends; no received frame is copied to it.
        _sockets[here] = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)
    return _sockets[here]


def close() -> None:
    """Close the sockets, letting their namespaces go."""
    with _opening:
        while _sockets:
            _sockets.popitem()[1].close()
