"""BARGAIN (Zeighami et al. 2026, "Cut Costs, Not Accuracy"; PyPI `bargain`, MIT) beside the frozen picks of this page.

It chooses a threshold of a cheap model's score for a data set that is there as a whole: it walks from the safe end,
draws labels without replacement until a betting test accepts the threshold or it looks hopeless, and ends at the first
that is not accepted. The package knows one cheap answer for each record, a ladder another one at each level, so the
walk is written here, over the levels of `LADDER`. The test is that of the package, for all lengths of a sample at once;
a second test of it, which only spares labels of a threshold that fails, is left out.

Three rules choose a level on half of the questions: plain tuning, one standard error, and BARGAIN, whose labels are
charged with nothing. Each is judged on the other half, and, as BARGAIN promises no more, on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from bench.page.sets import Case
from bench.page.store import Line
from bench.page.streams import OpenSet

from suffice.arrays import Bools, Ints
from suffice.replay.study.policies import levels_of
from suffice.replay.study.runs import never_halt
from suffice.replay.study.scores import SCORES
from suffice.replay.study.study import N_LEVELS, ReplayOptions, Study, lay_score
from suffice.replay.study.sums import (
    MARGIN,
    N_SPLITS,
    PolicyPoints,
    at_choice,
    columns_of,
    draw_halves,
    groups_of,
    sum_halts,
)

LADDER: Final = next(score for score in SCORES if score.name == "as-good, by cost")  # what is served online
RISK: Final = 0.05  # delta of the package
STEP, FEWEST = 10, 50  # records: drawn at once, and before a level may look hopeless
TRUNCATED: Final = 0.75  # of the bet that could go bankrupt
_ROUNDING: Final = 1e-12
RULES: Final = ("plain tuning", "one standard error", "BARGAIN")


@dataclass(frozen=True, slots=True)
class Walk:
    level: int  # 0 never stops
    labels: float  # share of the records


def judge(case: Case, budgets: Sequence[float]) -> Line:
    runs = OpenSet(case).runs
    scored = Study(runs, (), ReplayOptions(scores=(LADDER,))).risk(LADDER, None)
    _, levels = lay_score(LADDER.name, scored, levels_of(scored.risk, N_LEVELS), runs)
    halts = [never_halt(runs), *levels]
    sums, (group, _) = sum_halts(runs, halts), groups_of(runs)
    lost = np.array([columns_of(runs, halt)[0] for halt in halts], dtype=bool)
    stopped = np.array([halt.row < runs.last for halt in halts])
    halves, rng = draw_halves(len(sums.n), N_SPLITS, np.random.default_rng(0)), np.random.default_rng(1)
    orders = [rng.permutation(np.flatnonzero(half[group])) for half in halves]
    here, there = sums.measure(halves), sums.measure(1 - halves)
    judged = {}
    for budget in budgets:
        walks = [walk(lost[:, own], stopped[:, own], budget) for own in orders]
        picked = here.pick([slice(1, None)], budget, MARGIN)
        choices = here.pick_plainly(budget), picked, np.array([one.level for one in walks])
        labels = 1.0, 1.0, float(np.mean([one.labels for one in walks]))
        judged[f"{budget:g}"] = {
            rule: _measure(here, there, np.maximum(choice, 0), budget) | {"labels": share}
            for rule, choice, share in zip(RULES, choices, labels, strict=True)
        }
    return {"budgets": judged}


def _measure(here: PolicyPoints, there: PolicyPoints, level: Ints, budget: float) -> Line:
    return {
        "saved": float(at_choice(there.saved, level).mean()),
        "misses": float(np.mean(at_choice(there.drop, level) > budget + _ROUNDING)),
        "misses_own": float(np.mean(at_choice(here.drop, level) > budget + _ROUNDING)),
    }


def walk(lost: Bools, stopped: Bools, budget: float) -> Walk:
    """The last level accepted, given which records each level loses and stops, (M, N), the records in random order."""
    n, level = lost.shape[1], 0
    labelled = np.zeros(n, dtype=bool)
    for at in range(1, len(lost)):
        own = np.flatnonzero(stopped[at])
        target = 1 - budget * n / len(own) if len(own) else 0.0  # with which all records keep the budget
        if target > 0:
            passed, n_drawn = accepts(~lost[at, own], target)
            labelled[own[:n_drawn]] = True
            if not passed:
                break
        level = at
    return Walk(level, float(labelled.mean()))


def accepts(right: Bools, target: float) -> tuple[bool, int]:
    """Whether records are shown to reach a share of right ones, drawn in this order, and how many were drawn."""
    n, before = len(right), 0
    count, passed = right.cumsum(), passes(right, target)
    while True:
        share = count[before - 1] / before if before else 1.0
        if before >= FEWEST and share - np.sqrt(share * (1 - share)) < target:
            return False, before
        drawn = min(before + STEP, n)
        if drawn == n:
            return bool(count[-1] / n >= target), n
        if passed[drawn - 1] and count[drawn - 1] / drawn >= target:
            return True, drawn
        before = drawn


def passes(right: Bools, target: float) -> Bools:
    """Whether the betting test has shown by each draw that all records together reach the target."""
    n, number = len(right), np.arange(1, len(right) + 1)
    earlier = right.cumsum() - right
    mean = (0.5 + earlier) / number
    variance = (0.25 + earlier * (1 - mean) ** 2 + (number - 1 - earlier) * mean**2) / number
    left = (n * target - earlier) / (n - number + 1)  # the share that those not drawn yet must reach
    bet = np.sqrt(2 * np.log(2 / RISK) / (number * np.log(number + 1) * variance))
    bet = np.minimum(bet, TRUNCATED / np.maximum(left, _ROUNDING))
    wealth = np.log1p(bet * (right - left)).cumsum()
    return np.asarray(np.logical_or.accumulate((wealth >= np.log(1 / RISK)) | (left <= 0)))
