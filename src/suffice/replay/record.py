"""Records full runs of questions at a live upstream: chains with a trial answer at every step, or N samples.

The code that serves live traffic reads, segments and probes them; probes follow the end of a chain, on copies of its
prefixes, so they do not affect it. A crash neither loses nor repeats a finished run: each is synced as one line of
`OUT.part`, and every orderly end packs all lines into `OUT` atomically.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import shutil
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from suffice.episode import vote
from suffice.episode.chain_reader import ChainReader, build_segmenter, first_choice
from suffice.episode.checkpoints import LISTED_TOKENS, Checkpoint, CheckpointGate
from suffice.episode.extra_calls import Continuer, TrialReply, entropy_of, margin_of
from suffice.episode.ledger import Ledger
from suffice.episode.samples import SampleRun, completion_text, mean_logprob, mean_of, sample_refusal
from suffice.episode.stream_relay import ClientView, Delivery, StreamRelay
from suffice.errors import ConfigError, StoreError, UpstreamError, UpstreamProtocol
from suffice.files import json_object, open_unpacked, whole_file
from suffice.replay.logs import text_of
from suffice.replay.traces.columns import LAST, MAJORITY_VOTE
from suffice.replay.traces.rows import RunLog, RunRow, StepRow, open_packed
from suffice.scoring.base import Spec
from suffice.scoring.scorer import Scorer
from suffice.settings import Extra, Probe, Steps, Upstream
from suffice.signals.folds.wording import Hedges
from suffice.store.database.presence import try_lock
from suffice.types import Request, Step
from suffice.upstream.client import UpstreamClient, governed_headers
from suffice.upstream.continuation import N_RIVALS
from suffice.upstream.drivers import CHAT_PATH, thinking_is_off
from suffice.upstream.wire import DONE_DATA, Frame, decode_chunk, encode_json, logprobs_of

T = TypeVar("T")
# Fields of a question's line that go into its request; options of the command take precedence.
SENT_ALONG = ("max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "seed", "chat_template_kwargs")
NO_LIMIT = 2**31
RUN_TIMEOUT_S = 600.0  # per chain
BACKOFF_S = (0.0, 1.0, 4.0)  # before the second, third and fourth try; the first retry covers a stale connection
FAILURES_IN_A_ROW = 8  # then stop: the upstream is down or refuses requests
WAVE = 4  # samples of one question that are drawn at once
RETRIED_STATUSES = frozenset({408, 409, 425, 429})  # of a refusal that may not last, as all from 500 on


# ---- questions and settings


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionLine:
    id: str
    task: str  # "": none
    question: str  # the last user message
    gold: str  # the correct answer, as written
    body: Mapping[str, Any]  # messages and sampling fields


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingRecipe:
    """The settings that make runs comparable: equal for all runs of one recording."""

    kind: Literal["reasoning", "samples"]
    model: str
    scorer: Spec
    driver: str
    finish: str | None  # how a probe closes the reasoning; None: no probes
    n_samples: int = 1  # for kind "samples": answers per question
    temperature: float | None = None  # None: that of the question, else the server's default
    max_tokens: int | None = None  # None: likewise
    logprobs: bool = True  # request log-probabilities of the run's own tokens
    top_logprobs: int = N_RIVALS  # alternatives listed per token of a probe, as live
    steps: Steps = field(default_factory=Steps)
    probe: Probe = field(default_factory=Probe)

    def as_data(self) -> dict[str, Any]:
        """Plain data in a fixed order, without fields that do not change runs, such as time-outs."""
        data = asdict(self) | {"steps": msgspec.to_builtins(self.steps), "probe": msgspec.to_builtins(self.probe)}
        for name in ("timeout_s", "verified_by"):
            del data["probe"][name]
        return data

    @property
    def hash(self) -> str:
        return hashlib.blake2b(msgspec.json.encode(self.as_data()), digest_size=6).hexdigest()

    def body(self, question: QuestionLine) -> dict[str, Any]:
        # The seed of a question is equal in every recording and after a resume.
        seed = int.from_bytes(hashlib.blake2b(question.id.encode(), digest_size=3).digest(), "big")
        sent = {"model": self.model, "seed": seed, **question.body}
        if self.temperature is not None:
            sent["temperature"] = self.temperature
        if self.max_tokens is not None:
            name = "max_completion_tokens" if "max_completion_tokens" in sent else "max_tokens"
            sent[name] = self.max_tokens
        if self.logprobs:
            sent |= {"logprobs": True, "top_logprobs": LISTED_TOKENS if self.kind == "reasoning" else 1}
        return sent | {"stream": True, "stream_options": {"include_usage": True}}


def read_recorded_questions(lines: Iterable[str], where: str) -> list[QuestionLine]:
    """Read JSON lines with `question` or `messages`, and `gold`; `id` defaults to a hash. Raise ConfigError."""
    questions: list[QuestionLine] = []
    ids: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        question = _read_line(line, f"{where}:{number}")
        if question.id in ids:
            problem = f"id {question.id!r:.80} is already used in line {ids[question.id]}; ids must be unique"
            raise ConfigError(f"{where}:{number}: {problem}")
        ids[question.id] = number
        questions.append(question)
    if not questions:
        raise ConfigError(f"{where}: contains no questions")
    return questions


def _read_line(line: str, where: str) -> QuestionLine:
    item = json_object(line, where)
    messages, question = item.get("messages"), item.get("question")
    if isinstance(question, str) and "messages" not in item:
        messages = [{"role": "user", "content": question}]
    listed = messages if isinstance(messages, list) else []
    if not listed or not all(isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m for m in listed):
        raise ConfigError(f'{where}: has no question; need {{"question": "…"}} or messages with roles and text')
    last = next((m["content"] for m in reversed(listed) if m["role"] == "user"), listed[-1]["content"])
    known, gold = _text(item, "id", where), _text(item, "gold", where)
    if gold is None:
        raise ConfigError(f"{where}: has no gold; a trace records for every answer whether it is correct")
    return QuestionLine(
        id=known if known is not None else hashlib.blake2b(msgspec.json.encode(messages), digest_size=8).hexdigest(),
        task=_text(item, "task", where) or "",
        question=question if isinstance(question, str) else text_of(last),
        gold=gold,
        body={"messages": messages, **{k: item[k] for k in SENT_ALONG if k in item}},
    )


def _text(item: Mapping[str, Any], name: str, where: str) -> str | None:
    value = item.get(name)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ConfigError(f"{where}: {name}: must be text, got {type(value).__name__}")


# ---- runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorder:
    client: UpstreamClient
    recipe: RecordingRecipe
    scorer: Scorer
    wave: int  # for kind "samples": answers drawn at once
    dataset: str  # name of the question set
    sleep: Callable[[float], Awaitable[None]]

    async def run(self, question: QuestionLine) -> RunRow:
        return await (self._samples(question) if self.recipe.kind == "samples" else self._chain(question))

    async def _samples(self, question: QuestionLine) -> RunRow:
        n, drawn = self.recipe.n_samples, list[SampleRun]()
        while len(drawn) < n:
            wave = range(len(drawn) + 1, min(len(drawn) + self.wave, n) + 1)
            calls = (self._retry(partial(self._draw, question, index)) for index in wave)
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
        points, reader, logprobs = await self._retry(lambda: self._read_chain(question))
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

    async def _read_chain(self, question: QuestionLine) -> tuple[list[Checkpoint], ChainReader, list[float]]:
        """A chain's checkpoints, its reader, and the log-probabilities of its tokens, as far as they are reported."""
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
        return points, reader, tap.logprobs

    async def _probe(self, continuer: Continuer, thought: str, tokens: int) -> TrialReply | None:
        if self.recipe.finish is None:
            return None
        return await self._retry(lambda: continuer.ask(thought, tokens))

    async def _retry(self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of `call`. Raise its last UpstreamError when all tries failed or a retry cannot help."""
        for pause_s in BACKOFF_S:
            try:
                return await call()
            except UpstreamError as error:
                status = getattr(error, "http_status", None)
                if status is not None and status < 500 and status not in RETRIED_STATUSES:
                    raise  # the upstream rejected the content of the request
                await self.sleep(pause_s)
        return await call()

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
    recorder = Recorder(client=client, recipe=recipe, scorer=scorer, wave=wave, dataset=dataset, sleep=sleep)
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


# ---- the file


@contextmanager
def open_recording(out: Path, recipe: RecordingRecipe) -> Iterator[RunLog]:
    """The log of a recording, whose runs are packed into `out` at the end.

    Raise ConfigError when the file was recorded with other settings, TraceError when it is no recording, and StoreError
    when it cannot be used.
    """
    part = out.with_name(out.name + ".part")
    with ExitStack() as opened:
        try:
            if not part.exists() and out.exists():
                _unpack(out, part)
            log = opened.enter_context(RunLog(part))
        except OSError as error:
            raise StoreError(f"{part}: cannot be used ({error.strerror or error})") from None
        if not try_lock(log.descriptor):
            raise StoreError(f"{part}: another recorder is writing to it; wait for it to finish, or stop it")
        _check_settings(log, out, recipe)
        try:
            yield log
        finally:  # stay locked until the file is packed
            if log.ids:
                _pack(part, out)
            else:
                part.unlink(missing_ok=True)


def _check_settings(log: RunLog, out: Path, recipe: RecordingRecipe) -> None:
    other = next((run for _, _, run, _ in log.ids if run != recipe.hash), None)
    if other is None:
        return
    with log.path.open("rb") as lines:
        row = next(row for row in map(msgspec.json.decode, lines) if row["run"] == other)
    difference = describe_difference(recorded_with(row.get("meta")), recipe.as_data())
    raise ConfigError(
        f"{out}: was recorded with other settings: {difference}; record with those, or name another file with --out"
    )


def _unpack(out: Path, part: Path) -> None:
    try:
        with whole_file(part) as draft, draft.open("wb") as plain, open_unpacked(out) as packed:
            shutil.copyfileobj(packed, plain)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise StoreError(f"{out}: is damaged ({error})") from None


def _pack(part: Path, out: Path) -> None:
    with whole_file(out) as draft, open_packed(draft, gzipped=out.suffix == ".gz") as packed, part.open("rb") as lines:
        packed.writelines(line for line in lines if line.endswith(b"\n"))
    part.unlink()


def recorded_with(meta: str | None) -> Mapping[str, Any]:
    """The settings in a run's `meta`; empty if `suffice record` did not record it."""
    try:
        settings = msgspec.json.decode(meta or "{}")["recorded_with"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return {}
    return settings if isinstance(settings, Mapping) else {}


def describe_difference(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    if not theirs:
        return "it does not record which"
    differences = []
    for name, value in mine.items():
        other = theirs.get(name)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            pairs = [(f"{name}.{key}", other.get(key), value[key]) for key in value]
        else:
            pairs = [(name, other, value)]
        differences += [f"{what} was {old!r} and is now {new!r}" for what, old, new in pairs if old != new]
    return ", ".join(differences[:3]) or "by another version of suffice"
