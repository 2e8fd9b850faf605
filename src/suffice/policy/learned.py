"""A policy that stops where a learned model predicts too little gain from continuing, by the current step alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from suffice.errors import ConfigError
from suffice.model.artefact import MOST_RISK, StopModel
from suffice.policy.columns import CONTINUE, HOPELESS, SUFFICES, Columns, Mask, Stops, answered, queries_of
from suffice.policy.parameters import ParameterChecks, ParameterRange
from suffice.policy.protocol import go_on, hopeless, suffices
from suffice.policy.rules import STEPS
from suffice.signals.features import Classes, FeatureSet
from suffice.types import Decision, Query, Signals

# Live, a score is summed number by number, in replay column by column, so the last digits may differ. Thresholds are
# often observed risks; a small tolerance makes both stop at the same step.
_SLACK: Final = 1e-9
_ALMOST_0: Final = 1e-12


class Risks(NamedTuple):
    risk: NDArray[np.float64]  # risk of stopping over the cost of a step; NaN: never stop
    code: Stops  # SUFFICES or HOPELESS: the reason of a stop


@dataclass(frozen=True)  # without slots: the instance caches its compiled features
class LearnedPolicy(ParameterChecks):
    """Stop when a learned model's risk of stopping, relative to the cost of a step, is small enough.

    If the model expects the full run to fail more likely than not, a stop is *hopeless* and needs no answer;
    `on_hopeless = "continue"` disables such stops. The model handles some unknown signals itself; if all of the run's
    signals that it reads are unknown, continue.
    """

    name: ClassVar[str] = "learned"
    source: ClassVar[str] = "[models](models.md)"
    needs_note: ClassVar[str] = "what its model reads"
    model: StopModel  # in settings files the path of its file, else written as a table, see [models](models.md)
    threshold: Annotated[float, ParameterRange(0.0, MOST_RISK)] = 0.02  # largest risk that stops, 0 to 1,000
    on_hopeless: Literal["continue", "stop"] = "continue"  # or `stop`, for runs that will more likely fail than not
    min_steps: Annotated[int, STEPS] = 0  # no stop before this step

    def __post_init__(self) -> None:
        ParameterChecks.__post_init__(self)
        if not self._features.needs:
            raise ConfigError(
                "policy.learned.model.features: got none that reads the run; at least one, beside steps and tokens"
            )
        self._learned_classes  # noqa: B018 - invalid rules must fail here

    @property
    def needs(self) -> tuple[str, ...]:
        needs = self._features.needs
        return (*needs, "query") if self.model.classes and "query" not in needs else needs

    def decide(self, s: Signals) -> Decision:
        if s.step < self.min_steps:
            return go_on(f"step {s.step}, no stop before step {self.min_steps}")
        model = self.model
        if s.answer is None and (model.hopeless is None or self.on_hopeless == "continue"):
            return go_on("there is no answer yet")
        row = self._features.row(s)
        p = model.suffices.score(row)
        risk = (1.0 - p) / model.cost.of(s.tokens_used / max(1, s.step))
        threshold = self._threshold_of(s.query) if model.classes else self.threshold
        if not risk <= threshold * (1.0 + _SLACK) + _ALMOST_0:  # NaN never stops
            return go_on(f"risk {risk:.4g} is above {threshold:g}", risk)
        if not self._features.informed(s):
            return go_on("nothing that the model reads of the run is known")
        lost = model.hopeless is not None and model.hopeless.score(row) >= 0.5
        if lost and self.on_hopeless == "stop":
            return hopeless(f"risk {risk:.4g} <= {threshold:g}; the full run more likely fails than not", risk)
        if lost or s.answer is None:
            return go_on("the full run more likely fails" if lost else "there is no answer yet", risk)
        score = "P(as good as the full run)" if model.trained.target != "value" else "value of stopping, as P,"
        return suffices(f"risk {risk:.4g} <= {threshold:g}, {score} {p:.4f}", risk)

    def stops(self, columns: Columns) -> Stops:
        risks, (queries, run) = self.risks(columns), queries_of(columns)
        threshold = np.array([self._threshold_of(query) for query in queries], dtype=np.float64)[run]
        passed = (risks.risk <= threshold * (1.0 + _SLACK) + _ALMOST_0) & (columns["step"] >= self.min_steps)
        return np.where(passed, risks.code, np.int8(CONTINUE))

    def risks(self, columns: Columns) -> Risks:
        queries, run = queries_of(columns)
        table = self._features.table(columns, queries, run)
        per_step = columns["tokens_used"] / np.maximum(1.0, columns["step"])
        risk = (1.0 - self.model.suffices.scores(table)) / self.model.cost.of_many(per_step)
        lost: Mask = np.zeros(len(risk), np.bool_)
        if self.model.hopeless is not None:
            lost = self.model.hopeless.scores(table) >= 0.5
        stoppable = np.where(lost, self.on_hopeless == "stop", answered(columns))
        stoppable &= self._features.informed_rows(columns, queries, run)
        codes = np.where(lost, np.int8(HOPELESS), np.int8(SUFFICES))
        return Risks(np.where(stoppable, risk, np.nan), codes)

    @cached_property
    def _features(self) -> FeatureSet:
        return FeatureSet(self.model.features, where="policy.learned.model.features")

    @cached_property
    def _learned_classes(self) -> Classes | None:
        try:
            return Classes(self.model.class_rules) if self.model.class_rules else None
        except ConfigError as error:
            raise ConfigError(f"policy.learned.model.class_rules: {error}") from None

    @cached_property
    def _thresholds(self) -> dict[str, float]:
        return dict(self.model.classes)

    def _threshold_of(self, query: Query | None) -> float:
        if query is None:
            return self.threshold
        name = query.query_class if self._learned_classes is None else self._learned_classes.of(query)
        return self._thresholds.get(name, self.threshold)
