"""What each alarm must notice at once, must put up with, and must not forget."""

from __future__ import annotations

from dataclasses import fields, replace
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from suffice.assurance import drift
from suffice.assurance.drift import (
    SR_SHARES,
    Cusum,
    Fingerprint,
    ShiryaevRoberts,
    find_changes,
)
from tests.drawn import examples

BEFORE = Fingerprint(model="m-7b", system_fingerprint="fp_1", sampling="t=0.6")
PARTS = [field.name for field in fields(Fingerprint)]

# --------------------------------------------------------------------------- known changes (F53)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_of_a_fingerprint_is_watched(part: str) -> None:
    (result,) = find_changes(BEFORE, replace(BEFORE, **{part: "another"}))
    assert result == f"{part} changed from {getattr(BEFORE, part)!r} to 'another'"


def test_what_is_not_told_is_no_change() -> None:
    silent = replace(BEFORE, system_fingerprint=None)
    assert find_changes(BEFORE, BEFORE) == find_changes(BEFORE, silent) == find_changes(silent, BEFORE) == ()


def test_several_changes_are_all_named() -> None:
    other = Fingerprint(model="m-8b", system_fingerprint="fp_2", sampling="t=0.6")
    assert [change.split()[0] for change in find_changes(BEFORE, other)] == ["model", "system_fingerprint"]


# --------------------------------------------------------------------------- signals


def batches(n: int, seed: int = 0, n_features: int = 3) -> NDArray[np.float64]:
    """Signals of n batches of a hundred requests from one and the same world; a batch mean has an sd of 0.1."""
    return np.random.default_rng(seed).normal(5.0, 1.0, (n, 100, n_features))


def of_one(*signals: float) -> NDArray[np.float64]:
    """A batch of a single request."""
    return np.array([signals])


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("feature", [0, 1, 2])
def test_a_shift_of_any_feature_in_either_direction_is_an_alarm(feature: int, sign: int) -> None:
    cusum, calm = Cusum(3), batches(30)
    assert not any(cusum.add(batch) for batch in calm)
    shifted = batches(10, seed=1)
    shifted[:, :, feature] += sign * 0.5  # five standard deviations
    alarms = [cusum.add(batch) for batch in shifted]
    assert alarms.index(True) <= 4


def test_the_sums_are_those_of_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "REFERENCE", 3)
    monkeypatch.setattr(drift, "SLACK", 0.5)
    monkeypatch.setattr(drift, "LIMIT", 4.0)
    cusum = Cusum(1)
    for mean in (1.0, 2.0, 3.0):  # mean 2, sd 1
        assert not cusum.add(of_one(mean))
    assert not cusum.add(of_one(4.0))
    assert np.allclose(cusum.up, 1.5)
    assert not cusum.add(of_one(0.0))
    assert np.allclose(cusum.up, 0.0)
    assert np.allclose(cusum.down, 1.5)
    assert not cusum.add(of_one(-0.5))
    assert cusum.add(of_one(1.0)), "1.5 + 2 + 0.5 reaches the limit of 4"


def test_the_larger_of_what_two_spreads_say_of_a_batch_mean_is_its_sd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "REFERENCE", 3)
    monkeypatch.setattr(drift, "SLACK", 0.0)
    inside = np.array([[-3.0], [3.0], [-3.0], [3.0]])  # variance 12, of their mean 3
    for means, variance in (((1.0, 1.1, 0.9), 3.0), ((0.0, 9.0, -9.0), 81.0)):
        cusum = Cusum(1)
        for mean in means:
            cusum.add(mean + inside)
        cusum.add(np.mean(means) + 1.0 + inside)
        assert cusum.up == pytest.approx(1 / np.sqrt(variance)), variance


def test_batches_that_happen_to_lie_close_together_make_no_later_one_look_like_drift() -> None:
    rng = np.random.default_rng(5)
    close = [batch - batch.mean(axis=0) + 5.0 for batch in batches(15)]
    cusum = Cusum(3)
    assert not any(cusum.add(batch) for batch in close)
    assert not any(cusum.add(rng.normal(5.0, 1.0, (100, 3))) for _ in range(100))


def test_a_feature_that_never_moved_has_no_false_alarm_and_no_division_by_zero() -> None:
    cusum = Cusum(1)
    assert not any(cusum.add(np.full((100, 1), 0.1 + 0.2)) for _ in range(20))
    assert not cusum.add(np.full((100, 1), 0.3)), "the last bit of a sum is no drift"
    assert cusum.add(np.full((100, 1), 0.31)), "a constant that moves is"


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((4, 2)), np.zeros((0, 3)), np.array([[0.0, np.nan, 0.0]])])
def test_a_batch_that_cannot_be_compared_is_refused_and_changes_nothing(bad: NDArray[np.float64]) -> None:
    calm, cusum, other = batches(40), Cusum(3), Cusum(3)
    for batch in calm:
        with pytest.raises(ValueError, match="rows of 3 finite signals"):
            cusum.add(bad)
        assert cusum.add(batch) == other.add(batch)
        assert np.array_equal(cusum.up, other.up)


# --------------------------------------------------------------------------- outcomes


@pytest.mark.no_cover
@given(z=st.lists(st.sampled_from([-1, 0, 0, 0, 1]), max_size=30), eps=st.sampled_from([0.005, 0.02, 0.1]))
@settings(max_examples=examples(60))
def test_the_detector_sums_the_wealth_of_bets_begun_at_every_audit(z: list[int], eps: float) -> None:
    detector = ShiryaevRoberts(eps)
    for outcome in z:
        detector.add(outcome)
    begun = [
        prod(1 + share / (1 + eps) * (outcome - eps) for outcome in z[start:])
        for share in SR_SHARES
        for start in range(len(z))
    ]
    assert detector.mean == pytest.approx(sum(begun) / len(SR_SHARES), abs=1e-12)


def test_the_bets_are_geometric_and_none_can_go_bankrupt() -> None:
    steps = np.diff(np.log(SR_SHARES))
    assert len(SR_SHARES) == 8
    assert np.allclose([SR_SHARES[0], SR_SHARES[-1]], [0.02, 0.9])
    assert np.allclose(steps, steps[0])
    detector = ShiryaevRoberts(0.02)
    for _ in range(5_000):
        detector.add(-1)
    assert detector.mean > 0


def test_losses_in_a_row_are_an_alarm_and_gains_make_none() -> None:
    detector = ShiryaevRoberts(0.02)
    assert [detector.add(1) for _ in range(20)].index(True) < 16
    detector.reset()
    assert detector.mean == 0
    assert not any(detector.add(z) for z in (-1, 0) * 500)


@pytest.mark.parametrize("eps", [0.0, 1.0])
def test_a_budget_without_a_meaning_is_refused(eps: float) -> None:
    with pytest.raises(ValueError, match="got"):
        ShiryaevRoberts(eps)
