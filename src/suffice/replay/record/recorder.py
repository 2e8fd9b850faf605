"""Records full runs of questions at a live upstream: chains with a trial answer at every step, or N samples.

The code that serves live traffic reads, segments and probes them; probes follow the end of a chain, on copies of its
prefixes, so they do not affect it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import msgspec

from suffice.episode import vote
from suffice.episode.chain_reader import ChainReader, Checkpoint, build_segmenter, first_choice
from suffice.episode.extra_calls import Continuer, TrialReply, entropy_of, margin_of
from suffice.episode.ledger import Ledger
from suffice.episode.proposer import CheckpointGate
from suffice.episode.samples import SampleRun, completion_text, mean_logprob, mean_of, sample_refusal
from suffice.episode.stream_relay import ClientView, Delivery, StreamRelay
from suffice.errors import UpstreamError, UpstreamProtocol
from suffice.replay.record.recording import QuestionLine, RecordingRecipe
from suffice.replay.traces.columns import LAST, MAJORITY_VOTE
from suffice.replay.traces.rows import RunLog, RunRow, StepRow
from suffice.scoring.base import Scorer
from suffice.settings import Extra, Upstream
from suffice.signals.folds.wording import Hedges
from suffice.types import Request, Step
from suffice.upstream.client import UpstreamClient, governed_headers
from suffice.upstream.drivers import CHAT_PATH, thinking_is_off
from suffice.upstream.wire import DONE_DATA, Frame, decode_chunk, encode_json, logprobs_of

Retry = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]  # calls a function, with retries
NO_LIMIT = 2**31
RUN_TIMEOUT_S = 600.0  # per chain


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorder:
    client: UpstreamClient
    recipe: RecordingRecipe
    scorer: Scorer
    retry: Retry
    wave: int = 4  # for kind "samples": answers drawn at once
    dataset: str = ""  # name of the question set

    async def run(self, question: QuestionLine) -> RunRow:
        return await (self._samples(question) if self.recipe.kind == "samples" else self._chain(question))

    async def _samples(self, question: QuestionLine) -> RunRow:
        n, drawn = self.recipe.n_samples, list[SampleRun]()
        while len(drawn) < n:
            wave = range(len(drawn) + 1, min(len(drawn) + self.wave, n) + 1)
            calls = (self.retry(partial(self._draw, question, index)) for index in wave)
            for one in await asyncio.gather(*calls, return_exceptions=True):
                if isinstance(one, BaseException):
                    raise one  # a vote needs all samples
                drawn.append(one)
        samples = [run.seen[0] for run in drawn]
        bodies = [s.body or {} for s in samples]
        steps = [
            self._step(question, s.answer, s.tokens, completion_text(body), logprob=mean_logprob(body))
            for s, body in zip(samples, bodies, strict=True)
        ]
        return self._row(
            question,
            steps,
            answer=vote.count_votes([s.answer for s in samples]).answer,
            counted=all(c.reported_tokens is not None for run in drawn for c in run.ledger.calls),
            ledger=drawn[0].ledger,
            extra={"truncated": any(run.ledger.reply.truncated for run in drawn)},
        )

    async def _draw(self, question: QuestionLine, index: int) -> SampleRun:
        """One sample, with the seed that the gateway would use; retried, unlike a sample of the gateway."""
        body = self.recipe.body(question)
        if isinstance(body.get("seed"), int):
            body["seed"] += index - 1
        run = SampleRun(
            client=self.client,
            body=body,
            headers=[],
            ledger=Ledger(self._request(question), 0.0),
            scorer=self.scorer,
            n_samples=1,
            wave=1,
            continues_after_failure=True,
        )
        async with aclosing(run.steps()) as steps:
            async for _ in steps:
                failure = run.seen[0].failure
                if failure is not None:
                    raise failure
        run.result()
        return run

    async def _chain(self, question: QuestionLine) -> RunRow:
        points, reader, logprobs = await self.retry(lambda: self._read_chain(question))
        account, reply = reader.account, reader.ledger.reply
        continuer = Continuer(
            client=self.client,
            probe=self.recipe.probe,
            max_extra_calls=NO_LIMIT,
            body=self.recipe.body(question),
            headers=[],
            ledger=reader.ledger,
        )
        continuer.thinks_inline = lambda: reader.state.inline
        steps, before = [], 0
        for point in points:
            trial = await self._probe(continuer, point.prefix, point.tokens_used)
            logprob = mean_of(logprobs[before : point.tokens_used])
            step = self._step(question, None, point.tokens, point.text, logprob=logprob, probed=True, trial=trial)
            step.end_margin = _round(point.end_margin)
            steps.append(step)
            before = point.tokens_used
        left, logprob = max(0, account.completion_tokens - before), mean_of(logprobs[before:])
        rest = reader.thought[len(points[-1].prefix) if points else 0 :]
        if reply.unclosed:
            # Close the truncated reasoning of a full run as a stop would.
            trial = await self._probe(continuer, reader.thought, account.completion_tokens)
            steps.append(self._step(question, None, left, rest, logprob=logprob, probed=True, trial=trial))
        else:
            steps.append(self._step(question, reply.answer, left, rest + reader.answer_text, logprob=logprob))
        return self._row(
            question,
            steps,
            answer=steps[-1].answer,
            counted=account.reported_tokens is not None,
            ledger=reader.ledger,
            extra={
                "unclosed": reply.unclosed,
                "truncated": reply.truncated,
                "answer_tokens": max(0, account.completion_tokens - account.reasoning_tokens),
            },
        )

    async def _read_chain(self, question: QuestionLine) -> RecordedChain:
        body, settings = self.recipe.body(question), self.client.settings
        ledger, tap = Ledger(self._request(question), 0.0), Tap()
        account = ledger.open_call("main")
        points: list[Checkpoint] = []
        try:
            async with (
                asyncio.timeout(RUN_TIMEOUT_S),
                self.client.open(CHAT_PATH, encode_json(body), governed_headers([])) as call,
            ):
                if call.status != 200 or call.content_type != "text/event-stream":
                    raise await sample_refusal(call)
                account.began = True
                reader = ChainReader(
                    account,
                    ledger,
                    segmenter=build_segmenter(self.recipe.steps),
                    scorer=self.scorer,
                    tags=(settings.think_open, settings.think_close),
                    opened=settings.think_opened and not thinking_is_off(body),
                    gate=CheckpointGate(close_tag=settings.think_close),
                )
                relay = StreamRelay(call, reader, tap, ClientView(usage=True, object=False))
                async with aclosing(relay):
                    while not reader.state.ended:
                        points += await relay.advance(to_step=True)
                    await relay.rest()
        except TimeoutError:
            raise UpstreamProtocol(f"a chain took longer than {RUN_TIMEOUT_S:g} s") from None
        return RecordedChain(points, reader, tap.logprobs)

    async def _probe(self, continuer: Continuer, thought: str, tokens: int) -> TrialReply | None:
        if self.recipe.finish is None:
            return None
        trial: TrialReply = await self.retry(lambda: continuer.ask(thought, tokens))
        return trial

    def _is_right(self, answer: str | None, question: QuestionLine) -> bool:
        return self.scorer.match(answer, self.scorer.normalise(question.gold) or question.gold)

    def _step(
        self,
        question: QuestionLine,
        answer: str | None,
        tokens: int,
        text: str,
        *,
        logprob: float | None,
        probed: bool = False,
        trial: TrialReply | None = None,
    ) -> StepRow:
        answer = answer if trial is None else self.scorer.extract(trial.text)
        marks = Hedges()
        marks.update(Step(index=1, tokens=tokens, answer=answer, answer_source=None, text=text))
        first = trial.tokens[0] if trial is not None and trial.tokens else None
        entropy = None if first is None else _round(entropy_of(first.top))
        return StepRow(
            tokens=tokens,
            answer=answer,
            correct=None if probed and trial is None else self._is_right(answer, question),
            logprob=_round(logprob),
            entropy=entropy,
            probe_tokens=0 if trial is None else trial.n_tokens,
            logprobs=[] if trial is None else [round(t.logprob, 5) for t in trial.tokens],
            margin=None if first is None else _round(margin_of(first)),
            # After an answer prefix, the answer's first token is not the first after the reasoning.
            closed_entropy=None if trial is None or trial.request.answer_prefix else entropy,
            hedges=int(marks.values()["hedges"] or 0),
            text=text,
        )

    def _request(self, question: QuestionLine) -> Request:
        return Request(
            episode_id=question.id,
            route="",
            kind=self.recipe.kind,
            mode="observe",
            model=self.recipe.model,
            stream=True,
            n_samples=self.recipe.n_samples,
            audit=True,
            propensity=1.0,
            policy_version="",
            certified=False,
            question_key=question.id,
            ungoverned=None,
            received_at_s=0.0,
        )

    def _row(
        self,
        question: QuestionLine,
        steps: list[StepRow],
        *,
        answer: str | None,
        counted: bool,
        ledger: Ledger,
        extra: Mapping[str, Any],
    ) -> RunRow:
        recipe = self.recipe
        meta = {"prompt_tokens": ledger.client_prompt_tokens(), **extra, "recorded_with": recipe.as_data()}
        return RunRow(
            dataset=self.dataset,
            setting=recipe.kind,
            task=question.task or self.dataset,
            model=recipe.model,
            run=recipe.hash,
            question_id=question.id,
            question=question.question,
            gold=question.gold,
            aggregation=MAJORITY_VOTE if recipe.kind == "samples" else LAST,
            token_source="provider" if counted else "counted",
            n_steps=len(steps),
            full_answer=answer,
            full_em=self._is_right(answer, question),
            full_tokens=sum(s.tokens for s in steps),
            meta=msgspec.json.encode(meta).decode(),
            steps=steps,
        )


class RecordedChain(NamedTuple):
    points: Sequence[Checkpoint]
    reader: ChainReader
    logprobs: Sequence[float]  # of all generated tokens, in order; shorter or empty where not reported


class Tap(Delivery):
    def __init__(self) -> None:
        self.logprobs: list[float] = []

    async def frames(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            if frame.data is not None and frame.data != DONE_DATA:
                choice = first_choice(decode_chunk(frame.data))
                if choice is not None:
                    self.logprobs.extend(t.logprob for t in logprobs_of(choice))


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def is_retryable(error: UpstreamError) -> bool:
    """Whether a retry may succeed; not if the upstream rejected the content of the request."""
    status = getattr(error, "http_status", None)
    return status is None or status in {408, 409, 425, 429} or status >= 500


BACKOFF_S = (0.0, 1.0, 4.0)  # before the second, third and fourth try; the first retry covers a stale connection
FAILURES_IN_A_ROW = 8  # then stop: the upstream is down or refuses requests
WAVE = 4


@dataclass(slots=True)
class Progress:
    n_questions: int
    n_before: int  # recorded by earlier calls
    n_recorded: int = 0
    n_right: int = 0
    n_steps: int = 0
    run_tokens: int = 0  # without probes
    probe_tokens: int = 0
    n_unclosed: int = 0  # chains truncated inside their reasoning
    n_unread: int = 0  # full answers that the scorer could not extract
    failed: dict[str, str] = field(default_factory=dict)  # question id → error
    n_not_tried: int = 0  # skipped after too many failures in a row

    def note(self, run: RunRow) -> None:
        self.n_recorded += 1
        self.n_right += run.full_em
        self.n_steps += len(run.steps)
        self.run_tokens += run.full_tokens
        self.probe_tokens += sum(s.probe_tokens or 0 for s in run.steps)
        self.n_unclosed += bool(msgspec.json.decode(run.meta or "{}").get("unclosed"))
        self.n_unread += run.full_answer is None

    @property
    def n_done(self) -> int:
        return self.n_before + self.n_recorded

    @property
    def n_left(self) -> int:
        return self.n_questions - self.n_done


def upstream_for_recording(upstream: Upstream, *, concurrency: int) -> Upstream:
    """The settings of an upstream for recording: probes may use its whole capacity, because nobody else waits."""
    return msgspec.structs.replace(
        upstream,
        slots=max(upstream.slots, concurrency),
        extra=Extra(concurrency_share=1.0, when_busy="queue", rate_limit_share=1.0),
    )


async def record_runs(
    questions: Sequence[QuestionLine],
    recording: RunLog,
    *,
    client: UpstreamClient,
    recipe: RecordingRecipe,
    scorer: Scorer,
    dataset: str,
    concurrency: int,
    report: Callable[[Progress], None],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Progress:
    """Record the questions that are not recorded yet, `concurrency` requests at once, and return the progress.

    Questions whose upstream fails are skipped and listed in `failed`. Raise StoreError when a run cannot be written.
    """
    wave = min(WAVE, concurrency)
    at_once = max(1, concurrency // wave) if recipe.kind == "samples" else concurrency
    recorder = Recorder(
        client=client, recipe=recipe, scorer=scorer, retry=partial(retry, sleep=sleep), wave=wave, dataset=dataset
    )
    done = recording.question_ids
    waiting = [question for question in questions if question.id not in done]
    progress = Progress(n_questions=len(questions), n_before=len(questions) - len(waiting))
    in_a_row = 0

    async def worker() -> None:
        nonlocal in_a_row
        while waiting and in_a_row < FAILURES_IN_A_ROW:
            question = waiting.pop(0)
            try:
                run = await recorder.run(question)
            except UpstreamError as error:
                in_a_row += 1
                progress.failed[question.id] = error.for_operator()
            else:
                in_a_row = 0
                recording.append(run)
                progress.note(run)
            report(progress)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(worker())
    progress.n_not_tried = len(waiting)
    return progress


async def retry(call: Callable[[], Awaitable[Any]], *, sleep: Callable[[float], Awaitable[None]]) -> Any:
    """The result of `call`. Raise its last UpstreamError when all tries failed or a retry cannot help."""
    for pause_s in (*BACKOFF_S, None):
        try:
            return await call()
        except UpstreamError as error:
            if pause_s is None or not is_retryable(error):
                raise
            await sleep(pause_s)
    raise AssertionError("unreachable")
