"""The bootstrap resamples whole groups, and has no interval where the statistic has no meaning."""

from __future__ import annotations

import numpy as np
import pytest

from suffice.assurance.bounds import Interval
from suffice_demo.bootstrap import bootstrap_interval


def test_a_bootstrap_is_repeatable_and_keeps_groups_together() -> None:
    values = np.array([[1.0, 1.0], [3.0, 1.0], [5.0, 1.0], [7.0, 1.0]])
    mean = lambda sums: float(sums[0] / sums[1])

    def interval(groups: list[str]) -> Interval | None:
        return bootstrap_interval(values, groups, mean, 0.9, 500, np.random.default_rng(7))

    assert interval(["a", "b", "c", "d"]) == interval(["a", "b", "c", "d"])
    assert interval(["a", "a", "b", "b"]) == Interval(2.0, 6.0), "only the two group means can be drawn alone"
    assert interval(["a", "a", "a", "a"]) is None


def test_a_statistic_that_is_often_undefined_has_no_interval() -> None:
    values = np.array([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    ratio = lambda sums: float(sums[0] / sums[1]) if sums[1] else float("nan")
    assert bootstrap_interval(values, [1, 2, 3], ratio, 0.9, 200, np.random.default_rng(0)) is None


@pytest.mark.parametrize(
    "bad",
    [
        lambda: bootstrap_interval(np.ones((2, 1)), ["a"], lambda s: s[0], 0.9, 10, np.random.default_rng(0)),
        lambda: bootstrap_interval(np.ones((2, 1)), ["a", "b"], lambda s: s[0], 0.9, 0, np.random.default_rng(0)),
    ],
)
def test_what_has_no_meaning_is_refused(bad: object) -> None:
    assert callable(bad)
    with pytest.raises(ValueError, match="need"):
        bad()
