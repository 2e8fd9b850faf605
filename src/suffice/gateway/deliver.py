"""The two ways an answer reaches the client: frame by frame, or put together into one body."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

from suffice.gateway.exchange import Exchange
from suffice.upstream.assemble import Assembler
from suffice.upstream.wire import DONE_DATA, Frame, encode_json

BODY_LIMIT_BYTES = 32 * 2**20  # of an answer that is put together, as it is kept


class StreamDelivery:
    """The client asked for a stream: frames go out as they came, many in one write."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.frame_now = exchange.body_now  # bytes of whole frames, where one stands: no layer of ours in between

    def frames(self, frames: Sequence[Frame]) -> Coroutine[Any, Any, None]:
        """Send whole frames. Gives the send itself to be awaited: one layer less for each read."""
        return self._exchange.body(frames[0].raw if len(frames) == 1 else b"".join([f.raw for f in frames]))

    def can_begin_again(self) -> bool:
        """What was sent cannot be taken back."""
        return False

    async def end(self) -> None:
        """Complete the answer."""
        if not self._exchange.complete:
            await self._exchange.body(b"", more=False)


class BodyDelivery:
    """The client asked for one body: it equals what the upstream would have answered directly."""

    def __init__(self, exchange: Exchange, status: int, headers: Sequence[tuple[str, str]]) -> None:
        self._exchange, self._status = exchange, status
        dropped = {"content-type", "content-length", "content-encoding"}
        self._headers = [(k, v) for k, v in headers if k.lower() not in dropped]
        self._assembler = Assembler(BODY_LIMIT_BYTES)

    def frame_now(self, raw: bytes) -> bool:  # noqa: ARG002
        """Nothing goes out before the end."""
        return False

    async def frames(self, frames: Sequence[Frame]) -> None:
        """Take frames in."""
        for frame in frames:
            if frame.data is not None and frame.data != DONE_DATA:
                self._assembler.add(frame.data)

    def can_begin_again(self) -> bool:
        """Nothing was sent yet: another run may take the place of this one."""
        return not self._exchange.status

    async def end(self) -> None:
        """Send the body."""
        if not self._exchange.complete:
            body = encode_json(self._assembler.result())
            await self._exchange.json(self._status, body, self._headers)
