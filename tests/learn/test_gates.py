"""Guard rails: what clients may get does not depend on how much it would save."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from suffice.assurance.certify import Counts
from suffice.learn.arm_values import PriceBounds, estimate_potential, weigh_audits
from suffice.learn.effort import TunedArm
from suffice.learn.tuner import (
    TuningBounds,
    find_arms_within_a_step,
    find_shadow_arms,
    pick_best_arm,
    prove,
    select_eligible_arms,
)

ARMS = tuple(
    TunedArm(name=name, expected_share=share)
    for name, share in (("full", 1.0), ("half", 0.5), ("fifth", 0.2), ("none", 0.02))
)
TUNING = TuningBounds(arms=ARMS, classes=("all",), max_em_drop=0.05, largest_step=0.6)
SHARES = np.array([1.0, 0.5, 0.2, 0.02])
CLEAN, DIRTY = (0, 600, 0), (0, 540, 60)


def counts(*arms: tuple[int, int, int]) -> Counts:
    return Counts(*(np.array(column) for column in zip((0, 0, 0), *arms, strict=True)))


def play(table: Counts, before: tuple[int, ...] = (0,)) -> tuple[int, ...]:
    return select_eligible_arms(prove(table, [0] * 4, TUNING), SHARES, before, TUNING)


def test_an_arm_is_eligible_when_it_is_proved_and_not_before() -> None:
    assert play(counts(CLEAN, DIRTY, CLEAN)) == (0, 1)
    assert play(counts((0, 100, 0), (0, 7, 0), CLEAN)) == (0,), "F38: seven audits are no proof, nor are a hundred"


@given(n=st.integers(0, 100_000))
def test_what_keeps_next_to_nothing_never_leaves_the_shadow(n: int) -> None:
    """F34: whatever its audits say, "stop everything" is in no list."""
    table = counts(CLEAN, CLEAN, (0, n, 0))
    proof = prove(table, [0] * 4, TUNING)
    assert find_shadow_arms(SHARES, TUNING).tolist() == [False, False, False, True]
    assert 3 not in play(table, before=(0, 3))
    assert not find_arms_within_a_step(SHARES, 2, TUNING)[3]
    values = np.array([0.0, 0.1, 0.2, 100.0])
    assert pick_best_arm(proof, values, SHARES, (0, 1, 2, 3), 2, TUNING) == 2


def test_in_at_a_part_of_delta_and_out_at_all_of_it() -> None:
    """Between the two thresholds an arm stays that was in, and does not enter."""
    edge = next(n for n in range(60, 600) if prove(counts((0, n, 0), CLEAN, CLEAN), [0] * 4, TUNING).passes(0.05)[1])
    loose = replace(TUNING, least_audits=1)
    proof = prove(counts((0, edge, 0), CLEAN, CLEAN), [0] * 4, loose)
    assert 1 not in select_eligible_arms(proof, SHARES, (0,), loose)
    assert 1 in select_eligible_arms(proof, SHARES, (0, 1), loose)
    worse = prove(counts((0, edge, 4), CLEAN, CLEAN), [0] * 4, loose)
    assert 1 not in select_eligible_arms(worse, SHARES, (0, 1), loose)


def test_no_step_takes_more_than_the_owner_allows() -> None:
    assert find_arms_within_a_step(SHARES, 0, TUNING).tolist() == [True, True, False, False]
    assert find_arms_within_a_step(SHARES, 1, TUNING).tolist() == [True, True, True, False]


def test_the_best_is_proved_now_worth_the_change_and_else_what_is_in_force() -> None:
    proof = prove(counts(CLEAN, CLEAN, CLEAN), [0] * 4, TUNING)
    unproved = prove(counts(CLEAN, (0, 90, 0), CLEAN), [0] * 4, TUNING)
    values = np.array([0.0, 0.02, 0.05, 9.0])
    assert pick_best_arm(proof, values, SHARES, (0, 1, 2), 1, TUNING) == 2
    assert pick_best_arm(unproved, values, SHARES, (0, 1, 2), 1, TUNING) == 1, "it stays in play, and is not moved to"
    assert pick_best_arm(proof, np.array([0.0, 0.02, 0.0215, 0.0]), SHARES, (0, 1, 2), 1, TUNING) == 1, "not worth it"
    assert pick_best_arm(proof, np.array([0.3, 0.02, 0.05, 0.0]), SHARES, (0, 1, 2), 1, TUNING) == 0, (
        "safer is always open"
    )


# --------------------------------------------------------------------------- promise


def hopes(table: Counts, waiting: list[int], lost: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    proof = prove(table, waiting, TUNING)
    found = estimate_potential(
        table,
        np.zeros(4) if lost is None else lost,
        proof.log_e,
        1 - SHARES,
        waiting,
        price=0.1,
        max_em_drop=0.05,
        delta=TUNING.cell_delta,
    )
    return found.wanted


def test_an_arm_that_lost_too_much_promises_nothing_and_one_underway_asks_for_nothing_more() -> None:
    nothing = (0, 0, 0)
    wanted = hopes(counts(nothing, nothing, nothing), [0] * 4)
    assert wanted[3] > wanted[2] > wanted[1] > wanted[0] == 0, "unknown arms promise what they save"
    assert hopes(counts(nothing, DIRTY, nothing), [0] * 4, np.array([0.0, 0.0, 0.1, 0.0]))[2] == 0
    underway = hopes(counts(nothing, nothing, nothing), [0, 0, 5_000, 0])
    assert underway[2] == 0
    assert underway[1] == 0, "it saves less than the one whose audits are all made"
    assert underway[3] == pytest.approx(wanted[3] - wanted[2])


def test_evidence_pays_with_enough_requests_only() -> None:
    table = counts((0, 0, 0), (0, 0, 0), (0, 0, 0))
    proof = prove(table, [0] * 4, TUNING)
    found = estimate_potential(
        table, np.zeros(4), proof.log_e, 1 - SHARES, [0] * 4, price=0.1, max_em_drop=0.05, delta=TUNING.cell_delta
    )
    assert not found.pays(n_requests=0, audit_cost=0.1 * SHARES)
    assert found.pays(n_requests=50_000, audit_cost=0.1 * SHARES)
    assert sum(weigh_audits(found, 0, pays=True)) == pytest.approx(1)
    assert weigh_audits(found, 0, pays=True)[0] == 0
    assert weigh_audits(found, 2, pays=False)[2] > 0.8 > weigh_audits(found, 2, pays=True)[2] > 0.3


@pytest.mark.parametrize(
    "wrong",
    [
        {"classes": ()},
        {"classes": ("a", "a")},
        {"max_em_drop": 0.0},
        {"confidence": 1.0},
        {"explore_floor": 0.5},
        {"least_kept": 1.0},
        {"largest_step": 0.0},
        {"key_cap": 2.0},
        {"window": 0},
        {"half_life": 0.0},
        {"least_gain": -1.0},
        {"watch_share": 0.5, "burst_share": 0.2},
    ],
)
def test_bounds_without_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        replace(TUNING, **wrong)  # type: ignore[arg-type]


def test_all_certificates_together_keep_the_confidence() -> None:
    tuning = TuningBounds(arms=ARMS, classes=("a", "b"), confidence=0.9, price=PriceBounds())
    assert tuning.cell_delta * len(tuning.classes) * (len(tuning.arms) - 1) == pytest.approx(0.1)
    assert replace(tuning, expected_requests=19_999).lasting_requests == 0
    assert replace(tuning, expected_requests=20_000).lasting_requests == 20_000
