"""The value of retraining after a drift: on a schedule, only after alarms, or never.

    python -m bench.claims.retraining [--seeds 8] [--jobs 2] [--only SETTING ...]

Streams, audits and alarms are equal. *Never* keeps the model of the cold start and only certifies again; *after alarms*
fits once per epoch; *every 1,000* is the default: after alarms and on a schedule.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from bench.claims.cells import PLAN
from bench.claims.course import Figures, figures, serve
from bench.claims.score import Logistic
from bench.claims.streams import N_REQUESTS
from bench.claims.sweep import Sweep, for_good, over, percents
from bench.claims.truth import Truth, known

from suffice.certification.certifier import Certifier
from suffice.learn.version import FoldedModels, fit_served


class Once:
    """Fits the first time, and gives that version ever after."""

    def __init__(self) -> None:
        self._served: FoldedModels | None = None

    def __call__(self, *args: Any, **options: Any) -> FoldedModels | None:  # what `fit_served` takes
        if self._served is None:
            self._served = fit_served(*args, **options)
        return self._served


def run(cell: tuple[str, str, int]) -> Figures:
    """One stream: setting, way of retraining, seed."""
    setting, way, seed = cell
    one = known(setting)
    drawn = one.draw(N_REQUESTS, seed)
    plan = replace(PLAN, label_timeout=float(one.label_timeout))
    if way != "every 1,000":
        plan = replace(plan, refit_every=np.inf)
    keeper = Certifier(plan, Logistic(), fit=Once()) if way == "never" else Certifier(plan, Logistic())
    course = serve(drawn.traffic, keeper, Truth(setting), drawn.ways, np.random.default_rng([seed, 4]))
    return figures(course, max_em_drop=plan.max_em_drop, drift_at=one.drift_at(N_REQUESTS))


def cells(way: str, found: Sequence[Figures]) -> list[str]:
    """One line of the table, behind the setting."""
    saved = percents(found, "saved_all", "saved_steady", "saved_last")
    return [way, saved, percents(found, "drop_pre", "drop_post", digits=2), over(found), for_good(found)]


RETRAINING = Sweep(
    prog="python -m bench.claims.retraining",
    about=__doc__.splitlines()[0],
    head="| setting | retrained | saved all / steady / last, % | drop pre / post, points | over |"
    " recovered for good, median / p90 |",
    settings=("harsh", "swap", "gradual", "stealth", "benign"),
    choices=("never", "after alarms", "every 1,000"),
    run=run,
    cells=cells,
)

if __name__ == "__main__":
    RETRAINING.main()
