"""Effects: what they estimate, whatever is guessed; ranges that hold; ratios; audits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.arrays import Floats, Ints
from suffice.assurance.bounds import Interval, exact_binomial
from suffice.rollout.effects import PairCounts, PairPlan, UnitSeries, compare_arms, guesses, latest_comparison, ratio_of
from tests.drawn import examples


def units(
    n: int, seed: int, *, share: Floats | float = 0.5, n_arms: int = 2, high: float = 1.0, e: int = 1
) -> UnitSeries:
    rng = np.random.default_rng(seed)
    odds = np.broadcast_to(np.asarray(share), (e, n))
    arm = (rng.random((e, n)) < odds).astype(np.int64) + (n_arms - 2)
    return UnitSeries(
        value=rng.random((e, n)) * high,
        arm=arm,
        propensity=np.where(arm == n_arms - 1, odds, 1 - odds),
        weight=np.minimum(odds, 1 - odds),
        x=np.concatenate([np.ones((e, n, 1)), rng.normal(size=(e, n, 1))], axis=2),
        n_arms=n_arms,
        warmup=20,
        low=0.0,
        high=high,
    )


def test_every_guess_comes_from_earlier_units_alone() -> None:
    one = units(300, 1)
    report = guesses(one)
    later = one.value.copy()
    later[0, 200:] = 1 - later[0, 200:]
    changed = UnitSeries(**{**{name: getattr(one, name) for name in one.__dataclass_fields__}, "value": later})
    np.testing.assert_array_equal(guesses(changed)[0, :200], report[0, :200])


def test_the_mean_contribution_is_the_effect_whatever_was_guessed() -> None:
    """All 2^2 draws of two units with known values in both arms, weighted by their odds."""
    both = np.array([[0.2, 0.9], [0.7, 0.1]])  # by unit: in arm 0, in arm 1
    share = np.array([0.3, 0.3])
    rng, mean = np.random.default_rng(2), 0.0
    report = rng.random((1, 3, 2))
    for drawn in np.ndindex(2, 2):
        arm = np.array([[0, *drawn]])
        odds = np.where(arm == 1, 0.3, 0.7)
        one = UnitSeries(
            value=np.array([[0.5, both[0, drawn[0]], both[1, drawn[1]]]]),
            arm=arm,
            propensity=odds,
            weight=np.full((1, 3), 0.3),
            x=np.ones((1, 3, 1)),
            n_arms=2,
            warmup=1,
            low=0.0,
            high=1.0,
        )
        mean += float(np.prod(np.where(np.array(drawn) == 1, share, 1 - share))) * float(
            compare_arms(one, report, 1, 0).effect[0, -1]
        )
    assert mean == pytest.approx(float((both[:, 1] - both[:, 0]).mean()))


@given(seed=st.integers(0, 10_000), share=st.floats(0.02, 0.98), high=st.floats(0.1, 9_000))
@settings(max_examples=examples(50))
def test_contributions_stay_in_the_range_that_the_interval_counts_on(seed: int, share: float, high: float) -> None:
    one = units(60, seed, share=share, high=high)
    running = compare_arms(one, guesses(one), 1, 0)
    each = np.diff(running.effect * running.weight, prepend=0.0, axis=1)
    assert (np.abs(each) <= high * (1 + 1e-9)).all()
    assert (np.diff(running.deviation, axis=1) <= 1).all()


def test_many_experiments_at_once_are_each_as_if_alone() -> None:
    together = units(200, 3, e=3)
    fields = ("value", "arm", "propensity", "weight", "x")
    running = compare_arms(together, guesses(together), 1, 0)
    for at in range(3):
        alone = UnitSeries(
            **{name: getattr(together, name)[at : at + 1] for name in fields}, n_arms=2, warmup=20, low=0.0, high=1.0
        )
        of_it = compare_arms(alone, guesses(alone), 1, 0)
        np.testing.assert_allclose(of_it.effect[0], running.effect[at])
        assert of_it.v_opt[0] == running.v_opt[at]


def test_the_other_way_round_is_the_same_with_the_other_sign() -> None:
    one = units(500, 4)
    there, back = (latest_comparison(compare_arms(one, guesses(one), *arms), 480) for arms in ((1, 0), (0, 1)))
    assert there is not None
    assert back is not None
    assert there.effect == pytest.approx(-back.effect)
    a, b = there.between(0.05), back.between(0.05)
    assert (a.low, a.high) == pytest.approx((-b.high, -b.low))


def test_more_units_make_a_narrower_interval_and_none_make_none() -> None:
    one = units(3_000, 5)
    result = latest_comparison(compare_arms(one, guesses(one), 1, 0), 2_980)
    assert result is not None
    widths = [result.between(0.05, times=times) for times in (1.0, 4.0, 16.0)]
    assert widths[0].high - widths[0].low > widths[1].high - widths[1].low > widths[2].high - widths[2].low
    nobody = latest_comparison(compare_arms(one, guesses(one), 1, 0, np.zeros((1, 3_000), dtype=bool)), 1)
    assert nobody is not None
    assert nobody.between(0.05) == Interval(-1.0, 1.0)
    assert latest_comparison(compare_arms(one, guesses(one), 1, 0), 0) is None


# --------------------------------------------------------------------------- audits


def test_audits_prove_a_loss_a_gain_and_nothing() -> None:
    lost = PairCounts(gained=5, same=900, lost=95, pending=0)
    assert lost.between(0.05).low > 0.05
    won = PairCounts(gained=95, same=900, lost=5, pending=0)
    assert won.between(0.05).high < -0.05
    assert (won.between(0.05).low, won.between(0.05).high) == pytest.approx(
        (-lost.between(0.05).high, -lost.between(0.05).low), abs=1e-5
    )
    none = PairCounts(gained=0, same=0, lost=0, pending=0)
    assert none.between(0.05) == Interval(-1.0, 1.0)
    assert np.isnan(none.drop)


def test_a_plan_narrows_the_interval_of_pairs_and_one_without_differences_changes_nothing_for_the_better() -> None:
    pairs, first = PairCounts(gained=60, same=3_880, lost=60), PairCounts(gained=30, same=1_940, lost=30)
    plan = PairPlan.of(first, n_units=40_000, planned=40_000)
    assert (plan.low, plan.high, plan.complete) == (120.0, 120.0, True)
    planned, plain = pairs.between(0.03, plan=plan), pairs.between(0.03)
    assert planned.high - planned.low < 0.8 * (plain.high - plain.low)
    nothing = PairPlan.of(PairCounts(same=2_000), n_units=40_000, planned=40_000)
    unplanned = pairs.between(0.03, plan=nothing)
    assert unplanned.low < plain.low < plain.high < unplanned.high


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.integers(0, 40), st.integers(1, 90_000))
@settings(max_examples=examples(60))
def test_pairs_with_a_plan_that_wait_for_a_label_are_covered_whatever_it_says(
    gained: int, lost: int, pending: int, waits_from_first: int, n_units: int
) -> None:
    pairs = PairCounts(gained=gained, same=1_000, lost=lost, pending=pending)
    first = PairCounts(gained=gained // 2, same=500, lost=lost // 2, pending=min(pending, waits_from_first))
    first = pairs if n_units < 20_000 else first
    waiting = pairs.between(0.05, plan=PairPlan.of(first, n_units=n_units, planned=40_000))
    for decided in ({"lost": 1}, {"gained": 1}, {"same": 1}):
        report = [
            replace(one, pending=0, **{name: getattr(one, name) + one.pending for name in decided})
            for one in (first, pairs)
        ]
        output = report[1].between(0.05, plan=PairPlan.of(report[0], n_units=n_units, planned=40_000))
        assert waiting.low <= output.low + 1e-5
        assert output.high <= waiting.high + 1e-5


def test_intervals_of_pairs_with_a_plan_are_wrong_at_any_look_within_their_error() -> None:
    """500 experiments of each kind, looked at nine times up to one and a half plans; the plan has 100 differences."""
    alpha, n = 0.1, 2_500
    for seed, (lost, gained) in enumerate(((0.04, 0.0), (0.02, 0.02), (0.0, 0.04))):
        rng, missed = np.random.default_rng(seed), 0
        for _ in range(500):
            u = rng.random(3 * n // 2)
            z = (u < lost).astype(int) - (u > 1 - gained)
            looks = [counted(z[:at]) for at in range(n // 2, 3 * n // 2 + 1, n // 8)]
            plan = PairPlan.of(looks[0], n_units=n, planned=n)
            result = [pairs.between(alpha, plan=plan) for pairs in looks]
            missed += any(not one.low <= lost - gained <= one.high for one in result)
        assert exact_binomial(missed, 500, 0.999).low <= alpha


def counted(z: Ints) -> PairCounts:
    return PairCounts(gained=int((z < 0).sum()), same=int((z == 0).sum()), lost=int((z > 0).sum()))


@given(st.integers(0, 60), st.integers(0, 2_000), st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=examples(60))
def test_what_waits_for_a_label_only_widens(gained: int, same: int, lost: int, pending: int) -> None:
    waiting = PairCounts(gained=gained, same=same, lost=lost, pending=pending).between(0.05)
    for as_lost in (0, pending):
        output = PairCounts(gained=gained + pending - as_lost, same=same, lost=lost + as_lost, pending=0).between(0.05)
        assert waiting.low <= output.low + 1e-5
        assert output.high <= waiting.high + 1e-5


# --------------------------------------------------------------------------- ratios


@given(*[st.floats(-2, 2).map(lambda number: round(number, 4))] * 4)
@settings(max_examples=examples(200))
def test_a_ratio_holds_all_ratios_of_its_parts(a: float, b: float, c: float, d: float) -> None:
    part, whole = Interval(*sorted((a, b))), Interval(*sorted((c, d)))
    result = ratio_of(part, whole)
    if result is None:
        assert whole.low <= 0 <= whole.high
        return
    for share in (0.0, 0.3, 1.0):
        top = part.low + share * (part.high - part.low)
        for other in (0.0, 0.6, 1.0):
            under = whole.low + other * (whole.high - whole.low)
            ratio = top / under
            assert result.low - 1e-9 * abs(ratio) <= ratio <= result.high + 1e-9 * abs(ratio)
