"""What a finish may change is bounded, taken off the budget, and must have been measured."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.assurance.bounds import binomial_at_most
from suffice.assurance.fidelity import (
    FIDELITY_CONFIDENCE,
    FIDELITY_RISK,
    FIDELITY_WINDOW,
    STOPS_TO_FALSE_ALARM,
    VERBATIM,
    Fidelity,
    FinishFidelity,
    LevelBand,
    bound_fidelity,
    budget_left,
)
from tests.drawn import examples


@given(n=st.integers(1, 3_000), part=st.floats(0, 1), confidence=st.sampled_from([0.9, 0.99]))
@settings(max_examples=examples(40))
def test_a_bound_is_above_the_rate_and_costs_more_if_it_may_be_watched(n: int, part: float, confidence: float) -> None:
    k = round(part * n)
    once, always = (bound_fidelity(k, n, confidence=confidence, anytime=anytime) for anytime in (False, True))
    assert once is not None
    assert always is not None
    assert k / n <= once.upper <= always.upper <= 1
    surer = bound_fidelity(k, n, confidence=0.999)
    assert surer is not None
    assert always.upper <= surer.upper + 1e-6


def test_for_one_look_the_bound_is_the_exact_one() -> None:
    result = bound_fidelity(5, 600, confidence=0.95, anytime=False)
    assert result is not None
    assert result.upper == pytest.approx(0.017441, abs=5e-7)


@pytest.mark.no_cover
def test_the_bound_that_may_be_watched_is_missed_at_no_look() -> None:
    # A bound below the rate is a certificate of it: the same wealth, so it is enough to look where it moves.
    rng, n_missed, n_missed_by_exact, n_streams = np.random.default_rng(23), 0, 0, 80
    looks = range(80, 801, 80)
    for _ in range(n_streams):
        differing = np.cumsum(rng.random(800) < 0.03)

        def ever_below(*, anytime: bool, differing: np.ndarray = differing) -> bool:
            result = (bound_fidelity(int(differing[n - 1]), n, confidence=0.9, anytime=anytime) for n in looks)
            return any(one is not None and one.upper < 0.03 for one in result)

        n_missed += ever_below(anytime=True)
        n_missed_by_exact += ever_below(anytime=False)
    assert n_missed / n_streams <= 0.1
    assert n_missed_by_exact / n_streams > 0.15, "the exact bound is for one look, and would be missed"


def test_without_a_measurement_nothing_may_be_certified() -> None:
    assert bound_fidelity(0, 0, confidence=0.99) is None
    left = budget_left(0.02, None)
    assert left.max_em_drop == 0
    assert "never compared" in left.reason


def test_the_charges_are_taken_off_and_may_use_everything_up() -> None:
    result = Fidelity(n=1_000, n_differing=2, upper=0.0075)
    assert budget_left(0.02, result).max_em_drop == pytest.approx(0.0125)
    assert budget_left(0.02, result, other_charges=0.005).max_em_drop == pytest.approx(0.0075)
    assert budget_left(0.02, result, other_charges=0.005).reason == "0.75% left of 2.00% after charges of 1.25%"
    nothing = budget_left(0.02, result, other_charges=0.0125)
    assert nothing.max_em_drop == 0
    assert "use up" in nothing.reason


def test_an_answer_returned_word_for_word_costs_nothing() -> None:
    assert budget_left(0.02, VERBATIM).max_em_drop == 0.02
    assert VERBATIM.upper == 0


@pytest.mark.parametrize(
    "bad",
    [
        lambda: bound_fidelity(2, 1, confidence=0.99),
        lambda: bound_fidelity(-1, 1, confidence=0.99),
        lambda: bound_fidelity(0, 1, confidence=0.5),
        lambda: bound_fidelity(0, 1, confidence=1.0),
        lambda: budget_left(0.02, VERBATIM, other_charges=-0.1),
    ],
)
def test_what_has_no_meaning_is_refused(bad: object) -> None:
    assert callable(bad)
    with pytest.raises(ValueError, match="got"):
        bad()


# --------------------------------------------------------------------------- the bound of a window


def one_look(n_differing: int, n: int) -> float:
    bound = bound_fidelity(n_differing, n, confidence=FIDELITY_CONFIDENCE, anytime=False)
    assert bound is not None
    return bound.upper


def noted(fidelity: FinishFidelity, level: int, answers_differ: Iterable[bool]) -> FinishFidelity:
    for differs in answers_differ:
        fidelity.note(level, differs)
    return fidelity


def upper(fidelity: FinishFidelity, level: int) -> float:
    bound = fidelity.charge(level)
    assert bound is not None
    return bound.upper


def test_a_full_window_is_charged_the_smallest_bound_that_is_honest_at_its_confidence() -> None:
    fidelity = noted(FinishFidelity(2), 1, ([False] * 99 + [True]) * 20)
    result = fidelity.charge(1)
    assert result is not None
    assert (result.n, result.n_differing) == (2_000, 20)
    assert result.upper == pytest.approx(0.016497, abs=1e-6)
    assert binomial_at_most(20, 2_000, result.upper) == pytest.approx(FIDELITY_RISK, abs=1e-9)
    assert binomial_at_most(20, 2_000, 0.0151) > 3 * FIDELITY_RISK, "1.51 % is not a bound at 99 %"
    always = bound_fidelity(20, 2_000, confidence=FIDELITY_CONFIDENCE)
    assert always is not None
    assert always.upper > 0.0194, "what holds at all looks at once costs more"


@pytest.mark.no_cover
@pytest.mark.parametrize(
    "rates", [np.full(2_000, 0.002), np.full(2_000, 0.02), np.linspace(0, 0.02, 2_000), np.repeat([0.0, 0.1], 1_000)]
)
def test_the_bound_covers_the_mean_rate_of_its_window_also_while_the_rate_changes(rates: np.ndarray) -> None:
    rng, n = np.random.default_rng(31), len(rates)
    counts, n_sets = np.unique([(rng.random(n) < rates).sum() for _ in range(5_000)], return_counts=True)
    n_missed = sum(int(sets) for k, sets in zip(counts, n_sets, strict=True) if one_look(int(k), n) < rates.mean())
    assert n_missed <= 5_000 * FIDELITY_RISK


@pytest.mark.no_cover
def test_over_many_scheduled_looks_it_fails_at_no_more_than_one_in_a_hundred() -> None:
    rng, seen = np.random.default_rng(37), list[np.ndarray]()
    for _ in range(150):
        differing = np.cumsum(rng.random(20_000) < 0.01)
        seen.append((differing[FIDELITY_WINDOW:] - differing[:-FIDELITY_WINDOW])[::100])
    counts, n_looks = np.unique(np.concatenate(seen), return_counts=True)
    n_missed = sum(int(n) for k, n in zip(counts, n_looks, strict=True) if one_look(int(k), FIDELITY_WINDOW) < 0.01)
    assert 0 < n_missed <= n_looks.sum() * FIDELITY_RISK


@pytest.mark.slow
@pytest.mark.no_cover
def test_the_risk_is_paid_once_whichever_level_is_served() -> None:
    rng, n_sets, n_served, n_served_by_own_band = np.random.default_rng(41), 1_000, 0, 0
    for _ in range(n_sets):
        fidelity = FinishFidelity(41, window=400)
        differing = rng.random((4, 400)) < 0.04
        for top, row in zip(fidelity.tops, differing.tolist(), strict=True):
            noted(fidelity, top, row)
        n_served += any(upper(fidelity, top) < 0.04 for top in fidelity.tops)
        n_served_by_own_band += any(one_look(int(k), 400) < 0.04 for k in differing.sum(axis=1))
    assert n_served <= n_sets * FIDELITY_RISK
    assert n_served_by_own_band > 2 * n_sets * FIDELITY_RISK, "the best of four bounds fails more often than each"


def test_the_risk_can_be_added_to_that_of_the_certificate() -> None:
    assert abs(FIDELITY_RISK - (1 - FIDELITY_CONFIDENCE)) < 1e-12


# --------------------------------------------------------------------------- bands of levels


def test_bands_cut_the_levels_of_a_version_evenly() -> None:
    assert FinishFidelity(41).tops == (10, 20, 30, 40)
    assert FinishFidelity(4).tops == (1, 2, 3)
    assert FinishFidelity(2).tops == (1,)


@given(n_levels=st.integers(2, 60), data=st.data())
@settings(max_examples=examples(50))
def test_every_level_is_charged_what_its_band_has_seen(n_levels: int, data: st.DataObject) -> None:
    level = data.draw(st.integers(1, n_levels - 1))
    fidelity = noted(FinishFidelity(n_levels, window=20), level, [True] * 3 + [False] * 17)
    top = next(top for top in fidelity.tops if level <= top)
    assert fidelity.charge(level) == fidelity.charge(top) == Fidelity(n=20, n_differing=3, upper=one_look(3, 20))
    assert top == n_levels - 1 or fidelity.charge(top + 1) is None


def test_a_finish_that_goes_wrong_at_high_levels_is_not_charged_to_a_lower_band_with_a_window_of_its_own() -> None:
    fidelity = noted(FinishFidelity(41), 5, [False] * FIDELITY_WINDOW)
    before = upper(fidelity, 5)
    noted(fidelity, 35, [True, False] * (FIDELITY_WINDOW // 2))
    assert upper(fidelity, 5) == before == one_look(0, FIDELITY_WINDOW)
    assert upper(fidelity, 40) > 0.5


def test_what_breaks_the_budget_at_low_levels_is_charged_to_all_above_them() -> None:
    fidelity = noted(FinishFidelity(41), 35, [False] * FIDELITY_WINDOW)
    noted(fidelity, 5, [True, False] * (FIDELITY_WINDOW // 2))
    assert upper(fidelity, 35) == upper(fidelity, 5) > 0.5, "no level passes before those below it"


def test_only_the_latest_comparisons_of_a_band_count() -> None:
    fidelity = noted(FinishFidelity(41), 5, [True] * 100)
    noted(fidelity, 5, [False] * FIDELITY_WINDOW)
    assert fidelity.charge(5) == Fidelity(n=FIDELITY_WINDOW, n_differing=0, upper=one_look(0, FIDELITY_WINDOW))


def test_a_band_borrows_from_those_above_it_and_never_from_those_below() -> None:
    fidelity = noted(FinishFidelity(41), 15, ([True] + [False] * 99) * 3)
    assert fidelity.charge(25) is None
    assert fidelity.charge(5) == fidelity.charge(15) == Fidelity(n=300, n_differing=3, upper=one_look(3, 300))


def test_a_window_is_filled_up_with_the_newest_of_the_nearest_band_above() -> None:
    fidelity = noted(FinishFidelity(41, window=100), 35, [True] * 100)
    noted(fidelity, 25, [True] * 10 + [False] * 30)
    noted(fidelity, 15, [False] * 70)
    assert fidelity.charge(15) == Fidelity(n=100, n_differing=0, upper=one_look(0, 100))


def test_borrowed_comparisons_do_not_hide_what_a_bands_own_refute() -> None:
    fidelity = noted(FinishFidelity(41), 35, [False] * FIDELITY_WINDOW)
    noted(fidelity, 25, [True, False] * 20)
    assert upper(fidelity, 25) > 0.3


def test_without_a_comparison_no_level_may_be_certified_and_level_0_costs_nothing() -> None:
    assert FinishFidelity(41).charge(1) is None
    assert FinishFidelity(41).charge(0) is VERBATIM
    assert budget_left(0.02, FinishFidelity(41).charge(40)).max_em_drop == 0


# --------------------------------------------------------------------------- the alarm


def stops_until_noticed(n_good: int, *, seed: int, budget: float = 0.02) -> int:
    """Stops at 5 % after good ones at 0.1 % until the charge is above the budget or the alarm is raised."""
    rng = np.random.default_rng(seed)
    fidelity = noted(FinishFidelity(41), 33, (rng.random(n_good) < 0.001).tolist())
    assert fidelity.alarm is None
    assert upper(fidelity, 33) < budget
    for n, differs in enumerate((rng.random(5_000) < 0.05).tolist(), start=1):
        if fidelity.note(33, differs) or (n % 50 == 0 and upper(fidelity, 33) > budget):
            return n
    pytest.fail("a finish that goes wrong in 5 % of stops was never noticed")


def stops_until_the_pooled_charge_is_used_up(n_good: int, *, budget: float = 0.02) -> int:
    """The same for one bound on everything since the beginning, with the counts that are expected."""
    low, high = 0, n_good
    while high - low > 1:
        n = (low + high) // 2
        bound = bound_fidelity(round(0.001 * n_good + 0.05 * n), n_good + n, confidence=FIDELITY_CONFIDENCE)
        assert bound is not None
        low, high = (low, n) if bound.upper > budget else (n, high)
    return high


@pytest.mark.slow(keep=1)
@pytest.mark.no_cover
@pytest.mark.parametrize(("n_good", "n_seeds", "before"), [(20_000, 40, 9_500), (100_000, 10, 49_600)])
def test_a_finish_that_goes_wrong_is_noticed_however_long_it_was_good(n_good: int, n_seeds: int, before: int) -> None:
    n_noticed = [stops_until_noticed(n_good, seed=seed) for seed in range(n_seeds)]
    assert np.median(n_noticed) <= 150
    assert stops_until_the_pooled_charge_is_used_up(n_good) == pytest.approx(before, rel=0.02)
    assert np.quantile(n_noticed, 0.95) <= before / 20


@pytest.mark.slow(keep=2)
@pytest.mark.no_cover
@pytest.mark.parametrize("reference", [0.0023, 0.0066, 0.015])
def test_at_the_reference_rate_a_false_alarm_comes_once_in_a_hundred_thousand_stops_at_most(reference: float) -> None:
    rng, n_stops, n_alarms = np.random.default_rng(43), 600_000, 0
    band = LevelBand(deque(maxlen=FIDELITY_WINDOW), reference)
    for differs in (rng.random(n_stops) < reference).tolist():
        if band.note(differs):
            n_alarms += 1
            band = LevelBand(deque(maxlen=FIDELITY_WINDOW), reference)
    assert n_alarms <= n_stops / STOPS_TO_FALSE_ALARM


@pytest.mark.no_cover
def test_a_slow_rise_does_not_become_the_new_normal() -> None:
    rng = np.random.default_rng(47)
    fidelity = noted(FinishFidelity(41), 33, (rng.random(5_000) < 0.001).tolist())
    reference = fidelity.bands[3].reference
    noted(fidelity, 33, (rng.random(60_000) < np.linspace(0.001, 0.05, 60_000)).tolist())
    assert fidelity.bands[3].reference == reference
    assert fidelity.alarm is not None


def test_the_alarm_names_the_levels_is_raised_once_and_stays() -> None:
    fidelity = noted(FinishFidelity(41), 5, [False] * FIDELITY_WINDOW)
    noted(fidelity, 35, [False] * FIDELITY_WINDOW)
    before, n_alarms = fidelity.alarm, sum(fidelity.note(35, True) for _ in range(200))
    assert before is None
    assert n_alarms == 1
    noted(fidelity, 35, [False] * FIDELITY_WINDOW)
    assert fidelity.alarm == "the finish of levels 31 to 40 changes more than 0.46% of the answers, its first bound"
    only = noted(noted(FinishFidelity(2), 1, [False] * FIDELITY_WINDOW), 1, [True] * 20)
    assert only.alarm == "the finish of level 1 changes more than 0.46% of the answers, its first bound"


def test_a_finish_that_always_changed_the_answer_raises_no_alarm_but_is_charged() -> None:
    fidelity = noted(FinishFidelity(2), 1, [True] * 3_000)
    assert fidelity.alarm is None
    assert upper(fidelity, 1) == 1


def test_the_same_log_gives_the_same_state_to_the_last_bit_and_another_order_another() -> None:
    rng = np.random.default_rng(53)
    log = list(zip(rng.integers(1, 41, 9_000).tolist(), (rng.random(9_000) < 0.02).tolist(), strict=True))

    def replayed(rows: list[tuple[int, bool]]) -> FinishFidelity:
        fidelity = FinishFidelity(41)
        for level, differs in rows:
            fidelity.note(level, differs)
        return fidelity

    assert replayed(log) == replayed(log)
    assert replayed(log) != replayed(log[::-1])


@pytest.mark.parametrize(
    "bad",
    [
        lambda: FinishFidelity(1),
        lambda: FinishFidelity(41, window=1),
        lambda: FinishFidelity(41).note(0, False),
        lambda: FinishFidelity(41).note(41, False),
        lambda: FinishFidelity(41).charge(41),
        lambda: FinishFidelity(41).charge(-1),
    ],
)
def test_a_level_that_there_is_not_is_refused(bad: object) -> None:
    assert callable(bad)
    with pytest.raises(ValueError, match="got"):
        bad()
