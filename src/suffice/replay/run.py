"""A policy replayed on recorded runs: where it would have stopped, with which answer, at which cost.

It reads steps exactly as a live policy would, through the same `Observer`, and nothing else: no
label, no later step. It refuses to know whether an answer is right; `compare` is told that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from suffice.assurance.money import undrawn_tokens
from suffice.policy.base import Policy
from suffice.signals.base import fields_of
from suffice.signals.observe import Observer
from suffice.types import Episode, Request, Signals, Step, StepRecord, StopReason

_OF_THE_TEXT = ("hedges", "hedge_rate", "loop_share", "draft_distance")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedRun:
    """One run under one policy, beside the full run that was recorded."""

    episode_id: str
    question_key: str
    stop_step: int | None  # None: the policy never stopped it
    stop_reason: StopReason | None
    answer: str | None  # what a client would have got
    tokens: int  # generated, probes included
    probe_tokens: int  # part of `tokens`
    full_answer: str | None
    full_tokens: int  # of the full run alone, without probes; of a decided vote all samples, estimated


def replay_run(episode: Episode, policy: Policy, *, wave: int = 1) -> ReplayedRun | None:
    """Replay one full run. None: it was not recorded to its end, so it cannot stand for a full run.

    wave  kind "samples": how many are drawn at once; a stop inside a wave is charged the whole wave,
          which is the most that it can cost live, where the rest is cancelled
    """
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
        seen = _launched(stop_step, wave, len(outcome.steps)) if request.kind == "samples" else stop_step
        spent = sum(s.tokens for s in outcome.steps[:seen])
        probe_tokens = sum(probes[:stop_step])
        if request.kind == "reasoning":
            spent += max(0, full_tokens - outcome.usage.reasoning_tokens)  # the answer is still written
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
    """The first stop before the last sample, or anywhere in a thought, with the answer there."""
    observer = Observer(policy.needs, request.kind, query=request.query)
    asked = set(fields_of(policy.needs))
    for record in steps:
        decision = policy.decide(signals := _as_recorded(observer.observe(as_step(record)), record, asked))
        if decision.action == "stop" and not (request.kind == "samples" and record.index == len(steps)):
            return record.index, decision.stop_reason, signals.answer
    return None, None, None


def _as_recorded(signals: Signals, record: StepRecord, asked: set[str]) -> Signals:
    """Signals of the text come from the record, for the text itself was never stored; the others are unknown.

    asked  the fields that the policy's folds fill; the others stay unknown, as they were live
    """
    kept: dict[str, Any] = {field: getattr(record, field) for field in _OF_THE_TEXT if field in asked}
    # A patience depends on a threshold that may be another today; another package's fold may have read the text.
    return replace(signals, **kept, draft_patience=None, extra=None)


def as_step(record: StepRecord) -> Step:
    """The step as a live policy saw it, as far as the log kept it: its text is gone."""
    return Step(
        index=record.index,
        tokens=record.tokens,
        answer=record.answer,
        answer_source=record.answer_source,
        logprobs=record.logprobs,
        entropy=record.entropy,
        probe_tokens=record.probe_tokens,
        ctx_tokens=record.ctx_tokens,
        confidence=record.confidence,
        mass=record.mass,
        margin=record.margin,
        closed_entropy=record.closed_entropy,
        logprob=record.logprob,
        stated_confidence=record.stated_confidence,
        said_done=record.said_done,
        action=record.caller_action,
    )


def _launched(stop_step: int, wave: int, n_steps: int) -> int:
    return min(n_steps, -(-stop_step // wave) * wave)
