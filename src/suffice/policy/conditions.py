"""Policies that are conditions on single signals: written once, for one step and for columns of steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from suffice.policy.columns import SUFFICES, Columns, Stops, answered, known_column, where
from suffice.policy.parameters import ParameterChecks
from suffice.policy.protocol import go_on, suffices
from suffice.types import Decision, Signals

# A field of Signals; what compares its value, or a column, with the bound (false for NaN); the bound; and a sentence
# for the operator, with {value} and {bound}.
Condition: TypeAlias = tuple[str, Callable[[Any, float], Any], float, str]


class Conditions(ParameterChecks):
    """Base of policies that stop, because the answer suffices, at a step with an answer where all conditions hold.

    An unknown signal holds no condition. The first condition's value is the score.
    """

    __slots__ = ()

    @abstractmethod
    def conditions(self) -> Iterator[Condition]: ...

    def decide(self, s: Signals) -> Decision:
        if s.answer is None:
            return go_on("no answer yet")
        first, score = "", None
        for field, holds, bound, says in self.conditions():
            value = getattr(s, field)
            if value is None:
                return go_on(f"unknown: {field}", score)
            if not holds(value, bound):
                return go_on(says.format(value=value, bound=bound), float(value) if score is None else score)
            if score is None:
                first, score = says.format(value=value, bound=bound), float(value)
        return suffices(first, score or 0.0)

    def stops(self, columns: Columns) -> Stops:
        stop = answered(columns)
        for field, holds, bound, _ in self.conditions():
            stop &= holds(known_column(columns, field), bound)
        return where(stop, SUFFICES)
