"""A chain of thought without sockets: a call made of bytes, a client made of a list."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from suffice.episode.chain_reader import ChainReader, Segmenter
from suffice.episode.ledger import Ledger
from suffice.episode.stream_relay import ClientView, Delivery, ReasoningRun, StreamRelay
from suffice.errors import UpstreamDown
from suffice.scoring.base import build_scorer
from suffice.settings import Steps
from suffice.types import Request
from suffice.upstream.client import Call
from suffice.upstream.wire import Frame
from tests.records import plain_request


def request(**changes: Any) -> Request:
    """A request's record."""
    known = {"mode": "enforce", "stream": True, "policy_version": "p-1", "question_key": "k"}
    return plain_request("ep_1", **known | changes)


@dataclass
class BytesCall:
    """An upstream call that gives these pieces; afterwards it ends, or breaks."""

    pieces: list[bytes]
    breaks: bool = False
    hands_over: bool = True  # as a connection does whose reader waits
    closed: bool = False
    status: int = 200

    async def read(self, at_once: Callable[[bytes], bool] | None = None) -> bytes:
        while self.pieces and self.hands_over and at_once is not None and at_once(self.pieces[0]):
            del self.pieces[0]
        if self.pieces:
            return self.pieces.pop(0)
        if self.breaks:
            raise UpstreamDown("broken off")
        return b""

    async def settle(self, within_s: float = 0.0) -> None:
        pass

    def close(self) -> None:
        self.closed = True


@dataclass
class Kept(Delivery):
    """A client that keeps what it got."""

    texts_now = None
    got: list[Frame] = field(default_factory=list)
    ended: int = 0

    async def frames(self, frames: Sequence[Frame]) -> None:
        assert not self.ended
        self.got += frames

    def frame_now(self, raw: bytes) -> bool:
        self.got.append(Frame(raw, raw[6:-2]))
        return True

    def can_rerun(self) -> bool:
        return False

    async def end(self) -> None:
        self.ended += 1

    @property
    def raw(self) -> bytes:
        return b"".join(frame.raw for frame in self.got)

    @property
    def deltas(self) -> list[dict[str, Any]]:
        """The deltas of every whole frame so far."""
        result = []
        for frame in self.got:
            if frame.data and frame.data != b"[DONE]":
                result += [c["delta"] for c in json.loads(frame.data).get("choices") or ()]
        return result

    def joined(self, key: str) -> str:
        return "".join(delta.get(key) or "" for delta in self.deltas)


def chunk(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    body = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **more}
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


PLAIN = ClientView(usage=True, object=False)


def run_of(
    pieces: Sequence[bytes],
    *,
    steps: Steps | None = None,
    breaks: bool = False,
    hands_over: bool = True,
    view: ClientView = PLAIN,
    delivery: Delivery | None = None,
    **options: Any,
) -> tuple[ReasoningRun, Kept, Ledger]:
    """A run over these bytes."""
    ledger, client = Ledger(request(), 0.0), Kept()
    call = cast("Call", BytesCall(list(pieces), breaks=breaks, hands_over=hands_over))
    known: dict[str, Any] = {
        "scorer": build_scorer("number"),
        "tags": ("<think>", "</think>"),
    }
    reader = ChainReader(
        ledger.open_call("main"),
        ledger,
        segmenter=Segmenter(steps or Steps(min_tokens=2, growth=1.0)),
        **known | options,
    )
    return ReasoningRun(StreamRelay(call, reader, delivery or client, view)), client, ledger
