"""The audit share while a better level can be proved: promises of `learn.climb`."""

from __future__ import annotations

import numpy as np

from suffice.learn.climb import CLIMB_SHARE, PAYS_WITHIN, REST, Climb, LevelEvidence

USUAL = 0.05
MOST = 0.5
BUDGET = 0.02
WINDOW = 2_400


def ladder(drops: tuple[float, ...], saved: tuple[float, ...], *, n: int = 1_200, since: float = 0.0) -> LevelEvidence:
    """Levels that lose and save this, as n audits show it."""
    z = np.zeros((n, len(drops)), dtype=np.int8)
    for level, drop in enumerate(drops):
        z[: round(drop * n), level] = 1
    return LevelEvidence(
        z=z,
        saved=np.array(saved),
        budget=np.full(len(drops), BUDGET),
        delta=0.05,
        window=WINDOW,
        since=since,
    )


def look(climb: Climb, seen: LevelEvidence, now: float, *, level: int = 1, share: float = CLIMB_SHARE) -> float:
    climb.look(seen, level, now, usual=USUAL, climb=share, most=MOST)
    return climb.share


def test_a_level_that_saves_more_and_can_be_proved_is_climbed_to() -> None:
    assert look(Climb(), ladder((0, 0.004, 0.01), (0, 0.3, 0.4)), 0.0) == CLIMB_SHARE


def test_where_the_level_saves_next_to_nothing_audits_are_as_many_as_in_doubt() -> None:
    assert look(Climb(), ladder((0, 0.0, 0.01), (0, 0.0, 0.4)), 0.0) == MOST


def test_nothing_is_climbed_to_that_loses_more_than_the_budget_or_saves_no_more() -> None:
    assert not look(Climb(), ladder((0, 0.004, 0.03), (0, 0.3, 0.4)), 0.0)
    assert not look(Climb(), ladder((0, 0.004, 0.005), (0, 0.3, 0.301)), 0.0)
    assert not look(Climb(), ladder((0, 0.004), (0, 0.3)), 0.0)


def test_levels_are_proved_in_order() -> None:
    assert not look(Climb(), ladder((0, 0.004, 0.03, 0.004), (0, 0.3, 0.3, 0.5)), 0.0)


def test_a_gain_that_audits_would_cost_is_not_climbed_to() -> None:
    near, dear = ladder((0, 0.004, 0.01), (0, 0.5, 0.53)), ladder((0, 0.004, 0.01), (0, 0.5, 0.505))
    assert near.gain(1, 2, share=CLIMB_SHARE, usual=USUAL) > dear.gain(1, 2, share=CLIMB_SHARE, usual=USUAL)
    lasts = WINDOW / CLIMB_SHARE
    assert near.gain(1, 2, share=CLIMB_SHARE, usual=USUAL) < 0.03
    assert lasts < PAYS_WITHIN
    assert not look(Climb(), dear, 0.0)


def test_a_climb_keeps_one_share_until_its_own_window_speaks_or_its_time_is_over() -> None:
    climb, good, bad = Climb(), ladder((0, 0.004, 0.01), (0, 0.3, 0.4)), ladder((0, 0.004, 0.03), (0, 0.3, 0.4))
    assert look(climb, good, 100.0) == CLIMB_SHARE
    assert look(climb, bad, 200.0) == CLIMB_SHARE, "the audits are those from before the climb"
    own = ladder((0, 0.004, 0.03), (0, 0.3, 0.4), n=2_000, since=101.0)
    assert look(climb, own, 9_000.0) == 0.0
    assert look(climb, good, 9_100.0) == 0.0, "it rests"
    assert look(climb, good, 9_000.0 + max(REST, 8_900) + 1) == CLIMB_SHARE
    assert look(climb, good, 1e6) == 0.0, "it takes a window at most"


def test_no_climb_without_a_level_or_where_the_owner_set_the_share() -> None:
    good = ladder((0, 0.004, 0.01), (0, 0.3, 0.4))
    assert not look(Climb(), good, 0.0, level=0)
    assert not look(Climb(), good, 0.0, share=USUAL)
