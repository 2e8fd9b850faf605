"""What audits cost: tokens until the same certificate, when each audit counts in one order of its samples or in many.

    SUFFICE_TRACES=folder python bench/audits.py [--only NAME ...] [--seeds N] [--streams N]

Every `*.dev.parquet` of votes. A seed halves the questions: models and levels are fitted on 3,000 runs of one half, and
requests are runs of the other half, at random with replacement and in a random one of their known orders. The level is
the last one that loses at most half of the budget there, and it serves. One request in twenty is audited; an audit
costs the tokens beyond the stop. *Uniform* counts an audit's drop in the order in which it came, *orders* its mean over
all known orders (`learn.audits`), on the same audits. Both stop at the first look, every 20 audits, at which the
level and all safer ones pass, 95 % sure. *Ratio*: of the mean tokens of ten streams a seed, with the 95 % interval of a
bootstrap over seeds.

*Above*: streams in which a level whose true drop is at or above the budget was certified at any look, of 20,000
requests each, with the exact 95 % interval; 5 % are allowed. The true drop is the mean over all runs and orders.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np

from suffice.arrays import Bools, Floats, Ints
from suffice.assurance.bounds import exact_binomial
from suffice.assurance.certify import BETS, mixed
from suffice.errors import SufficeError
from suffice.learn.audits import AuditRuns
from suffice.learn.features import DENSE
from suffice.learn.version import FoldedModels, fit_served
from suffice.replay.online.stream import RecordedTraffic, learner_of, read_traffic
from suffice.replay.traces.read import Survey, survey
from suffice.signals.features import FeatureSet

BUDGETS: Final = (0.01, 0.02)
CLAIMED: Final = (0.005, 0.01, 0.02)  # budgets of the streams
LIMIT: Final = float(np.log(20))
SHARE: Final = 0.05
LOOK: Final = 20  # audits between two looks
MOST_AUDITS: Final = 40_000  # of one certificate
BLOCK: Final = 2_000  # audits that are weighed together
STREAMS: Final = 10  # of each halving, for tokens
N_REQUESTS: Final = 20_000  # of a stream
FITTED: Final = 3_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Population:
    """Runs of one half of the questions at the levels fitted on the other half; N runs, M levels, W orders in all."""

    z: Floats  # (W, M): drop of each order, run after run
    cost: Floats  # (W, M): tokens of the full run beyond the level's stop
    starts: Ints  # (N + 1,)

    @cached_property
    def mean(self) -> Floats:
        """Drop of each run, shape (N, M)."""
        return np.asarray(np.add.reduceat(self.z, self.starts[:-1], axis=0) / np.diff(self.starts)[:, np.newaxis])

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Runs and, of each, an order."""
        run = rng.integers(0, len(self.starts) - 1, n)
        return run, self.starts[run] + (rng.random(n) * np.diff(self.starts)[run]).astype(np.int64)


def populate(runs: AuditRuns, served: FoldedModels) -> Population:
    ends = served.ends(runs)
    parts = [(runs, ends.rows)] if runs.orders is None else [(runs, ends.rows), (runs.orders.runs, ends.order_rows)]
    starts = np.zeros(len(runs) + 1, np.int64) if runs.orders is None else runs.orders.starts
    z = np.concatenate([of.z[rows] for of, rows in parts]).astype(np.float64)
    cost = np.concatenate([of.cost[of.last][:, np.newaxis] - of.cost[rows] for of, rows in parts])
    run_of = np.concatenate([np.arange(len(runs)), np.repeat(np.arange(len(runs)), np.diff(starts))])
    order = np.argsort(run_of, kind="stable")
    return Population(z=z[order], cost=cost[order], starts=starts + np.arange(len(runs) + 1))


def split(traffic: RecordedTraffic, seed: int) -> Population:
    rng = np.random.default_rng(seed)
    names, question = np.unique(np.array(traffic.question, dtype=object).astype(str), return_inverse=True)
    learns = np.isin(question, rng.permutation(len(names))[: len(names) // 2])
    fitted = traffic.runs.without_orders().take(rng.choice(np.flatnonzero(learns), FITTED))
    served = fit_served(fitted, learner_of(traffic.chosen, seed=seed), now=np.inf)
    assert served is not None
    return populate(traffic.runs.take(np.flatnonzero(~learns)), served)


def looks(z: Floats, max_em_drop: float, so_far: Floats) -> tuple[Bools, Floats]:
    """Whether each level passes at each look, shape (looks, M), and the log wealth of each bet, shape (bets, M)."""
    stakes = (max_em_drop - z) / (1 - max_em_drop)
    each = np.array([np.cumsum(np.log1p(bet * stakes), axis=0)[LOOK - 1 :: LOOK] for bet in BETS])
    each += so_far[:, np.newaxis]
    return mixed(each) >= LIMIT, each[:, -1]


# ---- tokens until the certificate ----------------------------------------------------------------


def tokens_until(population: Population, level: int, max_em_drop: float, rng: np.random.Generator) -> list[float]:
    """Tokens of audits until the level is certified: one order each, all known orders each."""
    run, order = population.draw(MOST_AUDITS, rng)
    spent = np.cumsum(population.cost[order, level])
    levels, mean, tokens = slice(1, level + 1), population.mean, list[float]()
    for in_orders in (False, True):
        wealth, n = np.zeros((len(BETS), level)), MOST_AUDITS
        for begin in range(0, MOST_AUDITS, BLOCK):
            block = slice(begin, begin + BLOCK)
            z = mean[run[block], levels] if in_orders else population.z[order[block], levels]
            passed, wealth = looks(z, max_em_drop, wealth)
            if passed.all(axis=1).any():
                n = begin + LOOK * (1 + int(np.flatnonzero(passed.all(axis=1))[0]))
                break
        tokens.append(float(spent[n - 1]))
    return tokens


def compare(populations: Sequence[Population], max_em_drop: float) -> str:
    pairs = []
    for seed, population in enumerate(populations):
        rng = np.random.default_rng(seed)
        drop = population.mean.mean(axis=0)
        level = int(np.flatnonzero(np.maximum.accumulate(drop) <= max_em_drop / 2)[-1])
        if level:
            streams = [tokens_until(population, level, max_em_drop, rng) for _ in range(STREAMS)]
            pairs.append(np.mean(streams, axis=0))
    tokens = np.array(pairs)
    drawn = np.random.default_rng(0).integers(0, len(tokens), (2_000, len(tokens)))
    ratios = tokens[drawn, 1].mean(axis=1) / tokens[drawn, 0].mean(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    uniform, orders = tokens.mean(axis=0) / 1e6
    return f"{uniform:.1f} | {orders:.1f} | **{orders / uniform:.2f}** ({low:.2f}–{high:.2f})"


# ---- streams -------------------------------------------------------------------------------------


def is_above(population: Population, max_em_drop: float, seed: int) -> tuple[bool, bool]:
    """Whether a level at or above the budget was certified at any look: one order each, all known orders each."""
    rng = np.random.default_rng(10_000 + seed)
    run, order = population.draw(int(rng.binomial(N_REQUESTS, SHARE)), rng)
    none = np.zeros((len(BETS), population.z.shape[1] - 1))
    drop = population.mean.mean(axis=0)
    above = []
    for z in (population.z[order, 1:], population.mean[run, 1:]):
        passed = np.logical_and.accumulate(looks(z, max_em_drop, none)[0], axis=1)
        level = passed.sum(axis=1)
        above.append(bool((drop[level] >= max_em_drop).any()))
    return above[0], above[1]


def claim(populations: Sequence[Population], max_em_drop: float, n_streams: int) -> str:
    found = [is_above(populations[seed % len(populations)], max_em_drop, seed) for seed in range(n_streams)]
    cells = []
    for n_above in np.sum(found, axis=0).tolist():
        ends = exact_binomial(n_above, n_streams, 0.95)
        cells.append(f"{n_above} of {n_streams} ({100 * ends.low:.1f}–{100 * ends.high:.1f} %)")
    return " | ".join(cells)


def show(data: Survey, *, n_seeds: int, n_streams: int) -> None:
    needs = FeatureSet(DENSE[data.kind]).needs
    traffic, _ = read_traffic([data], needs, probe_tokens=None, longest=data.longest)
    populations = [split(traffic, seed) for seed in range(n_seeds)]
    for max_em_drop in BUDGETS:
        print(f"| {data.set} | {100 * max_em_drop:g} % | {compare(populations, max_em_drop)} |", flush=True)
    for max_em_drop in CLAIMED:
        print(f"| {data.set} | {100 * max_em_drop:g} % | {claim(populations, max_em_drop, n_streams)} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 2 where traces are missing or cannot be read."""
    parser = argparse.ArgumentParser(description="Tokens of audits until the same certificate.")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="sets whose file name begins like this")
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="halvings of the questions; default: 20")
    parser.add_argument("--streams", type=int, default=200, metavar="N", help="streams of each claim; default: 200")
    asked = parser.parse_args(arguments)
    folder = os.environ.get("SUFFICE_TRACES")
    files = sorted(Path(folder).glob("*.dev.parquet")) if folder else []
    if asked.only:
        files = [file for file in files if file.name.startswith(tuple(asked.only))]
    if not files:
        print("audits: set SUFFICE_TRACES to a folder with SET.dev.parquet files of recorded runs", file=sys.stderr)
        return 2
    print("| set | budget | uniform, million tokens | orders | ratio |\n| --- | --- | --- | --- | --- |", flush=True)
    for file in files:
        try:
            (data,) = survey([file])
        except SufficeError as error:
            print(f"audits: {error}", file=sys.stderr)
            return 2
        if data.kind == "samples":
            show(data, n_seeds=asked.seeds, n_streams=asked.streams)
    return 0


if __name__ == "__main__":
    sys.exit(main())
