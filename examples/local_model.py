"""The model in the box behind its OpenAI-compatible server, on one thread; for the examples.

    with local_model() as model:
        said = model.ask([{"role": "user", "content": "…"}], max_tokens=16)

Its weights come from the cache of `suffice demo`, and are fetched the first time. SUFFICE_EXAMPLES_URL
names a server that runs already.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NAME = "qwen0.5b"
ADDRESS = "SUFFICE_EXAMPLES_URL"


@dataclass(frozen=True, slots=True)
class Said:
    """One answer of the model, and what it took."""

    text: str
    tokens: int  # generated
    ctx_tokens: int  # of the prompt
    logprobs: tuple[float, ...]  # of the generated tokens


class Model:
    """Asks greedily. The same messages would be answered the same, so they are sent once."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._said: dict[str, Said] = {}

    def ask(self, messages: list[dict[str, str]], *, max_tokens: int, stop: tuple[str, ...] = ()) -> Said:
        """One chat completion."""
        body = {
            "model": NAME,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": 0,
            "logprobs": True,
            "stop": list(stop),
        }
        raw = json.dumps(body)
        if raw not in self._said:
            self._said[raw] = self._ask(raw)
        return self._said[raw]

    def _ask(self, raw: str) -> Said:
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions", raw.encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as reply:
            body: Any = json.load(reply)
        choice, usage = body["choices"][0], body["usage"]
        listed = (choice.get("logprobs") or {}).get("content") or ()
        return Said(
            text=(choice["message"]["content"] or "").strip(),
            tokens=usage["completion_tokens"],
            ctx_tokens=usage["prompt_tokens"],
            logprobs=tuple(token["logprob"] for token in listed),
        )


@contextlib.contextmanager
def local_model() -> Iterator[Model]:
    """A running model; its server is ended with the block."""
    if url := os.environ.get(ADDRESS):
        yield Model(url)
        return
    with served() as url:
        yield Model(url)


@contextlib.contextmanager
def served() -> Iterator[str]:
    """The server alone: its address, without /v1."""
    from suffice_demo.local import weights
    from suffice_demo.local.server import LocalServer, ServerSpec

    def progress(done: int, total: int) -> None:
        print(f"\rweights of {NAME}: {done / 2**20:.0f} of {total / 2**20:.0f} MB", end="", file=sys.stderr)

    file = weights.fetch(NAME, progress=progress)
    print(file=sys.stderr)
    spec = ServerSpec(model_path=file, alias=NAME, n_parallel=1, ctx_tokens_per_slot=4096, n_threads=1)
    with LocalServer(spec) as server:
        yield server.url
