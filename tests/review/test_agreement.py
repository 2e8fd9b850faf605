"""Kappa as published: worked examples of the literature, and the interval covers what it says."""

from __future__ import annotations

import random

import numpy as np
import pytest

from suffice.review.agreement import agreement, cohen, fleiss
from suffice.review.queue import ItemState
from tests.review.made import after, item, says

# Fleiss, Levin and Paik (2003), Statistical Methods for Rates and Proportions, 3rd ed., table 18.1: 100 subjects
# diagnosed by two raters; section 18.1 has kappa 0.676 and its standard error 0.087.
DIAGNOSES = [[75, 1, 4], [5, 4, 1], [0, 0, 10]]
# The printout of SAS's PROC FREQ that statsmodels' own tests compare with: kappa, its error and both limits.
SAS = [[0, 4, 1], [0, 8, 0], [0, 1, 5]]
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


def test_cohens_kappa_and_its_error_are_those_of_the_worked_example() -> None:
    found = cohen(DIAGNOSES)
    assert found.value == pytest.approx(0.676, abs=5e-4)
    assert found.error == pytest.approx(0.087, abs=1e-3)
    assert found.n_items == 100
    assert found.observed == pytest.approx(0.89)
    assert found.low == pytest.approx(0.676 - 1.96 * 0.0877, abs=2e-3)


def test_cohens_interval_is_the_one_of_another_program() -> None:
    found = cohen([[10 * n for n in row] for row in SAS])
    single = cohen(SAS)
    assert single.value == pytest.approx(0.4842, abs=5e-5)
    assert single.error == pytest.approx(0.1380, abs=5e-5)
    assert (single.low, single.high) == (None, None), "19 items are too few for an interval by large samples"
    assert found.value == pytest.approx(0.4842, abs=5e-5)
    assert found.low is not None
    assert found.low == pytest.approx(0.4842 - 1.96 * 0.1380 / 10**0.5, abs=1e-3)


def test_fleiss_kappa_is_that_of_the_paper() -> None:
    found = fleiss(PATIENTS)
    assert found.value == pytest.approx(0.430, abs=5e-4)
    assert (found.n_items, found.n_raters) == (30, 6)
    assert found.low is not None
    assert found.high is not None
    assert 0.25 < found.low < 0.43 < found.high < 0.60


def test_full_agreement_is_one_and_chance_is_none() -> None:
    assert cohen([[20, 0], [0, 20]]).value == pytest.approx(1.0)
    assert fleiss([[2, 0]] * 10 + [[0, 2]] * 10).value == pytest.approx(1.0)
    assert cohen([[25, 25], [25, 25]]).value == pytest.approx(0.0)
    same = cohen([[30, 0], [0, 0]])
    assert (same.value, same.low, same.observed) == (None, None, 1.0)
    assert fleiss([[2, 0]] * 5).value is None


@pytest.mark.parametrize("table", [[], [[1, 2, 3], [1, 2, 3]], [[0, 0], [0, 0]], [[1, -1], [0, 1]]])
def test_what_is_no_table_is_refused(table: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="square of counts"):
        cohen(table)
    with pytest.raises(ValueError, match="two verdicts or more"):
        fleiss([[1, 0]])


def test_intervals_cover_what_they_say() -> None:
    """Two raters who see the truth with probability 0.8, and else say anything: kappa is known, 80 items each time."""
    rng = np.random.default_rng(0)
    n_sims, hit = 200, [0, 0]
    # Each says the truth w.p. 0.8 + 0.2/3; three categories of equal weight: kappa of a pair is 0.8^2.
    for _ in range(n_sims):
        truth = rng.integers(0, 3, 80)
        said = [np.where(rng.random(80) < 0.8, truth, rng.integers(0, 3, 80)) for _ in range(2)]
        table = np.zeros((3, 3))
        np.add.at(table, (said[0], said[1]), 1)
        counts = np.stack([(np.stack(said) == c).sum(axis=0) for c in range(3)], axis=1)
        for at, found in enumerate((cohen(table.tolist()), fleiss(counts.tolist()))):
            assert found.low is not None
            assert found.high is not None
            hit[at] += found.low <= 0.64 <= found.high
    assert min(hit) / n_sims > 0.91, hit


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
    found = agreement(places)
    assert [pair[:2] for pair in found.pairs] == [("ann", "bob")]
    assert found.overall is not None
    assert found.overall.n_items == 30
    assert found.n_contradicted == sum(one.needs_third for one in places) > 0
    assert agreement([]).overall is None
