"""Arms certified by asking twice: which call is made, what a pair counts as, and what is proved of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.learn.effort import PairedAudit, certify_arms, judge_pair

EPS, DELTA = 0.05, 0.05
answers = st.none() | st.sampled_from(["4", "5", "six"])


def equal(answer: str | None, gold: str) -> bool:
    return answer == gold


@given(full=answers, arm=answers, gold=st.none() | st.sampled_from(["4", "5"]))
def test_a_pair_never_loses_more_than_it_differs(full: str | None, arm: str | None, gold: str | None) -> None:
    """F1 of ASSURANCE.md §2 for independent draws: Z <= D, and equal answers need no label."""
    disagrees, z = judge_pair(full, arm, gold, equal)
    assert disagrees == (full != arm)
    if z is None:
        assert disagrees
        assert gold is None
    else:
        assert z <= disagrees
        assert gold is None or z == (full == gold) - (arm == gold)


def pairs_of(rng: np.random.Generator, arm: int, n: int, drop: float, flips: float) -> list[PairedAudit]:
    z = rng.choice(np.array([-1, 0, 1]), size=n, p=[flips, 1 - 2 * flips - drop, flips + drop])
    return [PairedAudit(arm=arm, disagrees=bool(one), z=int(one), due=0.0, full_tokens=100, arm_tokens=60) for one in z]


def test_arms_are_accepted_in_order_until_one_fails() -> None:
    rng = np.random.default_rng(1)
    good, bad = pairs_of(rng, 1, 900, 0.0, 0.01), pairs_of(rng, 2, 900, 0.3, 0.01)
    behind = pairs_of(rng, 3, 900, 0.0, 0.0)
    found = certify_arms([*behind, *bad, *good], n_arms=4, max_em_drop=EPS, delta=DELTA, now=1.0)
    assert found.active == 1, "arm 3 is as good as can be, and stands behind one that is not"
    assert found.log_e[2] > found.log_e[1]
    assert found.views[0].drop_high < EPS < found.views[1].drop_high
    assert found.views[0].saved_share == pytest.approx(0.4)


def test_late_labels_count_as_losses_once_they_are_due_and_not_before() -> None:
    agree = [PairedAudit(arm=1, disagrees=False, z=0, due=10.0)] * 200
    silent = [PairedAudit(arm=1, disagrees=True, z=None, due=10.0)] * 30
    told = [PairedAudit(arm=1, disagrees=True, z=0, due=10.0)] * 30

    def level(pairs: list[PairedAudit], now: float) -> int:
        return certify_arms(pairs, n_arms=2, max_em_drop=EPS, delta=DELTA, now=now).active

    assert level([*agree, *told], 9.0) == 0, "nothing has matured"
    assert level([*agree, *told], 10.0) == 1
    assert level([*agree, *silent], 10.0) == 0, "to wait only for those that differ would have certified it"


def test_only_the_latest_pairs_of_each_arm_count() -> None:
    rng = np.random.default_rng(2)
    old, new = pairs_of(rng, 1, 500, 0.4, 0.0), pairs_of(rng, 1, 400, 0.0, 0.0)
    repeats = [PairedAudit(arm=0, disagrees=True, z=-1, due=0.0), PairedAudit(arm=0, disagrees=True, z=None, due=0.0)]
    found = certify_arms([*old, *repeats, *new], n_arms=2, max_em_drop=EPS, delta=DELTA, now=0.0, window=400)
    assert found.active == 1
    assert found.views[0].n == 400
    assert (found.repeats.n, found.repeats.n_disagree) == (2, 2)


@pytest.mark.slow
def test_independent_draws_certify_what_keeps_the_budget_and_hardly_ever_what_does_not() -> None:
    """Questions of their own difficulty, answered twice by chance: the noise of both draws is in every pair."""
    rng, n = np.random.default_rng(3), 4_000
    certified = []
    for _ in range(60):
        p_full = rng.beta(6, 1, size=(3, n))  # many sure questions, some that flip
        right = rng.random((3, n)) < p_full
        again = rng.random((3, n)) < np.clip(p_full - np.array([[0.0], [0.01], [EPS]]), 0, 1)
        z = right.astype(np.int64) - again
        pairs = [
            PairedAudit(arm=arm + 1, disagrees=bool(one), z=int(one), due=0.0) for arm in range(3) for one in z[arm]
        ]
        found = certify_arms(pairs, n_arms=4, max_em_drop=EPS, delta=DELTA, now=0.0, window=n)
        certified.append(found.active)
    assert np.mean(np.array(certified) == 3) <= DELTA, "its EM is lower by the whole budget"
    assert np.mean(np.array(certified) >= 1) > 0.8, "an arm that loses nothing is found in spite of the noise"


def test_nothing_is_proved_of_nothing() -> None:
    found = certify_arms([], n_arms=3, max_em_drop=EPS, delta=DELTA, now=0.0)
    assert found.active == 0
    assert [view.n for view in found.views] == [0, 0]
    assert found.views[0].saved_share is None
    assert found.views[0].drop_high == pytest.approx(1.0)
