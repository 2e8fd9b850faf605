"""A certified level changes seldom by much where nothing changes; without what keeps it still, it does not stay.

`python -m bench.claims.stability` prints the table of bench/claims/README.md.
"""

from __future__ import annotations

import pytest
from bench.claims import stability
from bench.claims.stability import is_restless, swings

from suffice.assurance import drift
from suffice.certification import claims
from suffice.certification.certificate import SWING, Swings

BUDGET = 0.05  # the restless one: it takes the fewest audits
SEEDS = range(4)


def test_what_a_swing_is() -> None:
    assert swings([0, 39, 0, 39, 40, 39, 0]) == [200, 300, 400, 700]
    assert swings([SWING, 2 * SWING, 0]) == [300]
    assert is_restless([200, 300])
    assert not is_restless([200, 5_200])


def n_restless() -> int:
    return sum(bool(stability.run(("none", BUDGET, seed))["restless"]) for seed in SEEDS)


@pytest.mark.slow
def test_levels_stay_where_they_are_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert n_restless() <= 1
    monkeypatch.setattr(drift, "THRESHOLD", 200.0)
    monkeypatch.setattr(claims, "hold_level", lambda *_: None)
    monkeypatch.setattr(Swings, "moderate", lambda _, certified, _now: certified)
    assert n_restless() >= 3, "and as they were before, they do not"
