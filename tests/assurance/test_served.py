"""What was served, measured by audits: which runs count, and as what."""

from __future__ import annotations

from dataclasses import replace
from math import log
from operator import eq

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.assurance.certify import mixed
from suffice.assurance.runs import RunNumbers, measure_run
from suffice.assurance.served import BETS, ServedLoss, grow_served_loss, measure_served_loss
from suffice.store.database.views import EpisodeWithLabels
from suffice.types import Episode, Outcome
from tests.records import plain_request

EPS = 0.02
REQUEST = plain_request("ep", audit=True, mode="enforce", propensity=0.05)
OUTCOME = Outcome(episode_id="ep", end_reason="done", status=200, answer="4", response_id=None, usage=None)
EPISODE = EpisodeWithLabels(seq=1, episode=Episode(request=REQUEST, outcome=OUTCOME), labels=())
AUDIT = replace(measure_run(EPISODE, eq), disagrees=False, drop=0)
LOST = replace(AUDIT, disagrees=True, drop=1)


def measured(
    *runs: RunNumbers, usual_share: float = 0.05, max_em_drop: float = EPS, confidence: float = 0.95
) -> ServedLoss | None:
    return measure_served_loss(runs, usual_share=usual_share, max_em_drop=max_em_drop, confidence=confidence)


@given(z=st.floats(-1, 1), share=st.floats(0.01, 1.0), usual=st.floats(0.01, 1.0), eps=st.floats(0.001, 0.5))
def test_no_request_is_expected_to_grow_the_wealth_while_its_loss_is_in_the_budget(
    z: float, share: float, usual: float, eps: float
) -> None:
    grown = grow_served_loss(np.array([z]), np.array([share]), usual_share=usual, max_em_drop=eps)[:, 0]
    assert np.isfinite(grown).all(), "a bet never goes bankrupt"
    expected = share * np.exp(grown) + 1 - share
    nu = np.array(BETS) / (1 + eps)
    np.testing.assert_allclose(expected, 1 + nu * min(share, usual) * ((1 - share) * z - eps), rtol=1e-9)
    if (1 - share) * z <= eps:
        assert (expected <= 1 + 1e-12).all()


def test_it_speaks_once_enough_of_what_was_served_is_lost() -> None:
    seen = measured(*[AUDIT] * 90, *[LOST] * 10)
    assert seen is not None
    assert seen.n_audits == 100
    assert seen.loss == pytest.approx(0.095)
    grown = grow_served_loss(np.repeat([0.0, 1.0], [90, 10]), np.full(100, 0.05), usual_share=0.05, max_em_drop=EPS)
    assert log(seen.e_value) == pytest.approx(float(mixed(grown.sum(axis=1, keepdims=True))[0]))
    assert seen.is_over == (seen.e_value >= 20) is True
    assert "the budget of 2.00% is exceeded with 95 % confidence" in seen.sentence
    calm = measured(*[AUDIT] * 99, LOST)
    assert calm is not None
    assert not calm.is_over
    assert "nothing proves that it is over 2.00%" in calm.sentence


def test_full_runs_served_nothing_and_an_unlabelled_difference_accuses_nobody() -> None:
    certain = replace(LOST, weight=1.0)
    unknown = replace(LOST, drop=None)
    for harmless in (certain, unknown):
        seen = measured(*[harmless] * 200)
        assert seen is not None
        assert (seen.loss, seen.e_value < 1) == (0, True)
    live, observed = replace(LOST, audit=False, full=False), replace(LOST, enforce=False)
    assert measured(live, observed) is None


@pytest.mark.parametrize(
    "allowed", [{"max_em_drop": 0.0}, {"max_em_drop": 1.0}, {"confidence": 1.0}, {"usual_share": 0.0}], ids=str
)
def test_settings_that_leave_nothing_to_test_are_no_error(allowed: dict[str, float]) -> None:
    """A route may have them, and its other accounts have to go on."""
    assert measured(*[AUDIT] * 99, LOST, **allowed) is None
