"""One chain of thought: reads the upstream's stream, passes it on, and yields its steps.

Frames are relayed as they came. They are parsed only as far as a policy needs: which part is
thought and which is answer, how many tokens, where a step ends. From the first byte of an answer
or a tool call on, nothing can be stopped any more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from suffice.episode.ledger import CallAccount, Ledger
from suffice.episode.probe import Prober, visible
from suffice.episode.reading import first_choice, n_tokens, note_usage
from suffice.episode.report import suffice_object
from suffice.episode.segment import Checkpoint, Phase, Segmenter
from suffice.errors import UpstreamProtocol
from suffice.scoring.base import Scorer
from suffice.types import Step
from suffice.upstream.client import Call
from suffice.upstream.thought import ThinkTag
from suffice.upstream.wire import (
    DONE,
    DONE_DATA,
    Choice,
    Frame,
    SseSplitter,
    decode_chunk,
    encode_frame,
    is_given,
    reasoning_of,
)

ANSWER_LIMIT_CHARS = 256 * 1024  # what is kept of an answer to score it


class Delivery(Protocol):
    """Where frames go: a client's stream, or a body that is put together."""

    async def frames(self, frames: Sequence[Frame]) -> None:
        """Hand over whole frames, in order."""
        ...

    async def end(self) -> None:
        """Complete the client's answer. Work may go on after it, unseen."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Wants:
    """What the client asked to see."""

    usage: bool        # a usage chunk, or usage in the body
    object: bool       # the `suffice` object even when nothing was stopped


@dataclass(slots=True)
class Seen:
    """What the stream has shown so far."""

    phase: Phase = "start"
    inline: bool = False           # the thought stands in `content`, between tags
    field: str = "reasoning_content"
    id: str | None = None
    model: str | None = None
    created: int | None = None
    finish_reason: str | None = None
    failed: bool = False           # the upstream sent an error frame
    done: bool = False             # [DONE] was seen
    ended: bool = False            # nothing more will come


def data_frame(obj: Any) -> Frame:
    """A frame of our own."""
    raw = encode_frame(obj)
    return Frame(raw=raw, data=raw[6:-2], event=None)


DONE_FRAME = Frame(raw=DONE, data=DONE_DATA, event=None)


class ReasoningRun:
    """The run that the client is watching."""

    def __init__(
        self,
        call: Call,
        account: CallAccount,
        *,
        ledger: Ledger,
        delivery: Delivery,
        segmenter: Segmenter,
        scorer: Scorer,
        prober: Prober | None,
        tags: tuple[str, str],
        wants: Wants,
        drain: bool,
    ) -> None:
        self.call, self.account, self.ledger, self.delivery = call, account, ledger, delivery
        self.seen = Seen()
        self.wants = wants
        self.hidden_thought = False    # rerun: the client has already seen a thought
        self._segmenter, self._scorer, self._prober = segmenter, scorer, prober
        self._think = ThinkTag(*tags)
        self._drain = drain            # audit: every scheduled step is probed, even after the end
        self._splitter = SseSplitter()
        self._reading: asyncio.Task[bytes] | None = None
        self._blind = False            # our own reading failed: pass everything on unseen
        self._answer: list[str] = []
        self._answer_chars = 0
        self._visible: str | None = None
        self._cuts: dict[int, int] = {}        # step → characters of the thought up to its end
        self.alias: Seen | None = None         # rerun: the run whose id and time the client knows
        self.budget: int | None = None         # thought tokens after which the engine itself closes it
        self.held: list[Frame] | None = None   # frames kept back during a hand-over
        self.held_bytes = 0
        account.cancelled = True       # until the end has been seen

    # ---- what others ask

    def may_stop(self) -> bool:
        """Only inside the thought: never in an answer, a tool call or after the end."""
        return self.seen.phase != "answering" and not self.seen.ended

    @property
    def thought(self) -> str:
        """The reasoning text so far."""
        return self._segmenter.thought

    @property
    def answer_text(self) -> str:
        """The answer text so far."""
        return "".join(self._answer)

    def thought_at(self, step: int) -> str:
        """The reasoning text up to the end of a step; all of it when the step is unknown."""
        return self.thought[: self._cuts.get(step)]

    def extract(self, text: str) -> str | None:
        """The normalised answer in `text`, by the route's scorer."""
        return self._scorer.extract(text)

    # ---- steps

    async def steps(self) -> AsyncGenerator[Step, None]:
        """Yield the run's steps while relaying it; with a prober, each with its trial answer."""
        waiting: deque[Checkpoint] = deque()
        probing: asyncio.Task[Step] | None = None
        try:
            while True:
                if self.seen.ended and not (self._drain and (waiting or probing)):
                    return
                if probing is None and waiting and self._prober is not None and self._prober.ready():
                    probing = asyncio.create_task(self._prober.ask(waiting.popleft()))
                if probing is None:
                    waiting.clear()  # no prober, or none that may call: what is not asked is missing
                    if self.seen.ended:
                        return
                    for point in await self.relay(await self.next_bytes()):
                        if self._prober is None:
                            yield self._visible_step(point)
                        else:
                            waiting.append(point)
                    continue
                await self._either(probing, waiting)
                if probing.done():
                    step, probing = self._probed(probing), None
                    if step is not None:
                        yield step
        finally:
            if probing is not None:
                probing.cancel()
                await asyncio.gather(probing, return_exceptions=True)

    def _probed(self, probing: asyncio.Task[Step]) -> Step | None:
        """The probed step; None when the probe itself is broken, and then no more are sent."""
        try:
            return probing.result()
        except Exception:  # noqa: BLE001 - a broken probe costs tokens, never an answer
            self.ledger.fail_open("probe")
            self._prober = None
            return None

    async def _either(self, probing: asyncio.Task[Step], waiting: deque[Checkpoint]) -> None:
        """Wait for the probe or for the next bytes, and pass bytes on at once."""
        tasks: set[asyncio.Task[Any]] = {probing}
        if not self.seen.ended:
            tasks.add(self._read_task())
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if self._reading is not None and self._reading.done():
            waiting.extend(await self.relay(await self.next_bytes()))

    def _read_task(self) -> asyncio.Task[bytes]:
        if self._reading is None:
            self._reading = asyncio.create_task(self.call.read())
        return self._reading

    async def next_bytes(self) -> bytes:
        """The next bytes of the upstream, also those that an earlier wait had begun to read."""
        if self._reading is None:
            return await self.call.read()
        data = await asyncio.shield(self._reading)
        self._reading = None
        return data

    def _visible_step(self, point: Checkpoint) -> Step:
        step = visible(point, self._scorer, self._visible)
        self._visible = step.answer
        return step

    # ---- relaying

    async def relay(self, data: bytes) -> list[Checkpoint]:
        """Pass on what `data` completes; return the checkpoints that it reaches.

        Raises UpstreamError when the upstream broke its protocol; whole frames before it are delivered.
        """
        points: list[Checkpoint] = []
        frames = self._splitter.feed(data) if data else self._splitter.close()
        out: list[Frame] = []
        try:
            for frame in frames:
                if (kept := self._look(frame, points)) is not None:
                    out.append(kept)
        finally:
            if out:
                await self._pass(out)
        if not data or self.seen.done or self.seen.failed:
            await self._end()
        return points

    async def rest(self) -> None:
        """Relay everything that is left, without steps."""
        while not self.seen.ended:
            await self.relay(await self.next_bytes())

    async def _pass(self, frames: list[Frame]) -> None:
        if self.held is not None:
            self.held.extend(frames)
            self.held_bytes += sum(len(f.raw) for f in frames)
            return
        await self.delivery.frames(frames)

    async def _end(self) -> None:
        self.seen.ended = True
        if self.seen.finish_reason is None and not self.seen.failed:
            raise UpstreamProtocol("the upstream ended its stream without a finish reason")
        for channel, text in self._think.close():
            if channel == "answer":
                self._answers(text, 0)
        self.account.cancelled = self.seen.failed
        self.ledger.answer = self._scorer.extract(self.answer_text)
        self.ledger.truncated = self.seen.finish_reason == "length"
        self.ledger.unclosed = self.seen.phase == "thinking"
        if self.seen.failed:
            self.ledger.end_reason = "upstream_error"
        elif not self.seen.done:
            await self._pass([DONE_FRAME])
        if self.held is None:
            await self.delivery.end()

    async def release(self) -> None:
        """Deliver what a failed hand-over had kept back; the original goes on."""
        held, self.held, self.held_bytes = self.held or [], None, 0
        if held:
            await self.delivery.frames(held)
        if self.seen.ended:
            await self.delivery.end()

    def abandon(self) -> None:
        """Close the original call: its thought goes on elsewhere."""
        self.seen.ended = True
        if self._reading is not None:
            self._reading.cancel()
        self.call.close()

    # ---- reading

    def _look(self, frame: Frame, points: list[Checkpoint]) -> Frame | None:
        """Take note of one frame; return it, changed only where the client asked for that, or None."""
        seen = self.seen
        if seen.done or seen.failed:
            return None
        if frame.data is None:
            return frame
        if frame.data == DONE_DATA:
            seen.done = True
            return frame if seen.finish_reason is not None else None
        chunk = decode_chunk(frame.data)
        if is_given(chunk.error):
            seen.failed = True
            return frame
        note_usage(self.account, chunk.usage)
        if seen.id is None and chunk.id:
            seen.id, seen.model = chunk.id, chunk.model
            seen.created = msgspec.json.decode(frame.data).get("created")
            self.ledger.response_id = chunk.id
        choice = first_choice(chunk)
        if choice is None:
            return frame if self.wants.usage or chunk.usage is None else None
        shown = self._guarded_fold(choice, points)
        if choice.finish_reason is not None:
            seen.finish_reason = choice.finish_reason
            self._note_engine_budget()
            if self.wants.object or self.ledger.stopped:
                return self._with_object(frame.data)
        if self.hidden_thought and not shown:
            return None
        return frame if self.alias is None else self._renamed(frame.data, self.alias)

    def _note_engine_budget(self) -> None:
        if self.budget is not None and self.account.reasoning_tokens >= self.budget and not self.ledger.stopped:
            self.ledger.stopped, self.ledger.stop_reason = True, "budget"
            self.ledger.finish_method = "native"

    def _renamed(self, data: bytes, known: Seen) -> Frame:
        body = msgspec.json.decode(data)
        return data_frame(body | {"id": known.id, "created": known.created})

    def _guarded_fold(self, choice: Choice, points: list[Checkpoint]) -> bool:
        """Fold a choice; if our own code fails, stop looking and let the stream pass."""
        if self._blind:
            return True
        try:
            return self._fold(choice, points)
        except Exception:  # noqa: BLE001 - an error in signals costs tokens, never an answer
            self._blind = True
            self.seen.phase = "answering"  # nothing can be stopped from here on
            self.ledger.fail_open("segment")
            return True

    def _fold(self, choice: Choice, points: list[Checkpoint]) -> bool:
        """Sort the text of a choice into thought and answer. False: it showed nothing but thought."""
        delta = choice.delta
        if delta is None:
            return True
        thought, field = reasoning_of(delta)
        if thought:
            self.seen.field = field
            self._thinks(thought, n_tokens(choice), points)
        if delta.calls_tool:
            self.seen.phase = "answering"
        if delta.content:
            self._says(delta.content, n_tokens(choice), points, own_field=bool(thought) or not self._maybe_inline())
        return not thought

    def _maybe_inline(self) -> bool:
        return self.seen.phase == "start" or self.seen.inline

    def _says(self, content: str, tokens: int, points: list[Checkpoint], *, own_field: bool) -> None:
        if own_field or self._think.decided:
            self._answers(content, tokens)
            return
        for channel, text in self._think.feed(content):
            if channel == "reasoning":
                self.seen.inline = True
                self._thinks(text, tokens, points)
            else:
                self._answers(text, tokens)
            tokens = 0  # a chunk that holds both ends of a tag is counted once

    def _thinks(self, text: str, tokens: int, points: list[Checkpoint]) -> None:
        self.account.received_tokens += tokens
        self.account.reasoning_tokens += tokens
        if self.seen.phase == "answering":
            return
        self.seen.phase = "thinking"
        point = self._segmenter.feed(text, tokens)
        if point is not None:
            self._cuts[point.index] = len(point.prefix)
            points.append(point)

    def _answers(self, text: str, tokens: int) -> None:
        self.account.received_tokens += tokens
        if self.seen.phase != "answering" and text.strip():
            self.seen.phase = "answering"
        if self._answer_chars < ANSWER_LIMIT_CHARS:
            self._answer.append(text)
            self._answer_chars += len(text)

    def _with_object(self, data: bytes) -> Frame:
        body = msgspec.json.decode(data)
        body["suffice"] = suffice_object(self.ledger)
        return data_frame(body)

    def frame_of(self, delta: dict[str, Any], finish_reason: str | None = None, **extra: Any) -> Frame:
        """A chunk of our own that looks like the upstream's: same id, model and time."""
        return data_frame({
            "id": self.seen.id, "object": "chat.completion.chunk", "created": self.seen.created,
            "model": self.seen.model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
            **extra,
        })  # fmt: skip

    def usage_frame(self, usage: dict[str, Any]) -> Frame:
        """The usage chunk of a run that Suffice finished itself."""
        return data_frame({
            "id": self.seen.id, "object": "chat.completion.chunk", "created": self.seen.created,
            "model": self.seen.model, "choices": [], "usage": usage,
        })  # fmt: skip


