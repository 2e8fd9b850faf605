"""The fleet's requirement: self-consistent, least, steady, and valid where separate certificates are not."""

from __future__ import annotations

from math import isclose

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.assurance.certify import (
    STEP,
    FleetRequirement,
    RouteWealth,
    fleet_sentence,
    require_wealth,
)

WEALTHS = st.lists(st.floats(0, 1e6), min_size=1, max_size=60)
ALPHA = 0.05


def routes(wealths: list[float], own: float = 20.0) -> list[RouteWealth]:
    return [RouteWealth(route=f"r{n}", epoch=1, wealth=one, own=own) for n, one in enumerate(wealths)]


@given(WEALTHS)
def test_the_certified_routes_are_enough_for_the_requirement_they_reach(wealths: list[float]) -> None:
    wealth, n_certified = require_wealth(routes(wealths), confidence=1 - ALPHA)
    assert n_certified == sum(one >= max(wealth, 20.0) for one in wealths)
    assert n_certified == 0 or n_certified * wealth >= len(wealths) / ALPHA * (1 - 1e-9)
    assert wealth >= 1 / ALPHA * (1 - 1e-9)


@given(WEALTHS)
def test_it_is_as_generous_as_the_benjamini_hochberg_rule_up_to_one_step(wealths: list[float]) -> None:
    order = sorted(wealths, reverse=True)
    passing = [k for k, one in enumerate(order, 1) if one >= max(len(order) / (ALPHA * k), 1 / ALPHA)]
    wealth, n_certified = require_wealth(routes([STEP * one for one in wealths]), confidence=0.95)
    assert n_certified >= max(passing, default=0), wealth


@given(WEALTHS)
def test_what_was_required_stays_required_when_nothing_changes(wealths: list[float]) -> None:
    first = require_wealth(routes(wealths), confidence=0.95)
    assert require_wealth(routes(wealths), confidence=0.95, before=first[0]) == first


def test_a_fleet_that_is_certified_pays_almost_nothing_and_a_lone_route_pays_for_all() -> None:
    nearly_all = require_wealth(routes([1e3] * 287 + [0.0] * 13), confidence=0.95)
    assert nearly_all[0] == pytest.approx(25.0)
    assert nearly_all[1] == 287
    alone = require_wealth(routes([1e5] + [0.0] * 299), confidence=0.95)
    assert 6_000 <= alone[0] <= 6_000 * STEP
    assert alone[1] == 1
    none = require_wealth(routes([5_000.0] + [0.0] * 299), confidence=0.95)
    assert none[1] == 0


def test_a_route_counts_only_if_it_keeps_its_own_confidence_too() -> None:
    careful = routes([50.0] * 10, own=100.0)
    assert require_wealth(careful, confidence=0.95)[1] == 0


def test_a_lower_requirement_takes_a_tenth_more_wealth() -> None:
    for wealth, before, required in ((26.0, 0.0, 25.0), (26.0, 25.0, 25.0), (28.0, 100.0, 25.0)):
        evidence = routes([wealth] * 8 + [1e3] + [0.0])
        assert require_wealth(evidence, confidence=0.95, before=before)[0] == pytest.approx(required), (wealth, before)
    stuck = require_wealth(routes([26.0] * 8 + [0.0] * 2), confidence=0.95, before=100.0)
    assert stuck[0] == pytest.approx(20 * STEP**11)
    assert stuck[1] == 0, "nobody reaches the requirement, and none is certified"


def test_few_routes_are_wrong_among_those_certified_where_separate_certificates_fail() -> None:
    """Nine in ten routes lose exactly the budget, and each is judged by the peak of its wealth."""
    rng, shares, separate = np.random.default_rng(4), [], []
    for _ in range(400):
        peak = 1 / rng.random(270)  # of a wealth that is stopped at its peak: P(peak >= x) = 1/x, by Ville
        wealths = [*peak.tolist(), *([1e4] * 30)]
        wealth, n = require_wealth(routes(wealths), confidence=0.95)
        wrong = int((peak >= wealth).sum())
        shares.append(wrong / max(1, wrong + 30 if n else 0))
        separate.append(int((peak >= 20).sum()) / (int((peak >= 20).sum()) + 30))
    assert np.mean(shares) + 3 * np.std(shares) / 20 < 0.05
    assert np.mean(separate) > 0.2, "without the fleet's promise this must be visible"


@pytest.mark.parametrize(("confidence", "ends"), [(0.95, "at most 5 %"), (0.975, "at most 2.5 %")])
def test_the_promise_is_one_line(confidence: float, ends: str) -> None:
    made = FleetRequirement(
        number=1, wealth=25, confidence=confidence, n_routes=300, n_certified=287, evidence=(), reason="", author="w"
    )
    line = fleet_sentence(made, n_certified=287)
    assert line == f"fleet: 287 of 300 routes certified; expected wrong among them {ends}"
    assert isclose(made.wealth, 25)
