"""Cells of the table: one design in one setting with one seed, run from cold start to end.

certified 5 %    the certifier with 5 % audits   half split    one model fitted on one half, the other certifies
certified 10 %   … with 10 %                     label-free    disagreement in place of the drop
budgeted 5 %, 10 %: the level follows the audits, an average promise (`certification.certificate`)
fixed … empirical, labelled-only: the naive designs, see `naive` and `empirical`
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
from bench.claims.course import Course, figures, serve
from bench.claims.empirical import Empirical
from bench.claims.naive import NAIVE, follow
from bench.claims.score import Logistic
from bench.claims.streams import N_REQUESTS, Drawn
from bench.claims.truth import Truth, known

from suffice.certification.certifier import Certifier
from suffice.certification.plan import HORIZON, Plan, full_runs

Run = Callable[[Drawn, Plan, Truth, np.random.Generator], Course]


def _kept(**changes: object) -> Run:
    def run(drawn: Drawn, plan: Plan, truth: Truth, rng: np.random.Generator) -> Course:
        keeper = Certifier(replace(plan, **changes), Logistic())  # type: ignore[arg-type]  # fields of the plan
        return serve(drawn.traffic, keeper, truth, drawn.ways, rng)

    return run


def _averaged(*, labelled_only: bool) -> Run:
    def run(drawn: Drawn, plan: Plan, truth: Truth, rng: np.random.Generator) -> Course:
        return serve(drawn.traffic, Empirical(plan, labelled_only=labelled_only), truth, drawn.ways, rng)

    return run


def _naive(name: str) -> Run:
    def run(drawn: Drawn, plan: Plan, truth: Truth, rng: np.random.Generator) -> Course:
        return follow(drawn, name, truth, rng, max_em_drop=plan.max_em_drop)

    return run


DESIGNS: Final[Mapping[str, Run]] = {
    "certified 5 %": _kept(share=0.05),
    "certified 10 %": _kept(share=0.10),
    "budgeted 5 %": _kept(share=0.05, promise="budgeted"),
    "budgeted 10 %": _kept(share=0.10, promise="budgeted"),
    "half split": _kept(share=0.05, split="half"),
    "label-free": _kept(share=0.05, label_free=True),
    "empirical": _averaged(labelled_only=False),
    "labelled-only": _averaged(labelled_only=True),
    **{name: _naive(name) for name in NAIVE},
}
BURST: Final = full_runs(Plan().max_em_drop, HORIZON)
PLAN: Final = Plan(warm_up=BURST, burst=BURST)


def run_cell(
    setting: str, design: str, seed: int, *, n: int = N_REQUESTS, plan: Plan = PLAN
) -> dict[str, str | float | None]:
    """Run one cell; its figures with the CPU seconds that they took."""
    begin = time.process_time()
    one = known(setting)
    drawn = one.draw(n, seed)
    plan = replace(plan, label_timeout=float(one.label_timeout))
    rng = np.random.default_rng([seed, 4])
    course = DESIGNS[design](drawn, plan, Truth(setting), rng)
    drift_at = one.drift_at(n)
    return {
        "setting": setting,
        "design": design,
        "seed": seed,
        "n": n,
        "drift_at": drift_at,
        "max_em_drop": plan.max_em_drop,
        **figures(course, max_em_drop=plan.max_em_drop, drift_at=drift_at),
        "cpu_s": round(time.process_time() - begin, 3),
    }
