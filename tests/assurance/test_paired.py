"""Pairs of independent draws: the certificate is right for EM, noise costs audits only, and excess is no bound."""

from __future__ import annotations

from dataclasses import replace
from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.assurance import certify
from suffice.assurance.certify import Counts, count_outcomes, log_wealth, smallest_proved_drop
from suffice.assurance.paired import BETS, PairedCertificate, pairs_to_certify

EPS, DELTA = 0.02, 0.05
small = st.integers(0, 400)


def counts(gained: int, same: int, lost: int) -> Counts:
    return Counts(np.array([gained]), np.array([same]), np.array([lost]))


def wealth(gained: int, same: int, lost: int, eps: float = EPS) -> float:
    return float(log_wealth(counts(gained, same, lost), max_em_drop=eps, bets=BETS)[0])


@given(gained=small, same=small, lost=small, eps=st.floats(0.005, 0.3))
def test_wealth_is_the_mean_of_products_of_bets(gained: int, same: int, lost: int, eps: float) -> None:
    """The definition, bet by bet and pair by pair, without logarithms of counts."""
    z = np.repeat([-1, 0, 1], [gained, same, lost])
    each = [np.log(1 + share / (1 - eps) * (eps - z)).sum() for share in BETS]
    assert wealth(gained, same, lost, eps) == pytest.approx(float(np.logaddexp.reduce(each)) - log(len(BETS)), abs=1e-9)


@given(gained=small, same=small, lost=small)
def test_a_loss_never_helps_and_a_gain_never_hurts(gained: int, same: int, lost: int) -> None:
    now = wealth(gained, same, lost)
    assert wealth(gained, same, lost + 1) < now < wealth(gained + 1, same, lost)


@pytest.mark.slow(keep=2)
@pytest.mark.no_cover
@pytest.mark.parametrize(("flips", "drop"), [(0.0, EPS), (0.05, EPS), (0.12, 0.03)])
def test_an_arm_that_breaks_the_budget_is_hardly_ever_certified_however_noisy_its_pairs(
    flips: float, drop: float
) -> None:
    """Looked at after every pair; 400 streams of 3,000. Three standard errors of a share of 5 % are 3.3 points."""
    rng = np.random.default_rng(5)
    z = rng.choice(np.array([-1, 0, 1]), size=(400, 3_000), p=[flips, 1 - 2 * flips - drop, flips + drop])
    sums = [np.cumsum(z == value, axis=1).reshape(-1) for value in (-1, 0, 1)]
    passed = log_wealth(Counts(*sums), max_em_drop=EPS, bets=BETS).reshape(400, -1) >= log(1 / DELTA)
    assert passed.any(axis=1).mean() <= DELTA


def test_noise_that_stops_the_larger_bets_only_slows_the_smaller_ones() -> None:
    """Eight in a hundred flip either way by chance alone; the arm loses nothing."""
    needed = pairs_to_certify(0.0, 0.08, max_em_drop=EPS, delta=DELTA)
    assert needed < 6_000
    n_flips = round(0.08 * needed)
    assert wealth(n_flips, needed - 2 * n_flips, n_flips) >= log(1 / DELTA)
    with pytest.raises(ValueError, match="no number of audits"):
        certify.audits_to_certify(0.005, max_em_drop=EPS, delta=DELTA, gained=0.08)
    assert pairs_to_certify(0.005, 0.08, max_em_drop=EPS, delta=DELTA) < 10_000


@pytest.mark.parametrize(("drop", "flips"), [(0.0, 0.0), (0.005, 0.0), (0.005, 0.03)])
def test_the_planned_number_is_what_it_takes(drop: float, flips: float) -> None:
    """Between half of the plan and twice of it in the median of 60 streams."""
    planned = pairs_to_certify(drop, flips, max_em_drop=EPS, delta=DELTA)
    rng = np.random.default_rng(6)
    z = rng.choice(np.array([-1, 0, 1]), size=(60, 3 * planned), p=[flips, 1 - 2 * flips - drop, flips + drop])
    sums = [np.cumsum(z == value, axis=1).reshape(-1) for value in (-1, 0, 1)]
    passed = log_wealth(Counts(*sums), max_em_drop=EPS, bets=BETS).reshape(60, -1) >= log(1 / DELTA)
    first = np.where(passed.any(axis=1), passed.argmax(axis=1) + 1, 3 * planned)
    assert 0.5 * planned <= np.median(first) <= 2 * planned


@pytest.mark.parametrize(("drop", "flips"), [(0.02, 0.0), (0.03, 0.1), (-0.5, 0.0)])
def test_what_cannot_be_certified_is_said(drop: float, flips: float) -> None:
    with pytest.raises(ValueError, match=r"no number of pairs|need flips"):
        pairs_to_certify(drop, flips, max_em_drop=EPS, delta=DELTA)


def upper_drop(outcomes: Counts) -> float:
    proved = smallest_proved_drop(outcomes, delta=0.1, bets=BETS)
    return 1.0 if proved is None else proved


def test_the_upper_bound_covers_and_falls_with_evidence() -> None:
    rng = np.random.default_rng(7)
    z = rng.choice(np.array([-1, 0, 1]), size=(300, 1_000), p=[0.03, 0.93, 0.04])
    highs = np.array([upper_drop(count_outcomes(stream[:, np.newaxis].astype(np.int8))) for stream in z])
    assert (highs < 0.01).mean() <= 0.1
    assert np.median(highs) < 0.04
    assert upper_drop(counts(0, 0, 0)) == 1.0
    assert upper_drop(counts(0, 600, 0)) < upper_drop(counts(0, 300, 0))


def test_disagreement_beyond_the_models_own_noise_bounds_nothing() -> None:
    """Half right by chance, and an arm that is never right: no excess, and half of all answers lost."""
    rng = np.random.default_rng(8)
    full, again = (np.where(rng.random(20_000) < 0.5, "right", "wrong") for _ in range(2))
    arm = np.full(20_000, "wrong")
    excess = (full != arm).mean() - (full != again).mean()
    drop = (full == "right").mean() - (arm == "right").mean()
    assert abs(excess) < 0.02
    assert drop > 0.48
    assert (full != arm).mean() >= drop, "disagreement itself still does"


def test_people_see_the_noise_beside_the_loss() -> None:
    certificate = PairedCertificate(
        is_certified=True,
        log_e=4.0,
        n=1_000,
        n_disagree=150,
        n_gained=2,
        n_lost=6,
        drop_high=0.019,
        saved_share=0.4,
        n_repeats=200,
        n_repeats_disagree=24,
    )
    assert certificate.sentence("effort=low") == (
        "effort=low: EM lower by 0.40 points on 1000 pairs, less than 1.90 proved;"
        " 15.0% of answers differ from the full run's, and 12.0% between two full runs"
    )
    assert "unknown between" in replace(certificate, n_repeats=0, n_repeats_disagree=0).sentence("x")


@pytest.mark.parametrize("eps", [0.0, 1.0])
def test_a_budget_out_of_range_is_refused(eps: float) -> None:
    with pytest.raises(ValueError, match="max_em_drop: got"):
        log_wealth(counts(0, 1, 0), max_em_drop=eps, bets=BETS)
    with pytest.raises(ValueError, match="delta: got"):
        smallest_proved_drop(counts(0, 1, 0), delta=eps)
