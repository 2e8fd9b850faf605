"""A class that is harmed steps back alone, returns when audits prove it, and is unknown while they are few."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from suffice.assurance.guarantee import KNOWN_AUDITS
from suffice.assurance.strata import Cell, ClassGuards, hidden_drop

M, POOLED = 9, 8  # three levels are a third of all


def audit(lost_from: int | None, gained_from: int | None = None) -> NDArray[np.int8]:
    """Z of an audit that is lost at all levels from one on, or gained."""
    z = np.zeros(M, dtype=np.int8)
    if lost_from is not None:
        z[lost_from:] = 1
    if gained_from is not None:
        z[gained_from:] = -1
    return z


SAME = audit(None)


def harmed(guards: ClassGuards, name: str = "law", *, lost_from: int = 6) -> None:
    """200 audits without harm, then losses until the alarm."""
    for _ in range(KNOWN_AUDITS):
        guards.add(name, SAME, POOLED)
    for _ in range(60):
        if guards.add(name, audit(lost_from), POOLED):
            return
    pytest.fail("no alarm")


def test_a_harmed_class_goes_a_third_down_and_no_other_class_with_it() -> None:
    guards = ClassGuards(M, 0.02)
    for _ in range(300):
        guards.add("code", SAME, POOLED)
    harmed(guards)
    assert (guards.level("law", POOLED), guards.level("code", POOLED), guards.level("new", POOLED)) == (5, 8, 8)
    assert (guards.steps_down("law"), guards.steps_down("code")) == (1, 0)
    assert guards.level("law", 2) == 0, "below the pool, never below level 0"


def test_a_class_under_200_audits_is_unknown_and_has_no_alarm_until_then() -> None:
    guards = ClassGuards(M, 0.02)
    alarms = [guards.add("rare", audit(1), POOLED) for _ in range(KNOWN_AUDITS)]
    assert alarms.index(True) == KNOWN_AUDITS - 1
    fresh = ClassGuards(M, 0.02)
    fresh.add("rare", audit(1), POOLED)
    assert fresh.level("rare", POOLED) == POOLED


def test_a_class_that_stays_harmed_ends_at_level_0() -> None:
    guards = ClassGuards(M, 0.02)
    harmed(guards, lost_from=1)
    assert guards.level("law", POOLED) == 5
    after = [guards.level("law", POOLED) for _ in range(200) if guards.add("law", audit(1), POOLED)]
    assert after == [2, 0]
    assert not guards.add("law", audit(1), POOLED), "level 0 loses nothing"


def test_it_returns_only_when_fresh_audits_prove_the_level_that_it_returns_to() -> None:
    guards = ClassGuards(M, 0.02)
    harmed(guards)
    for _ in range(400):
        guards.add("law", audit(7), POOLED)  # harmless where it runs, harmful where it would return to
    assert guards.level("law", POOLED) == 5
    held = ClassGuards(M, 0.02)
    harmed(held)
    n = next(n for n in range(1, 500) if not held.add("law", SAME, POOLED) and held.level("law", POOLED) == POOLED)
    assert 75 <= n <= 150, "about ln(20) / 0.04 audits without a loss, and what the mixture costs"


def test_two_steps_down_are_two_proofs_up() -> None:
    guards = ClassGuards(M, 0.02)
    harmed(guards, lost_from=1)
    while guards.level("law", POOLED) != 2:
        guards.add("law", audit(1), POOLED)
    seen = [guards.level("law", POOLED)]
    for _ in range(400):
        guards.add("law", SAME, POOLED)
        if guards.level("law", POOLED) != seen[-1]:
            seen.append(guards.level("law", POOLED))
    assert seen == [2, 5, 8]


def test_a_held_class_is_judged_anew_at_the_levels_of_another_version() -> None:
    rng = np.random.default_rng(51)
    guards, other = ClassGuards(M, 0.02), ClassGuards(M, 0.02)
    harmed(guards)
    harmed(other)
    since: list[NDArray[np.int8]] = []
    for _ in range(300):
        z = audit(int(rng.integers(1, M))) if rng.random() < 0.1 else SAME
        since.append(z)
        moved = [one.add("law", z, POOLED) for one in (guards, other)]
        if other.steps_down("law") != 1:
            break
        other.judge_anew("law", np.stack(since))
        assert moved == [False, False]
        assert guards.level("law", POOLED) == other.level("law", POOLED)


# --------------------------------------------------------------------------- Simpson's paradox, F40 of the faults

# The stopping side got the easy class; in each class it is two points worse.
SIMPSON = (
    Cell(query_class="easy", n_full=1_000, n_full_right=950, n_stopping=9_000, n_stopping_right=8_370),
    Cell(query_class="hard", n_full=9_000, n_full_right=4_500, n_stopping=1_000, n_stopping_right=480),
)


def test_better_over_all_and_worse_in_each_class_is_seen_through() -> None:
    full_em, stopping_em = (950 + 4_500) / 10_000, (8_370 + 480) / 10_000
    assert stopping_em - full_em > 0.3, "over all runs stopping seems to gain 34 points"
    assert hidden_drop(SIMPSON) == pytest.approx(0.02)


def test_what_is_open_or_no_loss_is_not_hidden_and_one_sided_classes_allow_no_standard() -> None:
    lonely = Cell(query_class="new", n_full=50, n_full_right=20, n_stopping=0, n_stopping_right=0)
    assert hidden_drop([*SIMPSON, lonely]) is None
    assert hidden_drop([]) is None
    worse = Cell(query_class="", n_full=100, n_full_right=90, n_stopping=100, n_stopping_right=80)
    assert hidden_drop([worse]) is None, "the whole shows it"
    better = Cell(query_class="", n_full=100, n_full_right=80, n_stopping=100, n_stopping_right=90)
    assert hidden_drop([better]) is None


@pytest.mark.parametrize(
    "bad",
    [
        lambda: ClassGuards(3, 0.02).add("law", SAME, 1),
        lambda: ClassGuards(M, 0.02).add("law", SAME, M),
    ],
)
def test_what_has_no_meaning_is_refused(bad: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="need"):
        bad()
