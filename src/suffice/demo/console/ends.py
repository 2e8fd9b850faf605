"""How a run of the made-up month ends: in full with where it would have stopped, or stopped, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from suffice.assurance.money import cost_of
from suffice.replay.run import ReplayedRun
from suffice.settings import Prices
from suffice.types import Outcome

PRICES: Final = Prices(input_usd_per_mtok=0.4, output_usd_per_mtok=1.6)
LATELY: Final = 500  # full runs that a saving is estimated by


def stopped(outcome: Outcome, replayed: ReplayedRun | None, full_tokens: Sequence[int], *, because: str) -> Outcome:
    """The run as it ends where it is stopped, with what that is estimated to have saved.

    full_tokens  of the full runs of its route so far
    because      why it is stopped, a short sentence
    """
    if replayed is None or replayed.stop_step is None or outcome.usage is None:
        return outcome
    lately = full_tokens[-LATELY:]
    saved = max(0, round(sum(lately) / max(1, len(lately)) - replayed.tokens))
    steps = outcome.steps[: replayed.stop_step]
    return replace(
        outcome,
        end_reason="stopped",
        stopped=True,
        stop_reason="suffices",
        stop_step=replayed.stop_step,
        answer=replayed.answer,
        would_answer=replayed.answer,
        finish_method="vote",
        decision=because,
        usage=replace(outcome.usage, completion_tokens=replayed.tokens),
        steps=(*steps[:-1], replace(steps[-1], action="stop", reason=because)),
        tokens_saved_estimate=saved,
        estimate_method=f"mean of {len(lately)} full runs of this route",
        vote=_counted([step.answer for step in steps if step.answer]),
        duration_s=round(outcome.duration_s * replayed.tokens / outcome.usage.completion_tokens, 3),
    )


def noted(outcome: Outcome, replayed: ReplayedRun | None) -> Outcome:
    if replayed is None or replayed.stop_step is None:
        return outcome
    return replace(outcome, stop_step=replayed.stop_step, would_answer=replayed.answer)


def priced(outcome: Outcome) -> Outcome:
    assert outcome.usage is not None
    cost = cost_of(
        PRICES, prompt_tokens=outcome.usage.prompt_tokens, completion_tokens=outcome.usage.completion_tokens
    ).total_usd
    saved = (outcome.tokens_saved_estimate or 0) * PRICES.output_usd_per_mtok / 1e6
    return replace(
        outcome,
        cost_usd=cost,
        overhead_usd=0.0,
        saved_usd_estimate=saved if outcome.stopped else None,
        would_cost_usd=cost if outcome.stop_step is not None and not outcome.stopped else None,
    )


def _counted(answers: list[str]) -> tuple[tuple[str, int], ...]:
    return tuple((one, answers.count(one)) for one in dict.fromkeys(answers))
