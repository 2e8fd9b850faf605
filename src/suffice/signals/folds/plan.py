"""Folds `plan` and `query`: what was known before the first token, seen from the step where the run is.

They know the Query that the observer was begun with and refuse to know the question itself.
"""

from __future__ import annotations

from typing import ClassVar

from suffice.signals.fold import Fields, SignalField
from suffice.types import Query, Step


class PlanProgress:
    """The share of the planned steps that is behind us."""

    name = "plan"
    looks_at = "the planned number of steps"
    source = "–"
    fields: ClassVar[Fields] = {
        "step_share": SignalField(
            "steps so far over planned steps: samples asked for, the cap on rounds",
            unknown="no plan",
            high=1.0,
        ),
    }

    def __init__(self) -> None:
        self._planned: int | None = None
        self._index = 0

    def begin(self, query: Query | None) -> None:
        planned = None if query is None else query.planned_steps
        self._planned = planned if planned and planned > 0 else None

    def update(self, step: Step) -> None:
        self._index = step.index

    def values(self) -> dict[str, float | None]:
        if self._planned is None or not self._index:
            return {"step_share": None}
        return {"step_share": min(1.0, self._index / self._planned)}


class AskedQuery:
    """The query as it was given: the same at every step."""

    name = "query"
    looks_at = "what was known before the first token, see below"
    source = "–"
    fields: ClassVar[Fields] = {
        "query": SignalField("the record of the query", unknown="nothing was given"),
    }

    def __init__(self) -> None:
        self._query: Query | None = None

    def begin(self, query: Query | None) -> None:
        self._query = query

    def update(self, step: Step) -> None:
        """Take the next step in: nothing changes."""

    def values(self) -> dict[str, Query | None]:
        return {"query": self._query}
