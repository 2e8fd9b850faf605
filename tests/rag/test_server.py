from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest
from bench.rag.rounds import LlamaServer

END = 7  # the token of <|im_end|>


class FakeLlama(BaseHTTPRequestHandler):
    """Speaks llama.cpp's completion API as far as the recorder needs it."""

    generated: ClassVar[list[tuple[int, str | bytes, float]]] = []
    requests: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/tokenize":
            reply: dict[str, Any] = {"tokens": [END] if body["content"] == "<|im_end|>" else [1, 2]}
        else:
            self.requests.append(body)
            reply = {"completion_probabilities": [self._token(*one) for one in self.generated]}
        raw = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    @staticmethod
    def _token(number: int, written: str | bytes, logprob: float) -> dict[str, Any]:
        raw = written.encode() if isinstance(written, str) else written
        text = raw.decode("utf-8", "replace")
        top = [{"token": text, "logprob": logprob}, {"token": "?", "logprob": -4.0}]
        return {"id": number, "token": text, "bytes": list(raw), "logprob": logprob, "top_logprobs": top}

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[LlamaServer]:
    FakeLlama.requests = []
    with HTTPServer(("127.0.0.1", 0), FakeLlama) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield LlamaServer(f"http://127.0.0.1:{http.server_port}", timeout_s=5.0)
        http.shutdown()
        thread.join()


@pytest.mark.parametrize("end", [(3, "\n", -0.1), (4, ".\n\n", -0.1), (END, "<|im_end|>", -0.1), (END, "", -0.1)])
def test_a_reply_ends_with_its_line_or_its_turn(server: LlamaServer, end: tuple[int, str, float]) -> None:
    FakeLlama.generated = [(10, " Port", -0.2), (11, " of", 1e-6), end, (12, " more", -0.3)]
    reply = server.complete([5, 6], 24)
    assert (reply.text, reply.tokens) == (" Port of", (10, 11))
    assert reply.logprobs == (-0.2, 0.0)  # rounding may leave a probability above 1
    assert reply.rivals == ((" Port", -0.2), ("?", -4.0))
    (request,) = FakeLlama.requests
    assert (request["prompt"], request["n_predict"], request["temperature"]) == ([5, 6], 24, 0)


def test_a_letter_of_two_tokens_is_one_letter(server: LlamaServer) -> None:
    FakeLlama.generated = [(10, " Ky", -0.2), (11, b"\xc5", -0.1), (12, b"\x8d", -0.1), (13, "en", -0.1)]
    reply = server.complete([5], 24)
    assert (reply.text, len(reply.tokens)) == (" Kyōen", 4)


def test_a_reply_without_a_word_has_no_tokens_but_rivals(server: LlamaServer) -> None:
    FakeLlama.generated = [(3, "\n", -0.1)]
    reply = server.complete([5], 24)
    assert (reply.text, reply.tokens, reply.logprobs) == ("", (), ())
    assert reply.rivals[0] == ("\n", -0.1)


def test_a_text_is_tokenized_once_and_cannot_be_changed(server: LlamaServer) -> None:
    assert server.tokenize("a") == (1, 2)
    assert server.tokenize("a") is server.tokenize("a")
