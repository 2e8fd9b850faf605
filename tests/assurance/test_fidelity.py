"""What a finish may change is bounded, taken off the budget, and must have been measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.assurance.fidelity import VERBATIM, Fidelity, budget_left, compared, measured


@given(n=st.integers(1, 3_000), part=st.floats(0, 1), confidence=st.sampled_from([0.9, 0.99]))
@settings(max_examples=40, derandomize=True, deadline=None)
def test_a_bound_is_above_the_rate_and_costs_more_if_it_may_be_watched(n: int, part: float, confidence: float) -> None:
    k = round(part * n)
    once, always = (measured(k, n, confidence=confidence, anytime=anytime) for anytime in (False, True))
    assert once is not None
    assert always is not None
    assert once.rate == k / n <= once.upper <= always.upper <= 1
    surer = measured(k, n, confidence=0.999)
    assert surer is not None
    assert always.upper <= surer.upper + 1e-6


def test_for_one_look_the_bound_is_the_exact_one() -> None:
    found = measured(5, 600, confidence=0.95, anytime=False)
    assert found is not None
    assert found.upper == pytest.approx(0.017441, abs=5e-7)


@pytest.mark.no_cover
def test_the_bound_that_may_be_watched_is_missed_at_no_look() -> None:
    # A bound below the rate is a certificate of it: the same wealth, so it is enough to look where it moves.
    rng, n_missed, n_missed_by_exact, n_streams = np.random.default_rng(23), 0, 0, 80
    looks = range(80, 801, 80)
    for _ in range(n_streams):
        differing = np.cumsum(rng.random(800) < 0.03)

        def ever_below(*, anytime: bool, differing: np.ndarray = differing) -> bool:
            found = (measured(int(differing[n - 1]), n, confidence=0.9, anytime=anytime) for n in looks)
            return any(one is not None and one.upper < 0.03 for one in found)

        n_missed += ever_below(anytime=True)
        n_missed_by_exact += ever_below(anytime=False)
    assert n_missed / n_streams <= 0.1
    assert n_missed_by_exact / n_streams > 0.15, "the exact bound is for one look, and would be missed"


def test_missing_answers_are_compared_too() -> None:
    assert compared([("4", "4"), ("4", "5"), (None, None), (None, "4"), ("4", None)]) == (3, 5)
    assert compared([]) == (0, 0)


def test_without_a_measurement_nothing_may_be_certified() -> None:
    assert measured(0, 0, confidence=0.99) is None
    left = budget_left(0.02, None)
    assert left.max_em_drop == 0
    assert "never compared" in left.reason


def test_the_charges_are_taken_off_and_may_use_everything_up() -> None:
    found = Fidelity(n=1_000, n_differing=2, upper=0.0075)
    assert budget_left(0.02, found).max_em_drop == pytest.approx(0.0125)
    assert budget_left(0.02, found, other_charges=0.005).max_em_drop == pytest.approx(0.0075)
    assert budget_left(0.02, found, other_charges=0.005).reason == "0.75% left of 2.00% after charges of 1.25%"
    nothing = budget_left(0.02, found, other_charges=0.0125)
    assert nothing.max_em_drop == 0
    assert "use up" in nothing.reason


def test_an_answer_returned_word_for_word_costs_nothing() -> None:
    assert budget_left(0.02, VERBATIM).max_em_drop == 0.02
    assert VERBATIM.rate == 0


@pytest.mark.parametrize("bad", [
    lambda: measured(2, 1, confidence=0.99),
    lambda: measured(-1, 1, confidence=0.99),
    lambda: measured(0, 1, confidence=0.5),
    lambda: measured(0, 1, confidence=1.0),
    lambda: budget_left(0.02, VERBATIM, other_charges=-0.1)])
def test_what_has_no_meaning_is_refused(bad: object) -> None:
    assert callable(bad)
    with pytest.raises(ValueError, match="got"):
        bad()
