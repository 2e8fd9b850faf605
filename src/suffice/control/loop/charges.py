"""Charges to the EM budget of a live route: for answers that finishing a stop changes, and for a judge model's errors.

A stopped run counts at the level at which it was served; an audit's finish at the highest level that would have stopped
that run there or later, once there is a version.
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
from suffice.control.evidence.judging import graded, human_label, pair_grades, parse_grade
from suffice.learn.audits import Floats, Ints
from suffice.types import Feedback, Outcome, Request

MOST_WAITING: Final = 5_000  # finishes of audits whose level is not known yet
MOST_SHARE: Final = 0.5  # of the budget that a judge may cost
_NEVER_FINISHED: Final = 2.0  # charge where nothing was compared: above any budget


@dataclass(slots=True)
class FinishLog:
    """Comparisons of finished answers with recorded ones; `is_needed` where a stop generates an answer."""

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
        """Assign levels to the finishes of audits; for `ends` see `Certifier`."""
        if n_levels != self.fidelity.n_levels:
            self.fidelity = FinishFidelity(n_levels)
        while self._waiting:
            name, step, differs = self._waiting.popleft()
            rows = ends(name)
            if rows is not None:
                later = np.flatnonzero(rows[1:] >= step - 1)
                self._compare(int(later[-1]) + 1 if len(later) else 1, differs)

    def charges(self) -> Floats:
        """Charge for the finish at each level, a fraction of EM, shape (M,); above 1 where nothing was compared."""
        if not self.is_needed:
            return np.zeros(self.fidelity.n_levels)
        charges = [0.0]
        for top in self.fidelity.tops:  # the levels of a band have one charge
            bound = self.fidelity.charge(top)
            charges += [_NEVER_FINISHED if bound is None else bound.upper] * (top + 1 - len(charges))
        return np.array(charges)

    def at(self, level: int) -> Fidelity | None:
        """The bound behind a level's charge; None: nothing was compared."""
        return self.fidelity.charge(min(level, self.fidelity.n_levels - 1)) if self.is_needed else VERBATIM

    def _compare(self, level: int, differs: bool) -> None:
        if self.fidelity.note(min(max(1, level), self.fidelity.n_levels - 1), differs):
            self.alarm = self.fidelity.alarm


def served_level(request: Request) -> int:
    """The level at which a request was served, from its policy version; 1 for a fixed policy."""
    level = request.policy_version.rpartition("@")[2]
    return int(level) if "@" in request.policy_version and level.isdecimal() else 1


@dataclass(slots=True, kw_only=True)
class JudgeCharge:
    """The charge for errors of a route's judge model, measured on the route's own audits at every look.

    The error rate is measured on audits that have a grade and a trusted person's label, the judge's share on audits
    with a label of the judge alone. Both rates are bounded at every look simultaneously
    (`assurance.fidelity.bound_fidelity`), and 2 x one x other is taken off the budget before any test
    (`assurance.labels`). The labels of a judge that was not measured, or that would take more than half of the budget,
    do not count: a difference is then a loss until a person labels it.
    """

    model: str | None
    match: Match
    charge: float = 0.0  # fraction of EM; 0 where the judge's labels do not count
    is_accepted: bool = False
    counts: tuple[int, int, int, int] = (0, 0, 0, 0)  # at the last look: graded, wrong, on the judge alone, audits
    _compared: dict[str, tuple[int, list[bool]]] = field(default_factory=dict)  # by audit: labels, wrong grades

    def look(self, audits: Sequence[Audit], max_em_drop: float, callers: Collection[str]) -> None:
        if self.model is None:
            return
        judged = [audit for audit in audits if any(label.feedback.source == JUDGE for label in audit.labels)]
        self._compared = {audit.id: self._compare(audit, self.model, callers) for audit in judged}
        mistakes = [mistakes for _, mistakes in self._compared.values()]
        wrong = [grade for grades in mistakes for grade in grades]
        counts = len(wrong), sum(wrong), sum(not grades for grades in mistakes), len(audits)
        if counts != self.counts:  # the bounds depend on these alone
            self.counts = counts
            error = bound_fidelity(counts[1], counts[0], confidence=CHARGE_CONFIDENCE)
            share = bound_fidelity(counts[2], counts[3], confidence=CHARGE_CONFIDENCE)
            charge = 1.0 if error is None or share is None else min(1.0, 2 * error.upper * share.upper)
            self.is_accepted = bool(wrong) and charge <= MOST_SHARE * max_em_drop
            self.charge = charge if self.is_accepted else 0.0

    def accepts(self, given: Feedback) -> bool:
        return self.is_accepted and self.model is not None and parse_grade(given, self.model) is not None

    def _compare(self, audit: Audit, model: str, callers: Collection[str]) -> tuple[int, list[bool]]:
        known = self._compared.get(audit.id)
        if known is not None and known[0] == len(audit.labels):
            return known
        trusted = [label for label in audit.labels if rank_of(label.feedback, callers) >= TRUSTED]
        pairs = pair_grades(audit.outcome, human_label(trusted), graded(audit.labels, model), self.match)
        return len(audit.labels), [(grade > 0) != right for grade, right in pairs]
