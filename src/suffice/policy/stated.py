"""What the model says of itself: verbalised confidence as a stopping rule.

Knows the number that a model was asked to write beside its answer, and refuses to believe it alone: models
trained on human feedback call nearly everything certain, so the answer must also have stood.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from suffice.policy.columns import SUFFICES, Columns, Stops, answered, known_column, where
from suffice.policy.decisions import go_on, suffices
from suffice.policy.parameters import ParameterChecks, Reference
from suffice.policy.rules import AT_LEAST_ONE, SHARE_ABOVE_0
from suffice.types import Decision, Signals


@dataclass(frozen=True, slots=True)
class StatedConfidence(ParameterChecks):
    """Stop once the model says that it is sure and its answer has not moved.

    Verbalised confidence (Lin, Hilton, Evans 2022, arXiv:2205.14334). TASR (arXiv:2606.13814) found 96.5 % of
    such ratings at the highest value and warns against using them alone; hence the patience of 2.
    """

    name: ClassVar[str] = "stated-confidence"
    reference: ClassVar[Reference] = Reference(
        stops_when="the model says that it is sure of its answer, and the answer has stood",
        needs="`said`; also `stability` with `patience` above 1",
        source=(
            "verbalised confidence, Lin et al. 2022, "
            "[arXiv:2205.14334](https://arxiv.org/abs/2205.14334); why not alone: TASR, "
            "[arXiv:2606.13814](https://arxiv.org/abs/2606.13814)"
        ),
        parameters={
            "threshold": "above 0, at most 1",
            "patience": "steps in a row with the same answer, at least 1",
        },
    )
    threshold: Annotated[float, SHARE_ABOVE_0] = 0.9  # on Signals.stated_confidence
    patience: Annotated[int, AT_LEAST_ONE] = 2  # steps in a row that must agree

    @property
    def needs(self) -> tuple[str, ...]:
        return ("said", "stability") if self.patience > 1 else ("said",)

    def decide(self, s: Signals) -> Decision:
        said = s.stated_confidence
        if said is None or s.answer is None:
            return go_on("no answer with a stated confidence")
        # Asked this way round, a number that is none continues.
        if not said >= self.threshold:
            return go_on(f"stated confidence {said:.3f} is below {self.threshold:g}", said)
        if self.patience > 1 and s.answer_streak is None:
            return go_on("the answer streak is unknown", said)
        if self.patience > 1 and s.answer_streak is not None and s.answer_streak < self.patience:
            return go_on(f"same answer for {s.answer_streak} of {self.patience} steps", said)
        return suffices(f"stated confidence {said:.3f} reached {self.threshold:g}", said)

    def stops(self, columns: Columns) -> Stops:
        sure = answered(columns) & (known_column(columns, "stated_confidence") >= self.threshold)
        if self.patience > 1:
            sure &= known_column(columns, "answer_streak") >= self.patience
        return where(sure, SUFFICES)
