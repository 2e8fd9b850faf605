"""e-valuator (Sadhuka et al. 2025, arXiv:2512.03109; PyPI `e-valuator`, MIT) as a rule beside the others.

It gives a run up when a sequential test says that it will fail. It learns from a verifier's score after each step and
from the outcome of full runs, and promises that at most a share alpha of the runs that would succeed is given up, so
alpha = budget / EM keeps the budget. The score is what a set records: the stated or measured confidence, or the share
of the leader's votes. A run that is given up still returns the answer at hand, as with every other rule here.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, Final

import numpy as np
from bench.page.sets import Case
from bench.page.store import Line
from bench.page.streams import STREAMS, OpenSet, late_half
from bench.page.study import measure

from suffice.arrays import Floats, Ints
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
    fold = folds_of(runs)
    stops = {budget: np.zeros(len(runs.cost), dtype=np.int8) for budget in budgets}
    asks = {budget: np.ones(len(runs), dtype=bool) for budget in budgets}  # a test without a threshold probes nothing
    notes: dict[float, set[str]] = {budget: set() for budget in budgets}
    for v in range(N_FOLDS):
        here = np.flatnonzero(fold == v)
        for budget, (rejected, note) in reject(runs, score, np.flatnonzero(fold != v), here, budgets).items():
            stops[budget][rejected] = HOPELESS
            asks[budget][here] = not note
            notes[budget] |= {note} - {""}
    found = {}
    for budget in budgets:
        halts = find_first_stops(stops[budget], runs)._replace(asks=asks[budget])
        found[f"{budget:g}"] = {**measure(sum_halts(runs, [halts])), "note": "; ".join(sorted(notes[budget]))}
    return {"budgets": found}


def serve(opened: OpenSet, stream: str, budget: float, seed: int) -> Line:
    """The first half of the requests runs in full and calibrates it; the second half is what counts."""
    runs, score = opened.runs, verifier_score(opened.runs)
    if score is None:
        return {"why": "the set records no score of a verifier"}
    which = draw_order(opened.traffic, np.random.default_rng(seed), resample=STREAMS[stream]).which
    half = len(which) // 2
    rejected, note = reject(runs, score, which[:half], which[half:], [budget])[budget]
    stops = np.zeros(len(runs.cost), dtype=np.int8)
    stops[rejected] = HOPELESS
    halted = find_first_stops(stops, runs).row
    requests = opened.traffic.take(which)
    row = requests.runs.last.copy()
    row[half:] = (requests.runs.starts[:-1] + halted[which] - runs.starts[which])[half:]
    probed = np.arange(len(which)) < (half if note else len(which))  # without a threshold it reads no scores
    return {**late_half(requests, row, probed), "note": note}


def verifier_score(runs: Runs) -> Floats | None:
    """A verifier's score of every row, the last known one where a step has none, shape (T,); None: none recorded."""
    columns = runs.columns.values
    if runs.kind == "samples":
        score = columns["top_votes"] / np.maximum(columns["n_votes"], 1.0)
    else:
        recorded = (columns[name] for name in _SCORES if name in columns)
        known_scores = [column for column in recorded if not np.isnan(column).all()]
        if not known_scores:
            return None
        score = known_scores[0]
    known = np.where(np.isnan(score), 0, np.arange(len(score)))
    first = np.repeat(runs.starts[:-1], runs.n_steps)
    latest = np.maximum.accumulate(np.maximum(known, first))
    filled = score[latest]
    return np.where(np.isnan(filled), 0.5, filled)


def reject(
    runs: Runs, score: Floats, calibrate: Ints, apply: Ints, budgets: Sequence[float]
) -> dict[float, tuple[Ints, str]]:
    """By budget: the rows of the runs `apply` where the test rejects, and what keeps it from doing so."""
    solved = float(runs.full_ok[calibrate].mean())
    alphas = {budget: min(MOST_ALPHA, budget / max(solved, budget)) for budget in budgets}
    test = build_test()(alphas=list(alphas.values()))
    none = np.empty(0, dtype=np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            test.fit(_frame(runs, score, calibrate))
        except AssertionError:  # of the package: too few runs of one outcome
            return dict.fromkeys(budgets, (none, "fewer than five runs of one outcome at the first step"))
    told = test.apply(_frame(runs, score, apply))
    rows, found = told["row"].to_numpy(), dict[float, tuple[Ints, str]]()
    for budget, alpha in alphas.items():
        column = f"reject_PAC_alpha_{str(alpha).replace('.', '_')}"
        note = "" if np.isfinite(test.thresholds[alpha]) else "too few successful runs for a threshold"
        found[budget] = rows[told[column].to_numpy(dtype=bool)], note
    return found


@cache
def build_test() -> Any:
    """The package's test, which asks its models for all runs at a step at once instead of for one row after the other.

    The values are the same; a set of 40,000 rows takes seconds instead of minutes.
    """
    from evaluator import EValuator

    class ByStep(EValuator):  # type: ignore[misc, unused-ignore]
        def _compute_e_vals_for_variant(self, df: Any, which: str) -> Floats:
            if which != "split":
                return np.asarray(super()._compute_e_vals_for_variant(df, which))
            steps, values = df[self.step_col].to_numpy(), np.full(len(df), np.nan)
            series = df["judge_probability_series"].to_numpy()
            for step, model in self.step_models_split.items():
                at = np.flatnonzero(steps == step)
                if len(at):
                    scaled = self.step_scalers_split[step].transform(np.array(series[at].tolist(), dtype=float))
                    p0, p1 = np.clip(model.predict_proba(scaled).T, 1e-6, 1 - 1e-6)
                    base = self.step_base_probs_split[step]
                    values[at] = p0 / p1 * (base["p1"] / base["p0"])
            kept = df.assign(e_value=values).groupby(self.problem_col, sort=False)["e_value"].ffill()
            return np.asarray(kept.fillna(1.0).to_numpy())

    return ByStep


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
