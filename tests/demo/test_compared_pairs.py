"""Paired comparison: counts, signs and intervals."""

from __future__ import annotations

import numpy as np
import pytest

from suffice_demo.replayed_runs import QuestionPair, compare_pairs


def pair(question: str, full: bool, other: bool, tokens: int = 50) -> QuestionPair:
    return QuestionPair(question=question, full_correct=full, correct=other, full_tokens=100, tokens=tokens)


def test_lost_and_gained_are_counted_apart_and_the_change_is_their_difference() -> None:
    """Two lost and one gained in ten: a change of minus ten points."""
    pairs = [pair(str(i), True, True) for i in range(7)]
    pairs += [pair("l1", True, False), pair("l2", True, False), pair("g", False, True)]
    found = compare_pairs(pairs, rng=np.random.default_rng(0))
    assert (found.n_lost, found.n_gained) == (2, 1)
    assert found.em_change == pytest.approx(-0.1)
    assert found.full_em == pytest.approx(0.9)
    assert found.token_reduction == pytest.approx(0.5)
    assert found.em_change_interval is not None
    assert found.em_change_interval.low < -0.1 < found.em_change_interval.high


def test_equal_ways_have_no_change_and_no_doubt() -> None:
    """Where every pair agrees, so does every resample."""
    found = compare_pairs([pair(str(i), i % 2 == 0, i % 2 == 0) for i in range(30)], rng=np.random.default_rng(0))
    assert found.em_change_interval is not None
    assert (found.em_change_interval.low, found.em_change_interval.high) == (0.0, 0.0)


def test_one_question_alone_gives_no_interval() -> None:
    """A single group cannot be resampled; an interval made up would be worse than none."""
    found = compare_pairs([pair("same", True, False)] * 5, rng=np.random.default_rng(0))
    assert found.em_change_interval is None


def test_nothing_cannot_be_compared() -> None:
    """An empty comparison is a mistake of the caller."""
    with pytest.raises(ValueError, match="at least one pair"):
        compare_pairs([], rng=np.random.default_rng(0))
