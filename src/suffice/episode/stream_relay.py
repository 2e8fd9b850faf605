"""Relays one chain of thought to its client, unchanged, passes each frame to the reader, and schedules the probes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from suffice.episode.apis.events import ChatEvents, NativeEvents, data_frame
from suffice.episode.chain_reader import ChainReader, StreamState, first_choice
from suffice.episode.checkpoints import Checkpoint, missing_step, visible_step
from suffice.episode.extra_calls import Prober, Vectors
from suffice.episode.ledger import Ledger, suffice_object
from suffice.episode.line_signals import LineSignals
from suffice.errors import UpstreamError, UpstreamProtocol
from suffice.types import Step, Wish
from suffice.upstream.client import Call
from suffice.upstream.pattern import ARGUMENTS, TextPattern
from suffice.upstream.wire import REASONING_FIELDS, Choice, Chunk, Frame, SseSplitter, decode_json, is_given

_NOTHING = Frame(raw=b"", data=None)


class RepeatedFrame(Frame, frozen=True, gc=False):
    """Several chunks in one frame, which differ only in the text of one field."""

    template: bytes  # one of them, with another text
    field: str
    texts: list[str]


TextsCallback: TypeAlias = Callable[[bytes, str, list[str]], bool]  # as in `RepeatedFrame`; must not raise


class Delivery:
    """Receives frames: a client's stream, or a body that is assembled."""

    # As `frame_now`, for repeated chunks by their texts; None if this client needs their bytes.
    texts_now: TextsCallback | None = None

    async def frames(self, frames: Sequence[Frame]) -> None:
        raise NotImplementedError

    def frame_now(self, raw: bytes) -> bool:  # noqa: ARG002
        """Pass on the bytes of whole frames without waiting; return False if that is impossible now or here."""
        return False

    def can_rerun(self) -> bool:
        """Return whether another answer may still replace what was delivered."""
        return False

    async def end(self) -> None:
        """Complete the client's answer. Work may go on after it, unseen by the client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientView:
    usage: bool  # a usage chunk, or usage in the body
    chunk_usage: bool = True  # usage in the other chunks; False: it was requested for us, not for the client
    object: bool  # the `suffice` object even when nothing was stopped
    logprobs: bool = True  # those of the stream; False: they were requested for us, not for the client
    joined: bool = False  # chunks that differ only in their text may reach it as one frame
    alias: StreamState | None = None  # of a rerun: the run before it, whose id and time the client knows
    hides_thought: bool = False  # the client has already seen a thought
    events: ChatEvents = field(default_factory=ChatEvents)  # of the API that it reads


class WithheldEnd:
    """The upstream's frames from its finish reason on: delivered as they are, or replaced by an answer."""

    def __init__(self) -> None:
        self.wanted = False  # keep such an end back
        self.kept: list[Frame] | None = None  # the kept frames, from the finish reason on

    def begin(self, *, has_answer: bool) -> None:
        if self.wanted and not has_answer:
            self.kept = []

    async def make_room(self, delivery: Delivery) -> None:
        """Deliver the thought in the upstream's last chunk, if any, so that an answer can follow it."""
        kept = self.kept or []
        body = decode_json(kept[0].data) if kept and kept[0].data else {}
        choice = next((c for c in body.get("choices") or () if isinstance(c, dict)), {})
        if not any((choice.get("delta") or {}).values()):
            return
        reason, at_the_end = choice.get("finish_reason"), ("usage", "suffice", "timings")
        last = {name: body.pop(name) for name in at_the_end if name in body}
        choice["finish_reason"] = None
        await delivery.frames([data_frame(body)])
        choice |= {"delta": {}, "finish_reason": reason}
        kept[0] = data_frame(body | last)

    async def deliver(self, delivery: Delivery) -> None:
        kept, self.kept = self.kept or [], None
        if kept:
            await delivery.frames(kept)
        await delivery.end()


class StreamRelay:
    def __init__(self, call: Call, reader: ChainReader, delivery: Delivery, view: ClientView) -> None:
        self.call = call
        self.reader = reader
        self.delivery = delivery
        self.view = view
        self.events = view.events
        self._texts_now = delivery.texts_now
        self.own_end = WithheldEnd()
        self.failure: UpstreamError | None = None  # why the original can deliver nothing more
        self.held_bytes = 0
        self._held: list[Frame] | None = None  # None: not holding
        self._splitter = SseSplitter()
        self._pattern = TextPattern()  # the usual shape of this stream's chunks
        self._reading: asyncio.Task[bytes] | None = None
        self._points: list[Checkpoint] = []  # reached in chunks relayed by `_relay_on_arrival`
        self._n_passed = 0  # bytes of the next read that the client already has
        self._last: dict[str, Any] | None = None  # held until the usage, if any, can go into its object

    # ---- states

    def hold(self) -> None:
        self._held = []
        self.events.hold()

    async def release(self) -> None:
        held = self._held or []
        self._held = None
        self.held_bytes = 0
        if held:
            await self.delivery.frames(held)
        is_over = self.reader.state.ended and self.reader.state.finish_reason is not None
        if is_over and self.own_end.kept is None:
            await self.delivery.end()

    def abandon(self) -> None:
        """Close the original call and drop the held frames: another call continues its thought."""
        if self._held is not None:
            self._held = None
            self.events.rewind()
        self.reader.state.ended = True
        if self._reading is not None:
            self._reading.cancel()
        self.call.close()

    async def rest(self) -> None:
        """Relay everything that is left, without steps. Raise UpstreamError, also an earlier one."""
        while not self.reader.state.ended:
            await self.advance()
        if self.failure is not None:
            raise copy(self.failure)

    async def aclose(self) -> None:
        """Cancel a pending read; the owner of the call closes the call itself."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    # ---- bytes

    def begin_read(self) -> asyncio.Task[bytes]:
        if self._reading is None:
            self._reading = asyncio.create_task(self.call.read())
        return self._reading

    @property
    def has_read(self) -> bool:
        return self._reading is not None and self._reading.done()

    async def advance(self, *, to_step: bool = False) -> list[Checkpoint]:
        """Relay one read, or up to a step; return its checkpoints. Raise UpstreamError after the whole frames."""
        points = self._points = []
        try:
            while True:
                if self._reading is None:
                    # This cannot change while the reader waits, so it is computed once per wait, not once per chunk.
                    takes = to_step and self._passes_as_is() and self._folds_by_pattern
                    data = await self.call.read(self._relay_on_arrival if takes else None)
                else:
                    data = await asyncio.shield(self._reading)
                    self._reading = None
                passed, self._n_passed = self._n_passed, 0
                sent, at = self._repeated(data, passed, points)
                if passed < at == len(data):
                    await self.delivery.frames((sent,))
                elif at < len(data) or not data:
                    await self._relay(data, at, [sent] if at > passed else [], points)
                if points or self.reader.state.ended or not to_step or self.reader.must_close:
                    return points
        except UpstreamError as error:
            # A copy: one with a traceback would hold the frames that hold this relay.
            self.failure, self.reader.state.ended = copy(error), True
            raise

    def _relay_on_arrival(self, data: bytes) -> bool:
        """Fast path of `advance`: relay repeated chunks on arrival. False wakes the reader, also at a checkpoint."""
        pattern = self._pattern
        texts, sent, end = pattern.run_in(data, 0)
        if not texts or end < len(data):
            return False
        if self._texts_now is not None:
            if not self._texts_now(pattern.template, pattern.field, texts):
                return False
        elif not self.delivery.frame_now(sent):
            return False
        try:
            self._fold_repeated(texts, self._points)
        except UpstreamProtocol:
            return False  # a body, of which nothing was sent; `_repeated` raises it again
        if not self._points and not self.reader.must_close:
            return True
        self._n_passed = end
        return False

    def _repeated(self, data: bytes, at: int, points: list[Checkpoint]) -> tuple[Frame, int]:
        """Fast path of `_read_frame`: fold repeated chunks from `at` on into one frame; return it and its end."""
        if not self._passes_as_is():
            return _NOTHING, at
        pattern = self._pattern
        texts, sent, end = pattern.run_in(data, at)
        if not texts or not self._folds_by_pattern:
            return _NOTHING, at
        self._fold_repeated(texts, points)
        return RepeatedFrame(sent, None, pattern.template, pattern.field, texts), end

    def _fold_repeated(self, texts: Sequence[str], points: list[Checkpoint]) -> None:
        self.events.note_repeated(texts)
        self.reader.fold_repeated(self._pattern.field, self._pattern.call, texts, points)
        if self._pattern.counts_tokens:
            self.reader.account.note_usage(self._pattern.usage)

    def _passes_as_is(self) -> bool:
        if not self.view.joined or self._held is not None or self._last is not None or self._splitter.holds:
            return False
        state = self.reader.state
        return self.own_end.kept is None and not (state.done or state.failed)

    @property
    def _folds_by_pattern(self) -> bool:
        """Return whether a repeated chunk matters only for its text; otherwise it must be parsed in full."""
        field, state = self._pattern.field, self.reader.state
        if field == ARGUMENTS:
            return self.reader.has_calls
        if field != "content":
            return True
        return state.phase == "answering" and not state.inline

    async def _relay(self, data: bytes, at: int, out: list[Frame], points: list[Checkpoint]) -> None:
        state = self.reader.state
        try:
            if not data:
                self._read_frames(self._splitter.close(), out, points)
            while at < len(data):
                # Event by event, because a run of repeated chunks may begin after each.
                end = data.find(b"\n\n", at) + 2 if self.view.joined and self._pattern.learns else 1
                at, start = end if end > 1 else len(data), at
                self._read_frames(self._splitter.feed(data[start:at]), out, points)
                sent, end = self._repeated(data, at, points)
                if end > at:
                    out.append(sent)
                    at = end
        finally:
            if out:
                await self._pass(out)
        if not data or state.done or state.failed:
            await self._end()

    async def _pass(self, frames: list[Frame]) -> None:
        if self._held is None:
            await self.delivery.frames(frames)
            return
        self._held.extend(frames)
        self.held_bytes += sum(len(f.raw) for f in frames)

    async def _end(self) -> None:
        state = self.reader.state
        state.ended = True
        last, self._last = self._last, None
        await self._pass_end(self._with_object(last))
        if state.finish_reason is None and not state.failed:
            raise UpstreamProtocol("the upstream ended its stream without a finish reason")
        self.reader.finish()
        if state.failed:
            self.failure = UpstreamError("the upstream reported an error inside its stream")
            self.reader.ledger.end_reason = "upstream_error"
        elif not state.done:
            await self._pass_end(self.events.end_mark())
        if self._held is None and self.own_end.kept is None:
            await self.delivery.end()
        if not state.failed:
            await self.call.settle()

    async def _pass_end(self, frames: list[Frame]) -> None:
        if self.own_end.kept is not None:
            self.own_end.kept += frames
        elif frames:
            await self._pass(frames)

    # ---- frames

    def _read_frames(self, frames: list[Frame], out: list[Frame], points: list[Checkpoint]) -> None:
        for frame in frames:
            last, self._last = self._last, None
            edited = self._read_frame(frame, points)
            kept = out if self.own_end.kept is None else self.own_end.kept
            kept += self._with_object(last)
            if edited is not None:
                kept.append(edited)

    def _with_object(self, last: dict[str, Any] | None) -> list[Frame]:
        """Return the chunk with the finish reason, delayed until the upstream's usage and so the cost are known."""
        if last is None:
            return []
        self.reader.note_ignored_effort()
        return [data_frame(last | {"suffice": suffice_object(self.reader.ledger)})]

    def _read_frame(self, frame: Frame, points: list[Checkpoint]) -> Frame | None:
        reader = self.reader
        state = reader.state
        if state.done or state.failed:
            return None
        texts, sent, end = self._pattern.run_in(frame.raw, 0)
        if texts and end == len(frame.raw) and self._folds_by_pattern:
            self._fold_repeated(texts, points)
            return frame if sent is frame.raw else Frame(raw=sent, data=sent[6:-2])
        if frame.data is None:
            # Comments keep a connection alive; a lone `retry:` or `id:` is an error to some clients.
            return frame if frame.raw.startswith(b":") else None
        chunk = self.events.read(frame)
        if chunk is None:
            state.done = True
            return frame if state.finish_reason is not None and not self.events.rewrites else None
        if is_given(chunk.error):
            state.failed = True
            return frame
        if state.id is None and chunk.id:
            self._identify(chunk, frame.data)
        choice = first_choice(chunk)
        answer = None if choice is None else reader.fold(choice, points)
        reader.account.note_usage(chunk.usage)  # takes precedence over what was counted of this chunk
        if choice is None:
            return self._edited(frame, chunk, None) if self.view.usage or chunk.usage is None else None
        if choice.finish_reason is not None:
            state.finish_reason = choice.finish_reason
            reader.note_engine_budget()
            self.own_end.begin(has_answer=state.phase != "thinking")
            state.done = self.events.is_over
        edited = self._edited(frame, chunk, choice, answer)
        if self.view.alias is None and self._pattern.learns:
            self.events.teach(self._pattern, frame, chunk, is_edited=edited is not frame)
        return edited

    def _identify(self, chunk: Chunk, data: bytes) -> None:
        state = self.reader.state
        ledger = self.reader.ledger
        alias = self.view.alias
        body = decode_json(data)
        body = body if isinstance(body, dict) else {}
        state.id = chunk.id
        state.model = chunk.model
        state.created = body.get("created")
        ledger.reply.note_upstream(chunk.model, body.get("system_fingerprint"))
        # The client of a rerun knows the id of the run before.
        ledger.reply.response_id = chunk.id if alias is None else alias.id

    def _edited(self, frame: Frame, chunk: Chunk, choice: Choice | None, answer: str | None = None) -> Frame | None:
        view, data = self.view, frame.data or b""
        is_last = choice is not None and choice.finish_reason is not None
        adds_object = is_last and (view.object or self.reader.ledger.tells_stop)
        if isinstance(self.events, NativeEvents):
            ledger = self.reader.ledger
            report = suffice_object(ledger) if adds_object else None
            if view.alias is None:
                return self.events.edited(frame, report)
            return self.events.rewritten(view.alias, choice, self._after_alias(answer), ledger.usage(), report)
        hidden = self._hidden_fields(data, chunk, choice)
        hides_logprobs = not view.logprobs and choice is not None and is_given(choice.logprobs)
        if not (adds_object or hidden or hides_logprobs or view.alias is not None):
            return frame
        body = decode_json(data)
        if hides_logprobs:
            for one in body["choices"]:
                one.pop("logprobs", None)
        for name in hidden:
            body.pop(name, None)
        if view.alias is not None:
            body |= {"id": view.alias.id, "created": view.alias.created}
            if view.hides_thought and choice is not None and not self._without_thought(body, choice, answer):
                return None
        if adds_object:
            self._last = body
            return None
        return data_frame(body)

    def _hidden_fields(self, data: bytes, chunk: Chunk, choice: Choice | None) -> list[str]:
        view, hidden = self.view, list[str]()
        # An engine that sends usage because we requested it may write an empty one into every chunk.
        has_trace = not view.usage and chunk.usage is None and data.find(b'"usage":null') >= 0
        if has_trace or (not view.chunk_usage and chunk.usage is not None and choice is not None):
            hidden.append("usage")
        if not self.reader.ledger.disclosure.tells_stops and data.find(b'"timings"') >= 0:
            hidden.append("timings")  # of the engine's whole run; a stopped one has none
        return hidden

    def _without_thought(self, body: dict[str, Any], choice: Choice, answer: str | None) -> bool:
        alias = self.view.alias
        if answer is None or alias is None:
            return True
        first = next(c for c in body["choices"] if isinstance(c, dict) and c.get("index", 0) in (0, None))
        hidden = {"role", "content", *REASONING_FIELDS}
        delta = {k: v for k, v in (first.get("delta") or {}).items() if k not in hidden and v is not None}
        if answer:
            delta["content"] = self._after_alias(answer)
        first["delta"] = delta
        return bool(delta) or choice.finish_reason is not None

    def _after_alias(self, answer: str | None) -> str | None:
        """Return answer text of a rerun as it follows the thought that the client saw, which was left open."""
        alias = self.view.alias
        if not answer or alias is None:
            return answer
        closing = self.reader.close_tag if alias.inline and alias.phase != "answering" else ""
        alias.phase = "answering"
        return closing + answer


class ReasoningRun:
    """Yields the steps of one chain of thought while relaying it, and schedules their probes.

    prober     None: no step is probed, and a step's answer is read from its text
    additions  made to each step, in this order
    drain      every scheduled step is probed, even after the end, as in an audit
    """

    def __init__(
        self,
        relay: StreamRelay,
        *,
        prober: Prober | None = None,
        additions: Sequence[LineSignals | Vectors] = (),
        drain: bool = False,
    ) -> None:
        self.relay, self.reader = relay, relay.reader
        self._prober = prober
        self._additions = additions
        self._drain = drain
        self._probes_are_off = prober is None
        self._visible: str | None = None  # the answer in the text so far

    async def steps(self) -> AsyncGenerator[Step, None]:
        state = self.reader.state
        waiting: deque[Checkpoint] = deque()
        probing: asyncio.Task[Step] | None = None
        try:
            # A probe already sent is paid for, so it may finish; the client no longer waits for it.
            while not state.ended or probing or (self._drain and waiting):
                if self.reader.must_close:
                    break
                if probing is None and waiting and (self._drain or not state.ended):
                    point = waiting.popleft()
                    probing = self._begin_probe(point)
                    if probing is None:
                        yield self._build_unprobed_step(point)
                elif probing is None:
                    waiting.extend(await self.relay.advance(to_step=True))
                else:
                    await self._wait_for_probe_or_read(probing, waiting)
                    if probing.done():
                        step, probing = probing.result(), None
                        yield step
            for left in waiting:
                yield self._build_unprobed_step(left)  # the run ended before they could be probed
        finally:
            if probing is not None:
                probing.cancel()
                await asyncio.gather(probing, return_exceptions=True)

    def _begin_probe(self, point: Checkpoint) -> asyncio.Task[Step] | None:
        prober = None if self._probes_are_off else self._prober
        try:
            prober = prober if prober is not None and prober.ready() else None
        except Exception:  # noqa: BLE001 - as for the probe itself
            self._disable_probes()
            prober = None
        if prober is None and not self._additions:
            return None
        return asyncio.create_task(self._probe(point, prober))

    async def _probe(self, point: Checkpoint, prober: Prober | None) -> Step:
        """Return the probed step; a probe that raises leaves it without an answer and is the last one."""
        try:
            step = self._build_unprobed_step(point) if prober is None else await prober.ask(point)
            for addition in self._additions:
                step = await addition.add_to(step)
            return step
        except Exception:  # noqa: BLE001 - a broken probe costs tokens, never an answer
            self._disable_probes()
            return missing_step(point)

    def _disable_probes(self) -> None:
        self.reader.ledger.fail_open("probe")
        self._probes_are_off = True

    def _build_unprobed_step(self, point: Checkpoint) -> Step:
        if self._prober is not None:
            return missing_step(point)
        step = visible_step(point, self.reader.extract_from_thought(point.text), self._visible)
        self._visible = step.answer
        return step

    async def _wait_for_probe_or_read(self, probing: asyncio.Task[Step], waiting: deque[Checkpoint]) -> None:
        tasks: set[asyncio.Task[Any]] = {probing}
        if not self.reader.state.ended:
            tasks.add(self.relay.begin_read())
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if self.relay.has_read:
            waiting.extend(await self.relay.advance())


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRunView:
    """A run as its client sees it."""

    id: str  # of the episode, as `x-suffice-episode-id` of its response
    route: str
    model: str
    mode: str
    kind: str
    began_at_s: float  # Unix time
    tokens: int  # generated so far: as relayed, of a vote's samples, or as the caller's loop reports
    state: str  # "thinking", "answering", "sampling", "looping" or, where there is nothing to cut, "running"
    wish: str | None  # what was asked of it: "answer_now" or "think_more"


@dataclass(slots=True)
class LiveRun:
    """A request that is running now, and what a person may ask of it: the answer at once, or no stop.

    What a person asks of a run is evidence of nothing but that: the run ends as "asked", whatever its route and its
    draw, and an audit that ends so counts as lost at every level, like one whose client left. So nobody can improve a
    certificate by asking, and the caller, who cannot know which runs are audits, gets the same reply and stream in all.
    """

    ledger: Ledger
    reader: ChainReader | None = None  # of the thought that is relayed; None: there is none
    cut: Callable[[], None] | None = None  # ends the thought, the vote or the loop; None: there is no way to

    @property
    def state(self) -> str:
        """As its client can see it."""
        if self.reader is not None:
            is_over = self.reader.state.phase == "answering" or self.reader.state.ended
            return "answering" if is_over else "thinking"
        if self.cut is None:
            return "running"
        return "sampling" if self.ledger.request.kind == "samples" else "looping"

    @property
    def _n_tokens(self) -> int:
        ledger, usage = self.ledger, self.ledger.reply.caller_usage
        if self.reader is not None:
            return self.reader.account.received_tokens
        return sum(c.completion_tokens for c in ledger.calls) if usage is None else usage.completion_tokens

    def view(self) -> LiveRunView:
        request = self.ledger.request
        return LiveRunView(
            id=request.episode_id,
            route=request.route,
            model=request.model,
            mode=request.mode,
            kind=request.kind,
            began_at_s=request.received_at_s,
            tokens=self._n_tokens,
            state=self.state,
            wish=self.ledger.stop.wish,
        )

    def ask(self, wish: Wish) -> str | None:
        """Take a person's wish; return why that cannot be done, or None. The same wish again changes nothing."""
        before = self.ledger.stop.wish
        if before == wish:
            return None
        if before is not None:
            return f"this run was asked for something else before: {before.replace('_', ' ')}"
        if self.state == "running":
            return "it passes through, or its vote is over: there is nothing to cut or to prolong"
        if self.state == "answering":
            return "its answer has begun"
        if wish == "answer_now" and self.cut is None:
            return "its upstream has no way to close a thought; see suffice doctor"
        self.ledger.stop.wish, self.ledger.end_reason = wish, "asked"
        if wish == "answer_now" and self.cut is not None:
            self.cut()
        return None
