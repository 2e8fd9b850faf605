"""The price of EM in satisfaction: its interval covers the truth, and unpopular classes are not taken for it."""

from __future__ import annotations

import numpy as np
import pytest

from suffice.assurance.estimate import IntervalEstimate
from suffice.assurance.satisfaction import EMPrice, RatedRun, em_price

PRICE, BY_STOP = 0.6, 0.05


def rated(seed: int, n: int = 600, *, hard_is_disliked: float = 0.2) -> list[RatedRun]:
    """Runs of two classes: hard questions are more often answered wrong, and less liked whatever the answer."""
    rng = np.random.default_rng(seed)
    hard, full = rng.random(n) < 0.4, rng.random(n) < 0.3
    stopped = ~full & (rng.random(n) < 0.8)
    wrong = rng.random(n) < np.where(hard, 0.6, 0.1)
    liked = 0.9 - PRICE * wrong - BY_STOP * stopped - hard_is_disliked * hard
    happy = rng.random(n) < liked
    return [
        RatedRun("hard" if hard[at] else "easy", float(happy[at]), not wrong[at], bool(full[at]), bool(stopped[at]))
        for at in range(n)
    ]


def known(runs: list[RatedRun]) -> EMPrice:
    price = em_price(runs)
    assert price is not None
    return price


def covers(one: IntervalEstimate | None, truth: float) -> bool:
    assert one is not None
    assert one.low is not None
    assert one.high is not None
    return one.low <= truth <= one.high


@pytest.mark.no_cover
def test_intervals_cover_the_price_as_often_as_they_say_and_one_without_classes_does_not() -> None:
    n_seeds = 200
    prices = [known(rated(seed)) for seed in range(n_seeds)]
    covered = [
        np.mean([covers(price.per_point, PRICE) for price in prices]),
        np.mean([covers(price.by_stop, BY_STOP) for price in prices]),
    ]
    naive = [known([run._replace(query_class="") for run in rated(seed)]) for seed in range(n_seeds)]
    missed = 1 - np.mean([covers(price.per_point, PRICE) for price in naive])
    print(f"covered {covered} of {n_seeds} at 95 %; without classes missed in {missed:.0%}")
    assert min(covered) > 0.9
    assert missed > 0.3


def test_a_weighted_run_counts_as_so_many() -> None:
    runs = rated(3, 300)
    paired = known([run._replace(weight=2.0) for run in runs])
    assert paired.per_point.value == pytest.approx(known(runs * 2).per_point.value)


def test_too_few_runs_or_too_few_wrong_ones_have_no_price() -> None:
    runs = rated(1, 1_000)
    assert em_price(runs[:99]) is None
    assert em_price([run for run in runs if run.correct]) is None
    assert em_price([run for run in runs if not run.full]) is None


def price(low: float, high: float, *, full: float, by_stop: tuple[float, float] | None = None) -> EMPrice:
    def between(a: float, b: float) -> IntervalEstimate:
        return IntervalEstimate(value=(a + b) / 2, low=a, high=b, n=500, method="")

    return EMPrice(
        n=500, per_point=between(low, high), by_stop=None if by_stop is None else between(*by_stop), full=full
    )


def test_what_a_floor_affords_is_reckoned_with_the_cautious_ends() -> None:
    assert price(0.5, 0.8, full=0.84).affordable_drop(0.8) == pytest.approx(0.05)
    assert price(0.5, 0.8, full=0.84, by_stop=(0.01, 0.03)).affordable_drop(0.8) == pytest.approx(0.012)
    assert price(0.5, 0.8, full=0.84, by_stop=(-0.01, 0.03)).affordable_drop(0.8) == pytest.approx(0.05)
    assert price(0.5, 0.8, full=0.79).affordable_drop(0.8) is None, "full runs miss the floor"
    assert price(-0.1, 0.8, full=0.9).affordable_drop(0.8) is None, "the price may be nothing"
    assert "a lost point of EM costs 0.65 points of satisfaction here" in price(0.5, 0.8, full=0.8).sentence
    assert "is not known" in price(-0.1, 0.8, full=0.8).sentence
