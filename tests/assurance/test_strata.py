"""What audits of one mix of classes say about another mix."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray

from suffice.assurance.strata import PostStratifiedDrop, post_stratify


def outcomes(n: int, *, gained: int = 0, lost: int = 0) -> NDArray[np.int8]:
    return np.repeat(np.array([-1, 0, 1], dtype=np.int8), [gained, n - gained - lost, lost])


AUDITS = {"law": outcomes(600, lost=3), "sums": outcomes(200, gained=4, lost=20)}


def test_each_class_weighs_what_it_has_in_recent_traffic() -> None:
    assert post_stratify(AUDITS, {"law": 3, "sums": 1}).drop == pytest.approx((3 + 16) / 800)
    assert post_stratify(AUDITS, {"law": 20, "sums": 80}).drop == pytest.approx(0.2 * 0.005 + 0.8 * 0.08)
    assert post_stratify(AUDITS, {"law": 1}).drop == pytest.approx(0.005)


def test_small_classes_are_taken_together_and_classes_without_audits_are_named() -> None:
    few = {**AUDITS, "a": outcomes(10, lost=1), "b": outcomes(10)}
    assert post_stratify(few, {"a": 0.5, "law": 0.5}).drop == pytest.approx(0.5 * 0.05 + 0.5 * 0.005)
    new = post_stratify(AUDITS, {"law": 0.6, "new": 0.4})
    assert new.drop == pytest.approx(0.005)
    assert new.unseen == pytest.approx(0.4)
    assert post_stratify(AUDITS, {"new": 1.0}) == PostStratifiedDrop(drop=0.0, low=0.0, unseen=1.0)
    assert post_stratify({}, {"new": 1.0}).alarm(0.0) is None


def test_the_bound_is_the_exact_poisson_bound_where_there_is_one_class() -> None:
    one = post_stratify({"law": outcomes(1_000, lost=10)}, {"law": 1.0}, confidence=0.95)
    assert one.low == pytest.approx(5.4254 / 1_000, rel=2e-3), "chi-square quantile: 10 events are at least 5.4254"


@pytest.mark.no_cover
@pytest.mark.parametrize("gained", [0.0, 0.02])
def test_the_bound_is_rarely_above_the_drop(gained: float) -> None:
    rng, mix, rates = Random(2), {"law": 0.3, "sums": 0.7}, {"law": 0.005, "sums": 0.05 + gained}
    sizes, truth, misses = {"law": 600, "sums": 200}, 0.3 * 0.005 + 0.7 * 0.05, 0
    for _ in range(1_000):
        audits = {}
        for name, n in sizes.items():
            n_gained = sum(rng.random() < gained for _ in range(n)) if name == "sums" else 0
            n_lost = sum(rng.random() < rates[name] for _ in range(n))
            audits[name] = outcomes(n, gained=n_gained, lost=n_lost)
        misses += post_stratify(audits, mix, confidence=0.95).low > truth
    assert misses <= 70, "5 % of 1,000 draws, and what chance adds"


def test_the_alarm_names_the_drop_of_the_present_mix() -> None:
    calm, loud = (post_stratify(AUDITS, {"law": share, "sums": 1 - share}) for share in (0.9, 0.2))
    assert calm.alarm(0.02) is None
    assert loud.alarm(0.02) == "audits lose more than the budget at the present mix of classes: 6.5 points"


@pytest.mark.parametrize(
    "bad",
    [
        lambda: post_stratify(AUDITS, {}),
        lambda: post_stratify(AUDITS, {"law": -1.0, "sums": 2.0}),
        lambda: post_stratify(AUDITS, {"law": 1.0}, confidence=0.4),
    ],
)
def test_what_has_no_meaning_is_refused(bad: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="got"):
        bad()
