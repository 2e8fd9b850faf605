"""Policies that are conditions on single signals: written once, for one step and for columns of steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from suffice.policy.columns import SUFFICES, Columns, Stops, answered, known_column, where
from suffice.policy.parameters import ParameterChecks
from suffice.policy.protocol import go_on, suffices
from suffice.types import Decision, Signals


class Condition(NamedTuple):
    field: str  # of Signals
    holds: Callable[[Any, float], Any]  # compares a value, or a column, with the bound; false for NaN
    bound: float
    says: str  # with {value} and {bound}, for the operator


class Conditions(ParameterChecks):
    """Base of policies that stop, because the answer suffices, at a step with an answer where all conditions hold.

    An unknown signal holds no condition. The first condition's value is the score.
    """

    __slots__ = ()

    @abstractmethod
    def conditions(self) -> Iterator[Condition]: ...

    def decide(self, s: Signals) -> Decision:
        score, why = None, ""
        for field, holds, bound, says in self.conditions():
            value = getattr(s, field)
            if value is None or s.answer is None:
                return go_on(f"no answer, or {field} is unknown", score)
            text = says.format(value=value, bound=bound)
            score, why = (float(value), text) if score is None else (score, why)
            if not holds(value, bound):
                return go_on(text, score)
        return suffices(why, score or 0.0)

    def stops(self, columns: Columns) -> Stops:
        stop = answered(columns)
        for field, holds, bound, _ in self.conditions():
            stop &= holds(known_column(columns, field), bound)
        return where(stop, SUFFICES)
