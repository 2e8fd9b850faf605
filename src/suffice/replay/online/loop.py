"""One stream from cold start to end: each request is audited by lot or stopped at the level in force."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from suffice.learn.audits import Bools, Floats, Ints, Small
from suffice.learn.keeper import Change, Keeper, Plan
from suffice.learn.served import Learner
from suffice.replay.online.traffic import Traffic

PERIOD = 100  # requests between two looks of the control loop


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stream:
    """What happened to each of N requests, in the order in which they came."""

    audit: Bools          # (N,): ran in full by lot, or because all did
    burst: Bools          # (N,): all requests ran in full then
    level: Ints           # (N,): in force when the request came
    n_levels: int         # level 0 included
    z: Small              # (N,): EM drop; 0 for audits
    tokens: Floats        # (N,): spent, everything in
    probes: Floats        # (N,): the part of them that probes took
    full: Floats          # (N,): what the full run alone takes
    changes: tuple[Change, ...]

    def reduction(self, part: slice, *, probes: bool = True) -> float:
        """Token reduction over some of the requests, a fraction."""
        spent = self.tokens[part].sum() - (0.0 if probes else self.probes[part].sum())
        return float(1 - spent / max(1.0, self.full[part].sum()))

    def drop(self, part: slice) -> float:
        """Mean EM drop over some of the requests, audits as 0."""
        return float(self.z[part].mean()) if len(self.z[part]) else 0.0


def run_stream(
    traffic: Traffic, plan: Plan, learner: Learner, rng: np.random.Generator, *, period: int = PERIOD,
    learns: Bools | None = None, watch: Callable[[Keeper], None] = lambda _: None,
) -> Stream:  # fmt: skip
    """Serve the requests of `traffic` in their order.

    rng     draws the audit lots
    period  requests between two looks of the control loop
    learns  requests whose audits count as evidence, shape (N,); None: all
    watch   is shown the keeper after each look
    """
    keeper, runs, n = Keeper(plan, learner), traffic.runs, len(traffic)
    audit, burst, level = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool), np.zeros(n, dtype=np.int64)
    row = runs.last.copy()
    changes: list[Change] = []
    for begin in range(0, n, period):
        block = np.arange(begin, min(begin + period, n))
        audit[block] = rng.random(len(block)) < keeper.share
        level[block], burst[block] = keeper.level, keeper.in_burst
        if keeper.level and keeper.served is not None:
            served = block[~audit[block]]
            part = runs.take(served)
            row[served] = keeper.served.rows_at(part, keeper.level) - part.starts[:-1] + runs.starts[served]
        keeper.now = float(block[-1] + 1)
        keeper.take(runs.take(block[audit[block] if learns is None else audit[block] & learns[block]]))
        if len(block) == period:  # the mean of fewer would look like drift
            changes += keeper.notice(traffic.early[block].mean(axis=0))
        changes += keeper.tick(float(block[-1] + 1))
        watch(keeper)
    return Stream(
        audit=audit, burst=burst, level=level, n_levels=plan.n_levels, z=runs.z[row], tokens=runs.cost[row],
        probes=traffic.probes[row], full=runs.full, changes=tuple(changes),
    )  # fmt: skip
