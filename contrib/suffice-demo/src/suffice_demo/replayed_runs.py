"""Replays a policy on single recorded runs through the live `Observer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from suffice.assurance.money import undrawn_tokens
from suffice.learn.dataset import as_step
from suffice.policy.base import Policy
from suffice.signals.base import FIELDS, fields_of
from suffice.signals.observe import Observer
from suffice.types import Episode, Request, Signals, StepRecord, StopReason

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
