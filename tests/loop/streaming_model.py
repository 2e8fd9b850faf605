"""A model server that streams paragraphs, and knows which of its answers were left before their end."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.threaded_server import serving


def event(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "scripted", "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def answer(paragraphs: Sequence[str]) -> list[bytes]:
    """One event for each paragraph, all but the last with the blank line behind it, and the end of a chat stream."""
    texts = [f"{text}\n\n" for text in paragraphs[:-1]] + list(paragraphs[-1:])
    return [*map(event, texts), event("", finish="stop") + b"data: [DONE]\n\n"]


class StreamingModel:
    """POST /NAME/… streams the paragraphs of NAME, one event a piece, with a pause behind each.

    The request's body may set the pause (`pause_s`), the size of the pieces (`size`) and a content-length (`sized`).
    """

    def __init__(self, paragraphs: Mapping[str, Sequence[str]]) -> None:
        self.paragraphs = paragraphs
        self.n_written: Counter[str] = Counter()  # events, by name
        self.left: set[str] = set()  # names whose client went before the end
        self._ends = {name: threading.Event() for name in paragraphs}
        self._goes_on = threading.Event()  # never set: a pause that waits for it ends with its time

    def wait_for_end(self, name: str, within_s: float = 60) -> bool:
        """Wait until the answer was written or left, and forget that it was."""
        ended = self._ends[name].wait(within_s)
        self._ends[name].clear()
        return ended

    def handler(self) -> type[BaseHTTPRequestHandler]:
        model = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                name = self.path.split("/")[1]
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                try:
                    self._write(name, body, answer(model.paragraphs[name]))
                except OSError:
                    model.left.add(name)
                    self.close_connection = True
                model._ends[name].set()

            def _write(self, name: str, body: Mapping[str, Any], parts: list[bytes]) -> None:
                raw, size = b"".join(parts), body.get("size")
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                if body.get("sized"):
                    self.send_header("content-length", str(len(raw)))
                else:
                    self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                pieces = [raw[at : at + size] for at in range(0, len(raw), size)] if size else parts
                for piece in pieces:
                    self.wfile.write(piece if body.get("sized") else b"%x\r\n%s\r\n" % (len(piece), piece))
                    model.n_written[name] += 1
                    model._goes_on.wait(body.get("pause_s", 0.25))
                if not body.get("sized"):
                    self.wfile.write(b"0\r\n\r\n")

            def log_message(self, *_: object) -> None:
                """Keep quiet."""

        return Handler


@contextmanager
def streaming_model(paragraphs: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, StreamingModel]]:
    model = StreamingModel(paragraphs)
    with serving(model.handler()) as url:
        yield url, model
