"""How often the control loop should evaluate: every 1, 10, 100 or 1,000 requests.

    python -m bench.claims.periods [--seeds 8] [--jobs 2] [--only SETTING ...]

Streams, audits and models are equal; only the time between two evaluations differs, which take in audits, certify
levels and feed detectors. Signals of all traffic are averaged over 100 requests in every row. CPU is that of the
certifier alone, for 10,000 requests.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from bench.claims.around import Around
from bench.claims.cells import PLAN
from bench.claims.course import Figures, figures, serve
from bench.claims.score import Logistic
from bench.claims.streams import N_REQUESTS
from bench.claims.sweep import Sweep, for_good, mean, over, percents
from bench.claims.truth import Truth, known

from suffice.certification.certifier import Certifier
from suffice.certification.evidence import CertifierDecision, Evidence
from suffice.learn.audits import AuditRuns


class Timed(Around):
    """A keeper whose CPU time is taken."""

    cpu_s = 0.0

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begin = time.process_time()
        yield
        self.cpu_s += time.process_time() - begin

    def add_audits(self, runs: AuditRuns) -> None:
        with self._timed():
            super().add_audits(runs)

    def look(self, evidence: Evidence) -> CertifierDecision:
        with self._timed():
            return super().look(evidence)


def run(cell: tuple[str, int, int]) -> Figures:
    """One stream: setting, period, seed."""
    setting, period, seed = cell
    one = known(setting)
    drawn = one.draw(N_REQUESTS, seed)
    plan = replace(PLAN, label_timeout=float(one.label_timeout))
    design = Timed(Certifier(plan, Logistic()))
    rng = np.random.default_rng([seed, 4])
    course = serve(drawn.traffic, design, Truth(setting), drawn.ways, rng, period=period)
    found = figures(course, max_em_drop=plan.max_em_drop, drift_at=one.drift_at(N_REQUESTS))
    return {**found, "cpu_ms": 1e3 * design.cpu_s * 10_000 / N_REQUESTS}


def cells(period: int, found: Sequence[Figures]) -> list[str]:
    """One line of the table, behind the setting."""
    delays = [one["alarm_delay"] for one in found if one["alarm_delay"] is not None]
    return [
        f"{period:,}",
        percents(found, "saved_all", "saved_last"),
        percents(found, "drop_pre", "drop_post", digits=2),
        over(found),
        f"{np.median(delays):.0f}" if len(delays) > len(found) / 2 else "none",
        for_good(found),
        f"{mean(found, 'cpu_ms'):,.0f}",
    ]


PERIODS = Sweep(
    prog="python -m bench.claims.periods",
    about=__doc__.splitlines()[0],
    head="| setting | looks every | saved all / last, % | drop pre / post, points | over | alarm after, median |"
    " recovered for good, median / p90 | CPU ms for 10,000 requests |",
    settings=("none", "harsh", "stealth"),
    choices=(1, 10, 100, 1_000),
    run=run,
    cells=cells,
)

if __name__ == "__main__":
    PERIODS.main()
