"""Whether acting pays on a route of thoughts: what live runs cost against full runs, in tokens, from rows of the log.

Audits say what a stop would save if it acted as `learn.costs` assumes. Live stops correct that. Whatever the
reason, a route whose live runs cost more than full runs stops acting: a bet on every live run against the mean full run
grows until it is beyond doubt (the detector of Shiryaev and Roberts, with bets of three sizes).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from suffice.arrays import Floats
from suffice.assurance.runs import ENDED
from suffice.assurance.saving import spent_tokens
from suffice.assurance.thoughts import KEPT, SavingTrial, read_thought
from suffice.learn.costs import PRIOR_STOPS, LiveCost, stop_excess
from suffice.types import Outcome, Request

BETS: Final = np.array((0.25, 0.5, 1.0))  # on a run that costs more than the mean full run
FALSE_ALARM: Final = 2_000.0  # runs, if live runs cost exactly as much as full runs
REST: Final = 3_000  # requests before acting is tried again, four times as many each time


@dataclass(slots=True)
class LiveCosts:
    _trial: SavingTrial = field(default_factory=SavingTrial)
    _full: Floats = field(default_factory=lambda: np.zeros(3))  # full runs; their tokens and answers
    _stops: Floats = field(default_factory=lambda: np.zeros(2))  # stops of live runs, and tokens above what audits say
    _live: Floats = field(default_factory=lambda: np.zeros(2))  # live runs, and their tokens
    _wealth: Floats = field(default_factory=lambda: np.zeros(len(BETS)))
    _until: float = 0.0  # request until which nothing acts
    _n_alarms: int = 0
    _reason: str = ""

    def add_audit(self, outcome: Outcome) -> None:
        usage = outcome.usage
        if usage is None or not outcome.is_finished or not usage.completion_tokens:
            return
        run = read_thought(outcome)
        self._full = KEPT * self._full + (1.0, run.alone, run.alone - run.thought)
        self._trial.add(outcome)

    def add_live(self, request: Request, outcome: Outcome, *, at: float) -> None:
        """Add a run that a policy could stop, the request `at`."""
        if request.kind != "reasoning" or outcome.usage is None or outcome.end_reason not in ENDED:
            return
        if self._full[0] < 1 or outcome.end_reason == "asked":
            return
        spent, full = spent_tokens(outcome.usage, outcome.overhead), float(self._full[1] / self._full[0])
        excess = stop_excess(outcome, float(self._full[2] / self._full[0]))
        if excess is not None:
            self._stops = KEPT * self._stops + (1.0, excess)
        self._live = KEPT * self._live + (1.0, spent)
        self._wealth = np.minimum((self._wealth + 1) * (1 + BETS * float(np.clip(spent / full - 1, -0.99, 1))), 1e12)
        if self._wealth.mean() >= FALSE_ALARM and at >= self._until:
            more = float(self._live[1] / self._live[0]) / full - 1
            self._reason = f"live runs cost {max(0.0, more):.0%} more tokens than full runs"
            self._until, self._n_alarms = at + REST * 4.0**self._n_alarms, self._n_alarms + 1
            self._wealth = np.zeros(len(BETS))

    def at(self, now: float) -> LiveCost:
        """What they say at request `now`."""
        return LiveCost(
            stop_excess=float(self._stops[1] / (self._stops[0] + PRIOR_STOPS)),
            audit_overhead=self._trial.overhead,
            objection=self._objection(now),
        )

    def _objection(self, now: float) -> str:
        if now < self._until:
            return self._reason
        if self._trial.fails and not self._live[0]:  # what live runs cost, they show themselves
            return "stops save too little to pay for probes and hand-overs"
        return ""
