"""Two ways of answering the same questions, compared pair by pair. Pure.

A paired comparison is what makes a small question set say anything: most questions are answered
alike by both ways and cancel out. Intervals resample whole questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from suffice.assurance.bounds import Interval, bootstrap_interval

N_DRAWS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionPair:
    """One question answered in full and in another way."""

    question: str
    full_correct: bool
    correct: bool
    full_tokens: int
    tokens: int  # everything spent on the other way, probes included


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayComparison:
    """What the other way costs and saves. Fractions; intervals are None when they cannot be made."""

    n: int
    full_em: float
    em: float
    n_lost: int  # right in full, wrong otherwise
    n_gained: int  # wrong in full, right otherwise
    em_change: float  # em - full_em: negative is a drop
    em_change_interval: Interval | None
    full_tokens: float  # mean a question
    tokens: float
    token_reduction: float  # 1 - tokens / full_tokens
    token_reduction_interval: Interval | None


def compare_pairs(
    pairs: Sequence[QuestionPair], *, rng: np.random.Generator, confidence: float = 0.95
) -> ReplayComparison:
    """Compare pair by pair. Raises ValueError without pairs."""
    if not pairs:
        raise ValueError("compare: needs at least one pair")
    values = np.array([[1.0, p.full_correct, p.correct, p.full_tokens, p.tokens] for p in pairs], dtype=np.float64)
    groups = [p.question for p in pairs]
    sums = values.sum(axis=0)

    def interval(statistic: Callable[[NDArray[np.float64]], float]) -> Interval | None:
        return bootstrap_interval(values, groups, statistic, confidence, N_DRAWS, rng)

    return ReplayComparison(
        n=len(pairs),
        full_em=float(sums[1] / sums[0]),
        em=float(sums[2] / sums[0]),
        n_lost=sum(p.full_correct and not p.correct for p in pairs),
        n_gained=sum(p.correct and not p.full_correct for p in pairs),
        em_change=_em_change(sums),
        em_change_interval=interval(_em_change),
        full_tokens=float(sums[3] / sums[0]),
        tokens=float(sums[4] / sums[0]),
        token_reduction=_reduction(sums),
        token_reduction_interval=interval(_reduction),
    )


def _em_change(sums: NDArray[np.float64]) -> float:
    return float((sums[2] - sums[1]) / sums[0])


def _reduction(sums: NDArray[np.float64]) -> float:
    return float(1 - sums[4] / sums[3]) if sums[3] else float("nan")
