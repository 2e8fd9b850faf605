"""An arm certified by asking twice: what a pair counts as, and what is proved of the arm."""

from __future__ import annotations

import numpy as np
import pytest

from suffice.assurance.paired import PairedAudit, certify_arm

EPS, DELTA = 0.05, 0.05


def pairs_of(rng: np.random.Generator, n: int, drop: float, flips: float) -> list[PairedAudit]:
    z = rng.choice(np.array([-1, 0, 1]), size=n, p=[flips, 1 - 2 * flips - drop, flips + drop])
    return [PairedAudit(disagrees=bool(one), z=int(one), due=0.0, full_tokens=100, arm_tokens=60) for one in z]


def test_an_arm_that_keeps_the_budget_is_certified_and_one_that_breaks_it_is_not() -> None:
    rng = np.random.default_rng(1)
    good, bad = (
        certify_arm(pairs_of(rng, 900, drop, 0.01), max_em_drop=EPS, delta=DELTA, now=1.0) for drop in (0.0, 0.3)
    )
    assert (good.is_certified, bad.is_certified) == (True, False)
    assert good.drop_high < EPS < bad.drop_high
    assert good.saved_share == pytest.approx(0.4)
    assert (good.n_missing(max_em_drop=EPS, delta=DELTA), bad.n_missing(max_em_drop=EPS, delta=DELTA)) == (0, None)


def test_late_labels_count_as_losses_once_they_are_due_and_not_before() -> None:
    agree = [PairedAudit(disagrees=False, z=0, due=10.0)] * 200
    silent = [PairedAudit(disagrees=True, z=None, due=10.0)] * 30
    report = [PairedAudit(disagrees=True, z=0, due=10.0)] * 30

    def is_certified(pairs: list[PairedAudit], now: float) -> bool:
        return certify_arm(pairs, max_em_drop=EPS, delta=DELTA, now=now).is_certified

    assert not is_certified([*agree, *report], 9.0), "nothing has matured"
    assert is_certified([*agree, *report], 10.0)
    assert not is_certified([*agree, *silent], 10.0), "to wait only for those that differ would have certified it"


def test_only_the_latest_pairs_count() -> None:
    rng = np.random.default_rng(2)
    old, new = pairs_of(rng, 500, 0.4, 0.0), pairs_of(rng, 400, 0.0, 0.0)
    repeats = [PairedAudit(is_repeat=True, disagrees=True, z=z, due=0.0) for z in (-1, None)]
    result = certify_arm([*old, *repeats, *new], max_em_drop=EPS, delta=DELTA, now=0.0, window=400)
    assert result.is_certified
    assert result.n == 400
    assert (result.n_repeats, result.n_repeats_disagree) == (2, 2)


@pytest.mark.slow
def test_independent_draws_certify_what_keeps_the_budget_and_hardly_ever_what_does_not() -> None:
    """Questions of their own difficulty, answered twice by chance: the noise of both draws is in every pair."""
    rng, n = np.random.default_rng(3), 4_000
    certified = []
    for _ in range(60):
        p_full = rng.beta(6, 1, size=(3, n))  # many sure questions, some that flip
        right = rng.random((3, n)) < p_full
        again = rng.random((3, n)) < np.clip(p_full - np.array([[0.0], [0.01], [EPS]]), 0, 1)
        arms = [
            [PairedAudit(disagrees=bool(one), z=int(one), due=0.0) for one in z] for z in right.astype(np.int64) - again
        ]
        certified.append(
            [certify_arm(pairs, max_em_drop=EPS, delta=DELTA, now=0.0, window=n).is_certified for pairs in arms]
        )
    good, _, bad = np.array(certified).mean(axis=0)
    assert bad <= DELTA, "its EM is lower by the whole budget"
    assert good > 0.8, "an arm that loses nothing is found in spite of the noise"


def test_nothing_is_proved_of_nothing() -> None:
    result = certify_arm([], max_em_drop=EPS, delta=DELTA, now=0.0)
    assert (result.is_certified, result.n, result.saved_share) == (False, 0, None)
    assert result.n_missing(max_em_drop=EPS, delta=DELTA) is None
    assert result.drop_high == pytest.approx(1.0)
