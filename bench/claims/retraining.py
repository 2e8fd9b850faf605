"""What retraining is worth after a drift: on a schedule, after alarms alone, or never.

    python -m bench.claims.retraining [--seeds 8] [--jobs 2] [--only SETTING ...]

The same streams, audits and alarms. *Never* keeps the model of the cold start and only certifies anew; *after alarms*
fits once in every epoch; *every 1,000* is the default: after alarms and on a schedule.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from bench.claims.cells import PLAN
from bench.claims.course import figures, serve
from bench.claims.score import Logistic
from bench.claims.streams import N_REQUESTS
from bench.claims.truth import Truth, known

from suffice.learn.keeper import Keeper
from suffice.learn.served import Served, fit_served

SETTINGS = ("harsh", "swap", "gradual", "stealth", "benign")
WAYS = ("never", "after alarms", "every 1,000")
HEAD = (
    "| setting | retrained | saved all / steady / last, % | drop pre / post, points | over |"
    " recovered for good, median / p90 |"
)


class Once:
    """Fits the first time, and gives that version ever after."""

    def __init__(self) -> None:
        self._served: Served | None = None

    def __call__(self, *args: Any, **options: Any) -> Served | None:  # what `fit_served` takes
        if self._served is None:
            self._served = fit_served(*args, **options)
        return self._served


def run(cell: tuple[str, str, int]) -> dict[str, float | None]:
    """One stream: setting, way of retraining, seed."""
    setting, way, seed = cell
    one = known(setting)
    drawn = one.draw(N_REQUESTS, seed)
    plan = replace(PLAN, label_timeout=float(one.label_timeout))
    if way != "every 1,000":
        plan = replace(plan, refit_every=np.inf)
    keeper = Keeper(plan, Logistic(), fit=Once()) if way == "never" else Keeper(plan, Logistic())
    course = serve(drawn.traffic, keeper, Truth(setting), drawn.ways, np.random.default_rng([seed, 4]))
    return figures(course, max_em_drop=plan.max_em_drop, drift_at=one.drift_at(N_REQUESTS))


def row(setting: str, way: str, found: list[dict[str, float | None]]) -> str:
    """One line of the table."""

    def mean(name: str) -> float:
        return 100 * float(np.mean([one[name] for one in found]))

    good = np.quantile([one["for_good"] or 0.0 for one in found], [0.5, 0.9])
    cells = [
        setting, way, f"{mean('saved_all'):.1f} / {mean('saved_steady'):.1f} / {mean('saved_last'):.1f}",
        f"{mean('drop_pre'):.2f} / {mean('drop_post'):.2f}",
        f"{sum(bool(one['over_pre'] or one['over_post']) for one in found)} of {len(found)}",
        f"{good[0]:.0f} / {good[1]:.0f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.claims.retraining", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=SETTINGS, metavar="SETTING", help="settings, see bench.claims")
    asked = parser.parse_args()
    print(HEAD, "| --- " * (HEAD.count("|") - 1) + "|", sep="\n")
    with ProcessPoolExecutor(asked.jobs) as pool:
        for setting in asked.only:
            for way in WAYS:
                cells = [(setting, way, seed) for seed in range(asked.seeds)]
                print(row(setting, way, list(pool.map(run, cells))), flush=True)


if __name__ == "__main__":
    main()
