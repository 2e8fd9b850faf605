"""Recorded runs as traffic: our control loop beside a plain reference, on the same streams.

    SUFFICE_TRACES=folder python bench/online.py [--only NAME ...] [--seeds N] [--disjoint | --resample N] [--json]

Every `*.dev.parquet` of the folder, at budgets of 1 and 2 points of EM, 95 % sure; each seed is a stream from a cold
start. *Saved*: tokens of the second half, audits included, with probes charged and without. *Drop*: mean EM drop there
in points, audits as 0. *Over*: seeds that lose more than the budget, and the exact 95 % interval of their share.

The reference is the shortest loop of this kind, so that one sees what the rest of ours is worth: one logistic
score on answer streak, vote, confidence and position; 41 levels, level 0 never stops, then 1 - lambda geometric from
4e-4 to 0.6; min(500, a quarter) full runs to warm up, then audits of 5 %; a certificate on the last 800 audits every
100 requests, a fit every 1,000; labels at once. It has no alarms, and its one score is certified on the very audits
that it was fitted on, which proves nothing. `--reference` runs it alone. Streams, lots and models follow from the seed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from suffice.assurance.bounds import Interval, exact_binomial
from suffice.assurance.certify import certified_level, count_outcomes, log_wealth
from suffice.errors import SufficeError
from suffice.learn.audits import Bools, Floats, Ints, find_first_passages
from suffice.learn.features import FeatureSelection
from suffice.learn.models import one_thread
from suffice.replay.online.drift import draw_order
from suffice.replay.online.protocol import OnlineOptions, OnlineReport, replay_online
from suffice.replay.online.stream import RecordedTraffic, make_traffic
from suffice.replay.study.runs import read_runs
from suffice.replay.traces.read import Survey, survey
from suffice.signals.features import FeatureSet
from suffice.types import Kind

BUDGETS: Final = (0.01, 0.02)
CONFIDENCE: Final = 0.95
N_PROCESSES: Final = 2

# Of the reference.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Half:
    """What one stream came to in its second half; fractions."""

    saved: float
    saved_without_probes: float
    drop: float


@dataclass(frozen=True, slots=True)
class Summary:
    """What the streams of one set came to, over seeds; fractions."""

    saved: float
    saved_without_probes: float
    drop: float
    n_over: int
    n_seeds: int

    @property
    def interval(self) -> Interval:
        return exact_binomial(self.n_over, self.n_seeds, 0.95)

    def plain(self) -> dict[str, object]:
        ends = self.interval
        return {
            "token_reduction_second_half": self.saved,
            "token_reduction_second_half_without_probes": self.saved_without_probes,
            "em_drop_second_half": self.drop,
            "violations": self.n_over / self.n_seeds,
            "violations_interval": [ends.low, ends.high],
            "seeds": self.n_seeds,
        }

    def cells(self) -> str:
        ends = self.interval
        return (
            f"{100 * self.saved:.1f} | {100 * self.saved_without_probes:.1f} | {100 * self.drop:+.2f} |"
            f" {self.n_over}/{self.n_seeds} ({100 * ends.low:.0f}–{100 * ends.high:.0f} %)"
        )


# ---- the reference -----------------------------------------------------------------------------


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


def reference_stream(traffic: RecordedTraffic, learns: Bools, rng: np.random.Generator, max_em_drop: float) -> Half:
    """Serve the requests in their order.

    learns  requests whose audits are evidence, shape (N,)
    """
    runs, n = traffic.runs, len(traffic)
    warm_up = min(WARM_UP, int(WARM_UP_PART * n))
    row, audits = runs.last.copy(), np.flatnonzero(learns[:warm_up])
    rows, fitted_at = np.empty(0, np.int64), -REFIT
    for begin in range(warm_up, n, PERIOD):
        block = np.arange(begin, min(begin + PERIOD, n))
        if begin - fitted_at >= REFIT:
            rows, fitted_at = find_first_passages(fitted(traffic, audits), runs.starts, RISKS), begin
        z = runs.z[rows[:, audits[-WINDOW:]]].T
        level = certified_level(log_wealth(count_outcomes(z), max_em_drop=max_em_drop), delta=1 - CONFIDENCE)
        lots = rng.random(len(block)) < SHARE
        row[block[~lots]] = rows[level, block[~lots]]
        audits = np.concatenate([audits, block[lots & learns[block]]])
    late = slice(n // 2 if learns.all() else int(learns.sum()), None)
    spent, full = runs.cost[row[late]].sum(), max(1.0, runs.full[late].sum())
    return Half(
        saved=float(1 - spent / full),
        saved_without_probes=float(1 - (spent - traffic.probes[row[late]].sum()) / full),
        drop=float(runs.z[row[late]].mean()) if late.start < n else 0.0,
    )


def _one_seed(traffic: RecordedTraffic, asked: OnlineOptions, seed: int) -> Half:
    rng = np.random.default_rng(seed)
    which, _, learns = draw_order(traffic, rng, disjoint=asked.disjoint, resample=asked.resample)
    every = np.ones(len(which), dtype=bool)
    return reference_stream(traffic.take(which), every if learns is None else learns, rng, asked.max_em_drop)


def reference(data: Survey, asked: OnlineOptions) -> Summary:
    """The reference on the streams of all seeds."""
    chosen = FeatureSelection(FEATURES[data.kind], ())
    runs = read_runs(data, FeatureSet(chosen.names).needs, probe_tokens=None, longest=data.longest)
    traffic = make_traffic(runs, chosen)
    with ProcessPoolExecutor(asked.n_processes) as pool:
        halves = list(pool.map(partial(_one_seed, traffic, asked), range(asked.seed, asked.seed + asked.n_seeds)))
    return Summary(
        float(np.mean([half.saved for half in halves])),
        float(np.mean([half.saved_without_probes for half in halves])),
        float(np.mean([half.drop for half in halves])),
        sum(half.drop > asked.max_em_drop for half in halves),
        len(halves),
    )


# ---- the table ---------------------------------------------------------------------------------


def ours(report: OnlineReport) -> Summary:
    """What ours came to, in the words of the table."""
    return Summary(
        report.mean("reduction_late"),
        report.mean("reduction_late_free"),
        report.mean("drop_late"),
        report.n_violations,
        len(report.seeds),
    )


def show(data: Survey, asked: OnlineOptions, *, reference_alone: bool, as_json: bool) -> None:
    """One set at one budget: a row of the table, or an object."""
    plain = reference(data, asked)
    report = None if reference_alone else replay_online(data, asked)
    if as_json:
        found = {"set": data.set, "max_em_drop": asked.max_em_drop} if report is None else report.plain()
        print(json.dumps({**found, "reference": plain.plain()}, allow_nan=False), flush=True)
        return
    mark = " (too small)" if report is not None and report.too_small else ""
    cells = "" if report is None else f"{ours(report).cells()} | "
    budget = f"{100 * asked.max_em_drop:g} %"
    print(f"| {data.set}{mark} | {data.n_runs:,} | {budget} | {cells}{plain.cells()} |", flush=True)


def head(*, reference_alone: bool) -> str:
    """The head of the table."""
    whose = ("reference",) if reference_alone else ("ours", "reference")
    names = ["set", "runs", "budget"]
    for who in whose:
        names += [f"{who}: saved %", "without probes", "drop", "over"]
    return f"| {' | '.join(names)} |\n|{' --- |' * len(names)}"


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Our control loop on recorded runs as traffic, beside a reference.")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="sets whose file name begins like this")
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="streams of each set; default: 20")
    parser.add_argument("--reference", action="store_true", help="the reference alone")
    parser.add_argument("--json", action="store_true", help="one object for each set and budget")
    harder = parser.add_mutually_exclusive_group()
    harder.add_argument("--disjoint", action="store_true", help="evidence of half the questions, figures of the other")
    harder.add_argument("--resample", type=int, metavar="N", help="N requests, whole questions with replacement")
    asked = parser.parse_args(arguments)
    if asked.seeds < 1 or (asked.resample is not None and asked.resample < 100):
        parser.error("--seeds: at least 1; --resample: at least 100")
    return asked


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 2 where traces are missing or cannot be read."""
    asked = options(arguments)
    folder = os.environ.get("SUFFICE_TRACES")
    files = sorted(Path(folder).glob("*.dev.parquet")) if folder else []
    if asked.only:
        files = [file for file in files if file.name.startswith(tuple(asked.only))]
    if not files:
        print("online: set SUFFICE_TRACES to a folder with SET.dev.parquet files of recorded runs", file=sys.stderr)
        return 2
    if not asked.json:
        print(head(reference_alone=asked.reference), flush=True)
    for file in files:
        try:
            (data,) = survey([file])
            for budget in BUDGETS:
                question = OnlineOptions(
                    max_em_drop=budget,
                    confidence=CONFIDENCE,
                    n_seeds=asked.seeds,
                    disjoint=asked.disjoint,
                    resample=asked.resample,
                    n_processes=N_PROCESSES,
                )
                show(data, question, reference_alone=asked.reference, as_json=asked.json)
        except SufficeError as error:
            print(f"online: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
