"""Kappa as published: worked examples of the literature, and the interval covers what it says."""

from __future__ import annotations

import random

import numpy as np
import pytest

from suffice.review.agreement import agreement, fleiss
from suffice.review.queue import ItemState
from tests.review.made import after, item, says

# Fleiss (1971), Psychological Bulletin 76(5), table 1: 30 patients, six psychiatrists, five diagnoses; kappa 0.430.
PATIENTS = [
    [0, 0, 0, 6, 0],
    [0, 3, 0, 0, 3],
    [0, 1, 4, 0, 1],
    [0, 0, 0, 0, 6],
    [0, 3, 0, 3, 0],
    [2, 0, 4, 0, 0],
    [0, 0, 4, 0, 2],
    [2, 0, 3, 1, 0],
    [2, 0, 0, 4, 0],
    [0, 0, 0, 0, 6],
    [1, 0, 0, 5, 0],
    [1, 1, 0, 4, 0],
    [0, 3, 3, 0, 0],
    [1, 0, 0, 5, 0],
    [0, 2, 0, 3, 1],
    [0, 0, 5, 0, 1],
    [3, 0, 0, 1, 2],
    [5, 1, 0, 0, 0],
    [0, 2, 0, 4, 0],
    [1, 0, 2, 0, 3],
    [0, 0, 0, 0, 6],
    [0, 1, 0, 5, 0],
    [0, 2, 0, 1, 3],
    [2, 0, 0, 4, 0],
    [1, 0, 0, 4, 1],
    [0, 5, 0, 1, 0],
    [4, 0, 0, 0, 2],
    [0, 2, 0, 4, 0],
    [1, 0, 5, 0, 0],
    [0, 0, 0, 0, 6],
]


def test_fleiss_kappa_is_that_of_the_paper() -> None:
    result = fleiss(PATIENTS)
    assert result.value == pytest.approx(0.430, abs=5e-4)
    assert result.n_items == 30
    assert result.low is not None
    assert result.high is not None
    assert 0.25 < result.low < 0.43 < result.high < 0.60


def test_full_agreement_is_one_and_chance_is_none() -> None:
    assert fleiss([[2, 0]] * 10 + [[0, 2]] * 10).value == pytest.approx(1.0)
    assert fleiss([[2, 0], [1, 1], [1, 1], [0, 2]]).value == pytest.approx(0.0)
    same = fleiss([[2, 0]] * 25)
    assert (same.value, same.low, same.observed) == (None, None, 1.0)
    assert fleiss([[2, 0], [0, 2]] * 9).low is None, "18 items are too few for an interval by large samples"


def test_intervals_cover_what_they_say() -> None:
    """Two raters who see the truth with probability 0.8, and else say anything: kappa is known, 80 items each time."""
    rng = np.random.default_rng(0)
    n_sims, hit = 200, 0
    # Each says the truth w.p. 0.8 + 0.2/3; three categories of equal weight: kappa of a pair is 0.8^2.
    for _ in range(n_sims):
        truth = rng.integers(0, 3, 80)
        output = [np.where(rng.random(80) < 0.8, truth, rng.integers(0, 3, 80)) for _ in range(2)]
        counts = np.stack([(np.stack(output) == c).sum(axis=0) for c in range(3)], axis=1)
        result = fleiss(counts.tolist())
        assert result.low is not None
        assert result.high is not None
        hit += result.low <= 0.64 <= result.high
    assert hit / n_sims > 0.91, hit


def test_agreement_of_a_queue_reads_independent_verdicts_alone() -> None:
    rng, places = random.Random(1), []
    for number in range(30):
        place = ItemState(item=item(f"ep_{number}", n_reviewers=2))
        for reviewer in ("ann", "bob"):
            word = "full" if rng.random() < 0.7 else "early"
            place = after(place, says(place, reviewer, word, at_s=1.0 + (reviewer == "bob")))
        if place.needs_third:
            place = after(place, says(place, "cas", "both", at_s=9.0))
        places.append(place)
    result = agreement(places)
    assert result is not None
    assert result.n_items == 30
    assert result.observed == 1 - sum(one.needs_third for one in places) / 30 < 1
    assert agreement([]) is None
