"""e-valuator (Sadhuka et al. 2025, arXiv:2512.03109; PyPI `e-valuator`, MIT) as a rule beside the others.

It gives a run up when a sequential test says that it will fail. It learns from a verifier's score after each step and
from the outcome of full runs, and promises that at most a share alpha of the runs that would succeed is given up, so
alpha = budget / EM keeps the budget. The score is what a set records: the stated or measured confidence, or the share
of the leader's votes. A run that is given up still returns the answer at hand, as with every other rule here.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
from bench.page.sets import Case
from bench.page.store import Line
from bench.page.streams import STREAMS, OpenSet, late_half
from bench.page.study import measure

from suffice.learn.audits import Floats, Ints
from suffice.policy.columns import HOPELESS
from suffice.replay.online.drift import draw_order
from suffice.replay.study.runs import Runs, find_first_stops
from suffice.replay.study.sums import N_FOLDS, folds_of, sum_halts

MOST_ALPHA: Final = 0.99
_SCORES: Final = ("stated_confidence", "confidence")  # the first that is recorded


def is_installed() -> bool:
    return all(find_spec(name) is not None for name in ("evaluator", "pandas"))


def judge(case: Case, budgets: Sequence[float]) -> Line:
    """Frozen: each fifth of the questions with what was calibrated on the other four."""
    runs = OpenSet(case).runs
    score = verifier_score(runs)
    if score is None:
        return {"why": "the set records no score of a verifier"}
    fold, found = folds_of(runs), {}
    for budget in budgets:
        stops, notes, asks = np.zeros(len(runs.cost), dtype=np.int8), set[str](), np.ones(len(runs), dtype=bool)
        for v in range(N_FOLDS):
            here, others = np.flatnonzero(fold == v), np.flatnonzero(fold != v)
            rejected, note = reject(runs, score, others, here, budget)
            stops[rejected] = HOPELESS
            notes |= {note} - {""}
            asks[here] = not note
        halts = find_first_stops(stops, runs)._replace(asks=asks)
        found[f"{budget:g}"] = {**measure(sum_halts(runs, [halts])), "note": "; ".join(sorted(notes))}
    return {"budgets": found}


def serve(opened: OpenSet, stream: str, budget: float, seed: int) -> Line:
    """The first half of the requests runs in full and calibrates it; the second half is what counts."""
    runs, score = opened.runs, verifier_score(opened.runs)
    if score is None:
        return {"why": "the set records no score of a verifier"}
    which = draw_order(opened.traffic, np.random.default_rng(seed), resample=STREAMS[stream]).which
    half = len(which) // 2
    rejected, note = reject(runs, score, which[:half], which[half:], budget)
    stops = np.zeros(len(runs.cost), dtype=np.int8)
    stops[rejected] = HOPELESS
    halted = find_first_stops(stops, runs).row
    requests = opened.traffic.take(which)
    if note:  # it reads no scores, so nothing is probed for them
        cost = requests.runs.cost.copy()
        late = requests.runs.starts[half]
        cost[late:] -= requests.probes[late:]
        requests = replace(requests, runs=replace(requests.runs, cost=cost))
    row = requests.runs.last.copy()
    row[half:] = (requests.runs.starts[:-1] + halted[which] - runs.starts[which])[half:]
    return {**late_half(requests, row), "note": note}


def verifier_score(runs: Runs) -> Floats | None:
    """A verifier's score of every row, the last known one where a step has none, shape (T,); None: none recorded."""
    columns = runs.columns.values
    if runs.kind == "samples":
        score = columns["top_votes"] / np.maximum(columns["n_votes"], 1.0)
    else:
        recorded = (columns[name] for name in _SCORES if name in columns)
        score = next((column for column in recorded if not np.isnan(column).all()), None)
        if score is None:
            return None
    known = np.where(np.isnan(score), 0, np.arange(len(score)))
    first = np.repeat(runs.starts[:-1], runs.n_steps)
    latest = np.maximum.accumulate(np.maximum(known, first))
    filled = score[latest]
    return np.where(np.isnan(filled), 0.5, filled)


def reject(runs: Runs, score: Floats, calibrate: Ints, apply: Ints, budget: float) -> tuple[Ints, str]:
    """The rows of the runs `apply` where the test rejects, and what kept it from doing so."""
    from evaluator import EValuator

    solved = float(runs.full_ok[calibrate].mean())
    alpha = min(MOST_ALPHA, budget / max(solved, budget))
    test = EValuator(alphas=[alpha])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            test.fit(_frame(runs, score, calibrate))
        except AssertionError:  # of the package: too few runs of one outcome
            return np.empty(0, dtype=np.int64), "fewer than five runs of one outcome at the first step"
    if not np.isfinite(test.thresholds[alpha]):
        return np.empty(0, dtype=np.int64), "too few successful runs for a threshold"
    told = test.apply(_frame(runs, score, apply))
    column = next(name for name in told.columns if name.startswith("reject_"))
    return told["row"].to_numpy()[told[column].to_numpy(dtype=bool)], ""


def _frame(runs: Runs, score: Floats, which: Ints) -> Any:
    """The runs as the package reads them, without the last step of each, behind which nothing can be saved."""
    import pandas as pd

    records = [
        {
            "uq_problem_idx": number,
            "num_steps": row - start + 1,
            "judge_probability_series": score[start : row + 1].tolist(),
            "solved": int(runs.full_ok[run]),
            "row": row,
        }
        for number, run in enumerate(which.tolist())
        for start in [int(runs.starts[run])]
        for row in range(start, int(runs.last[run]))
    ]
    return pd.DataFrame(records)
