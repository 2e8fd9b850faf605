"""Experiments over a known difference: wrong verdicts at every look, width beside a z-test's, time to a decision.

Units are requests of users who differ, under five kinds of streams. Each experiment is looked at after every tenth unit
up to one and a half times its plan, with the intervals that `suffice experiment show` prints.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite, sqrt
from statistics import NormalDist
from typing import Final

import numpy as np
from bench.claims.experiments import TWO, ever_off, ever_z, radius, units

from suffice.arrays import Bools, Floats, Ints
from suffice.assurance.bounds import exact_binomial
from suffice.rollout.analysis import FOR_WHOLE, MOST_CLASSES, alphas
from suffice.rollout.effects import PairCounts, PairPlan, SequentialComparison, compare_arms, guesses
from suffice.rollout.results import EM, LATENCY, SATISFACTION, TOKENS

WARMUP: Final = 100
CAPS: Final = {TOKENS: 4_000.0, LATENCY: 60.0, SATISFACTION: 1.0}
MOST_RATIO: Final = 1.4
CLASS_FROM: Final = 400
CHUNK: Final = 50
DELTA: Final = 0.05
NORMAL: Final = NormalDist()
DESIGNS: Final = {"no margin": replace(TWO, margins=()), "a margin for EM": TWO}


@dataclass(frozen=True, slots=True)
class World:
    """Potential outcomes of E experiments of n units: what a unit gives in the control, shape (E, n) each."""

    values: dict[str, Floats]
    hard: Bools
    known: Floats  # length of the question, standardised, (E, n)
    earlier: Floats  # by how much the user's earlier questions were longer than others', (E, n)
    share: float  # odds of arm 1


def world(kind: str, shape: tuple[int, int], rng: np.random.Generator) -> World:
    """One of: steady, clustered, drifting, rare, skewed odds."""
    time = np.arange(shape[1]) / shape[1]
    user = rng.integers(0, 40 if kind == "clustered" else 4_000, shape)
    level = rng.normal(size=(shape[0], 4_000)) * (0.6 if kind == "clustered" else 0.2)
    taste = np.take_along_axis(level, user, axis=1)
    hard = rng.random(shape) < (0.2 + 0.6 * time if kind == "drifting" else 0.5)
    known, noise = rng.normal(size=shape), rng.normal(size=shape)
    trend = 0.8 * np.sin(2 * np.pi * time) if kind == "drifting" else 0.0
    spread = 0.2 + 0.5 * time if kind == "drifting" else 0.4
    tokens = np.exp(5.6 + 0.4 * hard + 0.4 * known + taste + trend + spread * noise)
    satisfied = 0.98 if kind == "rare" else np.clip(0.75 - 0.1 * hard - 0.1 * taste - 0.1 * trend, 0.02, 0.98)
    values = {
        TOKENS: np.minimum(tokens, CAPS[TOKENS]),
        LATENCY: np.minimum(tokens / 50 * rng.gamma(4, 0.25, shape), CAPS[LATENCY]),
        SATISFACTION: (rng.random(shape) < satisfied).astype(np.float64),
    }
    return World(values, hard, known, taste, 0.1 if kind == "skewed odds" else 0.5)


KINDS: Final = ("steady", "clustered", "drifting", "rare", "skewed odds")


def looks(n: int) -> Ints:
    return np.arange(9, n - WARMUP, 10)


def compared(
    made: World, metric: str, arm: Ints, planned: int, *, with_known: bool, gain: float = 0.0
) -> tuple[SequentialComparison, SequentialComparison, Floats]:
    """The comparison of all units, that of a class, and the values; arm 1 uses `gain` less of the metric."""
    value = made.values[metric] * np.where(arm == 1, 1 - gain, 1.0)
    x = np.stack([made.hard - 0.5, made.known, made.earlier], axis=2) if with_known else None
    one = units(value, arm, share=made.share, x=x, high=CAPS[metric], warmup=WARMUP, planned=planned)
    predicted = guesses(one)
    return compare_arms(one, predicted, 1, 0), compare_arms(one, predicted, 1, 0, made.hard), value


def table_aa(asked: argparse.Namespace) -> bool:
    """A/A: how many of the experiments were ever wrong in any metric or class, at any look."""
    print(f"A/A, truth 0: {asked.seeds} experiments a row, plan {asked.planned:,} units, looked at every 10 units")
    print("stream        any wrong verdict    95 % interval      allowed  z-test at each look")
    n, at, fine = int(1.5 * asked.planned), looks(int(1.5 * asked.planned)), True
    shares = alphas(TWO)
    for number, kind in enumerate(KINDS):
        wrong, by_z = list[Bools](), list[Bools]()
        for begin in range(0, asked.seeds, CHUNK):
            rng = np.random.default_rng([1, number, begin])
            shape = (min(CHUNK, asked.seeds - begin), n)
            made = world(kind, shape, rng)
            arm = (rng.random(shape) < made.share).astype(np.int64)
            off = np.zeros(shape[0], dtype=bool)
            for metric in CAPS:
                whole, part, value = compared(made, metric, arm, asked.planned, with_known=True)
                off |= ever_off(whole, shares[metric] * FOR_WHOLE, at)
                off |= ever_off(part, shares[metric] * (1 - FOR_WHOLE) / MOST_CLASSES, at[at >= CLASS_FROM])
                if metric == TOKENS:
                    by_z.append(ever_z(value[:, WARMUP:], arm[:, WARMUP:], at))
            wrong.append(off)
        k = int(np.concatenate(wrong).sum())
        between = exact_binomial(k, asked.seeds, 0.95)
        good = between.low <= DELTA
        fine &= good
        z = float(np.concatenate(by_z).mean())
        ends, missed = f"[{between.low:.1%}, {between.high:.1%}]", "" if good else "  MISSED"
        print(f"{kind:13} {k:6} = {k / asked.seeds:6.1%}     {ends:18} {DELTA:.0%}     {z:6.1%}{missed}")
    return fine


def z_width(value: Floats, arm: Ints, n: int, z: float) -> Floats:
    """Half of a two-sample test's interval on the first n units behind the warm-up, (E,)."""
    value, arm = value[:, WARMUP : WARMUP + n], arm[:, WARMUP : WARMUP + n]
    error = np.zeros(len(value))
    for a in (0, 1):
        mine = np.where(arm == a, value, np.nan)
        error += np.nanvar(mine, axis=1, ddof=1) / (arm == a).sum(axis=1)
    return np.asarray(z * np.sqrt(error))


@dataclass(frozen=True, slots=True)
class Row:
    """What a row of A/B experiments showed, medians and means over its seeds."""

    ratio: float  # half of the interval at the plan over that of a z-test at 95 %
    same_level: float  # over that of a z-test at the level of this one interval
    truth: float
    effect: float
    covered: float  # share of experiments whose interval holds the truth at every look
    after: float  # units until a difference is proved; infinite: not within the experiment
    z_units: float  # with which a z-test with one look finds it in 80 %

    @property
    def is_good(self) -> bool:
        return self.ratio <= MOST_RATIO and self.covered >= 1 - DELTA

    def __str__(self) -> str:
        after = f"{self.after:6,.0f}" if isfinite(self.after) else "not yet"
        return (
            f"{self.ratio:8.2f}  {self.same_level:10.2f}  {self.truth:8.3f}  {self.effect:8.3f}  {self.covered:7.1%}"
            f"  {after} ({self.z_units:,.0f}){'' if self.is_good else '  MISSED'}"
        )


def row(made: World, metric: str, arm: Ints, gain: float, *, alpha: float, planned: int, with_known: bool) -> Row:
    at, plan = looks(arm.shape[1]), planned - WARMUP
    each = -gain * made.values[metric][:, WARMUP:]
    truth = np.cumsum(each, axis=1) / np.arange(1, each.shape[1] + 1)
    whole, _, value = compared(made, metric, arm, planned, with_known=with_known, gain=gain)
    half, effect = radius(whole, alpha, at), whole.effect[:, at]
    own = half[:, np.searchsorted(at, plan - 1)]
    proved = np.abs(effect) > half
    first = np.where(proved.any(axis=1), at[proved.argmax(axis=1)] + 1.0, np.inf)
    return Row(
        ratio=float(np.median(own / z_width(value, arm, plan, NORMAL.inv_cdf(1 - DELTA / 2)))),
        same_level=float(np.median(own / z_width(value, arm, plan, NORMAL.inv_cdf(1 - alpha / 2)))),
        truth=float(truth[:, -1].mean()),
        effect=float(effect[:, -1].mean()),
        covered=float((np.abs(effect - truth[:, at]) <= half).all(axis=1).mean()),
        after=float(np.median(first)),
        z_units=_z_units(value, arm, float(truth[:, -1].mean())),
    )


def table_ab(asked: argparse.Namespace) -> bool:
    """A/B: half-widths at the plan over a z-test's on the same data, time to a decision, coverage at all looks."""
    print(
        f"\nA/B: {asked.ab_seeds} experiments a row; half of the interval at the plan over a z-test's on the same units"
    )
    print(
        "metric        design           covariates  at 95 %  same level     truth     shown  covered  decided (z-test)"
    )
    n, fine = int(1.5 * asked.planned), True
    for metric, gain in ((TOKENS, 0.06), (LATENCY, 0.08), (SATISFACTION, 0.06)):
        rng = np.random.default_rng([2, list(CAPS).index(metric)])
        made = world("steady", (asked.ab_seeds, n), rng)
        arm = (rng.random((asked.ab_seeds, n)) < 0.5).astype(np.int64)
        for design, experiment in DESIGNS.items():
            alpha = alphas(replace(experiment, primary=metric))[metric] * FOR_WHOLE
            for with_known in (False, True):
                found = row(made, metric, arm, gain, alpha=alpha, planned=asked.planned, with_known=with_known)
                fine &= found.is_good
                print(f"{metric:13} {design:16} {'with' if with_known else 'without':10}  {found}")
    return fine


PAIRS: Final = {"equal": (0.03, 0.03), "it loses": (0.04, 0.01), "it only loses": (0.05, 0.0)}


def table_em(asked: argparse.Namespace) -> bool:
    """EM by full runs: wrong intervals at twelve looks, half-widths at the plan over a z-test's on the same audits."""
    print(f"\nEM by full runs: {asked.seeds} experiments a row, 12 looks up to 1.5 plans; half-widths at the plan")
    print("lost, gained      audits  differences  wrong at any look  at 95 %  same level  before")
    alpha, fine = alphas(replace(TWO, primary=EM))[EM] * FOR_WHOLE, True
    for number, (kind, (lost, gained)) in enumerate(PAIRS.items()):
        for n in (1_000, 2_000, 4_000):
            rng, shape = np.random.default_rng([3, number, n]), (asked.seeds, 12)
            drawn = np.cumsum(rng.multinomial(n // 8, (lost, gained, 1 - lost - gained), shape), axis=1)
            ratios, wrong = list[tuple[float, float]](), 0
            for one in drawn:
                pairs = [PairCounts(lost=int(a), gained=int(b), same=int(c)) for a, b, c in one]
                plans = [PairPlan.of(pairs[min(at, 3)], n_units=(at + 1) * n, planned=8 * n) for at in range(12)]
                found = [pair.between(alpha, plan=plan) for pair, plan in zip(pairs, plans, strict=True)]
                wrong += any(not each.low <= lost - gained <= each.high for each in found)
                before, at_plan = pairs[7].between(alpha), found[7]
                z = NORMAL.inv_cdf(1 - DELTA / 2) * pairs[7].error
                ratios.append(((at_plan.high - at_plan.low) / 2 / z, (before.high - before.low) / 2 / z))
            ratio, before_ratio = np.median(np.array(ratios), axis=0)
            same = ratio * NORMAL.inv_cdf(1 - DELTA / 2) / NORMAL.inv_cdf(1 - alpha / 2)
            good = ratio <= MOST_RATIO and exact_binomial(wrong, asked.seeds, 0.95).low <= alpha
            fine &= bool(good)
            print(
                f"{kind:16} {n:7,} {n * (lost + gained):12,.0f}  {wrong / asked.seeds:17.1%}  {ratio:7.2f}"
                f"  {same:10.2f}  {before_ratio:6.2f}{'' if good else '  MISSED'}"
            )
    return fine


def _z_units(value: Floats, arm: Ints, effect: float) -> float:
    """Units with which a plain two-sample test at 95 % finds an effect with 80 % power."""
    error = float(np.mean(z_width(value, arm, value.shape[1] - WARMUP, 1.0))) * sqrt(value.shape[1] - WARMUP)
    return ((NORMAL.inv_cdf(1 - DELTA / 2) + NORMAL.inv_cdf(0.8)) * error / effect) ** 2


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m qualification.experiments", description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="A/A experiments for each kind of stream")
    parser.add_argument("--ab-seeds", type=int, default=100)
    parser.add_argument("--planned", type=int, default=4_000, help="units")
    asked = parser.parse_args(arguments)
    fine = table_aa(asked)
    fine &= table_ab(asked)
    fine &= table_em(asked)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
