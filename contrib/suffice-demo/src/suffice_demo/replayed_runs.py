"""Replays a policy on single recorded runs through the live `Observer`, and compares two ways of answering in pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suffice.assurance.bounds import Interval
from suffice.assurance.money import undrawn_tokens
from suffice.learn.dataset import as_step
from suffice.policy.base import Policy
from suffice.signals.base import FIELDS, fields_of
from suffice.signals.observe import Observer
from suffice.types import Episode, Request, Signals, StepRecord, StopReason
from suffice_demo.bootstrap import bootstrap_interval

N_DRAWS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionPair:
    question: str
    full_correct: bool
    correct: bool
    full_tokens: int
    tokens: int  # total of the other way, probes included


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayComparison:
    """Costs and savings of the other way, as fractions; an interval is None if it cannot be computed."""

    n: int
    full_em: float
    em: float
    n_lost: int  # correct in full, wrong otherwise
    n_gained: int  # wrong in full, correct otherwise
    em_change: float  # em - full_em: negative is a drop
    em_change_interval: Interval | None
    full_tokens: float  # mean per question
    tokens: float
    token_reduction: float  # 1 - tokens / full_tokens
    token_reduction_interval: Interval | None


def compare_pairs(
    pairs: Sequence[QuestionPair], *, rng: np.random.Generator, confidence: float = 0.95
) -> ReplayComparison:
    if not pairs:
        raise ValueError("compare: needs at least one pair")
    values = np.array([[1.0, p.full_correct, p.correct, p.full_tokens, p.tokens] for p in pairs], dtype=np.float64)
    groups = [p.question for p in pairs]
    sums = values.sum(axis=0)

    def interval(statistic: Callable[[NDArray[np.float64]], float]) -> Interval | None:
        return bootstrap_interval(values, groups, statistic, confidence, N_DRAWS, rng)

    return ReplayComparison(
        n=len(pairs),
        full_em=float(sums[1] / sums[0]),
        em=float(sums[2] / sums[0]),
        n_lost=sum(p.full_correct and not p.correct for p in pairs),
        n_gained=sum(p.correct and not p.full_correct for p in pairs),
        em_change=_em_change(sums),
        em_change_interval=interval(_em_change),
        full_tokens=float(sums[3] / sums[0]),
        tokens=float(sums[4] / sums[0]),
        token_reduction=_reduction(sums),
        token_reduction_interval=interval(_reduction),
    )


def _em_change(sums: NDArray[np.float64]) -> float:
    return float((sums[2] - sums[1]) / sums[0])


def _reduction(sums: NDArray[np.float64]) -> float:
    return float(1 - sums[4] / sums[3]) if sums[3] else float("nan")


_TEXT_FIELDS = ("hedges", "hedge_rate", "loop_share", "draft_distance")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedRun:
    episode_id: str
    question_key: str
    stop_step: int | None  # None: never stopped
    stop_reason: StopReason | None
    answer: str | None  # the answer for the client
    tokens: int  # generated, probes included
    probe_tokens: int  # included in `tokens`
    full_answer: str | None
    full_tokens: int  # of the full run, without probes; for a decided vote an estimate over all samples


def replay_run(episode: Episode, policy: Policy, *, wave: int = 1) -> ReplayedRun | None:
    """Replay one full run; None if it is incomplete. A stop inside a wave of samples is charged the whole wave."""
    request, outcome = episode.request, episode.outcome
    if outcome.stopped or outcome.usage is None or outcome.end_reason not in ("done", "truncated"):
        return None
    stop_step, reason, answer = _first_stop(outcome.steps, policy, request)
    probes = [s.probe_tokens for s in outcome.steps]
    full_tokens = outcome.usage.completion_tokens
    if stop_step is None:
        spent, probe_tokens = full_tokens, sum(probes)
        answer = outcome.answer
    else:
        seen = min(len(outcome.steps), -(-stop_step // wave) * wave) if request.kind == "samples" else stop_step
        spent = sum(s.tokens for s in outcome.steps[:seen])
        probe_tokens = sum(probes[:stop_step])
        if request.kind == "reasoning":
            spent += max(0, full_tokens - outcome.usage.reasoning_tokens)  # the answer is still generated
    return ReplayedRun(
        episode_id=request.episode_id,
        question_key=request.question_key,
        stop_step=stop_step,
        stop_reason=reason,
        answer=answer,
        tokens=spent + probe_tokens,
        probe_tokens=probe_tokens,
        full_answer=outcome.answer,
        full_tokens=full_tokens + round(undrawn_tokens(request, outcome)),
    )


def _first_stop(
    steps: Sequence[StepRecord], policy: Policy, request: Request
) -> tuple[int | None, StopReason | None, str | None]:
    observer = Observer(policy.needs, request.kind, query=request.query)
    fields = set(fields_of(policy.needs))
    for record in steps:
        decision = policy.decide(signals := _as_recorded(observer.observe(as_step(record)), record, fields))
        if decision.action == "stop" and not (request.kind == "samples" and record.index == len(steps)):
            return record.index, decision.stop_reason, signals.answer
    return None, None, None


def _as_recorded(signals: Signals, record: StepRecord, fields: set[str]) -> Signals:
    """Take the signals in `fields` that need the text from the record, because the log does not store the text."""
    kept: dict[str, Any] = {field: getattr(record, field) for field in _TEXT_FIELDS if field in fields}
    # `patience` depends on a threshold that may have changed; folds of other packages may have read the text.
    lost = [field for field in signals.values if field == "draft_patience" or field not in FIELDS]
    return signals.replace(**kept, **dict.fromkeys(lost))
