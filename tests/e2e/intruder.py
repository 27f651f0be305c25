"""What an intruder runs inside a container: raw frames, as they are asked for.

Each line on stdin is ``{"link", "frame", "mark"}``, the frame in hexadecimal and whole; each
is answered with ``ok`` or the name of the error. No import that is slow under emulation.
"""

from __future__ import annotations

import errno
import json
import socket
import sys


def main() -> None:
    """Send until stdin ends."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        print("ready", flush=True)
        for line in sys.stdin:
            wish = json.loads(line)
            try:
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, wish["mark"])
                sender.sendto(bytes.fromhex(wish["frame"]), (wish["link"], 0))
                answer = "ok"
            except OSError as error:
                answer = errno.errorcode.get(error.errno or 0, "?")
            print(answer, flush=True)


if __name__ == "__main__":
    main()
