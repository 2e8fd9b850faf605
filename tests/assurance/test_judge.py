"""A judge's error, bounded: the charge covers the difference between judged and true drops."""

from __future__ import annotations

import numpy as np
import pytest

from suffice.assurance.bounds import exact_binomial
from suffice.assurance.labels import judge_error_bound


def test_the_bound_is_the_exact_one_sided_one() -> None:
    pairs = [(1.0, True)] * 90 + [(-0.5, False)] * 7 + [(0.2, False), (0.0, True), (-1.0, True), (None, True)]
    result = judge_error_bound(pairs, confidence=0.95)
    assert (result.n, result.n_wrong, result.n_ungraded, result.rate) == (100, 3, 1, 0.03)
    assert result.upper == exact_binomial(3, 100, 0.90).high
    assert result.charge == 2 * result.upper
    assert judge_error_bound(pairs, confidence=0.95, disagreement=0.1).charge == pytest.approx(0.2 * result.upper)
    # Without a mistake in n answers: 1 - 0.05^(1/n), the "rule of three".
    assert judge_error_bound([(1.0, True)] * 100, confidence=0.95).upper == pytest.approx(1 - 0.05**0.01)


@pytest.mark.parametrize("pairs", [[], [(None, True)], [(1.5, True)], [(float("nan"), True)]])
def test_nothing_is_claimed_without_pairs_or_from_grades_out_of_range(pairs: list[tuple[float | None, bool]]) -> None:
    with pytest.raises(ValueError, match="pairs: "):
        judge_error_bound(pairs, confidence=0.95)


@pytest.mark.slow(keep=2)
@pytest.mark.no_cover
@pytest.mark.parametrize("error_rate", [0.02, 0.1, 0.3])
def test_judged_drop_plus_charge_covers_the_true_drop(error_rate: float) -> None:
    """The worst judge of its rate: every mistake hides a loss. 1,000 measurements of 150 answers each."""
    rng = np.random.default_rng(7)
    p_disagree, n_missed = 0.2, 0
    # On a disagreement the full run is right and the stopped one wrong; a mistake about either hides the loss.
    true_drop = p_disagree
    judged_drop = p_disagree * (1 - 2 * error_rate)  # both mistakes move Z the same way, each by one
    for n_wrong in rng.binomial(150, error_rate, size=1_000):
        pairs = [(-1.0, True)] * int(n_wrong) + [(1.0, True)] * (150 - int(n_wrong))
        charge = judge_error_bound(pairs, confidence=0.95, disagreement=p_disagree).charge
        n_missed += judged_drop + charge < true_drop
    assert n_missed / 1_000 <= 0.05 + 3 * (0.05 * 0.95 / 1_000) ** 0.5
