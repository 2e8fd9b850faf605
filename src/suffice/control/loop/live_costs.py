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
from suffice.assurance.runs import ENDED, FINISHED_ENDS
from suffice.assurance.saving import spent_tokens
from suffice.learn.costs import LiveCost, stop_cost, thought_costs
from suffice.types import Outcome, Request

LEAST_AUDITS: Final = 20  # before anything is said of costs
ENOUGH_AUDITS: Final = 50  # to say that no stop can pay
KEPT: Final = 0.995  # of the sums when a run is added
PRIOR_STOPS: Final = 5.0  # stops that cost what audits say
BETS: Final = np.array((0.25, 0.5, 1.0))  # on a run that costs more than the mean full run
FALSE_ALARM: Final = 2_000.0  # runs, if live runs cost exactly as much as full runs
REST: Final = 3_000  # requests before acting is tried again, four times as many each time


@dataclass(slots=True)
class LiveCosts:
    max_em_drop: float
    _full: Floats = field(default_factory=lambda: np.zeros(4))  # full runs; their tokens, answers and overhead
    _best: Floats = field(default_factory=lambda: np.zeros(2))  # full runs, and the most that a stop can save of them
    _stops: Floats = field(default_factory=lambda: np.zeros(2))  # live stops, and tokens above what audits say
    _live: Floats = field(default_factory=lambda: np.zeros(2))  # live runs, and their tokens
    _wealth: Floats = field(default_factory=lambda: np.zeros(len(BETS)))
    _until: float = 0.0  # request until which nothing acts
    _n_alarms: int = 0
    _reason: str = ""

    def add_audit(self, outcome: Outcome) -> None:
        usage = outcome.usage
        if usage is None or outcome.end_reason not in FINISHED_ENDS or not usage.completion_tokens:
            return
        answer, overhead = usage.completion_tokens - usage.reasoning_tokens, outcome.overhead
        spent = overhead.probe_tokens + overhead.discarded_tokens
        self._full = KEPT * self._full + (1.0, usage.completion_tokens, max(0, answer), spent)
        if len(outcome.steps) > 1:
            costs, full = thought_costs(outcome), float(usage.completion_tokens)
            agrees = np.array([step.answer == outcome.answer for step in outcome.steps])
            agrees[-1] = True
            best = max(full - float(costs[agrees].min()), self.max_em_drop * (full - float(costs.min())))
            self._best = KEPT * self._best + (1.0, best)

    def add_live(self, request: Request, outcome: Outcome, *, at: float) -> None:
        """Add a run that a policy could stop, the request `at`."""
        if request.kind != "reasoning" or outcome.usage is None or outcome.end_reason not in ENDED:
            return
        if self._full[0] < 1 or outcome.end_reason == "asked":
            return
        spent, full = spent_tokens(outcome.usage, outcome.overhead), float(self._full[1] / self._full[0])
        expected = stop_cost(outcome, float(self._full[2] / self._full[0])) if outcome.stopped else None
        if expected is not None:
            self._stops = KEPT * self._stops + (1.0, spent - expected)
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
            audit_overhead=float(self._full[3] / self._full[1]) if self._full[1] else 0.0,
            objection=self._objection(now),
        )

    def _objection(self, now: float) -> str:
        if now < self._until:
            return self._reason
        if self._best[0] >= ENOUGH_AUDITS * KEPT**ENOUGH_AUDITS and self._best[1] <= 0:
            return "probes and hand-overs cost more than any stop can save"
        return ""
