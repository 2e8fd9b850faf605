"""The folds that follow a number from step to step: `closing`, `trend`, `degeneration`, `vote-trend`."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.signals.folds.answers import p_majority
from tests.drawn import examples
from tests.signals.steps import seen, step

PROPERTY = settings(max_examples=examples(60))
UNKNOWN = (None, None)


@PROPERTY
@given(entropies=st.lists(st.floats(0.0, 12.0), min_size=1, max_size=40), alpha=st.floats(0.01, 1.0))
def test_the_entropys_mean_and_variance_are_those_of_eat(entropies: list[float], alpha: float) -> None:
    steps = [step(i, closed_entropy=e) for i, e in enumerate(entropies, 1)]
    rows: list[tuple[object, ...]] = [*seen(f"closing(alpha={alpha})", steps)]
    mean, variance = entropies[0], 0.0
    assert rows[0] == (entropies[0], entropies[0], None)
    for entropy, row in zip(entropies[1:], rows[1:], strict=True):
        mean = alpha * entropy + (1 - alpha) * mean
        variance = alpha * (entropy - mean) ** 2 + (1 - alpha) * variance
        assert row == (entropy, pytest.approx(mean, abs=1e-9), pytest.approx(variance, abs=1e-9))


def test_the_trial_answers_entropy_stands_in_and_an_unknown_step_is_passed_over() -> None:
    steps = [
        step(1, entropy=1.0),
        step(2, answer=None, entropy=5.0),  # of no answer: unknown
        step(3, closed_entropy=3.0, entropy=9.0),
        step(4, closed_entropy=math.nan),
        step(5, closed_entropy=500.0),  # no vocabulary has so many words
        step(6, closed_entropy=2.0),
    ]
    assert seen("closing(alpha=0.5)", steps) == [
        (None, 1.0, None),
        (None, *UNKNOWN),
        (3.0, 2.0, 0.5),
        (None, *UNKNOWN),
        (None, *UNKNOWN),
        (2.0, 2.0, 0.25),
    ]


def test_the_entropys_fall_is_summed_by_hand_and_an_unknown_step_is_passed_over() -> None:
    steps = [
        step(i, answer, entropy=e)
        for i, (answer, e) in enumerate([("a", 2.0), ("a", 0.25), (None, 0.0), ("b", 0.0), ("b", 1.0), ("b", 9.0)], 1)
    ]
    sums = [(0.0,), (0.25,), (None,), (0.75,), (0.25,), (0.0,)]
    assert seen("entropy-change(reference=0.5)", steps) == sums


def test_the_trend_follows_the_known_confidences() -> None:
    steps = [step(i, confidence=c) for i, c in enumerate([0.5, None, 0.75, 0.25], 1)]
    assert seen("trend(alpha=0.5)", steps) == [(0.5, None), UNKNOWN, (0.625, 0.25), (0.4375, -0.5)]


@PROPERTY
@given(
    run=st.lists(st.tuples(st.none() | st.floats(0.0, 1.0), st.integers(0, 500)), min_size=1, max_size=12),
    delta=st.sampled_from([0.0, 0.55, 1.2, 2.0]),
)
def test_degeneration_is_the_published_sum_and_never_falls(run: list[tuple[float | None, int]], delta: float) -> None:
    steps = [step(i, confidence=c, tokens=t) for i, (c, t) in enumerate(run, 1)]
    used, known, highest = 0, list[tuple[float, int]](), 0.0
    for (confidence, tokens), (score,) in zip(run, seen(f"degeneration(delta={delta})", steps), strict=True):
        used += tokens
        if confidence is None:
            assert score is None
            continue
        known.append((confidence, max(1, used)))
        before = [known[0], *known]
        low = [at for at, (c, _) in enumerate(known) if 2 * c - before[at][0] < delta]
        assert score == pytest.approx(sum(1 + math.log(known[-1][1] / known[at][1]) for at in low), abs=1e-9)
        assert isinstance(score, float)
        assert score >= highest - 1e-9
        highest = score


def test_early_doubt_degenerates_more_than_late_doubt_and_a_steady_run_not_at_all() -> None:
    def last(*confidences: float) -> object:
        return seen("degeneration", [step(i, confidence=c, tokens=10) for i, c in enumerate(confidences, 1)])[-1][0]

    assert last(0.1, 0.9, 0.9) == pytest.approx(1 + math.log(3))
    assert last(0.9, 0.9, 0.1) == pytest.approx(1.0)
    assert last(0.6, 0.6, 0.6) == 0.0


def test_the_majoritys_mean_counts_a_lost_sample_with_the_lead_as_it_stands() -> None:
    rows = seen("vote-trend(alpha=0.5)", [step(i, a) for i, a in enumerate([None, "x", "x", None, "y"], 1)])
    first, second = p_majority(1, 0), p_majority(2, 0)
    third = (first + second) / 2
    fourth = (third + second) / 2
    assert [row[0] for row in rows] == [None, first, third, fourth, (fourth + p_majority(2, 1)) / 2]
