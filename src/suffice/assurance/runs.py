"""One run of one request, boiled down to the few numbers that a report adds up.

Knows which run counts as full, what it spent, what a stop would have spent, and whether it was
right. It refuses to know more than one run at a time: means and intervals are made in `estimate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from suffice.assurance.judge import JUDGE
from suffice.assurance.lengths import undrawn_factor, undrawn_tokens
from suffice.assurance.sampling import weight_of
from suffice.types import Episode, Feedback, Outcome, Request

UNKNOWN_ENDS = ("rejected", "shutdown", "lost")  # nothing was asked of the model, or nobody knows what came back
ABANDONED_ENDS = ("client_left", "timeout")  # an audit that ends so counts as a loss (CONTRACT.md §3)
FINISHED_ENDS = ("done", "truncated")  # a full run that shows what the model answers
ENDED = (*FINISHED_ENDS, "stopped")  # any run that came to an answer, or to none, by itself or by a stop
# What labels were asked for that say something of the average answer: nothing, or a draw at random. Runs that people
# were asked about because they were doubtful are worse than the average one.
REPRESENTATIVE = ("", "control")

Match = Callable[[str | None, str], bool]


class SequencedLabel(Protocol):
    """One piece of feedback; a higher `seq` came later and replaces a lower one."""

    @property
    def seq(self) -> int:
        """Place in the log."""
        ...

    @property
    def feedback(self) -> Feedback:
        """What was said."""
        ...


class LabelledEpisode(Protocol):
    """One run with what was said about it."""

    @property
    def episode(self) -> Episode:
        """Its request and its outcome."""
        ...

    @property
    def labels(self) -> Sequence[SequencedLabel]:
        """What was said about it, in any order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunNumbers:
    """One governed request, boiled down to the numbers that the report needs."""

    group: str  # runs of one question are not independent
    full: bool
    enforce: bool
    audit: bool
    weight: float  # 1/P(lot): makes the two arms comparable when the audit share moved
    stopped: bool
    would_stop: bool
    spent: float | None  # tokens generated for the delivered run, in probes, and discarded
    processed: float | None  # the same with prompts that no cache served
    # What the run alone would have taken; where a vote was decided early, all of its samples (`lengths`).
    baseline_tokens: float | None
    baseline_processed: float | None
    would_spend: float | None
    cost_usd: float | None  # of everything, at the prices of its time; None: unknown
    baseline_usd: float | None  # what the run alone would have cost, as `baseline_tokens`
    would_cost_usd: float | None  # with the shadow stop made
    correct: bool | None  # None: no label says so, it was picked on purpose, or nobody knows the answer
    disagrees: bool | None  # None: this run says nothing about it
    drop: int | None  # -1, 0, +1; None: as above, or no label
    abandoned_audit: bool  # counted as a loss, labelled or not
    undrawn_tokens: float = 0.0  # estimate: of the samples that a decided vote did not draw
    undrawn_usd: float = 0.0  # … and what these would have cost; 0 where prices are unknown
    stands_for: float = 1.0  # so many runs like it, those whose rows are not kept included (`sampling.weight_of`)

    @property
    def would_save_usd(self) -> float | None:
        """Money that the run costs less than a full vote, or a full run, with its shadow stop made; None: unknown."""
        if self.cost_usd is None or self.would_cost_usd is None:
            return None
        return self.cost_usd + self.undrawn_usd - self.would_cost_usd


def current_label(labels: Sequence[SequencedLabel]) -> Feedback | None:
    """The last feedback received that says what is right; thumbs and ratings do not overrule it.

    A judge model's word stands only where nobody else said anything, however late it came.
    """
    said = sorted(labels, key=lambda label: label.seq)
    telling = [x.feedback for x in said if x.feedback.correct is not None or x.feedback.gold is not None]
    people = [feedback for feedback in telling if feedback.source != JUDGE]
    return next(reversed(people or telling), None)


def measure_run(item: LabelledEpisode, match: Match) -> RunNumbers:
    """Boil one governed run down; `match` is never asked about a missing answer.

    No policy can stop a repeated delivery, so its run counts as one that the policy let go, and never as evidence.
    """
    request, outcome = item.episode.request, item.episode.outcome
    full = (request.mode == "observe" or request.audit) and request.delivery == 1
    if request.delivery > 1:
        outcome = replace(outcome, stop_step=None)
    label = current_label(item.labels)
    known = label is not None and outcome.end_reason not in UNKNOWN_ENDS
    is_plain = label is not None and label.asked_for in REPRESENTATIVE
    spent = processed = baseline = baseline_processed = would_spend = None
    undrawn, factor = undrawn_tokens(request, outcome), undrawn_factor(request, outcome)
    alone_usd = None if outcome.cost_usd is None else outcome.cost_usd - (outcome.overhead_usd or 0.0)
    if outcome.usage is not None:
        usage, overhead = outcome.usage, outcome.overhead
        delivered = usage.completion_tokens
        spent = delivered + overhead.probe_tokens + overhead.discarded_tokens
        prompt = max(0, usage.prompt_tokens - usage.cached_tokens)
        resent = max(0, overhead.extra_prompt_tokens - overhead.cached_prompt_tokens)
        processed = spent + prompt + resent
        # Several samples need the prompt several times in a full run too; probes do not.
        prompts = (prompt + resent) * factor if request.kind == "samples" else prompt
        baseline = delivered + undrawn
        baseline_processed = baseline + prompts
        if outcome.end_reason in FINISHED_ENDS:
            would_spend = _would_spend(outcome, delivered)
    return RunNumbers(
        group=request.question_key or f"episode {request.episode_id}",
        full=full,
        enforce=request.mode == "enforce",
        audit=request.audit,
        weight=1 / request.propensity,
        stopped=outcome.stopped,
        would_stop=outcome.stop_step is not None and not outcome.stopped,
        spent=spent,
        processed=processed,
        baseline_tokens=baseline,
        baseline_processed=baseline_processed,
        would_spend=would_spend,
        cost_usd=outcome.cost_usd,
        baseline_usd=None if alone_usd is None else alone_usd * factor,
        would_cost_usd=_would_cost(outcome),
        correct=_is_right(outcome.answer, label, match) if label is not None and known and is_plain else None,
        disagrees=_disagrees(request, outcome) if full else None,
        drop=_drop(request, outcome, label, match) if full else None,
        abandoned_audit=full and _is_abandoned_audit(request, outcome),
        undrawn_tokens=undrawn,
        undrawn_usd=(alone_usd or 0.0) * (factor - 1),
        stands_for=weight_of(request, outcome),
    )


def _would_spend(outcome: Outcome, delivered: int) -> int:
    """Tokens had the shadow stop been made: without the later steps, with the probes up to it."""
    if outcome.stop_step is None:
        return delivered + sum(step.probe_tokens for step in outcome.steps)
    later = sum(step.tokens for step in outcome.steps if step.index > outcome.stop_step)
    probes = sum(step.probe_tokens for step in outcome.steps if step.index <= outcome.stop_step)
    return max(0, delivered - later) + probes


def _would_cost(outcome: Outcome) -> float | None:
    """Money had the shadow stop been made; all of it where the policy did not stop."""
    if outcome.end_reason not in FINISHED_ENDS:
        return None
    return outcome.cost_usd if outcome.stop_step is None else outcome.would_cost_usd


def _is_right(answer: str | None, label: Feedback, match: Match) -> bool:
    """Was the delivered answer right? No answer is a wrong answer."""
    if label.correct is not None:
        return label.correct
    return answer is not None and label.gold is not None and match(answer, label.gold)


def _is_abandoned_audit(request: Request, outcome: Outcome) -> bool:
    return request.audit and outcome.end_reason in ABANDONED_ENDS


def _disagrees(request: Request, outcome: Outcome) -> bool | None:
    if _is_abandoned_audit(request, outcome):
        return True
    if outcome.end_reason not in FINISHED_ENDS:
        return None
    return outcome.stop_step is not None and outcome.would_answer != outcome.answer


def _drop(request: Request, outcome: Outcome, label: Feedback | None, match: Match) -> int | None:
    """Z of one full run: +1 the stop would have lost the right answer, -1 it would have found it."""
    disagrees = _disagrees(request, outcome)
    if _is_abandoned_audit(request, outcome):
        return 1
    if label is None or disagrees is None:
        return None
    if not disagrees:
        return 0
    full_right = _is_right(outcome.answer, label, match)
    if label.gold is None:
        # Nobody judged the other answer. It differs from the delivered one: lost if that was
        # right, and never counted as gained.
        return int(full_right)
    stop_right = outcome.would_answer is not None and match(outcome.would_answer, label.gold)
    return int(full_right) - int(stop_right)
