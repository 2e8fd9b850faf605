"""What live runs would cost at each level, net, in tokens, by what each would if stopped (`assurance.thoughts`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

import numpy as np

from suffice.arrays import Floats, Ints
from suffice.assurance.saving import spent_tokens
from suffice.assurance.thoughts import read_thought
from suffice.learn.audits import AuditRuns
from suffice.types import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveCost:
    """What live runs say of costs, beside audits."""

    stop_excess: float = 0.0  # tokens that a live stop costs above what audits say
    audit_overhead: float = 0.0  # tokens of an audit's probes and second calls, a fraction of the full run
    objection: str = ""  # why nothing may act, because it costs more than it saves; "": it may

    def saved(self, runs: AuditRuns, rows: Ints, which: Ints) -> Floats:
        """Tokens that each level would save of each selected run if it were live, (n, M); level 0 probes nothing.

        rows  where each level ends each run, shape (N, M)
        """
        ends = rows[which]
        spent = runs.cost[ends] + self.stop_excess * (ends < runs.last[which, np.newaxis])
        saved = np.asarray(runs.full[which, np.newaxis] - spent)
        saved[:, :1] = 0.0
        return saved

    def paying_level(self, runs: AuditRuns, rows: Ints, which: Ints, audit_share: float) -> int:
        """The last of these levels; where it costs more than it saves, the one that saves most, or 0."""
        if self.objection:
            return 0
        saved = self.saved(runs, rows, which).sum(axis=0)
        net = saved - audit_share * (saved + self.audit_overhead * runs.full[which].sum())
        net[0] = 0.0
        return len(net) - 1 if net[-1] >= 0 else int(np.argmax(net))

    def of_all(self, saved: float, full: float, audit_share: float) -> float | None:
        """The saving of all requests, audits among them, from that of the others; None: of no request."""
        saving = saved / full if full else None
        return None if saving is None else saving - audit_share * (saving + self.audit_overhead)


NO_LIVE_COST: Final = LiveCost()
PRIOR_STOPS: Final = 5.0  # that cost what audits say
LEAST_STOPS: Final = 20  # for a ratio of what they cut off


def remaining_ratio(runs: Sequence[Outcome], stops: Ints) -> float | None:
    """What stops cut off of full runs, over what those that thought as far as the cut have left on average.

    A rule picks its runs: those that it stops may be the short ones. None: too few stops.

    stops  index of the step after which each run is stopped, shape (N,); -1: it is not
    """
    thoughts = [read_thought(run) for run in runs]
    length, full = np.array([(run.thought, run.alone) for run in thoughts]).reshape(-1, 2).T
    cut = np.array([inf if stop < 0 else run.dropped[stop] for run, stop in zip(thoughts, stops, strict=True)])
    stopped, order = cut < length, np.argsort(length)
    if stopped.sum() < LEAST_STOPS:
        return None
    longer = np.searchsorted(length[order], cut[stopped], side="right")
    mean_longer = np.cumsum(full[order][::-1])[::-1][longer] / (len(full) - longer)
    return float((full - cut)[stopped].sum() / (mean_longer - cut[stopped]).sum())


def stop_excess(outcome: Outcome, answer_tokens: float) -> float | None:
    """Tokens that a live stop cost above what audits say; None: none, or its step is unknown."""
    expected = stop_cost(outcome, answer_tokens)
    if expected is None or outcome.usage is None:
        return None
    excess = spent_tokens(outcome.usage, outcome.overhead) - expected
    return excess if outcome.stopped else max(0.0, excess)  # one that came too late costs what it does in audits


def stop_cost(outcome: Outcome, answer_tokens: float) -> float | None:
    """The same of a live run that was to be stopped, with the usual length of an answer; None: its step is unknown."""
    upto = [step for step in outcome.steps if outcome.stop_step is not None and step.index <= outcome.stop_step]
    if not upto:
        return None
    return sum(step.tokens + step.probe_tokens for step in upto) + 2 * (upto[-1].late_tokens or 0) + answer_tokens
