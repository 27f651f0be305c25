"""Reading a wire as an attacker would: every frame of one interface, classified.

Follows ``struct batadv_unicast_packet`` of include/uapi/linux/batadv_packet.h (10 bytes
before the inner Ethernet header) and RFC 8926 for GENEVE (8 bytes without options).
"""

from __future__ import annotations

import socket
import threading
from collections import Counter

from netconf.namespace import Namespace

ETH_P_ALL = 0x0003
BATMAN = 0x4305
MACSEC = 0x88E5
IPV4 = 0x0800
GENEVE_PORT = 6081
UNICAST, UNICAST_4ADDR = 0x40, 0x42
UNICAST_HEADER = {UNICAST: 10, UNICAST_4ADDR: 18}
FRAGMENT = 0x41


def classify(frame: bytes) -> str:
    """Return what a frame is, in a word or two."""
    kind = int.from_bytes(frame[12:14], "big")
    if kind == BATMAN:
        return _batman(frame[14:])
    if kind == MACSEC:
        return "MACsec outside the mesh"
    if kind != IPV4 or len(frame) < 34:
        return {0x0806: "ARP", 0x86DD: "IPv6"}.get(kind, f"EtherType {kind:#06x}")
    transport = frame[14 + (frame[14] & 0x0F) * 4 :]
    protocol = frame[23]
    ports = int.from_bytes(transport[0:2], "big"), int.from_bytes(transport[2:4], "big")
    if protocol == socket.IPPROTO_UDP and ports[1] == GENEVE_PORT:
        options = (transport[8] & 0x3F) * 4
        return classify(transport[16 + options :])
    if protocol == socket.IPPROTO_TCP and 7447 in ports:
        return "fabric TLS"
    return f"IPv4 protocol {protocol}"


def _batman(packet: bytes) -> str:
    kind = packet[0]
    if kind == FRAGMENT:
        return "batman-adv fragment"
    if kind in UNICAST_HEADER:
        inner = packet[UNICAST_HEADER[kind] :]
        if int.from_bytes(inner[12:14], "big") == MACSEC:
            return "MACsec in batman-adv"
        return "plaintext in batman-adv"
    return "batman-adv routing"


class Capture:
    """Frames of one interface, in a thread, between ``with`` and its end."""

    def __init__(self, namespace: str, interface: str) -> None:
        """`namespace` is a path."""
        with Namespace.open(namespace) as opened, opened.enter():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.bind((interface, ETH_P_ALL))
        self._socket.settimeout(0.2)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self.frames: list[bytes] = []

    def __enter__(self) -> Capture:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def _read(self) -> None:
        while not self._stop.is_set():
            try:
                self.frames.append(self._socket.recv(65536))
            except TimeoutError:
                continue

    def kinds(self) -> Counter[str]:
        """Return how many frames there were of each kind."""
        return Counter(map(classify, self.frames))

    def holding(self, marker: bytes) -> int:
        """Return how many frames hold `marker` in the clear."""
        return sum(marker in frame for frame in self.frames)
