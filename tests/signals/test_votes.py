from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.signals.folds.answers import Votes, p_majority
from suffice.types import Step
from tests.drawn import examples

PROPERTY = settings(max_examples=examples(80))


@PROPERTY
@given(answers=st.lists(st.none() | st.sampled_from("abcd"), max_size=30))
def test_after_every_step_the_fold_agrees_with_counting_anew(answers: list[str | None]) -> None:
    votes = Votes()
    for index, answer in enumerate(answers, 1):
        votes.update(Step(index=index, tokens=1, answer=answer, answer_source=None))
        seen = [given for given in answers[:index] if given is not None]
        ranking = Counter(seen).most_common()  # ties in the order first seen
        top, second = [*(n for _, n in ranking), 0, 0][:2]
        values = votes.values()
        assert (values["n_votes"], values["top_votes"], values["second_votes"]) == (len(seen), top, second)
        assert values["third_votes"] == len(seen) - top - second
        assert values["agreement"] == top / index
        shares = [n / len(seen) for _, n in ranking]
        entropy = values["vote_entropy"]
        assert entropy == (pytest.approx(-sum(p * math.log(p) for p in shares), abs=1e-12) if shares else None)
        assert votes.leader == (ranking[0][0] if ranking else None)
        assert values["p_majority"] == (p_majority(top, second) if ranking else None)


def beta_tail_by_integration(top: int, second: int) -> float:
    """P(p > 1/2) for the posterior, by Simpson's rule on its density, with a million points."""
    p = np.linspace(0.0, 1.0, 1_000_001)[1:-1]
    log_density = top * np.log(p) + second * np.log1p(-p)
    density = np.concatenate([[0.0], np.exp(log_density - log_density.max()), [0.0]])
    if second == 0:  # the end point is the maximum
        density[-1] = 1.0
    if top == 0:
        density[0] = 1.0 if second else density[-1]
    weights = np.where(np.arange(500_001) % 2 == 1, 4.0, 2.0)
    weights[[0, -1]] = 1.0
    low, high = float(weights @ density[:500_001]), float(weights @ density[500_000:])
    return high / (low + high)


@pytest.mark.parametrize(
    ("top", "second"),
    [(1, 0), (2, 1), (4, 0), (5, 5), (7, 3), (20, 11), (33, 31), (120, 90), (1_500, 1_400), (0, 3)],
)
def test_p_majority_is_the_tail_of_the_beta_posterior(top: int, second: int) -> None:
    assert p_majority(top, second) == pytest.approx(beta_tail_by_integration(top, second), abs=1e-9)


def test_the_published_figures() -> None:
    assert p_majority(3, 0) == 0.9375
    assert p_majority(4, 0) == 0.96875
    assert p_majority(6, 1) == 1 - 9 / 256


@PROPERTY
@given(top=st.integers(0, 3_000), second=st.integers(0, 3_000))
def test_p_majority_is_exact_to_the_last_digits_for_thousands_of_votes(top: int, second: int) -> None:
    n = top + second + 1
    exact, term = 0, 1
    for heads in range(min(top, second) + 1):
        exact += term
        term = term * (n - heads) // (heads + 1)
    tail = Fraction(exact, 2**n)
    expected = float(1 - tail if top >= second else tail)
    assert p_majority(top, second) == pytest.approx(expected, abs=1e-14)
    assert 0.0 <= p_majority(top, second) <= 1.0


@PROPERTY
@given(top=st.integers(0, 500), second=st.integers(0, 500))
def test_one_more_vote_moves_the_probability_its_own_way(top: int, second: int) -> None:
    here = p_majority(top, second)
    assert p_majority(top + 1, second) >= here - 1e-14
    assert p_majority(top, second + 1) <= here + 1e-14
    assert here + p_majority(second, top) == pytest.approx(1.0)


def test_a_hundred_thousand_votes_are_no_problem() -> None:
    assert p_majority(100_000, 0) == 1.0
    assert math.isclose(p_majority(50_000, 50_000), 0.5)
    assert 0.5 < p_majority(50_100, 49_900) < 1.0
