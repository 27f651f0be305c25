"""What an intruder runs inside a container: raw frames and new links, as they are asked for.

1. Each line on stdin is ``{"link", "frame", "mark"}``, the frame in hexadecimal and whole, or
   ``{"over", "kind", "data"}``: make a link x0 of a kind over the device of that index in the
   node's namespace. Each is answered with ``ok`` or the name of the error.
2. ``ip`` would not do for the links: since iproute2 6.15 it asks for the lower device first, in
   the node's namespace, and what the kernel refuses then is the question, not the attack.
3. No import that is slow under emulation.

Source: net/core/rtnetlink.c (rtnl_newlink), include/uapi/linux/if_link.h.
"""

from __future__ import annotations

import errno
import json
import socket
import struct
import sys
from typing import Any

NETLINK_ROUTE = 0
RTM_NEWLINK = 16
REQUEST_ACK_EXCL_CREATE = 0x1 | 0x4 | 0x200 | 0x400
IFLA_IFNAME, IFLA_LINK, IFLA_LINKINFO, IFLA_LINK_NETNSID = 3, 5, 18, 37
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2


def attribute(kind: int, data: bytes) -> bytes:
    """Return a netlink attribute, padded."""
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def add_link(over: int, kind: str, data: list[int]) -> str:
    """Make x0; `data` is empty or one 16-bit attribute of the kind and its value."""
    info = attribute(IFLA_INFO_KIND, kind.encode())
    if data:
        info += attribute(IFLA_INFO_DATA, attribute(data[0], struct.pack("=H", data[1])))
    body = bytes(16) + b"".join(
        (
            attribute(IFLA_IFNAME, b"x0\0"),
            attribute(IFLA_LINK, struct.pack("=I", over)),
            attribute(IFLA_LINK_NETNSID, struct.pack("=i", 0)),
            attribute(IFLA_LINKINFO, info),
        )
    )
    header = struct.pack("=IHHII", 16 + len(body), RTM_NEWLINK, REQUEST_ACK_EXCL_CREATE, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as rtnl:
        rtnl.send(header + body)
        (code,) = struct.unpack_from("=i", rtnl.recv(1 << 16), 16)
    return "ok" if code == 0 else errno.errorcode.get(-code, "?")


def send(sender: socket.socket, wish: dict[str, Any]) -> str:
    """Put a frame on a link."""
    try:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, wish["mark"])
        sender.sendto(bytes.fromhex(wish["frame"]), (wish["link"], 0))
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "?")
    return "ok"


def main() -> None:
    """Send until stdin ends."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        print("ready", flush=True)
        for line in sys.stdin:
            wish = json.loads(line)
            answer = add_link(**wish) if "over" in wish else send(sender, wish)
            print(answer, flush=True)


if __name__ == "__main__":
    main()
