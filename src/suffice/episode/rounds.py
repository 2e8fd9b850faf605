"""A run whose loop is the caller's own. It does no I/O, so the library and `/v1/decide` decide alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from suffice.episode import vote
from suffice.episode.extra_calls import Vectors
from suffice.episode.ledger import Ledger
from suffice.episode.loop import GuardedPolicy
from suffice.errors import BadRequest
from suffice.review.items import SourceBuffer
from suffice.scoring.base import Scorer
from suffice.types import AnswerSource, Decision, Step, Usage

MAX_STEPS = 2_000  # of one run; later steps are counted and the run goes on
MAX_CHARS = 256 * 1024  # of all answers of one run; likewise
CONTINUE_REASON = "the run goes on"

Returning = Callable[[Sequence[str | None], Sequence[float | None]], int]  # answers, confidences → step to use, from 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    answer: str | None = None  # as it would be used now; None: read from `text` by the route's scorer
    tokens: int  # generated in this step alone
    text: str = ""  # the step's own text; read by signals, kept only for reviewers
    sources: tuple[str, ...] = ()  # passages that the step read; unused by signals, kept likewise
    confidence: float | None = None  # probability of the answer, [0, 1]
    logprobs: tuple[float, ...] = ()  # of the answer's tokens, natural log
    entropy: float | None = None  # nats, of the answer's first token
    logprob: float | None = None  # mean log-probability of the step's own tokens
    stated_confidence: float | None = None  # the model's own estimate, [0, 1]
    reported_done: bool | None = None  # the model's own flag that it is done
    action: str | None = None  # what this kind of step is called: "search", "revise", "tool" …
    ctx_tokens: int = 0  # prompt tokens read at this step

    def __post_init__(self) -> None:
        """Raise BadRequest for wrong types and negative counts. A number that is no probability counts as unknown."""
        for name in ("tokens", "ctx_tokens"):
            value: object = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
                raise BadRequest(f"step.{name}: got {value!r:.40}; a whole number, at least 0", param=f"step.{name}")
        for name in ("answer", "text", "action"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name == "text"):
                kind = type(value).__name__
                raise BadRequest(f"step.{name}: must be a string, got {kind}", param=f"step.{name}")
        sources: object = self.sources
        if not isinstance(sources, tuple) or not all(isinstance(one, str) for one in sources):
            raise BadRequest("step.sources: must be a list of strings", param="step.sources")


@dataclass(frozen=True, slots=True)
class StepRecordBrief:
    reported: str | None  # the answer as the caller reported it
    tokens: int
    answer: str | None  # in the scorer's normal form
    confidence: float | None
    decision: Decision  # as returned to the caller


@dataclass(slots=True, kw_only=True)
class RoundsRun:
    """One run from its first step to its end. It is not safe for concurrent callers."""

    ledger: Ledger
    scorer: Scorer
    policy: GuardedPolicy
    may_act: bool  # False while observing, uncertified, in an audit and in a repeated delivery: no stop is reported
    returning: Returning
    is_killed: Callable[[], bool] = lambda: False  # whether every stop was disabled since the run began
    vectors: Vectors | None = None  # used by `vector_of` only
    shelf: SourceBuffer | None = None  # takes the steps' texts for reviewers; None: they are dropped
    seen: list[StepRecordBrief] = field(default_factory=list)
    is_over: bool = False
    _n_chars: int = 0
    _n_excess: int = 0

    @property
    def acts(self) -> bool:
        return self.may_act and not self.is_killed()

    @property
    def id(self) -> str:
        return self.ledger.request.episode_id

    async def vector_of(self, index: int, report: StepReport) -> tuple[float, ...]:
        """Return the vector of step `index`, to be awaited before `take`; () if there is none or none is needed."""
        is_next = index == len(self.seen) + 1 and not self._n_excess and not self.is_over
        if self.vectors is None or not is_next or self.ledger.request.ungoverned is not None:
            return ()
        return await self.vectors.of(report.text or report.answer or "")

    def take(self, index: int, report: StepReport, vector: tuple[float, ...] = ()) -> Decision:
        """Record a step and decide; a repeat gets the same decision.

        Raise BadRequest (409) for a step that leaves a gap, contradicts an earlier report, or comes after the end.
        """
        if 1 <= index <= len(self.seen):
            return self._repeat_decision(index, report)
        expected = len(self.seen) + self._n_excess + 1
        if self.is_over:
            n = expected - 1
            raise BadRequest(f"step.index: got {index}; this run ended after step {n}", status=409, code="run_is_over")
        if self._n_excess or len(self.seen) == MAX_STEPS or self._n_chars > MAX_CHARS:
            self._n_excess += 1
            self._add_usage(report)
            self.ledger.fail_open("steps")
            return Decision(action="continue", reason="the run is too long: the policy evaluates no further steps")
        if index != expected:
            message = f"step.index: got {index}; the next step of this run is {expected}"
            raise BadRequest(message, status=409, param="step.index", code="step_gap")
        step = self._build_step(index, report, vector)
        if self.ledger.request.ungoverned is not None:
            decision = Decision(action="continue", reason=f"not governed: {self.ledger.request.ungoverned}")
            self.seen.append(StepRecordBrief(report.answer, report.tokens, step.answer, step.confidence, decision))
            return decision
        if self.shelf is not None:
            self.shelf.add(index, read=report.sources, wrote=report.text)
        signals = self.policy.observe(step)
        decision = self.policy.decide(signals)
        self.ledger.record_step(step, signals, decision)
        effective = self._apply_mode(decision)
        confidence = step.confidence if signals.confidence is None else signals.confidence
        self.seen.append(StepRecordBrief(report.answer, report.tokens, step.answer, confidence, effective))
        if decision.stop and self.ledger.stop.step == index:
            self.ledger.stop.would_answer = self.answer_of(self._choose_step(acting=True))
        self.ledger.stop.acted = effective.stop  # a stop that is not acted on does not count as stopped
        return effective

    @property
    def return_step(self) -> int | None:
        """The step whose answer to use, or None; if stops may not act, what the caller's loop alone would return."""
        return self._choose_step(acting=self.acts)

    def answer_of(self, index: int | None) -> str | None:
        return None if index is None else self.seen[index - 1].answer

    def finish(self) -> None:
        self.is_over = True
        request, reply, stop = self.ledger.request, self.ledger.reply, self.ledger.stop
        reply.answer = self.answer_of(self.return_step)
        if request.kind == "samples" and self.seen:
            reply.vote = vote.count_votes([s.answer for s in self.seen]).counts
        choice = self._choose_step(acting=True)
        shadow = not self.acts and request.ungoverned is None and stop.step is None
        if shadow and self.answer_of(choice) != reply.answer:
            # The loop runs to its end and the policy then picks another round's answer: record that as a stop there.
            stop.step, stop.would_answer = len(self.seen), self.answer_of(choice)
            stop.decision = f"the policy would return the answer of step {choice}"
        reply.caller_usage = reply.caller_usage or Usage(prompt_tokens=0, completion_tokens=0)

    def _repeat_decision(self, index: int, report: StepReport) -> Decision:
        before = self.seen[index - 1]
        if (before.reported, before.tokens) != (report.answer, report.tokens):
            message = f"step.index: step {index} was already reported with another answer or token count;"
            message += f" the next step of this run is {len(self.seen) + 1}"
            raise BadRequest(message, status=409, param="step.index", code="step_conflict")
        return before.decision

    def _build_step(self, index: int, report: StepReport, vector: tuple[float, ...]) -> Step:
        self._add_usage(report)
        source: AnswerSource = "sample" if self.ledger.request.kind == "samples" else "caller"
        answer = self._normalise_answer(report)
        self._n_chars += len(report.answer or "") + len(answer or "")
        return Step(
            index=index,
            tokens=report.tokens,
            answer=answer,
            answer_source=None if answer is None else source,
            logprobs=_numbers(report.logprobs),
            entropy=_finite(report.entropy),
            text=report.text,
            ctx_tokens=report.ctx_tokens,
            confidence=_probability(report.confidence),
            logprob=_finite(report.logprob),
            stated_confidence=_probability(report.stated_confidence),
            action=report.action,
            reported_done=report.reported_done if isinstance(report.reported_done, bool) else None,
            vector=vector,
        )

    def _add_usage(self, report: StepReport) -> None:
        spent = self.ledger.reply.caller_usage or Usage(prompt_tokens=0, completion_tokens=0)
        prompt_tokens, tokens = spent.prompt_tokens + report.ctx_tokens, spent.completion_tokens + report.tokens
        self.ledger.reply.caller_usage = replace(spent, prompt_tokens=prompt_tokens, completion_tokens=tokens)

    def _normalise_answer(self, report: StepReport) -> str | None:
        if report.answer is None:
            return self.ledger.extract(self.scorer, report.text) if report.text else None
        try:
            return self.scorer.normalise(report.answer)
        except Exception:  # noqa: BLE001 - a broken scorer costs tokens, never an answer
            self.ledger.fail_open("scorer")
            return None

    def _apply_mode(self, decision: Decision) -> Decision:
        """Return a stop only if it may act. In enforce mode all other decisions look alike, to hide audits."""
        if decision.stop and self.acts:
            return decision
        if self.ledger.request.mode == "enforce":
            return Decision(action="continue", reason=CONTINUE_REASON)
        if not decision.stop:
            return decision
        return Decision(action="continue", reason=f"stop not applied: {decision.reason}", score=decision.score)

    def _choose_step(self, *, acting: bool) -> int | None:
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
            except Exception:  # noqa: BLE001 - choosing an earlier answer is optional: fall back to the last one
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
