"""One streamed chat answer on its way through a proxy: read, and ended once it suffices."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from suffice import Governor
from suffice.upstream.wire import DONE, DONE_DATA, SseSplitter, decode_chunk
from suffice_loop.run import AgentRun
from suffice_loop.stream import StreamedAnswer, question_of

LOG = logging.getLogger("suffice.loop")
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n' + DONE


class ProxyExchange:
    """One request, from its body to the end of its answer."""

    def __init__(self, governor: Governor) -> None:
        self._governor = governor
        self._question: str | None = None  # None: not a streamed chat request
        self._begun: asyncio.Future[AgentRun] | None = None
        self._answer: StreamedAnswer | None = None
        self._splitter = SseSplitter()
        self._is_broken = False  # the answer could not be read, and passes whole

    def read_request(self, raw: bytes) -> None:
        try:
            body: Any = json.loads(raw)
        except ValueError:
            return
        if isinstance(body, dict) and body.get("stream") is True and isinstance(body.get("messages"), list):
            self._question = question_of(body)

    async def begin(self, headers: dict[str, str]) -> None:
        is_plain = headers.get("content-encoding", "identity") == "identity"
        is_stream = headers.get("content-type", "").startswith("text/event-stream")
        if self._question is not None and is_plain and is_stream and headers.get(":status") == "200":
            self._begun = asyncio.ensure_future(asyncio.to_thread(AgentRun, self._governor, self._question))
            self._answer = StreamedAnswer(await asyncio.shield(self._begun))  # see `end`

    async def edit(self, body: bytes, *, is_last: bool) -> tuple[bytes, bool]:
        """Return what the client gets, and whether it is the end."""
        if self._answer is None or self._is_broken:
            return body, is_last
        passed, frames = b"", self._splitter.feed(body) + (self._splitter.close() if is_last else [])
        for n, frame in enumerate(frames):
            passed += frame.raw
            suffices = await self._suffices(self._answer, frame.data)
            if suffices:
                return passed + LAST, True
            if suffices is None:
                self._is_broken = True
                return passed + b"".join(other.raw for other in frames[n + 1 :] + self._splitter.close()), is_last
        if is_last:
            await self._answer.finish()
        return passed, is_last

    async def _suffices(self, answer: StreamedAnswer, data: bytes | None) -> bool | None:
        """None: it cannot be read."""
        if data is None or data == DONE_DATA:
            return False
        try:
            chunk = decode_chunk(data)
            delta = chunk.choices[0].delta if chunk.choices else None
            return delta is not None and await answer.feed(delta.content or "")
        except Exception:
            LOG.exception("a streamed answer could not be read and passes whole")
            return None

    async def end(self, *, aborted: bool) -> None:
        """End the run, also if this is cancelled meanwhile: a proxy that has what it wants resets the call."""
        self._ending = asyncio.ensure_future(self._end(aborted=aborted))
        await asyncio.shield(self._ending)

    async def _end(self, *, aborted: bool) -> None:
        if self._begun is not None:
            run = await self._begun
            await asyncio.to_thread(run.end, aborted=aborted)
