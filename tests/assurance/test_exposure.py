"""A level that acts on a share of the requests: what it may lose, and when it is proved for how many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.assurance.certify import RAMP, Window, Windows
from suffice.assurance.exposure import EXPOSURES, MOST_DROP, ON_ALL, Exposure


@given(st.floats(0.001, 0.3), st.floats(0.0, 0.3), st.sampled_from(EXPOSURES))
def test_what_a_level_loses_on_its_share_is_within_the_budget_if_its_own_drop_is(
    max_em_drop: float, charge: float, exposure: Exposure
) -> None:
    drop = float(exposure.budget(max_em_drop, charge))
    assert exposure.share * (drop + charge) <= max_em_drop + 1e-12
    assert drop <= MOST_DROP


def test_all_shares_together_risk_delta() -> None:
    assert sum(one.delta_part for one in EXPOSURES) == pytest.approx(1.0)
    assert ON_ALL.delta_part == 1.0


@pytest.mark.parametrize(("share", "audited"), [(0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (1.0, 0.05)])
def test_requests_on_which_a_level_does_not_act_are_audits(share: float, audited: float) -> None:
    assert Exposure(share, 0.1).audit_share(0.05) == audited


def test_every_audit_of_a_ramp_weighs_one_whatever_its_share() -> None:
    ramp = Window(start=0.0, share=RAMP)
    assert ramp.weights(np.array([1.0, 0.75, 0.05])).tolist() == [1.0, 1.0, 1.0]
    assert ramp.n_audits(np.arange(3, dtype=np.float64), np.array([1.0, 0.75, 0.05])) == 3


def test_a_ramp_outlives_its_shares_and_hands_over_to_a_window_with_enough_audits() -> None:
    windows = Windows([Window(start=0.0, share=RAMP)])
    for begun, noted in ((0.0, 1.0), (100.0, 0.75), (400.0, 0.5), (800.0, 0.05)):
        windows.note(begun, noted)
    assert windows.known[0] == Window(start=0.0, share=RAMP)
    at = np.arange(800, dtype=np.float64)
    share = np.where(at < 100, 1.0, np.where(at < 400, 0.75, 0.5))
    assert windows.chosen(at, share, wanted=801) == windows.known[0], "no other window has more audits"
    later = np.arange(800, 1_000, dtype=np.float64)
    at, share = np.concatenate([at, later]), np.concatenate([share, np.full(200, 0.05)])
    newest = windows.chosen(at, share, wanted=150)
    assert newest is not None
    assert (newest.start, newest.share) == (800.0, 0.05)
