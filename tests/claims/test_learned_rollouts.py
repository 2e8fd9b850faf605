"""What a rollout of a learned version keeps, with few seeds; `python -m bench.claims.learned_rollouts` has the table.

A claim is rejected when what was seen would have less than a 1 % chance if it held. Streams are short: what has not
ended by then counts as not promoted.
"""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache
from statistics import median

import numpy as np
import pytest
from bench.claims.learned_rollouts import row
from bench.claims.score import Logistic
from bench.claims.tried import (
    CANDIDATES,
    HARMED,
    PLAN,
    Tried,
    better,
    in_force,
    setting,
    truth_of,
    truth_runs,
    try_out,
    within,
)

from suffice.assurance.bounds import binomial_at_most
from suffice.certification.certifier import Certifier
from suffice.certification.certifier_epoch import CertifierEpoch
from suffice.certification.evidence import Evidence
from suffice.learn.audits import NO_AUDITS
from suffice.learn.version import MOST_AUDITS

N_SETS = 2  # of models, which take time to fit
DELTA = PLAN.delta


@cache
def rollouts(name: str, n: int, most: int) -> list[Tried]:
    return [try_out(name, seed, most=most) for seed in (10 * (at // N_SETS) + at % N_SETS for at in range(n))]


def believable(n: int, of: int, rate: float) -> bool:
    """Can something that happens at most at this rate have happened so often? One chance in a hundred to be wrong."""
    return n == 0 or 1 - binomial_at_most(n - 1, of, rate) >= 0.01


def test_the_acceptance_rule_itself() -> None:
    assert [next(k for k in range(13) if not believable(k, 12, rate)) for rate in (DELTA, 0.1)] == [4, 5]


@pytest.mark.slow
def test_the_candidates_are_what_they_are_said_to_be() -> None:
    runs, old, new = truth_runs(), in_force(0), better(0)
    mine = runs.query_class == HARMED
    level = within(new)
    assert truth_of(new).kept[level] < truth_of(old).kept[within(old)] - 0.05, "better saves more at the same loss"
    hasty = CANDIDATES["one class of five"].models(0)
    lost = [float(runs.z[served.rows_at(runs, at)][mine].mean()) for served, at in ((hasty, level), (old, within(old)))]
    assert abs(lost[0] - lost[1] - 0.05) < 0.001
    everywhere = truth_of(CANDIDATES["everywhere"].models(0)).drop
    assert everywhere[1:].min() > PLAN.max_em_drop, "no level of it keeps the budget"
    assert abs(truth_of(CANDIDATES["at the edge"].models(0)).drop[1] - 0.021) < 0.001


@pytest.mark.slow
def test_a_better_one_reaches_everybody_and_never_acts_over_the_budget() -> None:
    found = rollouts("better", 3, 9_000)
    n_full = sum(one.ended.stage == "full" for one in found)
    print(
        f"better: {n_full} of {len(found)} after {median(one.ended.n for one in found):,.0f} requests\n"
        + row("better", found)
    )
    assert believable(len(found) - n_full, len(found), 0.1)
    assert believable(sum(one.n_over > 0 for one in found), len(found), DELTA)
    assert all(one.kept < one.kept_in_force for one in found)


@pytest.mark.slow
def test_one_that_harms_a_class_of_five_serves_nobody() -> None:
    found = rollouts("one class of five", 2, 5_000)
    print(row("one class of five", found))
    assert all(one.ended.stage != "full" for one in found)
    assert believable(sum(one.ended.n_served > 0 for one in found), len(found), DELTA)


@pytest.mark.slow
def test_one_that_breaks_the_budget_everywhere_goes_back_from_shadow() -> None:
    found = rollouts("everywhere", 4, 5_000)
    print(row("everywhere", found))
    gone = [one.ended for one in found if one.ended.stage == "rolled_back"]
    assert gone
    assert all("even its safest level surely loses more than 2.00%" in one.reason for one in gone)
    assert all((one.ended.before, one.ended.n_served) == ("shadow", 0) for one in found)


@pytest.mark.slow
def test_who_is_taken_past_the_shadow_acts_no_oftener_than_delta_over_the_budget() -> None:
    """The certificate is all that stands between a candidate at the edge and the users of its share."""
    found = rollouts("at the edge, shadow skipped", 3, 3_000)
    print(row("at the edge, shadow skipped", found))
    assert all(one.ended.n_served > 0 for one in found), "its units were there, and ran in full"
    assert believable(sum(one.n_over > 0 for one in found), len(found), DELTA)


def test_the_same_models_again_gain_nothing_and_serve_nobody() -> None:
    (one,) = rollouts("the same models", 1, 4_000)
    assert (one.ended.stage, one.ended.n_served) == ("running", 0)


@pytest.mark.slow
def test_what_saves_nothing_is_not_audited_for_as_long_as_a_proof_may_take() -> None:
    found = rollouts("the same models", 2, 12_000)
    gone = [one.ended for one in found if one.ended.stage == "rolled_back"]
    print(row("the same models", found))
    assert gone
    assert all("all that is missing is a saving" in one.reason and one.n < 9_000 for one in gone)


def test_a_loop_that_rests_lets_old_audits_go_and_certifies_what_it_would_have() -> None:
    class Hoarding(CertifierEpoch):
        def drop_old(self, most: int) -> None:
            """Keep everything."""

    runs = setting().draw(7_500, 3).traffic.runs
    plan = replace(PLAN, share=1.0)  # all requests are audits
    keepers = [Certifier(plan, Logistic(), fit=lambda *_, **__: None) for _ in range(2)]
    keepers[1].epoch = Hoarding(**{each.name: getattr(keepers[1].epoch, each.name) for each in fields(CertifierEpoch)})
    levels: list[list[int]] = [[], []]
    for keeper, seen in zip(keepers, levels, strict=True):
        keeper.adopt(in_force(0), NO_AUDITS)
        for at in range(0, 7_500, 250):
            keeper.add_audits(runs.take(np.arange(at, at + 250)))
            keeper.look(Evidence(at=float(at + 250)))
            seen.append(keeper.level)
    assert levels[0] == levels[1]
    assert levels[0][-1] > 0
    assert keepers[1].epoch.n_audits == 7_500
    assert keepers[0].epoch.n_audits < 2 * MOST_AUDITS
