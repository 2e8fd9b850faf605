"""One run whose loop is the caller's own: rounds of retrieval, an agent's turns, revisions, its own samples.

    take(step 1) ──▶ take(step 2) ──▶ … ──▶ close: done, stopped or aborted

Sans I/O: steps come in as values and decisions go out as values, so the library in a process and the endpoint
`/v1/decide` run the same code and decide the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from suffice.episode import vote
from suffice.episode.guarded_policy import GuardedPolicy
from suffice.episode.ledger import Ledger
from suffice.episode.probe import Vectors
from suffice.errors import BadRequest
from suffice.review.items import Shelf
from suffice.scoring.base import Scorer
from suffice.types import AnswerSource, Decision, Step, Usage

MAX_STEPS = 2_000  # of one run; what comes after them is counted and goes on
MAX_CHARS = 256 * 1024  # of all answers of one run; likewise
GOES_ON = "the run goes on"

Returning = Callable[[Sequence[str | None], Sequence[float | None]], int]  # answers, confidences → step to use, from 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    answer: str | None = None  # as it would be used now; None: read from `text` by the route's scorer
    tokens: int  # generated in this step alone
    text: str = ""  # the step's own text; read by signals, kept only for reviewers
    sources: tuple[str, ...] = ()  # passages that the step read; no signal looks at them, kept likewise
    confidence: float | None = None  # probability of the answer, [0, 1]
    logprobs: tuple[float, ...] = ()  # of the answer's tokens, natural log
    entropy: float | None = None  # nats, of the answer's first token
    logprob: float | None = None  # mean log-probability of the step's own tokens
    stated_confidence: float | None = None  # what the model said of itself, [0, 1]
    said_done: bool | None = None  # the model's own flag that it is done
    action: str | None = None  # what this kind of step is called: "search", "revise", "tool" …
    ctx_tokens: int = 0  # prompt tokens read at this step

    def __post_init__(self) -> None:
        """Refuse what could only be a mistake; a number that is no probability is merely unknown."""
        for name in ("tokens", "ctx_tokens"):
            value: object = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
                raise BadRequest(f"step.{name}: got {value!r:.40}; a whole number, at least 0", param=f"step.{name}")
        for name in ("answer", "text", "action"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name == "text"):
                kind = type(value).__name__
                raise BadRequest(f"step.{name}: must be a string, got {kind}", param=f"step.{name}")
        given: object = self.sources
        if not isinstance(given, tuple) or not all(isinstance(one, str) for one in given):
            raise BadRequest("step.sources: must be a list of strings", param="step.sources")


@dataclass(frozen=True, slots=True)
class StepRecordBrief:
    """One step that was taken, and what was decided. Its text is not kept."""

    told: str | None  # the answer as the caller told it
    tokens: int
    answer: str | None  # in the scorer's normal form
    confidence: float | None
    decision: Decision  # as the caller got it


@dataclass(slots=True, kw_only=True)
class RoundsRun:
    """One run from its first step to its end.

    `may_act` says whether a stop is told to the caller: not while observing, not uncertified, not in an
    audit, and not in a repeated delivery. One caller at a time: the library and the endpoint see to that.
    """

    ledger: Ledger
    scorer: Scorer  # reads and compares answers
    policy: GuardedPolicy
    may_act: bool
    returning: Returning
    is_resting: Callable[[], bool] = lambda: False  # has everything been told not to act, since the run began?
    vectors: Vectors | None = None  # who may be asked for them; this class asks nobody
    shelf: Shelf | None = None  # takes the steps' texts for reviewers; None: they are dropped
    seen: list[StepRecordBrief] = field(default_factory=list)
    is_over: bool = False
    _n_chars: int = 0
    _n_beyond: int = 0

    @property
    def acts(self) -> bool:
        """May the caller be told to stop now?"""
        return self.may_act and not self.is_resting()

    @property
    def id(self) -> str:
        return self.ledger.request.episode_id

    async def vector_of(self, index: int, told: StepReport) -> tuple[float, ...]:
        """The vector of step `index`, for `take`; () where there is none, or nobody would look at it.

        Whoever drives the run awaits it before the step: it is the only part of a run that waits for anybody.
        """
        is_next = index == len(self.seen) + 1 and not self._n_beyond and not self.is_over
        if self.vectors is None or not is_next or self.ledger.request.ungoverned is not None:
            return ()
        return await self.vectors.of(told.text or told.answer or "")

    def take(self, index: int, told: StepReport, vector: tuple[float, ...] = ()) -> Decision:
        """Take step `index` in and decide; the same step again gives the same decision again.

        vector  of the step's text, or of its answer where it has none; (): unknown

        Raises BadRequest (409) for a step that leaves a gap, contradicts what was told before, or comes
        after the end.
        """
        if 1 <= index <= len(self.seen):
            return self._again(index, told)
        expected = len(self.seen) + self._n_beyond + 1
        if self.is_over:
            n = expected - 1
            raise BadRequest(f"step.index: got {index}; this run ended after step {n}", status=409, code="run_is_over")
        if self._n_beyond or len(self.seen) == MAX_STEPS or self._n_chars > MAX_CHARS:
            return self._beyond(told)
        if index != expected:
            message = f"step.index: got {index}; the next step of this run is {expected}"
            raise BadRequest(message, status=409, param="step.index", code="step_gap")
        step = self._step(index, told, vector)
        if self.ledger.request.ungoverned is not None:
            decision = Decision(action="continue", reason=f"not governed: {self.ledger.request.ungoverned}")
            self.seen.append(StepRecordBrief(told.answer, told.tokens, step.answer, step.confidence, decision))
            return decision
        if self.shelf is not None:
            self.shelf.add(index, read=told.sources, wrote=told.text)
        signals = self.policy.observe(step)
        decision = self.policy.decide(signals)
        self.ledger.record_step(step, signals, decision)
        shown = self._shown(decision)
        confidence = step.confidence if signals.confidence is None else signals.confidence
        self.seen.append(StepRecordBrief(told.answer, told.tokens, step.answer, confidence, shown))
        if decision.stop and self.ledger.stop_step == index:
            self.ledger.would_answer = self.answer_of(self._chosen(acting=True))
        self.ledger.stopped = shown.stop  # a stop that was not obeyed is no stop
        return shown

    @property
    def return_step(self) -> int | None:
        """The step whose answer is the one to use; None: there is no answer yet.

        A run that the policy may not touch returns what the caller's loop alone would: its last answer,
        or the vote of its samples.
        """
        return self._chosen(acting=self.acts)

    def answer_of(self, index: int | None) -> str | None:
        return None if index is None else self.seen[index - 1].answer

    def finish(self) -> None:
        """Write into the ledger what the run came to; the books are closed by who owns them."""
        self.is_over = True
        ledger, chosen = self.ledger, self.return_step
        ledger.answer = self.answer_of(chosen)
        if ledger.request.kind == "samples" and self.seen:
            ledger.vote = vote.count_votes([s.answer for s in self.seen]).counts
        would = self._chosen(acting=True)
        shadow = not self.acts and ledger.request.ungoverned is None and ledger.stop_step is None
        if shadow and self.answer_of(would) != ledger.answer:
            # The policy lets the loop run to its end and then takes another round's answer: a stop there.
            ledger.stop_step, ledger.would_answer = len(self.seen), self.answer_of(would)
            ledger.decision = f"the answer of step {would} is the one to use"
        if ledger.told_usage is None:
            ledger.told_usage = Usage(prompt_tokens=0, completion_tokens=0)

    def _again(self, index: int, told: StepReport) -> Decision:
        before = self.seen[index - 1]
        if (before.told, before.tokens) != (told.answer, told.tokens):
            raise BadRequest(
                f"step.index: step {index} was told before with another answer or token count;"
                f" the next step of this run is {len(self.seen) + 1}",
                status=409,
                param="step.index",
                code="step_conflict",
            )
        return before.decision

    def _beyond(self, told: StepReport) -> Decision:
        """A step that nobody keeps any more: it is paid for, and the run goes on."""
        self._n_beyond += 1
        self._spend(told)
        self.ledger.fail_open("steps")
        return Decision(action="continue", reason="too long a run: no step of it is judged any more")

    def _step(self, index: int, told: StepReport, vector: tuple[float, ...]) -> Step:
        self._spend(told)
        source: AnswerSource = "sample" if self.ledger.request.kind == "samples" else "caller"
        answer = self._normal(told)
        self._n_chars += len(told.answer or "") + len(answer or "")
        return Step(
            index=index,
            tokens=told.tokens,
            answer=answer,
            answer_source=None if answer is None else source,
            logprobs=_numbers(told.logprobs),
            entropy=_finite(told.entropy),
            text=told.text,
            ctx_tokens=told.ctx_tokens,
            confidence=_probability(told.confidence),
            logprob=_finite(told.logprob),
            stated_confidence=_probability(told.stated_confidence),
            action=told.action,
            said_done=told.said_done if isinstance(told.said_done, bool) else None,
            vector=vector,
        )

    def _spend(self, told: StepReport) -> None:
        spent = self.ledger.told_usage or Usage(prompt_tokens=0, completion_tokens=0)
        self.ledger.told_usage = replace(
            spent,
            prompt_tokens=spent.prompt_tokens + told.ctx_tokens,
            completion_tokens=spent.completion_tokens + told.tokens,
        )

    def _normal(self, told: StepReport) -> str | None:
        try:
            if told.answer is None:
                return self.scorer.extract(told.text) if told.text else None
            return self.scorer.normalise(told.answer)
        except Exception:  # noqa: BLE001 - a broken yardstick costs tokens, never an answer
            self.ledger.fail_open("scorer")
            return None

    def _shown(self, decision: Decision) -> Decision:
        """The decision as the caller gets it: a stop only where one may be carried out.

        Where a policy is enforced, every run that goes on is told the same, so that nothing reveals an audit.
        """
        if decision.stop and self.acts:
            return decision
        if self.ledger.request.mode == "enforce":
            return Decision(action="continue", reason=GOES_ON)
        if not decision.stop:
            return decision
        return Decision(action="continue", reason=f"not acted on: {decision.reason}", score=decision.score)

    def _chosen(self, *, acting: bool) -> int | None:
        answers = [s.answer for s in self.seen]
        if not any(a is not None for a in answers):
            return None
        if self.ledger.request.kind == "samples":
            return vote.count_votes(answers).winner
        if acting:
            try:
                step = self.returning(answers, [s.confidence for s in self.seen])
                if answers[step - 1] is not None and step >= 1:
                    return step
            except Exception:  # noqa: BLE001 - which answer is better is our own idea: without it, the last one
                self.ledger.fail_open("returning")
        return last_answer(answers)


def last_answer(answers: Sequence[str | None], _confidences: Sequence[float | None] = ()) -> int:
    return next((i for i in range(len(answers), 0, -1) if answers[i - 1] is not None), len(answers))


def _numbers(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(values) if all(isinstance(v, int | float) for v in values) else ()


def _finite(value: float | None) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _probability(value: float | None) -> float | None:
    return value if isinstance(value, int | float) and 0.0 <= value <= 1.0 else None
