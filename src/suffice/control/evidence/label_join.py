"""Which run a label is about, whatever the order in which run and label arrived.

A label names its run by episode or by response id. One that comes before its run waits; a response id that two answers
share names neither. Everything is bounded: what is forgotten joins nothing, and a run without a label counts as one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeVar

from suffice.control.evidence.audits import GivenLabel
from suffice.types import Feedback, Outcome

MOST_RUNS: Final = 50_000  # whose delivered answer is remembered
MOST_WAITING: Final = 10_000  # names that labels wait under

V = TypeVar("V")


@dataclass(slots=True)
class LabelJoin:
    """Delivered answers by episode, episodes by response id, and labels that wait."""

    answers: dict[str, str | None] = field(default_factory=dict)
    stands_for: dict[str, float] = field(default_factory=dict)  # of runs that stand for more than themselves
    _episodes: dict[str, str | None] = field(default_factory=dict)
    _waiting: dict[str, list[GivenLabel]] = field(default_factory=dict)

    def ended(self, outcome: Outcome, stands_for: float = 1.0) -> list[GivenLabel]:
        """Take the end of a run in; what was said about it before."""
        name, response = outcome.episode_id, outcome.response_id
        if stands_for != 1:
            _remember(self.stands_for, name, stands_for, MOST_RUNS)
        _remember(self.answers, name, outcome.answer, MOST_RUNS)
        waiting = self._waiting.pop(name, [])
        if response is not None:
            known = self._episodes.get(response, name)
            _remember(self._episodes, response, name if known == name else None, MOST_RUNS)
            if self._episodes[response] == name:
                waiting += self._waiting.pop(_by_response(response), [])
        return sorted(waiting, key=lambda said: said.seq)

    def said(self, said: GivenLabel) -> str | None:
        """Take a label in: the episode that it is about, which has ended; None: it waits, or names nobody for sure."""
        name = self._name(said.feedback)
        if name is not None and name in self.answers:
            return name
        response = said.feedback.response_id
        under = name or (_by_response(response) if response is not None else "")
        if response is None or response not in self._episodes or name is not None:
            _remember(self._waiting, under, [*self._waiting.get(under, ()), said], MOST_WAITING)
        return None

    def _name(self, given: Feedback) -> str | None:
        if given.episode_id is not None:
            return given.episode_id
        return self._episodes.get(given.response_id) if given.response_id is not None else None


def _by_response(response: str) -> str:
    return f"response {response}"


def _remember(kept: dict[str, V], name: str, value: V, most: int) -> None:
    kept[name] = value
    if len(kept) > most:
        del kept[next(iter(kept))]
