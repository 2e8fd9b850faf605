"""The integrator keeps its identity whatever happens, and its average while nothing is clipped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.assurance.certify import Counts, certified_level, log_wealth
from suffice.certification.certificate import DROP_PER_DISAGREEMENT, ETA, Integrator, affordable_level
from tests.drawn import examples

MAX_EM_DROP = 0.02


def identity_gap(spent: Integrator, max_em_drop: float = MAX_EM_DROP) -> float:
    """How far the identity of guarantee B is from holding: rounding, and nothing else. A fraction of EM."""
    if spent.n_audits == 0:
        return 0.0
    moved = spent.started - spent.theta + spent.clipped
    return spent.lost / spent.n_audits - max_em_drop - moved / (ETA * spent.n_audits)


N_LEVELS = 41


@given(
    stream=st.lists(st.booleans(), min_size=1, max_size=400),
    first=st.integers(0, 40),
    max_em_drop=st.floats(0.001, 0.2),
)
@settings(max_examples=examples(60))
def test_the_mean_of_any_stream_is_the_budget_and_where_theta_has_gone(
    stream: list[bool], first: int, max_em_drop: float
) -> None:
    spent = Integrator(first)
    for lost in stream:
        spent.add_audit(disagrees=lost, max_em_drop=max_em_drop)
        if lost:
            spent.add_label(z=1)
    n = len(stream)
    assert np.mean(stream) - max_em_drop == pytest.approx((first - spent.theta) / (4 * n), abs=1e-12)
    assert identity_gap(spent, max_em_drop) == pytest.approx(0, abs=1e-12)
    assert (spent.n_audits, spent.n_waiting) == (n, 0)
    assert spent.lost == pytest.approx(sum(stream), abs=1e-9)


@st.composite
def stories(draw: st.DrawFn) -> list[tuple[str, int]]:
    """Audits, labels that land late and in any number, and looks that clip, in any order."""
    events = st.sampled_from(["same", "differs", "label", "look"])
    return draw(st.lists(st.tuples(events, st.integers(-1, 1)), max_size=300))


@given(story=stories(), first=st.integers(0, 40))
@settings(max_examples=examples(60))
def test_the_identity_holds_with_late_labels_and_clipping_too(story: list[tuple[str, int]], first: int) -> None:
    spent, known, certified, affordable = Integrator(first), 0, 5, 20
    for event, z in story:
        if event in {"same", "differs"}:
            spent.add_audit(disagrees=event == "differs", max_em_drop=MAX_EM_DROP)
        elif event == "look":
            spent.clip(certified=certified, affordable=affordable)
            assert certified <= spent.theta <= affordable
            certified, affordable = (affordable - 10, certified + 20) if z else (certified, affordable)
        elif spent.n_waiting:
            spent.add_label(z=z)
            known += z
        assert identity_gap(spent) == pytest.approx(0, abs=1e-12)
    assert spent.lost == pytest.approx(known + 0.45 * spent.n_waiting, abs=1e-9)


@pytest.mark.parametrize("drift", [False, True])
def test_while_nothing_is_clipped_the_mean_keeps_to_the_budget_with_late_labels(drift: bool) -> None:
    rng = np.random.default_rng(17)
    steepness = np.linspace(0, 0.12, N_LEVELS)  # disagreement by level; half of it is a loss
    spent, due = Integrator(0), []
    for i in range(6_000):
        spent.clip(certified=0, affordable=N_LEVELS - 1)
        worse = 3.0 if drift and i >= 3_000 else 1.0
        disagrees = bool(rng.random() < worse * steepness[spent.level])
        spent.add_audit(disagrees=disagrees, max_em_drop=MAX_EM_DROP)
        if disagrees:
            due.append((i + 40, int(rng.random() < 0.5)))
        while due and due[0][0] <= i:
            spent.add_label(z=due.pop(0)[1])
    assert spent.n_waiting == len(due)
    for _, z in due:
        spent.add_label(z=z)
    mean = spent.lost / spent.n_audits
    print(f"drift {drift}: mean drop {mean:.2%} for a budget of 2 %, clipped {spent.clipped:.1f} levels in all")
    assert abs(mean - 0.02) <= (N_LEVELS + 4 + abs(spent.clipped)) / (4 * 6_000) + 1e-12
    assert mean == pytest.approx(0.02, abs=0.002)


def disagreed(*z: int) -> Integrator:
    """An integrator at level 10 after one disagreement, and its label."""
    spent = Integrator(10)
    spent.add_audit(disagrees=True, max_em_drop=MAX_EM_DROP)
    for label in z:
        spent.add_label(z=label)
    return spent


def test_a_disagreement_is_felt_at_once_and_a_harmless_one_is_given_back() -> None:
    felt = disagreed()
    assert felt.theta == pytest.approx(10 + 4 * (0.02 - 0.45))
    assert felt.level == 8, "rounded to the safe side"
    assert (felt.n_audits, felt.n_waiting, felt.lost) == (1, 1, DROP_PER_DISAGREEMENT)
    assert disagreed(0).theta == pytest.approx(10 + 4 * 0.02), "as if it had agreed"
    assert disagreed(1).theta == pytest.approx(10 - 4 * 0.98)
    assert disagreed(-1).theta > disagreed(0).theta


def test_clipping_at_the_certified_level_is_owned_up_to() -> None:
    spent = Integrator(12)
    for _ in range(10):
        spent.add_audit(disagrees=True, max_em_drop=MAX_EM_DROP)
        spent.add_label(z=1)
        spent.clip(certified=12, affordable=20)
    assert spent.level == 12
    assert spent.clipped > 30
    assert spent.lost / spent.n_audits == 1.0, "the mean is far above the budget, and the account says why"
    assert identity_gap(spent) == pytest.approx(0, abs=1e-12)


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
@settings(max_examples=examples(80))
def test_what_is_certified_is_affordable(rows: list[tuple[int, int, int]]) -> None:
    counts = counts_of(rows)
    certified = certified_level(log_wealth(counts, max_em_drop=0.02), delta=0.5)
    assert certified <= affordable_level(counts, max_em_drop=0.02)


def test_the_certified_level_holds_where_the_two_cross() -> None:
    spent = Integrator(30)
    spent.clip(certified=8, affordable=3)
    assert spent.level == 8


def test_a_label_that_nothing_waits_for_is_refused() -> None:
    with pytest.raises(ValueError, match="no disagreement waits"):
        Integrator(0).add_label(z=1)
