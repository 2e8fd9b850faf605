"""Models and streams that only our own tests ask of the fake upstream."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from suffice_testing import FakeRequest, Fault, Reply, Script


def nonce_of(seen: FakeRequest) -> str:
    """The word behind `nonce=` in the prompt; "" when there is none."""
    match = re.search(r"nonce=(\w+)", seen.text)
    return match.group(1) if match else ""


@dataclass(frozen=True, slots=True)
class EchoNonce:
    """Every chunk repeats the word behind `nonce=` in the prompt: finds answers that got crossed."""

    n_reasoning: int = 3
    n_answer: int = 3
    delay_s: float = 0.0

    def __call__(self, seen: FakeRequest) -> Reply:
        token = nonce_of(seen) + " "
        return Reply(
            reasoning=(token,) * self.n_reasoning,
            answer=(token,) * self.n_answer,
            delay_s=self.delay_s,
            extra={"nonce": nonce_of(seen)},
        )


@dataclass(frozen=True, slots=True)
class FirstFails:
    """The first `n_calls` requests, of any kind, suffer from `faults`: for retries and failing continuations."""

    then: Callable[[FakeRequest], Reply]
    faults: tuple[Fault, ...]
    n_calls: int = 1

    def __call__(self, seen: FakeRequest) -> Reply:
        reply = self.then(seen)
        return replace(reply, faults=self.faults) if seen.nth < self.n_calls else reply


@dataclass(frozen=True, slots=True)
class Replay:
    """Plays a recorded body verbatim, from a file or from bytes."""

    source: str | Path | bytes
    piece_bytes: int = 0  # size of the HTTP chunks; 0: one chunk for all
    delay_s: float = 0.0
    content_type: str = "text/event-stream"

    def __call__(self, seen: FakeRequest) -> Script:
        body = self.source if isinstance(self.source, bytes) else Path(self.source).read_bytes()
        size = self.piece_bytes or max(1, len(body))
        return Script(
            pieces=tuple(body[at : at + size] for at in range(0, len(body), size)),
            delay_s=self.delay_s,
            content_type=self.content_type,
        )
