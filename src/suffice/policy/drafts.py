"""The rule on drafts: stop when successive answers say the same in other words.

Knows how far a draft is from the one before and refuses to know how that is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from suffice.policy.columns import SUFFICES, Columns, Stops, answered, known_column, where
from suffice.policy.decisions import go_on, suffices
from suffice.policy.parameters import ParameterChecks, Reference
from suffice.policy.rules import AT_LEAST_ONE, SHARE
from suffice.signals.needs import need
from suffice.types import Decision, Signals


@dataclass(frozen=True, slots=True)
class SemanticDistance(ParameterChecks):
    """Stop once the drafts of a loop have hardly moved for some rounds.

    Semantic early stopping (Shrivastava 2026, arXiv:2606.27009): the distance of successive drafts stays at or
    below epsilon for a patience window. This is its part without a judge; the critic's approval and the
    quality score are not rebuilt, and its hard cap is `guarded`. The abstract gives no numbers: both
    defaults are ours. Words are compared where a step brings no embedding.
    """

    name: ClassVar[str] = "semantic-distance"
    reference: ClassVar[Reference] = Reference(
        stops_when="the drafts of a loop have hardly moved for some rounds",
        source="semantic early stopping, Shrivastava 2026, [arXiv:2606.27009](https://arxiv.org/abs/2606.27009)",
        parameters={
            "epsilon": "largest distance of a draft that stands still",
            "patience": "rounds in a row",
        },
    )
    epsilon: Annotated[float, SHARE] = 0.1  # on the distance of a draft from the one before
    patience: Annotated[int, AT_LEAST_ONE] = 2  # rounds in a row

    @property
    def needs(self) -> tuple[str, ...]:
        return (need("drafts", threshold=self.epsilon),)

    def decide(self, s: Signals) -> Decision:
        if s.answer is None or s.draft_patience is None:
            return go_on("how far the draft has moved is unknown")
        score = float(s.draft_patience)
        if s.draft_patience < self.patience:
            return go_on(f"draft still for {s.draft_patience} of {self.patience} rounds", score)
        return suffices(f"draft within {self.epsilon:g} for {s.draft_patience} rounds", score)

    def stops(self, columns: Columns) -> Stops:
        return where(answered(columns) & (known_column(columns, "draft_patience") >= self.patience), SUFFICES)
