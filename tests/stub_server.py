"""A server that gives bytes, whatever they are."""

from __future__ import annotations

import contextlib
import socket
import threading


class Stub:
    """A server that answers every request with the same bytes, or with none for a while."""

    def __init__(self, reply: bytes, wait_s: float = 0.0, *, then: bytes | None = None) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.n_asked = 0
        self._reply, self._wait_s, self._then = reply, wait_s, then
        self._over = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.n_asked += 1
            with connection, contextlib.suppress(ConnectionError):  # nobody has to read to the end
                connection.recv(65536)
                if not self._over.wait(self._wait_s) and self._reply:
                    connection.sendall(self._reply)
                    self._reply = self._reply if self._then is None else self._then

    def close(self) -> None:
        self._over.set()
        self._listener.close()


def reply(status: str, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (status.encode(), len(body), body)
