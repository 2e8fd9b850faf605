"""What the finish of a stop changes, at the level of each comparison.

    stop at a level: delivered beside trial answer  ─┐
    audit with a finish behind one of its steps     ─┴─▶ FinishLog ──▶ FinishFidelity ──▶ charge, alarm

A stop was made at the level that its request was served at. An audit's finish stands for the highest level that would
have stopped that run there or later, which only a version can tell: until there is one, such finishes wait. Knows
records of the log; refuses to know budgets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from suffice.assurance.fidelity import VERBATIM, Fidelity, FinishFidelity
from suffice.learn.audits import Floats, Ints
from suffice.types import Outcome, Request

MOST_WAITING: Final = 5_000  # finishes of audits whose level nobody knows yet
_NEVER_FINISHED: Final = 2.0  # charge of what was never compared: above any budget


@dataclass(slots=True)
class FinishLog:
    """The comparisons of one epoch.

    is_needed  does the route write an answer behind a stop? Votes and rounds return a recorded one, word for word
    """

    is_needed: bool
    fidelity: FinishFidelity = field(default_factory=lambda: FinishFidelity(2))
    _waiting: deque[tuple[str, int, bool]] = field(default_factory=lambda: deque(maxlen=MOST_WAITING))
    alarm: str | None = None

    def note(self, request: Request, outcome: Outcome) -> None:
        """Take in the comparison that a run brings, if it brings one."""
        if not self.is_needed:
            return
        if outcome.stopped and outcome.stop_step is not None and outcome.end_reason in ("stopped", "done"):
            self._compare(served_level(request), outcome.answer != outcome.would_answer)
        trial = next((step for step in outcome.steps if step.index == outcome.finish_step), None)
        if trial is not None:
            self._waiting.append((outcome.episode_id, trial.index, outcome.finish_answer != trial.answer))

    def look(self, n_levels: int, ends: Callable[[str], Ints | None]) -> None:
        """Give the finishes of audits their levels.

        n_levels  of the version that is judged
        ends      the checkpoint, from 0, at which each level ends an audit, shape (M,); None: the audit is gone
        """
        if n_levels != self.fidelity.n_levels:
            self.fidelity = FinishFidelity(n_levels)
        while self._waiting:
            name, step, differs = self._waiting.popleft()
            rows = ends(name)
            if rows is not None:
                later = np.flatnonzero(rows[1:] >= step - 1)
                self._compare(int(later[-1]) + 1 if len(later) else 1, differs)

    def charges(self) -> Floats:
        """Part of the budget that the finish takes at each level, shape (M,); above 1 where nothing was compared."""
        if not self.is_needed:
            return np.zeros(self.fidelity.n_levels)
        found = [0.0]
        for top in self.fidelity.tops:  # the levels of a band are charged alike
            bound = self.fidelity.charge(top)
            found += [_NEVER_FINISHED if bound is None else bound.upper] * (top + 1 - len(found))
        return np.array(found)

    def at(self, level: int) -> Fidelity | None:
        """The bound that a level is charged with; None: nothing was compared."""
        return self.fidelity.charge(min(level, self.fidelity.n_levels - 1)) if self.is_needed else VERBATIM

    def _compare(self, level: int, differs: bool) -> None:
        if self.fidelity.note(min(max(1, level), self.fidelity.n_levels - 1), differs):
            self.alarm = self.fidelity.alarm


def served_level(request: Request) -> int:
    """The level that a request was served at, as its policy version says; 1 for a policy that its owner wrote."""
    level = request.policy_version.rpartition("@")[2]
    return int(level) if "@" in request.policy_version and level.isdecimal() else 1
