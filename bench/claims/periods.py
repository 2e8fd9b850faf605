"""How often the control loop should look: every 1, 10, 100 or 1,000 requests.

    python -m bench.claims.periods [--seeds 8] [--jobs 2] [--only SETTING ...]

The same streams, audits and models; only the time between two looks differs, at which audits are taken in, levels
certified anew and detectors fed. Signals of all traffic are averaged over 100 requests in every row. CPU is that of the
keeper alone, for 10,000 requests.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
from bench.claims.cells import PLAN
from bench.claims.course import figures, serve
from bench.claims.score import Logistic
from bench.claims.streams import N_REQUESTS
from bench.claims.truth import Truth, known

from suffice.learn.audits import AuditRuns, Floats
from suffice.learn.keeper import Change, Keeper
from suffice.learn.served import Served

PERIODS = (1, 10, 100, 1_000)
SETTINGS = ("none", "harsh", "stealth")
HEAD = (
    "| setting | looks every | saved all / last, % | drop pre / post, points | over | alarm after, median |"
    " recovered for good, median / p90 | CPU ms for 10,000 requests |"
)


class Timed:
    """A keeper whose CPU time is taken."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper, self.cpu_s = keeper, 0.0

    @property
    def level(self) -> int:
        return self._keeper.level

    @property
    def now(self) -> float:
        return self._keeper.now

    @now.setter
    def now(self, now: float) -> None:
        self._keeper.now = now

    @property
    def served(self) -> Served | None:
        return self._keeper.served

    @property
    def share(self) -> float:
        return self._keeper.share

    def take(self, runs: AuditRuns) -> None:
        begin = time.process_time()
        self._keeper.take(runs)
        self.cpu_s += time.process_time() - begin

    def notice(self, signals: Floats) -> tuple[Change, ...]:
        begin = time.process_time()
        changes = self._keeper.notice(signals)
        self.cpu_s += time.process_time() - begin
        return changes

    def tick(self, now: float) -> tuple[Change, ...]:
        begin = time.process_time()
        changes = self._keeper.tick(now)
        self.cpu_s += time.process_time() - begin
        return changes


def run(cell: tuple[str, int, int]) -> dict[str, float | None]:
    """One stream: setting, period, seed."""
    setting, period, seed = cell
    one = known(setting)
    drawn = one.draw(N_REQUESTS, seed)
    plan = replace(PLAN, label_timeout=float(one.label_timeout))
    design = Timed(Keeper(plan, Logistic()))
    rng = np.random.default_rng([seed, 4])
    course = serve(drawn.traffic, design, Truth(setting), drawn.ways, rng, period=period)
    drift_at = one.drift_at(N_REQUESTS)
    found = figures(course, max_em_drop=plan.max_em_drop, drift_at=drift_at)
    return {**found, "cpu_ms": 1e3 * design.cpu_s * 10_000 / N_REQUESTS}


def row(setting: str, period: int, found: list[dict[str, float | None]]) -> str:
    """One line of the table."""

    def mean(name: str) -> float:
        return float(np.mean([one[name] for one in found]))

    delays = [one["alarm_delay"] for one in found if one["alarm_delay"] is not None]
    good = np.quantile([one["for_good"] or 0.0 for one in found], [0.5, 0.9])
    cells = [
        setting, f"{period:,}", f"{100 * mean('saved_all'):.1f} / {100 * mean('saved_last'):.1f}",
        f"{100 * mean('drop_pre'):.2f} / {100 * mean('drop_post'):.2f}",
        f"{sum(bool(one['over_pre'] or one['over_post']) for one in found)} of {len(found)}",
        f"{np.median(delays):.0f}" if len(delays) > len(found) / 2 else "none", f"{good[0]:.0f} / {good[1]:.0f}",
        f"{mean('cpu_ms'):,.0f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.claims.periods", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=SETTINGS, metavar="SETTING", help="settings, see bench.claims")
    asked = parser.parse_args()
    print(HEAD, "| --- " * (HEAD.count("|") - 1) + "|", sep="\n")
    with ProcessPoolExecutor(asked.jobs) as pool:
        for setting in asked.only:
            for period in PERIODS:
                cells = [(setting, period, seed) for seed in range(asked.seeds)]
                print(row(setting, period, list(pool.map(run, cells))), flush=True)


if __name__ == "__main__":
    main()
