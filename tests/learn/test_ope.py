"""Off-policy estimates: unbiased by the draws, whatever the guess; refused where nothing was learned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from suffice.learn.ope import (
    LoggedDraws,
    Method,
    PolicyValue,
    estimate_value,
)

Floats = NDArray[np.float64]
RATES = np.array([[0.90, 0.85, 0.60], [0.70, 0.72, 0.30]])  # by context and arm
TARGET = (1, 0)  # arm by context
TRUTH = (RATES[0, 1] + RATES[1, 0]) / 2


def log_of(
    rng: np.random.Generator, n: int, *, explores: float = 0.3, p_sampled: float = 1.0
) -> tuple[LoggedDraws, Floats]:
    """Draws of a policy that likes arm 0 in one context and arm 2 in the other, and the target's odds."""
    context = rng.integers(0, 2, n)
    odds = np.full((n, 3), explores / 3)
    odds[np.arange(n), np.where(context == 0, 0, 2)] += 1 - explores
    arm = (rng.random(n)[:, np.newaxis] > np.cumsum(odds, axis=1)).sum(axis=1)
    reward = (rng.random(n) < RATES[context, arm]).astype(np.float64)
    sampled = rng.random(n) < p_sampled
    logged = LoggedDraws(
        x=np.eye(2)[context],
        arm=arm,
        odds=odds,
        reward=np.where(sampled, reward, np.nan),
        sampled=sampled,
        p_sampled=np.full(n, p_sampled),
    )
    return logged, np.eye(3)[np.array(TARGET)[context]]


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("p_sampled", [1.0, 0.4])
@pytest.mark.parametrize("method", ["ips", "dr"])
def test_the_mean_over_many_logs_is_the_truth(method: Method, p_sampled: float) -> None:
    rng = np.random.default_rng(1)
    values = []
    for _ in range(300):
        logged, target = log_of(rng, 150, p_sampled=p_sampled)
        values.append(estimate_value(logged, target, method).value)
    error = np.std(values) / np.sqrt(300)
    assert abs(np.mean(values) - TRUTH) < 3.5 * error
    assert error < 0.02, "or the test could not fail"


def test_a_guess_makes_it_calmer_and_a_senseless_one_does_not_make_it_wrong() -> None:
    rng = np.random.default_rng(2)
    plain, robust, misled = [], [], []
    for _ in range(80):
        logged, target = log_of(rng, 600)
        plain.append(estimate_value(logged, target, "ips").value)
        robust.append(estimate_value(logged, target).value)
        # The model sees a context that is turned round halfway: it learns the opposite of what comes.
        half = np.arange(600) < 300
        misled.append(
            estimate_value(replace(logged, x=np.where(half[:, np.newaxis], logged.x, 1 - logged.x)), target).value
        )
    assert np.std(robust) < 0.8 * np.std(plain)
    assert abs(np.mean(misled) - TRUTH) < 3.5 * np.std(misled) / np.sqrt(80)


def test_a_policy_that_is_its_own_target_is_worth_what_it_earned() -> None:
    logged, _ = log_of(np.random.default_rng(3), 400)
    earned = float(logged.reward.mean())
    assert estimate_value(logged, logged.odds, "ips").value == pytest.approx(earned)
    assert estimate_value(logged, logged.odds, "snips").value == pytest.approx(earned)
    assert estimate_value(logged, logged.odds, "ips").n_effective == pytest.approx(400)
    assert estimate_value(logged, logged.odds).low <= earned <= estimate_value(logged, logged.odds).high


def test_rewards_that_came_by_themselves_never_weigh() -> None:
    """Whoever complains moves the guess alone; with a guess of 0 it moves nothing."""
    rng = np.random.default_rng(4)
    logged, target = log_of(rng, 500, p_sampled=0.3)
    volunteered = replace(logged, reward=np.where(logged.sampled, logged.reward, 0.0))
    assert estimate_value(volunteered, target, "ips") == estimate_value(logged, target, "ips")
    assert estimate_value(volunteered, target, "naive").value < estimate_value(logged, target, "naive").value - 0.3


def test_clipping_lowers_the_value_says_by_how_much_and_leaves_the_interval() -> None:
    logged, target = log_of(np.random.default_rng(5), 2_000, explores=0.1)
    free, clipped = estimate_value(logged, target, "ips"), estimate_value(logged, target, "ips", clip=5.0)
    assert free.clipped_share == 0.0
    assert free.largest_weight > 5
    assert clipped.value < free.value
    assert clipped.clipped_share > 0.1
    assert (clipped.low, clipped.high) == (free.low, free.high)


def test_few_effective_rows_are_told() -> None:
    logged, target = log_of(np.random.default_rng(6), 3_000, explores=0.05)
    estimate = estimate_value(logged, target)
    assert estimate.n == 3_000
    assert estimate.n_effective < 0.1 * 3_000
    assert estimate.high - estimate.low > 0.1


def test_rewards_of_any_unit_are_told_in_it() -> None:
    logged, target = log_of(np.random.default_rng(7), 800)
    scaled = replace(logged, reward=10 * logged.reward - 4, low=-4.0, high=6.0)
    methods: tuple[Method, ...] = ("ips", "snips", "dr")
    for method in methods:
        here, there = estimate_value(logged, target, method), estimate_value(scaled, target, method)
        assert there.value == pytest.approx(10 * here.value - 4)
        assert there.low == pytest.approx(10 * here.low - 4)
        assert there.high == pytest.approx(10 * here.high - 4)


def test_without_rows_everything_is_possible() -> None:
    empty = LoggedDraws(
        x=np.zeros((0, 1)),
        arm=np.zeros(0, dtype=np.int64),
        odds=np.zeros((0, 2)),
        reward=np.zeros(0),
        sampled=np.zeros(0, dtype=bool),
        p_sampled=np.zeros(0),
    )
    found: PolicyValue = estimate_value(empty, np.zeros((0, 2)))
    assert np.isnan(found.value)
    assert (found.low, found.high) == (0.0, 1.0)


def test_a_target_without_support_is_refused() -> None:
    logged, target = log_of(np.random.default_rng(9), 20)
    odds = np.eye(3)[logged.arm]
    with pytest.raises(ValueError, match="could not be drawn, about which nothing is known"):
        estimate_value(replace(logged, odds=odds), target)
    with pytest.raises(ValueError, match="target"):
        estimate_value(logged, target / 2)
    with pytest.raises(ValueError, match="need a target of shape"):
        estimate_value(logged, target[:, :2])


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("odds", np.full((4, 2), 0.6), "sum to 1"),
        ("arm", np.array([0, 1, 1, 1]), "for an arm that was drawn"),
        ("p_sampled", np.array([0.0, 1, 1, 1]), "p_sampled"),
        ("reward", np.array([0.0, 2, 1, 1]), "outside"),
        ("reward", np.array([0.0, np.nan, 1, 1]), "give time-outs the lowest value"),
        ("x", np.zeros((3, 1)), "one of everything"),
    ],
)
def test_a_log_that_contradicts_itself_is_refused(field: str, value: object, said: str) -> None:
    fields = {
        "x": np.zeros((4, 1)),
        "arm": np.array([0, 0, 1, 1]),
        "odds": np.array([[1.0, 0], *[[0.5, 0.5]] * 3]),
        "reward": np.array([0.0, 1, 1, 1]),
        "sampled": np.ones(4, dtype=bool),
        "p_sampled": np.ones(4),
    }
    if field == "arm":
        fields["arm"] = np.array([1, 0, 1, 1])
        value = fields["arm"]
    with pytest.raises(ValueError, match=said):
        LoggedDraws(**{**fields, field: value})  # type: ignore[arg-type]
