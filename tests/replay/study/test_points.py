"""Picking a point: never behind a failing rung, honest about its error, and plain tuning shown for what it is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.replay.study.sums import (
    FIELDS,
    MARGIN,
    NONE,
    PolicyPoints,
    QuestionSums,
    at_choice,
    draw_halves,
)
from tests.drawn import examples

TOKENS = 100.0  # of each full run


def sums_of(drop: np.ndarray, saved: np.ndarray, n: np.ndarray | None = None) -> QuestionSums:
    """Questions (G) under policies (C): answers lost minus gained, shape (G, C), and the share of tokens saved."""
    n = np.ones(len(drop)) if n is None else n
    values = np.zeros((*drop.shape, len(FIELDS)))
    values[:, :, FIELDS.index("lost")] = np.maximum(drop, 0)
    values[:, :, FIELDS.index("gained")] = np.maximum(-drop, 0)
    values[:, :, FIELDS.index("tokens")] = TOKENS * n[:, None] * (1 - saved)
    base = np.stack([n, n, TOKENS * n], axis=1)
    return QuestionSums(fold=np.arange(len(drop)) % 5, base=base, values=values)


def looked(drop: list[float], saved: list[float], error: float = 0.0) -> PolicyPoints:
    return PolicyPoints(np.array([drop]), np.full((1, len(drop)), error), np.array([saved]))


def test_a_point_is_the_last_of_an_unbroken_run_of_good_rungs() -> None:
    at = looked([0.0, 0.005, 0.03, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4, 0.5])
    assert at.pick([slice(0, 5)], 0.01, MARGIN).tolist() == [1]
    assert at.pick_plainly(0.01).tolist() == [4]


def test_of_several_ladders_the_one_that_saves_most_is_taken_each_from_its_own_safe_end() -> None:
    at = looked([0.03, 0.0, 0.0, 0.005, 0.02], [0.9, 0.8, 0.3, 0.4, 0.95])
    assert at.pick([slice(0, 2), slice(2, 5)], 0.01, MARGIN).tolist() == [3]


@given(
    drop=st.lists(st.floats(-0.1, 0.1), min_size=1, max_size=12),
    error=st.floats(0, 0.05),
    margin=st.floats(0, 3),
    target=st.floats(0, 0.05),
    cut=st.integers(0, 12),
    seed=st.integers(0, 999),
)
@settings(max_examples=examples(150))
def test_no_rung_behind_a_failing_one_is_ever_picked(
    drop: list[float], error: float, margin: float, target: float, cut: int, seed: int
) -> None:
    saved = np.random.default_rng(seed).random(len(drop)).tolist()
    ladders = [slice(0, min(cut, len(drop))), slice(min(cut, len(drop)), len(drop))]
    (choice,) = looked(drop, saved, error).pick(ladders, target, margin).tolist()
    good = [d + margin * error <= target + 1e-12 for d in drop]
    open_to = [at for rungs in ladders for at in range(rungs.start, rungs.stop) if all(good[rungs.start : at + 1])]
    if choice == NONE:
        assert all(saved[at] <= 0 for at in open_to)
    else:
        assert choice in open_to
        assert saved[choice] == max(saved[at] for at in open_to)


def test_a_rung_that_saves_nothing_is_not_worth_taking() -> None:
    at = looked([0.0, 0.0], [0.0, -0.2])
    assert at.pick([slice(0, 2)], 0.01, MARGIN).tolist() == [NONE]
    assert at.pick_plainly(0.01).tolist() == [NONE]
    assert at_choice(at.saved, np.array([NONE])).tolist() == [0.0]


def test_of_no_rung_at_all_none_is_picked() -> None:
    """Runs may be too short for every setting of a rule."""
    at = PolicyPoints(*(np.zeros((3, 0)) for _ in range(3)))
    assert at.pick([slice(0, 0)], 0.01, MARGIN).tolist() == [NONE] * 3
    assert at.pick_plainly(0.01).tolist() == [NONE] * 3
    assert at_choice(at.saved, np.full(3, NONE)).tolist() == [0.0] * 3


def test_what_is_seen_by_hand() -> None:
    """Two questions of one and three runs; two answers lost in the second."""
    sums = sums_of(np.array([[0.0], [2.0]]), np.array([[0.5], [0.25]]), np.array([1.0, 3.0]))
    at = sums.measure(np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 2.0]]))
    assert at.drop[:, 0].tolist() == pytest.approx([0.5, 0.0, 2 / 3])
    assert at.saved[:, 0].tolist() == pytest.approx([1 - (50 + 225) / 400, 0.5, 0.25])
    assert (sums.of("lost").sum(axis=0) / sums.n.sum()).tolist() == [0.5]


def test_the_error_of_a_drop_is_the_spread_of_what_other_questions_would_have_shown() -> None:
    """Clustered by question: against 2,000 sets of questions drawn anew, with unequal numbers of runs."""
    rng = np.random.default_rng(0)
    n_questions = 80

    def drawn() -> QuestionSums:
        n = rng.integers(1, 9, n_questions).astype(np.float64)
        lost = np.where(rng.random(n_questions) < 0.3, np.round(n * rng.random(n_questions)), 0.0)
        return sums_of(lost[:, None], np.full((n_questions, 1), 0.5), n)

    ones = np.ones((1, n_questions))
    looks = [drawn().measure(ones) for _ in range(2_000)]
    drops, errors = np.array([x.drop[0, 0] for x in looks]), np.array([x.error[0, 0] for x in looks])
    assert np.sqrt((errors**2).mean()) == pytest.approx(drops.std(), rel=0.06)


def test_where_nothing_was_lost_the_error_is_not_nothing() -> None:
    at = sums_of(np.zeros((50, 1)), np.full((50, 1), 0.5)).measure(np.ones((1, 50)))
    assert at.drop[0, 0] == 0
    assert at.error[0, 0] == pytest.approx(np.sqrt(50 / 49) / 50)


def test_plain_tuning_misses_more_often_than_the_margin_where_every_rung_is_worthless() -> None:
    """A null family: 40 rungs that save more and more and all lose 1.2 points, with a target of 1 point."""
    rng = np.random.default_rng(4)
    lost = (rng.random((400, 40)) < 0.012).astype(np.float64)
    sums = sums_of(lost, np.tile(np.linspace(0.2, 0.8, 40), (400, 1)))
    ladder = [slice(0, 40)]
    plain = sums.miss_share(ladder, 0.01, np.random.default_rng(1), margin=None)
    careful = sums.miss_share(ladder, 0.01, np.random.default_rng(1), margin=MARGIN)
    assert plain > 0.35
    assert careful < plain / 2


def test_halvings_split_questions_in_two_and_follow_from_the_seed() -> None:
    taken = draw_halves(31, 20, np.random.default_rng(0))
    assert set(taken.ravel().tolist()) == {0.0, 1.0}
    assert (taken.sum(axis=1) == 15).all()
    assert (taken == draw_halves(31, 20, np.random.default_rng(0))).all()
    assert len({tuple(row) for row in taken}) == 20


def test_intervals_cover_the_truth_of_the_questions_that_were_drawn() -> None:
    """95 % intervals over 300 sets of 60 questions with 4 runs each, all four alike: 90 % at the least."""
    rng = np.random.default_rng(7)
    inside_drop = inside_saved = 0
    for _ in range(300):
        lost = 4.0 * (rng.random((60, 1)) < 0.1) - 4.0 * (rng.random((60, 1)) < 0.05)
        saved = rng.beta(2, 2, (60, 1))
        (drop,), (reduction,) = sums_of(lost, saved, np.full(60, 4.0)).bootstrap(300, rng)
        inside_drop += drop.low <= 0.05 <= drop.high
        inside_saved += reduction.low <= 0.5 <= reduction.high
    assert 0.90 <= inside_drop / 300 <= 0.99
    assert 0.90 <= inside_saved / 300 <= 0.99


def test_an_interval_by_rows_would_be_too_short() -> None:
    """Forty runs of each question that all go the same way are one observation, not forty."""
    rng = np.random.default_rng(1)
    lost = 40.0 * (rng.random((25, 1)) < 0.2)
    (drop,), _ = sums_of(lost, np.full((25, 1), 0.5), np.full(25, 40.0)).bootstrap(1_000, rng)
    assert drop.high - drop.low > 0.2  # by rows it would be 0.05
