"""Charges to the EM budget: what the finish of a stop changes, and what a judge model gets wrong.

A stop was made at the level that its request was served at. An audit's finish counts for the highest level that would
have stopped that run there or later, which only a version can tell: until there is one, such finishes wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from suffice.assurance.fidelity import VERBATIM, Fidelity, FinishFidelity, bound_fidelity
from suffice.assurance.labels import CHARGE_CONFIDENCE, JUDGE, TRUSTED, rank_of
from suffice.assurance.runs import Match
from suffice.control.evidence.audits import Audit
from suffice.control.evidence.judging import graded, pair_grades, parse_grade, persons_word
from suffice.learn.audits import Floats, Ints
from suffice.types import Feedback, Outcome, Request

MOST_WAITING: Final = 5_000  # finishes of audits whose level nobody knows yet
MOST_SHARE: Final = 0.5  # of the budget that a judge may cost
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
        charges = [0.0]
        for top in self.fidelity.tops:  # the levels of a band are charged alike
            bound = self.fidelity.charge(top)
            charges += [_NEVER_FINISHED if bound is None else bound.upper] * (top + 1 - len(charges))
        return np.array(charges)

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


@dataclass(slots=True, kw_only=True)
class JudgeCharge:
    """What the labels of a route's judge model cost, measured on the route's own audits at every look.

    The judge's error is measured on audits with a grade beside a trusted person's label, or whoever lies about answers
    could lie about the judge; the share that rests on the judge, on audits that have a label of the judge alone. Both
    rates are bounded at every look at once (`assurance.fidelity.bound_fidelity`), and 2 x one x other is taken off the
    budget before anything is tested (`assurance.labels`). A judge that nobody measured, or that would eat more than
    half of the budget, is not heard: a difference then counts as lost until a person says otherwise.
    """

    model: str | None
    match: Match
    charge: float = 0.0  # fraction of EM; 0 where it is not heard
    heard: bool = False
    counts: tuple[int, int, int, int] = (0, 0, 0, 0)  # at the last look: graded, wrong, resting on it alone, audits
    _compared: dict[str, tuple[int, list[bool]]] = field(default_factory=dict)  # by audit: labels then, wrong grades

    def look(self, audits: Sequence[Audit], max_em_drop: float, callers: Collection[str]) -> None:
        """Measure the judge on all audits that count now."""
        if self.model is None:
            return
        here = {audit.id for audit in audits}
        self._compared = {name: compared for name, compared in self._compared.items() if name in here}
        mistakes = [
            self._mistakes(audit, self.model, callers)
            for audit in audits
            if any(label.feedback.source == JUDGE for label in audit.labels)
        ]
        wrong = [grade for grades in mistakes for grade in grades]
        counts = len(wrong), sum(wrong), sum(not grades for grades in mistakes), len(audits)
        if counts != self.counts:  # the bounds are functions of them
            self.counts = counts
            error = bound_fidelity(counts[1], counts[0], confidence=CHARGE_CONFIDENCE)
            share = bound_fidelity(counts[2], counts[3], confidence=CHARGE_CONFIDENCE)
            charge = 1.0 if error is None or share is None else min(1.0, 2 * error.upper * share.upper)
            self.heard = bool(wrong) and charge <= MOST_SHARE * max_em_drop
            self.charge = charge if self.heard else 0.0

    def hears(self, given: Feedback) -> bool:
        return self.heard and self.model is not None and parse_grade(given, self.model) is not None

    def _mistakes(self, audit: Audit, model: str, callers: Collection[str]) -> list[bool]:
        """Was each grade of the audit wrong that stands beside a trusted person's label? [] where there is none."""
        known = self._compared.get(audit.id)
        if known is not None and known[0] == len(audit.labels):
            return known[1]
        trusted = [label for label in audit.labels if rank_of(label.feedback, callers) >= TRUSTED]
        pairs = pair_grades(audit.outcome, persons_word(trusted), graded(audit.labels, model), self.match)
        mistakes = [(grade > 0) != right for grade, right in pairs]
        self._compared[audit.id] = len(audit.labels), mistakes
        return mistakes
