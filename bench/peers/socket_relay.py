"""The least that any relay in Python can do: wait, read, write. It knows no HTTP; it joins two sockets.

One connection to the upstream for each of the client's. What a paced chunk costs here, nobody saves whose process is
woken by each chunk and written in Python.

    python socket_relay.py PORT UPSTREAM_URL
"""

from __future__ import annotations

import selectors
import socket
import sys
from urllib.parse import urlsplit

READ_BYTES = 65_536


def serve(port: int, host: str, upstream_port: int) -> None:
    """Join every client with a connection of its own to the upstream, until the process is ended."""
    listener, waits = socket.create_server(("127.0.0.1", port)), selectors.DefaultSelector()
    waits.register(listener, selectors.EVENT_READ)
    others: dict[socket.socket, socket.socket] = {}  # by one end: the end that it is joined with
    while True:
        for key, _ in waits.select():
            one = key.fileobj
            assert isinstance(one, socket.socket)
            if one is listener:
                joined = listener.accept()[0], socket.create_connection((host, upstream_port))
                for end, other in (joined, joined[::-1]):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    others[end] = other
                    waits.register(end, selectors.EVENT_READ)
            elif one not in others:
                continue  # its other end was closed in this round
            elif data := one.recv(READ_BYTES):
                others[one].sendall(data)
            else:
                for end in (one, others[one]):
                    others.pop(end)
                    waits.unregister(end)
                    end.close()


if __name__ == "__main__":
    address = urlsplit(sys.argv[2])
    serve(int(sys.argv[1]), address.hostname or "127.0.0.1", address.port or 80)
