"""The bound that is tightest at a plan: what it promises of Brownian motion, and where it is not used."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.assurance.bounds import exact_binomial
from suffice.assurance.planned import LEAST_EVIDENCE, ever_reached, planned_bound, planned_quantile
from tests.drawn import examples


@given(st.floats(1e-6, 0.4))
@settings(max_examples=examples(50))
def test_the_quantile_is_the_inverse_of_the_chance_that_it_is_ever_reached(alpha: float) -> None:
    assert ever_reached(planned_quantile(alpha)) == pytest.approx(alpha, rel=1e-4)


def test_paths_reach_it_as_often_as_the_formula_says() -> None:
    rng, n, per_unit, units = np.random.default_rng(1), 4_000, 400, 6
    at = np.zeros(n)
    reached = np.zeros(n, dtype=bool)
    for step in range(1, units * per_unit + 1):
        at += rng.normal(size=n) / sqrt(per_unit)
        reached |= at >= 2.0 * max(1.0, step / per_unit)
    share = exact_binomial(int(reached.sum()), n, 0.999)
    assert share.low <= ever_reached(2.0), "paths in steps pass by a boundary a little less often"
    assert share.high >= 0.9 * ever_reached(2.0)


def test_at_the_plan_it_is_little_wider_than_a_test_with_one_look() -> None:
    for alpha, one_look in ((0.025, 1.96), (0.005, 2.576)):
        assert planned_quantile(alpha) < 1.2 * one_look
        assert planned_quantile(alpha) > one_look


@given(v=st.floats(0, 1e4), v_plan=st.floats(1e-3, 1e4), size=st.floats(0, 1))
@settings(max_examples=examples(100))
def test_it_is_used_on_enough_evidence_alone_and_grows_with_it(v: float, v_plan: float, size: float) -> None:
    bound = planned_bound(v, 0.01, v_plan=v_plan, size=size)
    assert (bound is None) == (v < LEAST_EVIDENCE * size * size)
    if bound is not None:
        more = planned_bound(2 * v, 0.01, v_plan=v_plan, size=size)
        assert more is not None
        assert more >= bound >= planned_quantile(0.01) * sqrt(v_plan)


def test_without_a_plan_there_is_no_bound() -> None:
    assert planned_bound(100.0, 0.01, v_plan=0.0, size=0.1) is None
    with pytest.raises(ValueError, match="alpha"):
        planned_quantile(0.5)
