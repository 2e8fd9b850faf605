"""Rules that read nothing but counts of answers: they work with any model behind any API.

They know the vote and refuse to know tokens, probabilities and text. They speak about the mode of
the answers, not about its truth; what that costs in EM is measured elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from suffice.policy.columns import SUFFICES, Columns, Stops, answered, known, where
from suffice.policy.decisions import go_on, suffices
from suffice.policy.parameters import Checked, Range
from suffice.types import Decision, Signals


@dataclass(frozen=True, slots=True)
class BetaVote(Checked):
    """Stop sampling once the leading answer would very likely keep its lead over the runner-up.

    Adaptive-Consistency (Aggarwal et al. 2023, EMNLP, arXiv:2305.11860): P(p > 1/2) >= threshold with
    p ~ Beta(v1 + 1, v2 + 1), v1 and v2 the votes of the two most common answers. At the published
    0.95 the earliest stop is at four equal answers (0.96875), so `min_samples` matters only below
    0.75, where the published rule would stop at a single sample.
    """

    name: ClassVar[str] = "beta"
    threshold: Annotated[float, Range(0.5, 1.0, low_open=True)] = 0.95  # on Signals.p_majority
    min_samples: Annotated[int, Range(1, 1_000_000)] = 2                # that gave an answer

    @property
    def needs(self) -> tuple[str, ...]:
        """`votes`."""
        return ("votes",)

    def decide(self, s: Signals) -> Decision:
        """Stop at the first sample after which the lead is safe enough."""
        if s.p_majority is None or s.n_votes is None or s.answer is None:
            return go_on("nobody has voted yet")
        if s.n_votes < self.min_samples:
            return go_on(f"{s.n_votes} of at least {self.min_samples} votes are in", s.p_majority)
        votes = f"with {s.top_votes} against {s.second_votes} of {s.n_votes} votes"
        # Asked this way round, a probability that is not a number continues.
        if s.p_majority >= self.threshold:
            return suffices(f"P(lead holds) {s.p_majority:.4f} >= {self.threshold:g}, {votes}", s.p_majority)
        return go_on(f"P(lead holds) {s.p_majority:.4f} < {self.threshold:g}, {votes}", s.p_majority)

    def stops(self, columns: Columns) -> Stops:
        """Stop where the lead is safe enough."""
        safe = answered(columns) & (known(columns, "p_majority") >= self.threshold)
        return where(safe & (known(columns, "n_votes") >= self.min_samples), SUFFICES)
