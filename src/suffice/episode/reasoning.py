"""One chain of thought: reads the upstream's stream, passes it on, and yields its steps.

Frames are relayed as they came. They are parsed only as far as a policy needs: which part is
thought and which is answer, how many tokens, where a step ends. From the first byte of an answer
or a tool call on, nothing can be stopped any more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from suffice.episode.chunk_parsing import first_choice, n_tokens, note_usage
from suffice.episode.held_tail import Delivery, OwnEnd, data_frame
from suffice.episode.ledger import CallAccount, Ledger
from suffice.episode.probe import Prober, missing_step, visible
from suffice.episode.report import suffice_object
from suffice.episode.segment import Checkpoint, StepCutter
from suffice.episode.stream_state import StepEnd, StreamState, Wants
from suffice.episode.vectors import Vectors
from suffice.errors import UpstreamError, UpstreamProtocol
from suffice.scoring.base import Scorer
from suffice.types import Step
from suffice.upstream.client import Call
from suffice.upstream.pattern import TextPattern
from suffice.upstream.thought import ThinkTag
from suffice.upstream.wire import (
    DONE,
    DONE_DATA,
    REASONING_FIELDS,
    Choice,
    Chunk,
    Delta,
    Frame,
    SseSplitter,
    decode_chunk,
    decode_json,
    is_given,
    reasoning_of,
)

ANSWER_LIMIT_CHARS = 256 * 1024  # what is kept of an answer to score it
THOUGHT_LIMIT_CHARS = 2**20  # a longer thought passes on unwatched: what is kept of it has an end
BUDGET_SLACK_TOKENS = 32  # an engine that is this far beyond its budget does not know budgets

DONE_FRAME = Frame(raw=DONE, data=DONE_DATA, event=None)
_NOTHING = Frame(raw=b"", data=None, event=None)


class ReasoningRun:
    """The run that the client is watching."""

    def __init__(
        self,
        call: Call,
        account: CallAccount,
        *,
        ledger: Ledger,
        delivery: Delivery,
        segmenter: StepCutter,
        scorer: Scorer,
        prober: Prober | None,
        vectors: Vectors | None = None,
        tags: tuple[str, str],
        wants: Wants,
        drain: bool,
        opened: bool = False,
    ) -> None:
        self.call, self.account, self.ledger, self.delivery = call, account, ledger, delivery
        self.seen = StreamState()
        self.wants = wants
        self.hidden_thought = False  # rerun: the client has already seen a thought
        self._segmenter, self._scorer, self._prober, self._vectors = segmenter, scorer, prober, vectors
        self._think, self._close_tag = ThinkTag(*tags, opened=opened), tags[1]
        self._prober_broke = False
        self._drain = drain  # audit: every scheduled step is probed, even after the end
        self._splitter = SseSplitter()
        self._pattern = TextPattern()  # what nearly every chunk of this stream looks like
        self._reading: asyncio.Task[bytes] | None = None
        self._points: list[Checkpoint] = []  # reached in what was passed on at once
        self._n_passed = 0  # bytes of the next read that the client has already
        self._blind = False  # our own reading failed: pass everything on unseen
        self._unplaced_tokens = 0  # of an inline thought, whose text is held back for now
        self._last: dict[str, Any] | None = None  # held until usage, if any, can go into its object
        self._tail = ""  # end of an inline thought: may hold half of its closing tag
        self._answer: list[str] = []
        self._answer_chars = self._thought_chars = 0
        self._visible: str | None = None
        self._cuts: dict[int, StepEnd] = {}  # by step
        self.budget_is_policy = False  # … and whose passing is all that the policy waits for
        self.budget_slack_tokens = BUDGET_SLACK_TOKENS
        self.alias: StreamState | None = None  # rerun: the run whose id and time the client knows
        self.budget: int | None = None  # thought tokens after which the engine itself closes it
        self.failure: UpstreamError | None = None  # why the original can give nothing more
        self.held: list[Frame] | None = None  # frames kept back during a hand-over
        self.held_bytes = 0
        self.own_end = OwnEnd()

    # ---- what others ask

    def may_stop(self) -> bool:
        """Only inside the thought: never in an answer, a tool call, a closing tag or after the end."""
        if self.seen.phase == "answering" or self.seen.ended:
            return False
        return not any(self._tail.endswith(self._close_tag[:n]) for n in range(1, len(self._close_tag)))

    @property
    def is_over_budget(self) -> bool:
        """Does the engine think on beyond the budget that it was told to keep?"""
        return self.budget is not None and self.account.reasoning_tokens > self.budget + self.budget_slack_tokens

    @property
    def leaves_stop_to_engine(self) -> bool:
        """Was the engine given the policy's own budget, and does it seem to keep it?"""
        return self.budget is not None and self.budget_is_policy and not self.is_over_budget

    @property
    def thought(self) -> str:
        """The reasoning text so far."""
        return self._segmenter.thought

    @property
    def answer_text(self) -> str:
        """The answer text so far."""
        text = "".join(self._answer)
        # A template that opened the thought itself leaves only the closing tag to be seen.
        return text if self.seen.inline else text.rpartition(self._close_tag)[2]

    def thought_at(self, step: int) -> tuple[str, int]:
        """The reasoning text up to the end of a step and its tokens; all of it when the step is unknown."""
        cut = self._cuts.get(step)
        if cut is None:
            return self.thought, self.account.reasoning_tokens
        return self.thought[: cut.n_chars], cut.n_tokens

    def extract(self, text: str) -> str | None:
        """The normalised answer in `text`, by the route's scorer; None when the scorer fails."""
        try:
            return self._scorer.extract(text)
        except Exception:  # noqa: BLE001 - a broken yardstick costs a measurement, never an answer
            self.ledger.fail_open("scorer")
            return None

    # ---- steps

    async def steps(self) -> AsyncGenerator[Step, None]:
        """Yield the run's steps while relaying it, each with what a prober and an embedder say of it."""
        waiting: deque[Checkpoint] = deque()
        asked: Checkpoint | None = None
        probing: asyncio.Task[Step] | None = None
        try:
            # A probe on its way is paid for: it is let finish, which the client no longer waits for.
            while not self.seen.ended or probing or (self._drain and waiting):
                if probing is None and waiting and not (self.seen.ended and not self._drain):
                    asked = waiting.popleft()
                    probing = self._ask(asked)
                    if probing is None:
                        yield self._unprobed(asked)
                        continue
                if probing is None or asked is None:
                    waiting.extend(await self.advance(to_step=True))
                    continue
                await self._either(probing, waiting)
                if probing.done():
                    step, probing = self._probed(probing, asked), None
                    yield step
            for point in waiting:
                yield self._unprobed(point)  # the run was over before anybody could ask
        finally:
            if probing is not None:
                probing.cancel()
                await asyncio.gather(probing, return_exceptions=True)

    def _ask(self, point: Checkpoint) -> asyncio.Task[Step] | None:
        """Begin to ask for what the step does not show by itself; None: nobody is to be asked."""
        prober = self._ready_prober()
        if prober is None and self._vectors is None:
            return None
        return asyncio.create_task(self._asked(point, prober))

    async def _asked(self, point: Checkpoint, prober: Prober | None) -> Step:
        step = self._unprobed(point) if prober is None else await prober.ask(point)
        return step if self._vectors is None else await self._vectors.put_in(step)

    def _ready_prober(self) -> Prober | None:
        try:
            usable = self._prober is not None and not self._prober_broke and self._prober.ready()
        except Exception:  # noqa: BLE001 - as for the probe itself
            self._prober_fails()
            return None
        return self._prober if usable else None

    def _prober_fails(self) -> None:
        self.ledger.fail_open("probe")
        self._prober_broke = True

    def _unprobed(self, point: Checkpoint) -> Step:
        """A step that no probe looks at: what its text shows, or missing where one should have looked."""
        if self._prober is not None:
            return missing_step(point)
        step = visible(point, self.extract(point.text), self._visible)
        self._visible = step.answer
        return step

    def _probed(self, probing: asyncio.Task[Step], asked: Checkpoint) -> Step:
        """The probed step; a probe that is itself broken leaves it without an answer, and is the last."""
        try:
            return probing.result()
        except Exception:  # noqa: BLE001 - a broken probe costs tokens, never an answer
            self._prober_fails()
            return missing_step(asked)

    async def _either(self, probing: asyncio.Task[Step], waiting: deque[Checkpoint]) -> None:
        """Wait for the probe or for the next bytes, and pass bytes on at once."""
        tasks: set[asyncio.Task[Any]] = {probing}
        if not self.seen.ended:
            tasks.add(self._read_task())
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if self._reading is not None and self._reading.done():
            waiting.extend(await self.advance())

    def _read_task(self) -> asyncio.Task[bytes]:
        if self._reading is None:
            self._reading = asyncio.create_task(self.call.read())
        return self._reading

    async def _begun_bytes(self, reading: asyncio.Task[bytes]) -> bytes:
        """The bytes that an earlier wait had begun to read."""
        data = await asyncio.shield(reading)
        self._reading = None
        return data

    # ---- relaying

    async def advance(self, *, to_step: bool = False) -> list[Checkpoint]:
        """Read once and pass it on; return the checkpoints that were reached.

        to_step  read on until there is one, or the end

        Raises UpstreamError when the upstream broke off or broke its protocol; whole frames before that
        are delivered, and `failure` says so to whoever comes later.
        """
        points = self._points = []
        try:
            while True:
                reading = self._reading
                # Nothing of this changes while the reader waits: it is asked once a wait, not once a chunk.
                at_once = self._pass_at_once if to_step and self._passes_as_is() and self._folds_by_pattern else None
                data = await (self.call.read(at_once) if reading is None else self._begun_bytes(reading))
                passed, self._n_passed = self._n_passed, 0
                sent, at = self._repeated(data, passed, points)
                if passed < at == len(data):
                    await self.delivery.frames((sent,))
                elif at < len(data) or not data:
                    await self._relay(data, at, [sent] if at > passed else [], points)
                if points or self.seen.ended or not to_step:
                    return points
        except UpstreamError as error:
            self.failure, self.seen.ended = error, True
            raise

    def _pass_at_once(self, data: bytes) -> bool:
        """Pass a read of repeated chunks on where it arrives, if the client takes it; False: wake whoever reads.

        It does what `advance` does, by the shortest way, while nobody but the reader waits. Where a checkpoint
        is reached, the reader is woken, too: it gets the same bytes and leaves out what the client has.
        """
        texts, sent, end = self._pattern.run_in(data, 0)
        if not texts or end < len(data) or not self.delivery.frame_now(sent):
            return False
        self._fold_again(texts, self._points)
        if not self._points:
            return True
        self._n_passed = end
        return False

    def _repeated(self, data: bytes, at: int, points: list[Checkpoint]) -> tuple[Frame, int]:
        """The repeated chunks that stand in `data` from `at` on, folded, as one frame; and where they end.

        It does what `_look` does, by the shortest way: nearly all of a stream is such chunks. Where the same
        place comes back, there are none.
        """
        if not self._passes_as_is():
            return _NOTHING, at
        texts, sent, end = self._pattern.run_in(data, at)
        if not texts or not self._folds_by_pattern:
            return _NOTHING, at
        self._fold_again(texts, points)
        return Frame(sent, None, None), end

    def _passes_as_is(self) -> bool:
        """Does what comes go straight to the client, with nothing before it that is held back?"""
        if not self.wants.joined or self.held is not None or self._last is not None or self._splitter.holds:
            return False
        return self.own_end.kept is None and not (self.seen.done or self.seen.failed)

    async def _relay(self, data: bytes, at: int, out: list[Frame], points: list[Checkpoint]) -> None:
        """Pass on a read from `at` on, behind what is `out` of it already, in one write."""
        try:
            if not data:
                self._take(self._splitter.close(), out, points)
            while at < len(data):
                # Event by event, where a run of repeated ones may begin behind each.
                end = data.find(b"\n\n", at) + 2 if self.wants.joined and self._pattern.learns else 1
                at, start = end if end > 1 else len(data), at
                self._take(self._splitter.feed(data[start:at]), out, points)
                sent, end = self._repeated(data, at, points)
                if end > at:
                    out.append(sent)
                    at = end
        finally:
            if out:
                await self._pass(out)
        if not data or self.seen.done or self.seen.failed:
            await self._end()

    def _take(self, frames: list[Frame], out: list[Frame], points: list[Checkpoint]) -> None:
        """Look at frames and lay out what the client is to get."""
        for frame in frames:
            last, self._last = self._last, None
            kept = self._look(frame, points)
            kept_by = out if self.own_end.kept is None else self.own_end.kept
            if last is not None:
                kept_by += self._with_object(last)
            if kept is not None:
                kept_by.append(kept)

    def _with_object(self, last: dict[str, Any] | None) -> list[Frame]:
        """The chunk with the finish reason, which waits for the upstream's usage: money is known then."""
        return [] if last is None else [data_frame(last | {"suffice": suffice_object(self.ledger)})]

    async def rest(self) -> None:
        """Relay everything that is left, without steps. Raises UpstreamError, also one from before."""
        while not self.seen.ended:
            await self.advance()
        if self.failure is not None:
            raise self.failure

    async def _pass(self, frames: list[Frame]) -> None:
        if self.held is None:
            await self.delivery.frames(frames)
            return
        self.held.extend(frames)
        self.held_bytes += sum(len(f.raw) for f in frames)

    async def _pass_end(self, frames: list[Frame]) -> None:
        """Pass on what comes behind the last word, or keep it with an end that is kept back."""
        if self.own_end.kept is not None:
            self.own_end.kept += frames
        elif frames:
            await self._pass(frames)

    async def _end(self) -> None:
        seen = self.seen
        seen.ended = True
        last, self._last = self._last, None
        await self._pass_end(self._with_object(last))
        if seen.finish_reason is None and not seen.failed:
            raise UpstreamProtocol("the upstream ended its stream without a finish reason")
        for channel, text in self._think.close():
            if channel == "answer":
                self._answers(text)
        self.account.cancelled = seen.failed
        self.ledger.truncated = seen.finish_reason == "length"
        self.ledger.unclosed = seen.phase == "thinking"
        # What stands in an open thought is no answer, and no answer is a wrong one.
        self.ledger.answer = None if self.ledger.unclosed else self.extract(self.answer_text)
        if seen.failed:
            self.failure = UpstreamError("the upstream reported an error inside its stream")
            self.ledger.end_reason = "upstream_error"
        elif not seen.done:
            await self._pass_end([DONE_FRAME])
        if self.held is None and self.own_end.kept is None:
            await self.delivery.end()
        if not seen.failed:
            await self.call.settle()

    async def release(self) -> None:
        """Deliver what a failed hand-over had kept back; the original goes on."""
        held, self.held, self.held_bytes = self.held or [], None, 0
        if held:
            await self.delivery.frames(held)
        if self.seen.ended and self.seen.finish_reason is not None:
            await self.delivery.end()

    async def aclose(self) -> None:
        """End a read that nobody waits for any more; the call itself is closed by its owner."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    def abandon(self) -> None:
        """Close the original call: its thought goes on elsewhere."""
        self.seen.ended = True
        if self._reading is not None:
            self._reading.cancel()
        self.call.close()

    # ---- reading

    def _look(self, frame: Frame, points: list[Checkpoint]) -> Frame | None:
        """Take note of one frame; return it, changed only where that was asked for, or None."""
        seen = self.seen
        if seen.done or seen.failed:
            return None
        if (text := self._pattern.text_of(frame.raw)) and self._folds_by_pattern:
            self._fold_again((text,), points)
            return self._pattern.shown(frame)
        if frame.data is None:
            # Comments keep a connection alive; a lone `retry:` or `id:` is an error to some clients.
            return frame if frame.raw.startswith(b":") else None
        if frame.data == DONE_DATA:
            seen.done = True
            return frame if seen.finish_reason is not None else None
        chunk = decode_chunk(frame.data)
        if is_given(chunk.error):
            seen.failed = True
            return frame
        note_usage(self.account, chunk.usage)
        if seen.id is None and chunk.id:
            self._identify(chunk, frame.data)
        choice = first_choice(chunk)
        if choice is None:
            return self._edited(frame, chunk, None) if self.wants.usage or chunk.usage is None else None
        said = self._guarded_fold(choice, points)
        if choice.finish_reason is not None:
            seen.finish_reason = choice.finish_reason
            self._note_engine_budget()
            self.own_end.begin(has_answer=seen.phase != "thinking")
        shown = self._edited(frame, chunk, choice, said)
        if self.alias is None and self._pattern.learns:
            self._pattern.learn(frame, chunk, without_usage=shown is not frame)
        return shown

    def _identify(self, chunk: Chunk, data: bytes) -> None:
        self.seen.id, self.seen.model = chunk.id, chunk.model
        body = decode_json(data)
        body = body if isinstance(body, dict) else {}
        self.seen.created = body.get("created")
        self.ledger.note_upstream(chunk.model, body.get("system_fingerprint"))
        # The client of a rerun knows the id of the run before.
        self.ledger.response_id = chunk.id if self.alias is None else self.alias.id

    def _note_engine_budget(self) -> None:
        ledger = self.ledger
        if self.budget is None or self.account.reasoning_tokens < self.budget or ledger.stopped:
            return
        if self.is_over_budget:
            ledger.fail_open("budget")  # it was told, and went on
            return
        ledger.stopped, ledger.stop_reason, ledger.finish_method = True, "budget", "budget"
        ledger.decision = ledger.decision or f"budget of {self.budget} tokens, kept by the engine"

    def _edited(self, frame: Frame, chunk: Chunk, choice: Choice | None, said: str | None = None) -> Frame | None:
        """The frame as the client is to see it: as it came, unless something must be put in or taken out."""
        ends = choice is not None and choice.finish_reason is not None
        adds_object = ends and (self.wants.object or self.ledger.stopped)
        data = frame.data or b""
        # An engine that was asked for usage on our behalf may write an empty one into every chunk.
        has_trace = not self.wants.usage and chunk.usage is None and data.find(b'"usage":null') >= 0
        if not (adds_object or has_trace or self.alias is not None):
            return frame
        body = decode_json(data)
        if has_trace:
            body.pop("usage", None)
        if self.alias is not None:
            body |= {"id": self.alias.id, "created": self.alias.created}
            if self.hidden_thought and choice is not None and not self._without_thought(body, choice, said):
                return None
        if adds_object:
            self._last = body
            return None
        return data_frame(body)

    def _without_thought(self, body: dict[str, Any], choice: Choice, said: str | None) -> bool:
        """Leave nothing but answer in a rerun's chunk; False: there is none in it."""
        if said is None or self.alias is None:
            return True
        shown = next(c for c in body["choices"] if isinstance(c, dict) and c.get("index", 0) in (0, None))
        given = shown.get("delta") or {}
        hidden = {"role", "content", *REASONING_FIELDS}
        delta = {k: v for k, v in given.items() if k not in hidden and v is not None}
        if said:
            # The thought that the client saw was left open; its tag comes before the first word.
            closing = self._close_tag if self.alias.inline and self.alias.phase != "answering" else ""
            self.alias.phase = "answering"
            delta["content"] = closing + said
        shown["delta"] = delta
        return bool(delta) or choice.finish_reason is not None

    def _guarded_fold(self, choice: Choice, points: list[Checkpoint]) -> str | None:
        """Fold a choice; if our own code fails, stop looking and let the stream pass: None from then on."""
        if self._blind:
            return None
        try:
            return self._fold(choice, points)
        except Exception:  # noqa: BLE001 - an error in signals costs tokens, never an answer
            self._goes_blind()
            return None

    def _goes_blind(self) -> None:
        self._blind = True
        self.seen.phase = "answering"  # nothing can be stopped from here on
        self.ledger.fail_open("segment")

    @property
    def _folds_by_pattern(self) -> bool:
        """Is the text of a repeated chunk all that there is to know of it? Else it must be read in full."""
        return self._pattern.field != "content" or (self.seen.phase == "answering" and not self.seen.inline)

    def _fold_again(self, texts: Sequence[str], points: list[Checkpoint]) -> None:
        """Fold what repeated chunks add, exactly as `_fold` would."""
        if self._blind:
            return
        field, n = self._pattern.field, len(texts)
        self.account.received_tokens += n
        try:
            if field == "content":
                self._answers("".join(texts))
                return
            self.seen.field = field
            self.account.reasoning_tokens += n
            self._thinks(texts, 1, points)
        except Exception:  # noqa: BLE001 - as above
            self._goes_blind()

    def _fold(self, choice: Choice, points: list[Checkpoint]) -> str:
        """Sort the text of a choice into thought and answer, and count it; return the answer text in it."""
        delta = choice.delta
        if delta is None:
            return ""
        thought, field = reasoning_of(delta)
        tokens = n_tokens(choice) if thought or _speaks(delta) else 0
        self.account.received_tokens += tokens
        if thought:
            self.seen.field = field
            self.account.reasoning_tokens += tokens
            self._thinks((thought,), tokens, points)
        if delta.calls_tool or delta.refusal:
            self.seen.phase = "answering"
        if not delta.content:
            return ""
        if self.seen.inline or (self.seen.phase == "start" and not self._think.decided):
            return self._speaks_inline(delta.content, tokens, points)
        self._answers(delta.content)
        return delta.content

    def _speaks_inline(self, content: str, tokens: int, points: list[Checkpoint]) -> str:
        """Content that may hold a thought between tags; returns the answer text in it."""
        was_inside, said = self._think.inside, ""
        pieces = self._think.feed(content)
        if was_inside or self._think.inside:
            self.seen.inline = True
            self.account.reasoning_tokens += tokens
            self._unplaced_tokens += tokens
        for channel, text in pieces:
            if channel == "reasoning":
                placed, self._unplaced_tokens = self._unplaced_tokens, 0
                self._thinks((text,), placed, points)
            else:
                self._answers(text)
                said += text
        if self.seen.inline and not self._think.inside:
            self.seen.phase = "answering"  # the closing tag is out, even if no word of the answer is yet
        self._tail = (self._tail + content)[1 - len(self._close_tag) :] if self._think.inside else ""
        return said

    def _thinks(self, texts: Sequence[str], tokens: int, points: list[Checkpoint]) -> None:
        """Take thought in; each of `texts` has so many tokens."""
        if self.seen.phase == "answering":
            return
        self.seen.phase = "thinking"
        feed = self._segmenter.feed
        for text in texts:
            self._thought_chars += len(text)
            if (point := feed(text, tokens)) is not None:
                self._cuts[point.index] = StepEnd(len(point.prefix), point.tokens_used)
                points.append(point)
        if self._thought_chars > THOUGHT_LIMIT_CHARS:
            self._goes_blind()

    def _answers(self, text: str) -> None:
        # White space before everything says nothing; behind a thought it says that the thought is over.
        if text.strip() or self.seen.phase == "thinking":
            self.seen.phase = "answering"
        if self._answer_chars < ANSWER_LIMIT_CHARS:
            self._answer.append(text)
            self._answer_chars += len(text)


def _speaks(delta: Delta) -> bool:
    """Does it carry generated text outside of a thought?"""
    return bool(delta.content or delta.refusal or delta.calls_tool)
