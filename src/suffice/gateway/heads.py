"""Bounds what a request's head may cost before there is a request: uvicorn's parser by itself has no limit.

It counts bytes and refuses to know what they mean; what a complete head may hold is `intake.check_head`'s.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

UNFINISHED_HEAD_BYTES = 2**20


class LimitedHttp(HttpToolsProtocol):
    """uvicorn's protocol that closes a connection whose request's head does not come to an end."""

    _in_head = True
    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Take the next bytes."""
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > UNFINISHED_HEAD_BYTES:
            self.send_400_response("Request head too large.")

    def on_headers_complete(self) -> None:
        """The head has ended."""
        self._in_head, self._head_bytes = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next bytes are another head."""
        self._in_head = True
        super().on_message_complete()
