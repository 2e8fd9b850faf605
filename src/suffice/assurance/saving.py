"""What a run saved: the tokens that it would have taken without Suffice, less all that were generated for it.

The one definition of a saving; that of many runs is the sum of theirs. Of a run in full both parts are known: what it
would have taken is its own length, with all samples of a decided vote, so probes and second calls remain as a loss. Of
a run that was stopped, or ran with an arm, the first part is an estimate.
"""

from __future__ import annotations

from typing import Final

from suffice.assurance.money import undrawn_factor, undrawn_tokens
from suffice.types import Outcome, Overhead, Request, Usage

LESS_EFFORT: Final = "effort"  # how a run was shortened that was asked for with less effort than the full run


def spent_tokens(usage: Usage, overhead: Overhead) -> int:
    """Tokens generated for a run: delivered, in probes and second calls, and discarded."""
    return usage.completion_tokens + overhead.probe_tokens + overhead.discarded_tokens


def saved_tokens(request: Request, outcome: Outcome) -> int | None:
    """What an enforced run saved, net; None: unknown, as where a shortened run has no estimate. It may be below 0."""
    if request.ungoverned is not None or request.mode != "enforce" or outcome.usage is None:
        return None
    if _is_shortened(outcome):
        return outcome.tokens_saved_estimate
    overhead = outcome.overhead.probe_tokens + outcome.overhead.discarded_tokens
    return round(undrawn_tokens(request, outcome)) - overhead


def saved_usd(request: Request, outcome: Outcome) -> float | None:
    """As `saved_tokens`, in money and with prompts."""
    if request.ungoverned is not None or request.mode != "enforce":
        return None
    if _is_shortened(outcome):
        return outcome.saved_usd_estimate
    if outcome.cost_usd is None or outcome.overhead_usd is None:
        return None
    alone = outcome.cost_usd - outcome.overhead_usd
    return alone * (undrawn_factor(request, outcome) - 1) - outcome.overhead_usd


def _is_shortened(outcome: Outcome) -> bool:
    """Whether the full run can only be estimated. Old logs say `finish_method` alone of a run with less effort."""
    had_less_effort = outcome.has_less_effort or outcome.finish_method == LESS_EFFORT
    return outcome.stopped or had_less_effort or outcome.tokens_saved_estimate is not None
