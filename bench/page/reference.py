"""The shortest loop of the kind of ours, so that one sees what the rest of ours is worth.

One logistic score on answer streak, vote, confidence and position; 41 levels, level 0 never stops, then 1 - lambda
geometric from 4e-4 to 0.6; min(500, a quarter) full runs to warm up, then audits of 5 %; a certificate on the last 800
audits every 100 requests, a fit every 1,000; labels at once. It has no alarms, and its one score is certified on the
very audits that it was fitted on, which proves nothing.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from suffice.arrays import Bools, Floats, Ints
from suffice.assurance.certify import certified_level, count_outcomes, log_wealth
from suffice.learn.audits import find_first_passages
from suffice.learn.models import one_thread
from suffice.replay.online.stream import RecordedTraffic
from suffice.types import Kind

CONFIDENCE: Final = 0.95
_VOTES: Final = (
    "log1p(answer_streak)",
    "streak_share",
    "agreement",
    "vote_share",
    "logit(p_majority)",
    "log1p(n_distinct)",
    "step_share",
    "log1p(step)",
    "log1p(answer_streak)*agreement",
    "agreement*step_share",
)
_SURE: Final = ("logit(confidence)", "unknown(confidence)", "logit(confidence)*log1p(answer_streak)")
_STATED: Final = ("logit(stated_confidence)", "unknown(stated_confidence)")
FEATURES: Final[dict[Kind, tuple[str, ...]]] = {
    "samples": _VOTES,
    "reasoning": (*_VOTES, *_SURE),
    "rounds": (*_VOTES, *_SURE[:2], *_STATED),
}
RISKS: Final = np.concatenate([[-np.inf], np.geomspace(4e-4, 0.6, 40)])  # 1 - lambda of each level
WARM_UP, WARM_UP_PART, SHARE = 500, 0.25, 0.05
WINDOW, PERIOD, REFIT = 800, 100, 1_000  # audits, requests, requests
HALF_LIFE, MOST_AUDITS = 800.0, 3_000  # audits


def fitted(traffic: RecordedTraffic, audits: Ints) -> Floats:
    """Risk of a stop after every row, 1 - P(as good as the full run), by one score fitted on these audits."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    runs = traffic.runs.take(audits[-MOST_AUDITS:])
    teaches = np.ones(len(runs.x), dtype=bool)
    teaches[runs.last] = False
    age = np.arange(len(runs) - 1, -1, -1.0)
    weight, good = (0.5 ** (age / HALF_LIFE))[runs.run_of_row][teaches], (runs.z <= 0)[teaches]
    if good.all() or not good.any():
        risk = np.full(len(traffic.runs.x), 0.0 if good.all() else 1.0)
    else:
        with one_thread():
            model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=300))
            model.fit(runs.x[teaches], good, logisticregression__sample_weight=weight)
            risk = 1.0 - model.predict_proba(traffic.runs.x)[:, 1]
    return np.where(traffic.runs.may_stop, risk, np.nan)


def reference_rows(traffic: RecordedTraffic, rng: np.random.Generator, max_em_drop: float) -> tuple[Ints, Bools]:
    """Serve the requests in their order: the row where each ends, and which of them were probed, shape (N,) each."""
    runs, n = traffic.runs, len(traffic)
    warm_up = min(WARM_UP, int(WARM_UP_PART * n))
    row, audits, probed = runs.last.copy(), np.arange(warm_up), np.ones(n, dtype=bool)
    rows, fitted_at = np.empty(0, np.int64), -REFIT
    for begin in range(warm_up, n, PERIOD):
        block = np.arange(begin, min(begin + PERIOD, n))
        if begin - fitted_at >= REFIT:
            rows, fitted_at = find_first_passages(fitted(traffic, audits), runs.starts, RISKS), begin
        z = runs.z[rows[:, audits[-WINDOW:]]].T
        level = certified_level(log_wealth(count_outcomes(z), max_em_drop=max_em_drop), delta=1 - CONFIDENCE)
        lots = rng.random(len(block)) < SHARE
        row[block[~lots]] = rows[level, block[~lots]]
        probed[block] = lots | (level > 0)
        audits = np.concatenate([audits, block[lots]])
    return row, probed
