"""Policies over counts of answers: they work with any model, and test the mode of the answers, not its correctness."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import log, log2
from operator import ge
from typing import Annotated, Any, ClassVar

import numpy as np

from suffice.policy.columns import SUFFICES, Columns, Stops, answered, by_counts, known_column, where
from suffice.policy.parameters import ParameterChecks, ParameterRange
from suffice.policy.protocol import go_on, suffices
from suffice.policy.rules import Condition, Conditions
from suffice.signals.fold import need
from suffice.types import Decision, Signals


@dataclass(frozen=True, slots=True)
class BetaVote(ParameterChecks):
    """Stop when the leading answer very likely keeps its lead: P(p > 1/2) for p ~ Beta(v1 + 1, v2 + 1).

    Adaptive-Consistency (Aggarwal et al. 2023, EMNLP, arXiv:2305.11860); v1 and v2 are the votes of the two most common
    answers. At the published 0.95 the earliest stop is at four equal answers (0.96875), so `min_samples` matters only
    below 0.75, where the published rule would stop at a single sample.
    """

    name: ClassVar[str] = "beta"
    source: ClassVar[str] = (
        "Adaptive-Consistency, Aggarwal et al. 2023, [arXiv:2305.11860](https://arxiv.org/abs/2305.11860)"
    )
    threshold: Annotated[float, ParameterRange(0.5, 1.0, low_open=True)] = 0.95  # above 0.5, at most 1
    min_samples: Annotated[int, ParameterRange(1, 1_000_000)] = 2  # samples that gave an answer, at least 1

    needs: ClassVar[tuple[str, ...]] = ("votes",)

    def decide(self, s: Signals) -> Decision:
        if s.p_majority is None or s.n_votes is None or s.answer is None:
            return go_on("no votes yet")
        if s.n_votes < self.min_samples:
            return go_on(f"{s.n_votes} of at least {self.min_samples} votes are in", s.p_majority)
        votes = f"with {s.top_votes} against {s.second_votes} of {s.n_votes} votes"
        # NaN fails this comparison and continues.
        if s.p_majority >= self.threshold:
            return suffices(f"P(lead holds) {s.p_majority:.4f} >= {self.threshold:g}, {votes}", s.p_majority)
        return go_on(f"P(lead holds) {s.p_majority:.4f} < {self.threshold:g}, {votes}", s.p_majority)

    def stops(self, columns: Columns) -> Stops:
        safe = answered(columns) & (known_column(columns, "p_majority") >= self.threshold)
        return where(safe & (known_column(columns, "n_votes") >= self.min_samples), SUFFICES)


@dataclass(frozen=True, slots=True)
class VoteEntropy(ParameterChecks):
    """Stop when the votes are concentrated: their entropy is at most a share of that of an even vote.

    The entropy variant of Adaptive-Consistency (Aggarwal et al. 2023, arXiv:2305.11860 and its code). While all votes
    agree, the authors count one vote for a second answer. Never stops at the first vote.
    """

    name: ClassVar[str] = "vote-entropy"
    source: ClassVar[str] = (
        "entropy variant of Adaptive-Consistency, [arXiv:2305.11860](https://arxiv.org/abs/2305.11860)"
    )
    threshold: Annotated[float, ParameterRange(0.0, 1.0)] = 0.75  # share, lower is stricter

    needs: ClassVar[tuple[str, ...]] = ("votes", "stability")

    def decide(self, s: Signals) -> Decision:
        if s.answer is None or s.n_votes is None or s.vote_entropy is None or s.n_distinct is None:
            return go_on("no votes yet")
        if s.n_votes < 2 or s.n_distinct < 1:
            return go_on(f"{s.n_votes} of at least 2 votes are in")
        share = _entropy_beside_one(s.n_votes) if s.n_distinct == 1 else s.vote_entropy / log(s.n_distinct)
        if share <= self.threshold:
            return suffices(f"vote entropy {share:.3f} <= {self.threshold:g} of {s.n_votes} votes", share)
        return go_on(f"vote entropy {share:.3f} > {self.threshold:g} of {s.n_votes} votes", share)

    def stops(self, columns: Columns) -> Stops:
        n_votes, n_distinct = known_column(columns, "n_votes"), known_column(columns, "n_distinct")
        entropy = known_column(columns, "vote_entropy")
        counted = answered(columns) & (n_votes >= 2) & (n_distinct >= 1) & ~np.isnan(entropy)
        alone = by_counts(counted & (n_distinct == 1), (n_votes,), _entropy_beside_one)
        even = by_counts(counted & (n_distinct > 1), (n_distinct,), log)
        return where((alone <= self.threshold) | (entropy / even <= self.threshold), SUFFICES)


@dataclass(frozen=True, slots=True)
class VoteShare(ParameterChecks):
    """Stop when the leading answer has a large share of the votes.

    The majority variant of Adaptive-Consistency (Aggarwal et al. 2023, arXiv:2305.11860 and its code).
    """

    name: ClassVar[str] = "vote-share"
    source: ClassVar[str] = (
        "majority variant of Adaptive-Consistency, [arXiv:2305.11860](https://arxiv.org/abs/2305.11860)"
    )
    threshold: Annotated[float, ParameterRange(0.0, 1.0, low_open=True)] = 0.8  # share
    min_samples: Annotated[int, ParameterRange(1, 1_000_000)] = 2  # samples that gave an answer, at least 1

    needs: ClassVar[tuple[str, ...]] = ("votes",)

    def decide(self, s: Signals) -> Decision:
        if s.answer is None or not s.n_votes or s.top_votes is None:
            return go_on("no votes yet")
        share = s.top_votes / s.n_votes
        if s.n_votes < self.min_samples:
            return go_on(f"{s.n_votes} of at least {self.min_samples} votes are in", share)
        if share >= self.threshold:
            return suffices(f"{s.top_votes} of {s.n_votes} votes agree, {self.threshold:g} required", share)
        return go_on(f"{s.top_votes} of {s.n_votes} votes agree, {self.threshold:g} required", share)

    def stops(self, columns: Columns) -> Stops:
        n_votes = known_column(columns, "n_votes")
        counted = answered(columns) & (n_votes >= self.min_samples)
        share = known_column(columns, "top_votes") / np.where(counted, n_votes, np.nan)
        return where(share >= self.threshold, SUFFICES)


@dataclass(frozen=True, slots=True)
class Esc(Conditions):
    """Stop when one whole window of samples gave the same answer.

    ESC (Li et al. 2024, ICLR, arXiv:2401.10480): consecutive windows of 5. The authors' code votes with the unanimous
    window alone and lets "no answer" agree with itself; here the vote of all samples is returned, and a sample without
    an answer breaks the window.
    """

    name: ClassVar[str] = "esc"
    source: ClassVar[str] = "ESC, Li et al. 2024, [arXiv:2401.10480](https://arxiv.org/abs/2401.10480)"
    window: Annotated[int, ParameterRange(1, 1_000_000)] = 5  # samples
    sliding: bool = False  # windows may begin anywhere

    needs: ClassVar[tuple[str, ...]] = ("stability",)

    def conditions(self) -> Iterator[Condition]:
        yield "answer_streak", ge, self.window, "{value:.0f} of {bound:.0f} samples in a row agree"
        if not self.sliding:
            yield "step", _ends_window, self.window, "sample {value:.0f} of windows of {bound:.0f}"


@dataclass(frozen=True, slots=True)
class Momentum(ParameterChecks):
    """Stop when the lead has been safe for a while and is not shrinking.

    The stopping gate of AutoTTS's confidence momentum controller (arXiv:2605.08083): the moving mean of P(lead holds)
    reaches a bar and falls by no more than a slack, with enough samples. One dial in [0, 1] sets all: bar 0.85 + 0.12
    dial, alpha 0.7 - 0.4 dial, slack 0.04 - 0.03 dial, and 2 + 3 dial samples. Here branches are not managed, the fall
    is that of the last sample, not of a window of 2 to 8 rounds, and the mean starts at the first value, not at 0.
    """

    name: ClassVar[str] = "momentum"
    source: ClassVar[str] = "confidence momentum, AutoTTS, [arXiv:2605.08083](https://arxiv.org/abs/2605.08083)"
    dial: Annotated[float, ParameterRange(0.0, 1.0)] = 0.5  # 0 stops early, 1 nearly never

    @property
    def needs(self) -> tuple[str, ...]:
        return ("votes", need("vote-trend", alpha=self._alpha))

    @property
    def _alpha(self) -> float:
        return round(0.7 - 0.4 * self.dial, 4)

    def decide(self, s: Signals) -> Decision:
        if s.answer is None or s.n_votes is None or s.p_majority is None or s.majority_ema is None:
            return go_on("no votes yet")
        score, bar = s.majority_ema, 0.85 + 0.12 * self.dial
        if s.n_votes < round(2 + 3 * self.dial):
            return go_on(f"{s.n_votes} of {round(2 + 3 * self.dial)} votes are in", score)
        if not score >= bar:
            return go_on(f"smoothed P(lead holds) {score:.4f} is below {bar:.3f}", score)
        # The last change of the mean, derived from the newest value.
        change = (s.p_majority - score) * (self._alpha / (1 - self._alpha))
        if change >= 0.03 * self.dial - 0.04:
            return suffices(f"smoothed P(lead holds) {score:.4f} >= {bar:.3f}, change {change:+.4f}", score)
        return go_on(f"smoothed P(lead holds) {score:.4f} is falling by {-change:.4f}", score)

    def stops(self, columns: Columns) -> Stops:
        score = known_column(columns, "majority_ema")
        change = (known_column(columns, "p_majority") - score) * (self._alpha / (1 - self._alpha))
        safe = answered(columns) & (known_column(columns, "n_votes") >= round(2 + 3 * self.dial))
        safe &= (score >= 0.85 + 0.12 * self.dial) & (change >= 0.03 * self.dial - 0.04)
        return where(safe, SUFFICES)


def _entropy_beside_one(n_votes: float) -> float:
    share = n_votes / (n_votes + 1)
    return -share * log2(share) - (1 - share) * log2(1 - share)


def _ends_window(step: Any, window: float) -> Any:
    return step % window == 0
