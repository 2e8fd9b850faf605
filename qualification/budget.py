"""Steady routes: how much of the owner's EM budget the settled level uses, in ten worlds with known truth.

    python -m qualification.budget [--seeds 2] [--requests 24000] [--only NAME ...]

Each stream starts cold under the certifier that serves, with its burst, window and refits, and labels that come at
once. *Settled* is the last third. The true drop of a level is its mean over 200,000 further runs of the same world.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from bench.claims.score import Logistic
from bench.claims.streams import online
from tests.simulators.traffic_worlds.scenarios import in_world
from tests.simulators.traffic_worlds.worlds import WORLDS as REGIMES

from suffice.arrays import Floats
from suffice.assurance.certify import window_audits
from suffice.assurance.clusters import own_clusters
from suffice.certification.certifier import Certifier
from suffice.certification.plan import HORIZON, Plan, full_runs
from suffice.learn.audits import AuditRuns
from suffice.learn.features import FeatureSelection
from suffice.learn.version import N_FOLDS, N_LEVELS, FoldedModels
from suffice.replay.online.stream import RecordedTraffic, run_stream

CONFIDENCE: Final = 0.95
REFIT_EVERY: Final = 1_000
TRUTH_SEEDS: Final = range(987_654, 987_664)  # for the true drop: 0.05 points is its standard error at sd 21 %
N_TRUTH: Final = 20_000  # runs of each of these
N_SAMPLES: Final = 16  # of a vote
GOAL: Final = 0.60  # of the budget, median over the worlds
SHOWN: Final = (0.1, 0.25, 0.5, 0.75, 1.0)  # parts of a stream at which the audit share is printed

Draw = Callable[[int, int], RecordedTraffic]  # runs, seed


@dataclass(frozen=True, slots=True)
class World:
    name: str
    max_em_drop: float
    draw: Draw


def reasoning(regime: str) -> Draw:
    return lambda n, seed: online(in_world(REGIMES[regime], n, seed=seed), np.zeros(n), seed=seed)


def votes(clear: float, even: float) -> Draw:
    """Votes of 16 samples on two kinds of questions: P(the usual answer) is Beta-distributed, clear or even."""
    return lambda n, seed: draw_votes(np.random.default_rng([seed, 7]), n, clear=clear, even=even)


def draw_votes(rng: np.random.Generator, n: int, *, clear: float, even: float) -> RecordedTraffic:
    is_even = rng.random(n) < even
    p_usual = np.where(is_even, rng.beta(6.0, 4.5, n), rng.beta(clear, 1.0, n))
    usual_is_right = rng.random(n) < np.where(is_even, 0.7, 0.9)
    says_usual = rng.random((n, N_SAMPLES)) < p_usual[:, np.newaxis]
    number = np.arange(1, N_SAMPLES + 1)
    lead = np.cumsum(np.where(says_usual, 1, -1), axis=1)
    leads = np.where(lead == 0, says_usual[:, :1], lead > 0)  # a tie goes to the first answer
    right = leads == usual_is_right[:, np.newaxis]
    z = right[:, -1:].astype(np.int8) - right.astype(np.int8)
    margin, step = np.abs(lead) / number, np.broadcast_to(number / N_SAMPLES, lead.shape)
    same = np.concatenate([np.zeros((n, 1)), leads[:, 1:] == leads[:, :-1]], axis=1)
    x = np.stack([margin, step, margin * step, np.abs(lead) / N_SAMPLES, same], axis=2)
    tokens = np.cumsum(200.0 * rng.lognormal(0.0, 0.3, lead.shape), axis=1)
    runs = AuditRuns(
        x=x.reshape(n * N_SAMPLES, -1),
        starts=np.arange(n + 1) * N_SAMPLES,
        z=z.ravel(),
        d=(leads != leads[:, -1:]).ravel(),
        may_stop=np.ones(n * N_SAMPLES, dtype=bool),
        cost=tokens.ravel(),
        per_step=(tokens / number).ravel(),
        full=tokens[:, -1],
        fold=rng.integers(0, N_FOLDS, n).astype(np.int8),
        at=np.arange(n, dtype=np.float64),
        share=np.ones(n),
        label_at=np.zeros(n),
        query_class=np.zeros(n, dtype=np.int64),
        clusters=own_clusters(n),
        abandoned=np.zeros(n, dtype=bool),
    )
    return RecordedTraffic(
        runs=runs,
        probes=np.zeros(n * N_SAMPLES),
        duration=np.zeros(n),
        early=x[:, 1, :2],
        question=tuple(map(str, range(n))),
        chosen=FeatureSelection(("margin", "step", "margin x step", "lead", "same"), ()),
    )


WORLDS: Final = (
    World("usual 1 %", 0.01, reasoning("usual")),
    World("usual 2 %", 0.02, reasoning("usual")),
    World("usual 5 %", 0.05, reasoning("usual")),
    World("many 2 %", 0.02, reasoning("many")),
    World("harder 5 %", 0.05, reasoning("harder")),
    World("stealth 5 %", 0.05, reasoning("stealth")),
    World("swapped 5 %", 0.05, reasoning("swapped")),
    World("votes 1 %", 0.01, votes(6.0, 0.2)),
    World("votes 2 %", 0.02, votes(6.0, 0.4)),
    World("even votes 5 %", 0.05, votes(3.0, 0.8)),
)


@dataclass(slots=True)
class Truth:
    """Drop and saving of every level of the versions that were served, each of shape (M,)."""

    draw: Draw
    versions: dict[int, FoldedModels] = field(default_factory=dict)

    def note(self, served: FoldedModels) -> int:
        """The number of a version; it is held, so that no other gets its id."""
        self.versions[id(served)] = served
        return id(served)

    def find(self) -> Mapping[int, tuple[Floats, Floats]]:
        """Each version on runs that it has not seen, drawn once for all."""
        drop = {number: np.zeros(one.n_levels) for number, one in self.versions.items()}
        spent, full = {number: np.zeros(one.n_levels) for number, one in self.versions.items()}, 0.0
        for seed in TRUTH_SEEDS:
            runs = self.draw(N_TRUTH, seed).runs
            full += float(runs.full.sum())
            for number, one in self.versions.items():
                rows = one.rows(runs)
                drop[number] += runs.z[rows].mean(axis=0) / len(TRUTH_SEEDS)
                spent[number] += runs.cost[rows].sum(axis=0)
        return {number: (drop[number], 1 - spent[number] / full) for number in drop}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    level: int  # at the end
    used: float  # of the budget, by the true drop of the level in force, mean over the settled third
    saved: float  # of tokens, settled third, audits included
    whole: float  # of tokens, from the first request on
    at_level: float  # what the level of the end saves on requests that are no audits
    best: float  # saving of the best level of the last version that keeps the budget
    settled_at: int  # request from which 80 % of the budget use at the end was held
    doubt: float  # share of all requests in doubt
    shares: tuple[float, ...]  # audit shares, see SHOWN
    over: float  # share of all requests that met a level whose true drop exceeds the budget
    alarms: int


def plan_of(world: World) -> Plan:
    burst = full_runs(world.max_em_drop, HORIZON)
    return Plan(
        max_em_drop=world.max_em_drop,
        confidence=CONFIDENCE,
        warm_up=burst,
        burst=burst,
        window=window_audits(world.max_em_drop),
        refit_every=REFIT_EVERY,
    )


def run_world(world: World, n: int, seed: int) -> Found:
    truth, served, shares, doubts = Truth(world.draw), list[tuple[int, int]](), list[float](), list[bool]()
    certifier = Certifier(plan_of(world), Logistic())

    def look(seen: Certifier) -> None:
        shares.append(seen.share)
        doubts.append(seen.doubts(forecast=False))
        served.append((0, 0) if seen.served is None else (truth.note(seen.served), seen.level))

    stream = run_stream(world.draw(n, seed), certifier, np.random.default_rng([seed, 4]), watch=look)
    known, settled = {0: (np.zeros(N_LEVELS), np.zeros(N_LEVELS)), **truth.find()}, len(served) * 2 // 3
    used = np.array([known[version][0][level] for version, level in served]) / world.max_em_drop
    drop, saving = known[served[-1][0]]
    low = np.flatnonzero(used < 0.8 * used[-1])
    return Found(
        level=certifier.level,
        used=float(used[settled:].mean()),
        saved=stream.reduction(slice(n * 2 // 3, None)),
        whole=stream.reduction(slice(None)),
        at_level=float(saving[certifier.level]),
        best=float(saving[drop <= world.max_em_drop].max(initial=0.0)),
        settled_at=n * (int(low[-1]) + 1 if len(low) else 0) // len(used),
        doubt=float(np.mean(doubts)),
        shares=tuple(shares[int(part * len(shares)) - 1] for part in SHOWN),
        over=float((used > 1).mean()),
        alarms=sum(change.kind == "alarm" for change in stream.changes),
    )


def line(world: World, seed: int, found: Found) -> str:
    shares = " ".join(f"{100 * share:3.0f}" for share in found.shares)
    return (
        f"{world.name:16} {seed:4} {found.level:5} {100 * found.used * world.max_em_drop:6.2f}"
        f" {100 * found.used:6.0f} %"
        f" {100 * found.whole:6.1f} % {100 * found.saved:6.1f} %"
        f" {100 * found.at_level:6.1f} % {100 * found.best:6.1f} %"
        f" {found.settled_at:8,}  {shares}  {100 * found.doubt:5.1f} % {100 * found.over:5.1f} % {found.alarms:3}"
    )


HEAD: Final = (
    "world            seed level   drop budget    whole  settled    level     best    since  audit share, %"
    "        doubt    over alarms"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=2, help="streams of each world")
    parser.add_argument("--requests", type=int, default=24_000, help="of each stream")
    parser.add_argument("--only", nargs="*", default=(), help="worlds whose names contain one of these")
    asked = parser.parse_args()
    worlds = [world for world in WORLDS if not asked.only or any(word in world.name for word in asked.only)]
    print(HEAD)
    found: Mapping[str, list[Found]] = {world.name: [] for world in worlds}
    for world in worlds:
        for seed in range(asked.seeds):
            one = run_world(world, asked.requests, seed)
            found[world.name].append(one)
            print(line(world, seed, one), flush=True)
    used = float(np.median([np.mean([one.used for one in each]) for each in found.values()]))
    streams = [one for each in found.values() for one in each]
    n_over = sum(one.used > 1 for one in streams)
    print(f"budget used, median over worlds: {100 * used:.0f} % (goal {100 * GOAL:.0f} %)")
    print(f"streams over the budget when settled: {n_over} of {len(streams)}")
    print(f"requests above the budget: {100 * np.mean([one.over for one in streams]):.2f} %")
    return int(used < GOAL or n_over > (1 - CONFIDENCE) * len(streams))


if __name__ == "__main__":
    sys.exit(main())
