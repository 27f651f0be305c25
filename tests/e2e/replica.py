"""What runs inside a replica of the demo and the end-to-end tests.

``replica.py NAME PORT…``: for each connection on each TCP port, answers one line with NAME,
then echoes. Written on asyncio-free sockets so that it starts fast under emulation.
"""

from __future__ import annotations

import selectors
import socket
import sys


def main() -> None:
    """Serve until killed."""
    name = sys.argv[1].encode()
    waiting = selectors.DefaultSelector()
    for port in sys.argv[2:]:
        listener = socket.socket(socket.AF_INET6)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", int(port)))
        listener.listen(128)
        waiting.register(listener, selectors.EVENT_READ, "listener")
    print("ready", flush=True)
    while True:
        for key, _ in waiting.select():
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            if key.data == "listener":
                client, _ = sock.accept()
                client.sendall(name + b"\n")
                waiting.register(client, selectors.EVENT_READ, "client")
                continue
            try:
                data = sock.recv(65536)
                if data:
                    sock.sendall(data)
                    continue
            except OSError:
                pass
            waiting.unregister(sock)
            sock.close()


if __name__ == "__main__":
    main()
