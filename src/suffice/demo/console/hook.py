"""A webhook of the demonstration's own: what alerts tell it stands in the terminal."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from suffice.store.people.alerts import Notice, plain

MOST_BYTES: Final = 64 * 1024
MOST_TEXT: Final = 400


@dataclass(slots=True)
class Took:
    """A sink of the made-up month: it took everything when it happened."""

    name: str

    def tell(self, notice: Notice, *, at_s: float, link: str | None) -> str | None:  # noqa: ARG002 - as sinks are asked
        """Always taken."""
        return None


@contextmanager
def webhook(say: Callable[[str], None]) -> Iterator[str]:
    """An address on this machine that takes alerts, while the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(min(MOST_BYTES, int(self.headers.get("content-length") or 0)))
            say(_text(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so; Any: as it has
            """Say nothing of each request."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/alerts"
        finally:
            server.shutdown()


def _text(body: bytes) -> str:
    try:
        return plain(str(json.loads(body)["text"]), MOST_TEXT)
    except (ValueError, KeyError, TypeError):
        return "something that is no alert"
