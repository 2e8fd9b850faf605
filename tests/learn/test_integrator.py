"""The integrator keeps its identity whatever happens, and its average while nothing is clipped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.assurance.certify import Counts, certified_level, log_wealth
from suffice.learn.budgeting import Integrator, IntegratorState, affordable_level, clip_theta, start_budget

RULE = Integrator(max_em_drop=0.02)


def identity_gap(rule: Integrator, state: IntegratorState) -> float:
    """How far the identity of guarantee B is from holding: rounding, and nothing else. A fraction of EM."""
    if state.n_audits == 0:
        return 0.0
    moved = state.started - state.theta + state.clipped
    return state.lost / state.n_audits - rule.max_em_drop - moved / (rule.eta * state.n_audits)


N_LEVELS = 41


@given(
    stream=st.lists(st.booleans(), min_size=1, max_size=400),
    first=st.integers(0, 40),
    max_em_drop=st.floats(0.001, 0.2),
    guess=st.floats(0, 1),
)
@settings(max_examples=60, derandomize=True, deadline=None)
def test_the_mean_of_any_stream_is_the_budget_and_where_theta_has_gone(
    stream: list[bool], first: int, max_em_drop: float, guess: float
) -> None:
    rule = Integrator(max_em_drop=max_em_drop, eta=4.0, drop_per_disagreement=guess)
    state = start_budget(first)
    for lost in stream:
        state = rule.add_audit(state, disagrees=lost)
        if lost:
            state = rule.add_label(state, z=1)
    n = len(stream)
    assert np.mean(stream) - max_em_drop == pytest.approx((first - state.theta) / (4 * n), abs=1e-12)
    assert identity_gap(rule, state) == pytest.approx(0, abs=1e-12)
    assert (state.n_audits, state.n_waiting) == (n, 0)
    assert state.lost == pytest.approx(sum(stream), abs=1e-9)


@st.composite
def stories(draw: st.DrawFn) -> list[tuple[str, int]]:
    """Audits, labels that land late and in any number, and looks that clip, in any order."""
    events = st.sampled_from(["same", "differs", "label", "look"])
    return draw(st.lists(st.tuples(events, st.integers(-1, 1)), max_size=300))


@given(story=stories(), first=st.integers(0, 40))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_the_identity_holds_with_late_labels_and_clipping_too(story: list[tuple[str, int]], first: int) -> None:
    state, known, certified, affordable = start_budget(first), 0, 5, 20
    for event, z in story:
        if event in {"same", "differs"}:
            state = RULE.add_audit(state, disagrees=event == "differs")
        elif event == "look":
            state = clip_theta(state, certified=certified, affordable=affordable)
            assert certified <= state.theta <= affordable
            certified, affordable = (affordable - 10, certified + 20) if z else (certified, affordable)
        elif state.n_waiting:
            state, known = RULE.add_label(state, z=z), known + z
        assert identity_gap(RULE, state) == pytest.approx(0, abs=1e-12)
    assert state.lost == pytest.approx(known + 0.45 * state.n_waiting, abs=1e-9)


@pytest.mark.parametrize("drift", [False, True])
def test_while_nothing_is_clipped_the_mean_keeps_to_the_budget_with_late_labels(drift: bool) -> None:
    rng = np.random.default_rng(17)
    steepness = np.linspace(0, 0.12, N_LEVELS)  # disagreement by level; half of it is a loss
    state, due = start_budget(0), []
    for i in range(6_000):
        state = clip_theta(state, certified=0, affordable=N_LEVELS - 1)
        worse = 3.0 if drift and i >= 3_000 else 1.0
        disagrees = bool(rng.random() < worse * steepness[state.level])
        state = RULE.add_audit(state, disagrees=disagrees)
        if disagrees:
            due.append((i + 40, int(rng.random() < 0.5)))
        while due and due[0][0] <= i:
            state = RULE.add_label(state, z=due.pop(0)[1])
    assert state.n_waiting == len(due)
    for _, z in due:
        state = RULE.add_label(state, z=z)
    mean = state.lost / state.n_audits
    print(f"drift {drift}: mean drop {mean:.2%} for a budget of 2 %, clipped {state.clipped:.1f} levels in all")
    assert abs(mean - 0.02) <= (N_LEVELS + 4 + abs(state.clipped)) / (4 * 6_000) + 1e-12
    assert mean == pytest.approx(0.02, abs=0.002)


def test_a_disagreement_is_felt_at_once_and_a_harmless_one_is_given_back() -> None:
    felt = RULE.add_audit(start_budget(10), disagrees=True)
    assert felt.theta == pytest.approx(10 + 4 * (0.02 - 0.45))
    assert felt.level == 8, "rounded to the safe side"
    assert RULE.add_label(felt, z=0).theta == pytest.approx(10 + 4 * 0.02), "as if it had agreed"
    assert RULE.add_label(felt, z=1).theta == pytest.approx(10 - 4 * 0.98)
    assert RULE.add_label(felt, z=-1).theta > RULE.add_label(felt, z=0).theta


def test_clipping_at_the_certified_level_is_owned_up_to() -> None:
    state = start_budget(12)
    for _ in range(10):
        state = RULE.add_label(RULE.add_audit(state, disagrees=True), z=1)
        state = clip_theta(state, certified=12, affordable=20)
    assert state.level == 12
    assert state.clipped > 30
    assert state.lost / state.n_audits == 1.0, "the mean is far above the budget, and the state says why"
    assert identity_gap(RULE, state) == pytest.approx(0, abs=1e-12)


# --------------------------------------------------------------------------- the two ends


def counts_of(rows: list[tuple[int, int, int]]) -> Counts:
    gained, same, lost = (np.array(column) for column in zip(*rows, strict=True))
    return Counts(gained, same, lost)


@pytest.mark.parametrize(
    ("rows", "level"),
    [
        ([(0, 100, 0), (0, 99, 1), (0, 98, 2), (0, 97, 3)], 2),
        ([(0, 100, 0), (0, 97, 3), (0, 98, 2), (5, 95, 0)], 0),
        ([(0, 100, 0), (3, 92, 5), (0, 98, 2), (5, 90, 5)], 3),
        ([(0, 0, 0), (0, 0, 0)], 0),
        ([(0, 7, 0)], 0),
    ],
)
def test_affordable_is_the_unbroken_run_of_means_in_the_budget(rows: list[tuple[int, int, int]], level: int) -> None:
    assert affordable_level(counts_of(rows), max_em_drop=0.02) == level


@given(rows=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 2_000), st.integers(0, 30)), min_size=1, max_size=8))
@settings(max_examples=80, derandomize=True, deadline=None)
def test_what_is_certified_is_affordable(rows: list[tuple[int, int, int]]) -> None:
    counts = counts_of(rows)
    certified = certified_level(log_wealth(counts, max_em_drop=0.02), delta=0.5)
    assert certified <= affordable_level(counts, max_em_drop=0.02)


def test_the_certified_level_holds_where_the_two_cross() -> None:
    assert clip_theta(start_budget(30), certified=8, affordable=3).level == 8


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Integrator(max_em_drop=0.0),
        lambda: Integrator(max_em_drop=0.02, eta=0),
        lambda: Integrator(max_em_drop=0.02, drop_per_disagreement=1.1),
        lambda: RULE.add_label(start_budget(0), z=1),
    ],
)
def test_what_has_no_meaning_is_refused(bad: object) -> None:
    assert callable(bad)
    with pytest.raises(ValueError, match=r"need|no disagreement waits"):
        bad()


def test_a_state_can_be_written_down_and_taken_up_again() -> None:
    state = RULE.add_audit(start_budget(3), disagrees=True)
    assert identity_gap(RULE, start_budget(3)) == 0
    assert (
        replace(IntegratorState(theta=3.0, started=3.0), theta=state.theta, n_audits=1, n_waiting=1, lost=0.45) == state
    )
