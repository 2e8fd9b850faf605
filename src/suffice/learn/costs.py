"""What a live run would cost if it were stopped after each of its steps, from a run in full: net, in tokens.

A live run pays its probes up to the stop. While a probe is answered the original goes on, and so it does while the
second call opens; a stop that comes after the end of the thought saves nothing. A run that is not stopped pays the
probes that it begins before its end; those that an audit makes up for afterwards it does not send.

How long a second call takes to open, an audit does not show. As long as a probe took at that place, is assumed before
the first live stop; later, live stops correct it (`control.loop.live_costs`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from suffice.arrays import Floats, Ints
from suffice.learn.audits import AuditRuns
from suffice.types import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveCost:
    """What live runs say of costs, beside audits."""

    stop_excess: float = 0.0  # tokens that a live stop costs above what audits say
    audit_overhead: float = 0.0  # tokens of an audit's probes and second calls, a fraction of the full run
    objection: str = ""  # why nothing may act, because it costs more than it saves; "": it may

    def saved(self, runs: AuditRuns, rows: Ints, which: Ints) -> Floats:
        """Tokens that each level would save of the selected runs if they were live, shape (M,); level 0 probes nothing.

        rows  where each level ends each run, shape (N, M)
        """
        ends = rows[which]
        spent = runs.cost[ends] + self.stop_excess * (ends < runs.last[which, np.newaxis])
        saved = np.asarray((runs.full[which, np.newaxis] - spent).sum(axis=0))
        saved[:1] = 0.0
        return saved

    def paying_level(self, runs: AuditRuns, rows: Ints, which: Ints) -> int:
        """The last of these levels; where it costs more than it saves, the one that saves most, or 0."""
        saved = self.saved(runs, rows, which)
        if self.objection:
            return 0
        return len(saved) - 1 if saved[-1] >= 0 else int(np.argmax(saved))

    def of_all(self, saved: float, full: float, audit_share: float) -> float | None:
        """The saving of all requests, audits among them, from that of the others; None: of no request."""
        saving = saved / full if full else None
        return None if saving is None else saving - audit_share * (saving + self.audit_overhead)


NO_LIVE_COST: Final = LiveCost()
LEAST_STOPS: Final = 20  # for a ratio of what they cut off


def remaining_ratio(runs: AuditRuns, which: Ints, ends: Ints) -> float | None:
    """What the stops at these rows cut off of the selected runs, over what runs that came as far have left on average.

    A rule picks its runs: those that it stops may be the short ones. None: too few stops.
    """
    full, stopped = runs.full[which], ends < runs.last[which]
    if stopped.sum() < LEAST_STOPS:
        return None
    used = runs.per_step[ends] * (ends - runs.starts[which] + 1)
    lengths = np.sort(full)
    longer = np.searchsorted(lengths, used[stopped], side="right").clip(max=len(lengths) - 1)
    mean_longer = np.cumsum(lengths[::-1])[::-1][longer] / (len(lengths) - longer)
    expected = float((mean_longer - used[stopped]).sum())
    return float((full - used)[stopped].sum()) / expected if expected > 0 else None


def thought_costs(outcome: Outcome) -> Floats:
    """Shape (steps,): tokens in all if the thought were stopped after each step; the last one ends by itself."""
    steps, usage = outcome.steps, outcome.usage
    at = np.cumsum([step.tokens for step in steps], dtype=np.float64)
    late = np.array([(step.late_tokens or 0) for step in steps], dtype=np.float64)
    probes = np.array([step.probe_tokens for step in steps], dtype=np.float64)
    alone = float(at[-1]) if usage is None else float(usage.completion_tokens)
    thought = alone if usage is None else min(alone, max(float(at[-1]), usage.reasoning_tokens))  # some report 0
    decided = np.minimum(at + late, alone)
    is_begun = np.maximum(at, np.concatenate([[0.0], decided[:-1]])) < alone
    in_full = alone + float(probes[is_begun].sum())
    dropped = decided + late
    stopped = dropped + alone - thought + np.cumsum(probes)
    costs = np.where(dropped < thought, stopped, in_full)
    costs[-1] = in_full
    return np.asarray(costs)


def stop_cost(outcome: Outcome, answer_tokens: float) -> float | None:
    """The same of a live run that was stopped, with the usual length of an answer; None: its step is unknown."""
    upto = [step for step in outcome.steps if outcome.stop_step is not None and step.index <= outcome.stop_step]
    if not upto:
        return None
    return sum(step.tokens + step.probe_tokens for step in upto) + 2 * (upto[-1].late_tokens or 0) + answer_tokens
