"""The certificate by counts: its published values, its order of levels, and what no order of audits may change."""

from __future__ import annotations

from math import ceil, log
from time import perf_counter
from typing import Final

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from suffice.assurance.certify import (
    BETS,
    Counts,
    audits_to_certify,
    certified_level,
    count_outcomes,
    log_wealth,
    missing_audits,
    smallest_proved_drop,
    spent_delta,
    weighted_log_wealth,
)
from suffice.assurance.clusters import missing_clustered_audits, own_clusters
from tests.drawn import examples

LIMIT: Final = log(20)
outcomes = arrays(np.int8, st.tuples(st.integers(0, 60), st.just(4)), elements=st.integers(-1, 1))
n_audits = st.integers(0, 3_000)
budgets = st.floats(0.002, 0.3)


def counts_of(gained: int, same: int, lost: int) -> Counts:
    return Counts(np.array([gained]), np.array([same]), np.array([lost]))


def wealth(gained: int, same: int, lost: int, max_em_drop: float = 0.02) -> float:
    return float(log_wealth(counts_of(gained, same, lost), max_em_drop=max_em_drop)[0])


def equal(a: Counts, b: Counts) -> bool:
    return all(np.array_equal(x, y) for x, y in ((a.gained, b.gained), (a.same, b.same), (a.lost, b.lost)))


# --------------------------------------------------------------------------- the wealth


@pytest.mark.parametrize(
    ("gained", "same", "lost", "log_e"),
    [
        (0, 150, 0, 1.890788),
        (0, 300, 0, 4.120310),
        (5, 485, 5, 3.078734),
        (0, 598, 2, 5.585509),
        (3, 990, 7, 6.282488),
        (10, 980, 10, 6.631661),
    ],
)
def test_the_wealth_has_its_published_values(gained: int, same: int, lost: int, log_e: float) -> None:
    assert wealth(gained, same, lost) == pytest.approx(log_e, abs=5e-7)


@pytest.mark.parametrize(("max_em_drop", "n", "unmixed"), [(0.02, 227, 149), (0.01, 456, 299), (0.05, 89, 59)])
def test_so_many_audits_without_a_loss_are_enough(max_em_drop: float, n: int, unmixed: int) -> None:
    # The reference prints 457 for 1 %; by its own formula the wealth after 456 is 20.04.
    assert wealth(0, n - 1, 0, max_em_drop) < LIMIT <= wealth(0, n, 0, max_em_drop)
    assert n == audits_to_certify(0.0, max_em_drop=max_em_drop, delta=0.05)
    assert ceil(LIMIT / -log(1 - max_em_drop)) == unmixed < n, "no bet of this kind needs fewer"


@given(gained=n_audits, same=n_audits, lost=n_audits, max_em_drop=budgets)
@settings(max_examples=examples(80))
def test_the_wealth_is_the_mean_of_what_each_bet_makes_audit_by_audit(
    gained: int, same: int, lost: int, max_em_drop: float
) -> None:
    z = np.repeat([-1.0, 0.0, 1.0], [gained, same, lost])
    each = [float(np.log1p(share / (1 - max_em_drop) * (max_em_drop - z)).sum()) for share in BETS]
    assert wealth(gained, same, lost, max_em_drop) == pytest.approx(np.logaddexp.reduce(each) - log(4), abs=1e-7)


@given(gained=n_audits, same=n_audits, lost=n_audits, max_em_drop=budgets)
@settings(max_examples=examples(80))
def test_a_loss_lowers_the_wealth_and_everything_else_raises_it(
    gained: int, same: int, lost: int, max_em_drop: float
) -> None:
    before = wealth(gained, same, lost, max_em_drop)
    assert wealth(gained, same, lost + 1, max_em_drop) < before
    assert before < wealth(gained, same + 1, lost, max_em_drop) < wealth(gained + 1, same, lost, max_em_drop)
    assert before <= wealth(gained, same, lost, max_em_drop * 1.1), "a larger budget is easier"
    if lost - gained >= max_em_drop * (gained + same + lost):
        assert before <= 1e-9, "what looks as bad as the budget, or worse, is never a proof"


@given(same=st.integers(1, 3_000), lost=st.integers(0, 40), max_em_drop=budgets)
@settings(max_examples=examples(80))
def test_no_bet_makes_more_than_the_best_one_in_hindsight(same: int, lost: int, max_em_drop: float) -> None:
    n = same + lost
    rate = lost / n
    assume(rate < max_em_drop)
    divergence = (1 - rate) * log((1 - rate) / (1 - max_em_drop)) + (rate * log(rate / max_em_drop) if lost else 0.0)
    assert wealth(0, same, lost, max_em_drop) <= n * divergence + 1e-9


# --------------------------------------------------------------------------- counts


@given(z=outcomes, split=st.integers(0, 60), seed=st.integers(0, 1_000))
@settings(max_examples=examples(60))
def test_counts_merge_by_addition_and_no_order_changes_a_bit(z: NDArray[np.int8], split: int, seed: int) -> None:
    whole, first, second = count_outcomes(z), count_outcomes(z[:split]), count_outcomes(z[split:])
    shuffled = np.random.default_rng(seed).permutation(z)
    assert equal(first + second, whole)
    assert equal(second + first, count_outcomes(shuffled))
    assert np.array_equal(
        log_wealth(second + first, max_em_drop=0.02), log_wealth(count_outcomes(shuffled), max_em_drop=0.02)
    ), "to the last bit"
    assert (whole.n == len(z)).all()


def test_the_drop_of_nothing_is_not_a_number_and_passes_nothing() -> None:
    nothing = count_outcomes(np.zeros((0, 3), dtype=np.int8))
    assert np.isnan(nothing.drop).all()
    assert certified_level(log_wealth(nothing, max_em_drop=0.02), delta=0.05) == 0
    assert count_outcomes(np.array([[1, 0], [0, -1], [0, -1], [0, 0]], dtype=np.int8)).drop.tolist() == [0.25, -0.5]


# --------------------------------------------------------------------------- audits drawn at different shares


@given(z=outcomes, max_em_drop=budgets)
@settings(max_examples=examples(60))
def test_where_all_shares_are_alike_weights_change_nothing(z: NDArray[np.int8], max_em_drop: float) -> None:
    weighted = weighted_log_wealth(z, np.ones(len(z)), max_em_drop=max_em_drop)
    assert weighted == pytest.approx(log_wealth(count_outcomes(z), max_em_drop=max_em_drop), abs=1e-9)


@given(z=outcomes, seed=st.integers(0, 1_000), max_em_drop=budgets)
@settings(max_examples=examples(60))
def test_the_weighted_wealth_is_the_product_over_audits_in_whatever_order(
    z: NDArray[np.int8], seed: int, max_em_drop: float
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.choice([1.0, 0.5, 0.05, 0.0371], len(z))
    result = weighted_log_wealth(z, weight, max_em_drop=max_em_drop)
    nu = np.array(BETS)[:, np.newaxis, np.newaxis] / (1 - max_em_drop)
    each = np.log1p(nu * weight[:, np.newaxis] * (max_em_drop - z)).sum(axis=1)
    assert result == pytest.approx(np.logaddexp.reduce(each, axis=0) - log(4), abs=1e-9)
    order = rng.permutation(len(z))
    assert np.array_equal(weighted_log_wealth(z[order], weight[order], max_em_drop=max_em_drop), result)


@given(p=st.lists(st.floats(0, 1), min_size=3, max_size=3), weight=st.floats(0.01, 1.0), max_em_drop=budgets)
@settings(max_examples=examples(100))
def test_an_audit_that_loses_the_budget_on_average_makes_nothing_on_average_at_any_weight(
    p: list[float], weight: float, max_em_drop: float
) -> None:
    """The condition of a supermartingale, for chances of an audit's three outcomes whose drop is at least eps."""
    gained, lost = p[0] * (1 - max_em_drop) / 2, max_em_drop + p[1] * (1 - max_em_drop) / 2
    lost = max(lost, gained + max_em_drop)
    assume(gained + lost <= 1)
    outcome = np.array([[-1, 0, 1]], dtype=np.int8)
    made = np.exp(weighted_log_wealth(outcome, np.array([weight]), max_em_drop=max_em_drop))
    assert float(made @ [gained, 1 - gained - lost, lost]) <= 1 + 1e-12


def test_each_level_has_its_own_budget_and_one_that_has_none_left_never_passes() -> None:
    z, weight = np.zeros((600, 4), dtype=np.int8), np.ones(600)
    result = weighted_log_wealth(z, weight, max_em_drop=np.array([0.02, 0.01, 0.0, -0.5]))
    alone = [float(weighted_log_wealth(z[:, :1], weight, max_em_drop=one)[0]) for one in (0.02, 0.01)]
    assert result.tolist() == [*alone, -np.inf, -np.inf]
    assert certified_level(result, delta=0.05) == 1
    assert certified_level(weighted_log_wealth(z, weight, max_em_drop=0.0), delta=0.05) == 0
    assert weighted_log_wealth(z[:0], weight[:0], max_em_drop=0.02).tolist() == [0.0] * 4, "nothing proves nothing"


# --------------------------------------------------------------------------- the level


@given(log_es=st.lists(st.floats(-50, 50), min_size=1, max_size=41), delta=st.floats(0.001, 0.5))
@settings(max_examples=examples(100))
def test_levels_pass_in_order_from_the_safe_end(log_es: list[float], delta: float) -> None:
    level = certified_level(np.array(log_es), delta=delta)
    assert all(log_e >= log(1 / delta) for log_e in log_es[1 : level + 1])
    assert level == len(log_es) - 1 or log_es[level + 1] < log(1 / delta)
    assert certified_level(np.array([-9.0, *log_es[1:]]), delta=delta) == level, "level 0 needs no proof"


def test_the_rule_is_the_fixed_sequence_test_of_p_values() -> None:
    p = np.array([0.001, 0.01, 0.04, 0.06, 0.001])
    assert certified_level(np.append(0.0, -np.log(p)), delta=0.05) == 3, "the first three, and not the last again"


def test_what_is_not_a_number_has_not_passed_and_a_grid_of_nothing_is_level_0() -> None:
    assert certified_level(np.array([0.0, 9.0, np.nan, 9.0]), delta=0.05) == 1
    assert certified_level(np.array([0.0]), delta=0.05) == certified_level(np.array([]), delta=0.05) == 0


def test_versions_that_spend_delta_share_all_of_it() -> None:
    spent = [spent_delta(0.05, version) for version in range(1, 20_001)]
    assert spent == sorted(spent, reverse=True)
    assert 0.04999 < sum(spent) < 0.05


# --------------------------------------------------------------------------- what is printed


def proved_drop(gained: int, same: int, lost: int) -> float | None:
    return smallest_proved_drop(counts_of(gained, same, lost), delta=0.05)


@given(gained=st.integers(0, 50), same=st.integers(0, 3_000), lost=st.integers(0, 50))
@settings(max_examples=examples(40))
def test_the_smallest_proved_drop_is_where_the_certificate_begins_to_pass(gained: int, same: int, lost: int) -> None:
    proved = proved_drop(gained, same, lost)
    if proved is None:
        assert wealth(gained, same, lost, 0.999) < LIMIT
        return
    assert wealth(gained, same, lost, proved) >= LIMIT
    assert proved < 2e-6 or wealth(gained, same, lost, proved - 2e-6) < LIMIT
    assert proved > (lost - gained) / (gained + same + lost), "a bound lies above what was seen"


def test_nothing_is_proved_by_too_little() -> None:
    assert proved_drop(0, 0, 0) is None
    assert proved_drop(0, 0, 20) is None


@pytest.mark.parametrize(
    ("max_em_drop", "published"),
    [
        (0.005, (915, 1_795, 4_993, 25_469)),
        (0.01, (457, 887, 2_487, 12_669)),
        (0.02, (227, 442, 1_226, 6_290)),
        (0.05, (89, 172, 482, 2_437)),
    ],
)
def test_the_number_of_audits_follows_the_published_law(max_em_drop: float, published: tuple[int, ...]) -> None:
    drops = [0.0, max_em_drop / 4, max_em_drop / 2, max_em_drop * 3 / 4]
    needed = [audits_to_certify(drop, max_em_drop=max_em_drop, delta=0.05) for drop in drops]
    assert needed == pytest.approx(published, rel=0.01)


def test_gains_beside_losses_make_the_same_drop_dearer() -> None:
    plain = audits_to_certify(0.01, max_em_drop=0.02, delta=0.05)
    mixed = audits_to_certify(0.01, max_em_drop=0.02, delta=0.05, gained=0.02)
    assert mixed > 2 * plain
    assert audits_to_certify(-0.01, max_em_drop=0.02, delta=0.05, gained=0.01) < 227, "a stop that only gains"


@pytest.mark.parametrize(
    "bad",
    [
        lambda: wealth(0, 1, 0, 0.0),
        lambda: wealth(0, 1, 0, 1.0),
        lambda: certified_level(np.zeros(3), delta=0.0),
        lambda: certified_level(np.zeros(3), delta=1.1),
        lambda: spent_delta(0.05, 0),
        lambda: audits_to_certify(0.02, max_em_drop=0.02, delta=0.05),
        lambda: audits_to_certify(-0.1, max_em_drop=0.02, delta=0.05),
        lambda: audits_to_certify(0.0, max_em_drop=0.02, delta=0.05, gained=-0.1),
        lambda: audits_to_certify(0.0, max_em_drop=0.02, delta=0.05, gained=0.6),
    ],
)
def test_what_has_no_meaning_is_refused(bad: object) -> None:
    assert callable(bad)
    with pytest.raises(ValueError, match=r"got|no number of audits"):
        bad()


@pytest.mark.no_cover
def test_recertifying_a_full_window_takes_well_under_5_ms() -> None:
    z = (np.random.default_rng(0).random((800, 41)) < 0.02).astype(np.int8)
    took = []
    for _ in range(20):
        began = perf_counter()
        certified_level(log_wealth(count_outcomes(z), max_em_drop=0.02), delta=0.05)
        took.append(perf_counter() - began)
    print(f"800 audits at 41 levels: {min(took) * 1e3:.2f} ms")
    assert min(took) < 0.005


# --------------------------------------------------------------------------- the audits that are missing


def outcomes_of(n: int, lost: tuple[int, ...]) -> NDArray[np.int8]:
    """Z of n audits at levels that lose so many of them."""
    return (np.arange(n)[:, np.newaxis] < np.array(lost)).astype(np.int8)


def test_the_missing_audits_are_those_after_which_the_same_proportions_pass() -> None:
    missing = missing_audits(outcomes_of(300, (0, 0, 2, 30)), 2, max_em_drop=0.02, delta=0.05)
    assert missing is not None

    def passes(n: int) -> bool:
        lost = round(2 * n / 300)
        return wealth(0, n - lost, lost) >= LIMIT

    assert passes(300 + missing + 5)
    assert not passes(300 + missing - 100)


def test_a_level_out_of_reach_misses_no_number_of_audits() -> None:
    reached = outcomes_of(700, (0, 0, 9))
    assert missing_audits(reached, 2, max_em_drop=0.02, delta=0.05) is not None
    single = reached, np.ones(700), own_clusters(700)
    assert missing_clustered_audits(*single, 2, max_em_drop=0.02, delta=0.05) is not None
    beyond = missing_clustered_audits(*single, 2, max_em_drop=0.02, delta=0.05, most=800)
    assert beyond is None, "the window holds 800"
    assert missing_audits(outcomes_of(700, (0, 0, 20)), 2, max_em_drop=0.02, delta=0.05) is None, "too near"
    assert missing_audits(reached, 3, max_em_drop=0.02, delta=0.05) is None, "there is no such level"
    assert missing_audits(reached[:0], 2, max_em_drop=0.02, delta=0.05) is None, "nothing is known"
