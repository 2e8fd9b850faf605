"""How often a certified level changes by more than five levels where nothing changes in the traffic.

    python -m bench.claims.stability [--seeds 8] [--jobs 2] [--only SETTING ...]

A *swing* is a change of more than five levels between two looks of the certifier, 100 requests apart, whatever causes
it: a certificate, an alarm or a refit. A stream of 20,000 requests is *restless* if two swings are less than 5,000
requests apart. The settings are those in which nothing changes, so every alarm is false.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from bench.claims.cells import PLAN
from bench.claims.course import Figures, figures, serve
from bench.claims.score import Logistic
from bench.claims.streams import N_REQUESTS
from bench.claims.sweep import Sweep, mean, percents
from bench.claims.truth import Truth, known

from suffice.assurance.certify import window_audits
from suffice.certification.certificate import CALM, SWING
from suffice.certification.certifier import Certifier
from suffice.certification.plan import HORIZON, full_runs
from suffice.replay.online.stream import PERIOD


def swings(levels: Sequence[int], *, period: int = PERIOD) -> list[int]:
    """Requests at which the level changes by more than SWING, from the level after each look."""
    return [
        period * at for at, (before, now) in enumerate(pairwise([0, *levels]), start=1) if abs(now - before) > SWING
    ]


def is_restless(at: Sequence[int]) -> bool:
    """Whether two swings are less than CALM requests apart."""
    return any(second - first < CALM for first, second in pairwise(at))


def run(cell: tuple[str, float, int]) -> Figures:
    """One stream: setting, budget, seed."""
    setting, max_em_drop, seed = cell
    one, burst = known(setting), full_runs(max_em_drop, HORIZON)
    drawn = one.draw(N_REQUESTS, seed)
    plan = replace(
        PLAN,
        max_em_drop=max_em_drop,
        warm_up=burst,
        burst=burst,
        window=window_audits(max_em_drop),
        label_timeout=float(one.label_timeout),
    )
    certifier = Certifier(plan, Logistic())
    course = serve(drawn.traffic, certifier, Truth(setting), drawn.ways, np.random.default_rng([seed, 4]))
    at = swings([*course.level[PERIOD::PERIOD].tolist(), certifier.level])
    return {
        **figures(course, max_em_drop=max_em_drop, drift_at=0),
        "swings": float(len(at)),
        "restless": float(is_restless(at)),
        "over": float((course.true_drop >= max_em_drop).mean()),
    }


def cells(max_em_drop: float, found: Sequence[Figures]) -> list[str]:
    """One line of the table, behind the setting."""
    return [
        f"{100 * max_em_drop:g} %",
        f"{sum(bool(one['restless']) for one in found)} of {len(found)}",
        f"{mean(found, 'swings') * CALM / N_REQUESTS:.2f}",
        f"{mean(found, 'alarms_post'):.2f}",
        percents(found, "saved_all"),
        percents(found, "drop_post", digits=2),
        percents(found, "over"),
    ]


STABILITY = Sweep(
    prog="python -m bench.claims.stability",
    about=__doc__.splitlines()[0],
    head="| setting | budget | restless streams | swings in 5,000 requests | false alarms in 20,000 | saved, % |"
    " drop, points | requests served above the budget, % |",
    settings=("none", "many", "none, spread labels", "none, complaints only"),
    choices=(0.01, 0.02, 0.05),
    run=run,
    cells=cells,
)

if __name__ == "__main__":
    STABILITY.main()
