"""The end of a run that has no answer, kept back while one is asked for.

It knows frames and where they go, and refuses to know why a run ended and who is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from suffice.upstream.wire import Frame, decode_json, encode_frame


class Delivery(Protocol):
    """Where frames go: a client's stream, or a body that is put together."""

    async def frames(self, frames: Sequence[Frame]) -> None:
        """Hand over whole frames, in order."""
        ...

    def frame_now(self, raw: bytes) -> bool:  # noqa: ARG002
        """Hand over the bytes of whole frames without waiting; False: not now, or not here."""
        return False

    def can_begin_again(self) -> bool:
        """May another answer take the place of what was handed over so far?"""
        ...

    async def end(self) -> None:
        """Complete the client's answer. Work may go on after it, unseen."""
        ...


def data_frame(obj: Any) -> Frame:
    """A frame of our own."""
    raw = encode_frame(obj)
    return Frame(raw=raw, data=raw[6:-2], event=None)


class OwnEnd:
    """What the upstream sent from its finish reason on: delivered as it is, or an answer in its place."""

    def __init__(self) -> None:
        self.wanted = False  # should such an end be kept back?
        self.kept: list[Frame] | None = None  # … and here it is, from the finish reason on

    def begin(self, *, has_answer: bool) -> None:
        """The finish reason has come; what follows is kept if the run has no answer and somebody wants it."""
        if self.wanted and not has_answer:
            self.kept = []

    async def make_room(self, delivery: Delivery) -> None:
        """Deliver the thought that the upstream's last chunk may carry, so that an answer can follow it."""
        kept = self.kept or []
        body = decode_json(kept[0].data) if kept and kept[0].data else {}
        choice = next((c for c in body.get("choices") or () if isinstance(c, dict)), {})
        if not any((choice.get("delta") or {}).values()):
            return
        reason, at_the_end = choice.get("finish_reason"), ("usage", "suffice", "timings")
        told = {name: body.pop(name) for name in at_the_end if name in body}
        choice["finish_reason"] = None
        await delivery.frames([data_frame(body)])
        choice |= {"delta": {}, "finish_reason": reason}
        kept[0] = data_frame(body | told)

    async def deliver(self, delivery: Delivery) -> None:
        """No answer came: the client gets the end that the upstream gave."""
        kept, self.kept = self.kept or [], None
        if kept:
            await delivery.frames(kept)
        await delivery.end()
