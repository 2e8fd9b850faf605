"""Folds `plan` and `query`: what was known before the first token, seen from the step where the run is.

They know the Query that the observer was begun with and refuse to know the question itself.
"""

from __future__ import annotations

from suffice.types import Query, Step


class PlanProgress:
    """The share of the planned steps that is behind us."""

    fields: tuple[str, ...] = ("step_share",)

    def __init__(self) -> None:
        self._planned: int | None = None
        self._index = 0

    def begin(self, query: Query | None) -> None:
        """Learn the plan before the first step; a plan of no steps is none."""
        planned = None if query is None else query.planned_steps
        self._planned = planned if planned and planned > 0 else None

    def update(self, step: Step) -> None:
        """Take the next step in. O(1)."""
        self._index = step.index

    def values(self) -> dict[str, float | None]:
        """The field of Signals that this fold fills; None: no plan, or no step yet. Never above 1."""
        if self._planned is None or not self._index:
            return {"step_share": None}
        return {"step_share": min(1.0, self._index / self._planned)}


class AskedQuery:
    """The query as it was given: the same at every step."""

    fields: tuple[str, ...] = ("query",)

    def __init__(self) -> None:
        self._query: Query | None = None

    def begin(self, query: Query | None) -> None:
        """Learn the query before the first step."""
        self._query = query

    def update(self, step: Step) -> None:
        """Take the next step in: nothing changes."""

    def values(self) -> dict[str, Query | None]:
        """The field of Signals that this fold fills."""
        return {"query": self._query}
