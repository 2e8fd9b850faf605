"""What a recorded run shows, what its stop has hidden, and with which odds a run like it is seen in full.

A stopped run never shows what the full run would have answered. What is known of it, and of the others:

    run                          rows before and at the stop    rows behind it    the full run's answer
    full by design               all                            all               yes
    live, the policy let it run  all                            there is none     yes
    live, stopped                all                            hidden            hidden

"Full by design" is everything in `observe`, and audits in `enforce`. So of a stopped run the features up to its stop
are known, and, where a label says so, whether the answer there was right: P(right | stop now), and nothing else.
Whether the stop was *good* (as good as the full run) is known where its answer was right, and hidden where it was
wrong; to learn from the known half is to learn that all stops are good. Such rows teach no stop model.

Full runs of the two kinds may be put together by the odds with which a run that goes this way is seen in full
(Horvitz and Thompson 1952, JASA 47; complete cases by inverse probability: Seaman and White 2013, SMMR 22). The
policy's decision is a function of what a run shows, and so are the odds:

    the policy stops this run, or would have    the audit share: only its audits are seen in full
    the policy lets it run                      1: audit or not, it is seen

Live runs that were not stopped are the hard ones. With weight 1 beside audits of weight 1/share they stand for
themselves; unweighted they stand for everything, and teach that nothing suffices.

This file knows requests and outcomes, and refuses to know features, targets and models.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from suffice.assurance.runs import ABANDONED_ENDS, FINISHED_ENDS
from suffice.assurance.sampling import p_kept
from suffice.types import Outcome, Request

Fate: TypeAlias = Literal[
    "full",  # ran to its own end, and is seen in full by design or because the policy let it run
    "stopped",  # ended by the policy
    "abandoned",  # an audit that the client left or that timed out: a loss wherever it would have been stopped
    "ungoverned",  # nothing was observed
    "unprobed",  # ran to its end, and nobody asked it for a trial answer on the way
    "by failure",  # live, should have been stopped and could not be: no lot let it run
    "broken",  # no end that says anything, or the run repeats a delivery: it speaks for no request of its own
]


def fate(request: Request, outcome: Outcome) -> Fate:
    """What became of a run, as far as learning is concerned."""
    if request.ungoverned is not None:
        return "ungoverned"
    if request.delivery > 1:
        return "broken"
    if outcome.stopped:
        return "stopped" if outcome.end_reason == "stopped" and outcome.stop_step is not None else "broken"
    if request.audit and outcome.end_reason in ABANDONED_ENDS:
        return "abandoned"
    if outcome.end_reason not in FINISHED_ENDS or not outcome.steps:
        return "broken"
    if request.kind != "samples" and len(outcome.steps) > 1 and all(step.answer is None for step in outcome.steps[:-1]):
        return "unprobed"
    if not by_design(request) and (outcome.stop_step is not None or outcome.degraded):
        return "by failure"
    return "full"


def by_design(request: Request) -> bool:
    """Is it run in full whatever the policy says?"""
    return request.mode == "observe" or request.audit


def p_full(request: Request, outcome: Outcome, *, live_share: float = 1.0) -> float:
    """P(a run that goes as this one is kept in full), in (0, 1]; for runs of fate `full` or `abandoned` alone.

    Holds where a decision is a function of what the run shows, as for every policy of the table.

    live_share  of live runs that were not stopped, those that are kept, by a lot of their own; 0: none, so that their
                audits stand for them, too
    """
    if request.mode == "observe":
        return 1.0
    audit_share = request.propensity if request.audit else 1.0 - request.propensity
    live_share *= p_kept(request, outcome)  # those without rows in the log cannot be kept by anybody
    return audit_share + (1.0 - audit_share) * (live_share if outcome.stop_step is None else 0.0)
