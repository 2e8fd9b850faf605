"""Labels that are missing at random: weighted estimates cover the truth where those of the labelled runs do not.

Who labels depends on the class, the length, the arm, and whether a run was stopped; given these, not on the answer.
`python -m pytest -q -s tests/claims/test_missing_labels.py` prints the figures.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Final

import numpy as np
import pytest
from bench.claims.experiments import HALF
from bench.claims.experiments import TWO as EXPERIMENT

from suffice.assurance import satisfaction
from suffice.assurance.estimate import IntervalEstimate
from suffice.assurance.labels import covariates, label_weights, unexplained_group
from suffice.assurance.satisfaction import FeedbackValue, Measure, RunFeedback, estimate_satisfaction
from suffice.rollout.analysis import analyse
from suffice.rollout.results import SATISFACTION, ArmComparison, ExperimentData, MetricValue, UnitAssignment

TWO: Final = replace(EXPERIMENT, primary=SATISFACTION, margins=())
LOSS: Final = {"easy": 0.03, "hard": 0.3275}  # of satisfaction, in the brisk arm
P_HARD: Final = 0.4
TRUTH: Final = -(1 - P_HARD) * LOSS["easy"] - P_HARD * LOSS["hard"]  # -14.9 points


@cache
def world(seed: int, n: int, *, is_harmful: bool = True, angry: float = 1.0) -> ExperimentData:
    """Units of an experiment with their labels and the weights that are estimated for them.

    angry  how much more often dissatisfied people label: above 1, labels are not missing at random
    """
    rng = np.random.default_rng(seed)
    hard, brisk, length = rng.random(n) < P_HARD, rng.random(n) < 0.5, rng.normal(size=n)
    liked = np.where(hard, 0.75, 0.9) - 0.05 * np.tanh(length)
    liked -= brisk * np.where(hard, LOSS["hard"], LOSS["easy"]) * is_harmful
    happy = rng.random(n) < liked
    p_label = np.where(hard, 0.11, 0.36) * np.where(brisk, 0.85, 1.0) * (1 + 0.5 * np.tanh(length))
    labelled = rng.random(n) < np.minimum(1.0, p_label * np.where(happy, 1.0, angry))
    classes = np.where(hard, "hard", "easy").tolist()
    x = covariates(classes, np.stack([length, brisk.astype(float)], axis=1))
    weights = label_weights(x, labelled, brisk.astype(np.int64))
    drawn = [
        UnitAssignment(arm="brisk" if b else "full", odds=HALF, query_class=c)
        for b, c in zip(brisk, classes, strict=True)
    ]
    values = [
        MetricValue(
            arm=drawn[at].arm,
            odds=HALF,
            query_class=drawn[at].query_class,
            value=float(happy[at]),
            known=(float(length[at]),),
            warmup=at < 100,
            label_weight=float(weights[at]),
        )
        for at in np.flatnonzero(labelled).tolist()
    ]
    return ExperimentData(n_requests=n, drawn=drawn, values={SATISFACTION: values})


def compared(data: ExperimentData, *, weigh: bool, n_labels: int | None = None) -> ArmComparison:
    values = data.values[SATISFACTION][:n_labels]
    displayed = values if weigh else [replace(one, label_weight=1.0) for one in values]
    return analyse(TWO, replace(data, values={SATISFACTION: displayed})).arms[0].of(SATISFACTION)


@pytest.mark.slow
def test_weighted_labels_cover_the_truth_where_those_who_label_mislead() -> None:
    n_seeds, values, covered = 30, dict[bool, list[float]](), {True: 0, False: 0}
    for weigh in (False, True):
        for seed in range(n_seeds):
            one = compared(world(seed, 12_000), weigh=weigh)
            assert one.effect is not None
            assert one.between is not None
            values.setdefault(weigh, []).append(one.effect)
            covered[weigh] += one.between.low <= TRUTH <= one.between.high
    means = {weigh: float(np.mean(each)) for weigh, each in values.items()}
    spread = {weigh: float(np.std(each)) for weigh, each in values.items()}
    print(f"truth {TRUTH:+.3f}: those who label {means[False]:+.3f}, weighted {means[True]:+.3f}; std {spread}")
    print(f"intervals cover it in {covered[False]} and {covered[True]} of {n_seeds}")
    assert means[False] > TRUTH + 0.05
    assert means[True] == pytest.approx(TRUTH, abs=0.015)
    assert covered[True] >= n_seeds - 1


@pytest.mark.slow
def test_looking_often_at_arms_that_are_alike_finds_no_difference_though_one_is_rated_less() -> None:
    n_seeds, false = 60, 0
    for seed in range(n_seeds):
        data = world(1_000 + seed, 4_000, is_harmful=False)
        looks = range(200, len(data.values[SATISFACTION]), 50)
        false += any(compared(data, weigh=True, n_labels=n).verdict in ("better", "worse") for n in looks)
    print(f"a difference that is none was found in {false} of {n_seeds}")
    assert false <= 3


def test_without_covariates_that_matter_the_weights_are_nearly_equal() -> None:
    rng = np.random.default_rng(5)
    x = covariates(["a"] * 4_000, rng.normal(size=(4_000, 3)))
    weights = label_weights(x, rng.random(4_000) < 0.2, rng.integers(0, 2, 4_000))
    assert weights.min() > 0.5
    assert weights.std() < 0.1


def test_an_arm_that_is_labelled_more_often_than_its_questions_explain_is_named_and_another_is_not() -> None:
    rng, n = np.random.default_rng(6), 6_000
    hard, arm = rng.random(n) < 0.5, rng.integers(0, 2, n)
    x = covariates(np.where(hard, "hard", "easy").tolist(), rng.normal(size=(n, 1)))
    by_class, by_arm = rng.random(n) < np.where(hard, 0.1, 0.4), rng.random(n) < np.where(arm == 1, 0.2, 0.3)
    assert unexplained_group(x, by_class, arm) is None
    assert unexplained_group(x, by_arm, arm) is not None


def test_few_labels_or_none_missing_weigh_alike() -> None:
    x, arm = covariates(["a", "b"] * 50, np.zeros((100, 1))), np.arange(100) % 2
    for labelled in (np.ones(100, dtype=bool), np.arange(100) < 3):
        assert np.ptp(label_weights(x, labelled, arm)[arm == 0]) < 0.01


def route_runs(seed: int, n: int, share: float = 0.2) -> list[RunFeedback]:
    """Runs in which a level asked for a stop; who rates depends on the class, the length and an audit's agreement."""
    rng = np.random.default_rng(seed)
    hard, audit, length = rng.random(n) < P_HARD, rng.random(n) < share, rng.normal(size=n)
    agrees = rng.random(n) < np.where(hard, 0.5, 0.95)
    liked = np.where(hard, 0.75, 0.9) - ~audit * np.where(hard, LOSS["hard"], LOSS["easy"])
    happy = rng.random(n) < liked
    p_rated = np.where(hard, 0.11, 0.36) * np.where(audit & ~agrees, 1.5, 1.0) * (1 + 0.3 * np.tanh(length))
    rated = rng.random(n) < p_rated
    return [
        RunFeedback(
            query_class="hard" if hard[at] else "easy",
            version="p",
            full=bool(audit[at]),
            stopped=not audit[at],
            drawn=True,
            audit=bool(audit[at]),
            conversation=f"c{at}",
            propensity=share if audit[at] else 1 - share,
            feedback=(FeedbackValue(seq=at, source=f"u{at}", values=(("satisfaction", float(happy[at])),)),)
            if rated[at]
            else (),
            later=(float(length[at]), float(audit[at] and agrees[at])),
        )
        for at in range(n)
    ]


@pytest.mark.slow
def test_the_effect_of_stopping_is_found_though_those_it_harms_rarely_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def effect(seed: int) -> IntervalEstimate:
        runs, measure = route_runs(seed, 8_000), Measure(name="satisfaction")
        result = next(one for one in estimate_satisfaction(runs, [measure]) if one.query_class is None).effect
        assert result is not None
        return result

    n_seeds = 20
    weighted = [effect(seed) for seed in range(n_seeds)]
    with monkeypatch.context() as patched:
        patched.setattr(satisfaction, "label_weights", lambda x, *_: np.ones(len(x)))
        plain = [effect(seed) for seed in range(n_seeds)]
    means = [float(np.mean([one.value for one in each])) for each in (plain, weighted)]
    covered = [sum(one.low <= TRUTH <= one.high for one in each) for each in (plain, weighted)]  # type: ignore[operator]
    print(
        f"truth {TRUTH:+.3f}: those who rate {means[0]:+.3f}, weighted {means[1]:+.3f}; covered {covered} of {n_seeds}"
    )
    print(f"width {np.mean([one.high - one.low for one in weighted]):.3f}")  # type: ignore[operator]
    assert means[0] > TRUTH + 0.05
    assert means[1] == pytest.approx(TRUTH, abs=0.015)
    assert covered[1] >= n_seeds - 1
