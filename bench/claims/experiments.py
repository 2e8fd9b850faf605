"""Experiments in simulation: false verdicts under peeking, a true effect and its price, Simpson, splits, CUPED, ramps.

    python -m bench.claims.experiments [--only NAME ...] [--experiments 2000] [--seeds 200]

The functions of `suffice.rollout` run unchanged; many experiments at once lie along the first axis of arrays.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log, sqrt
from typing import Final

import numpy as np

from suffice.arrays import Bools, Floats, Ints
from suffice.assurance.bounds import Interval, exact_binomial, gamma_exponential_bound
from suffice.assurance.certify import log_bets, mixed
from suffice.assurance.paired import BETS
from suffice.assurance.planned import LEAST_EVIDENCE, SHARE, planned_quantile
from suffice.assurance.sampling import LOG_ALARM
from suffice.rollout.analysis import FOR_WHOLE, MOST_CLASSES, alphas, analyse, sample_ratio
from suffice.rollout.effects import (
    PairCounts,
    SequentialComparison,
    UnitSeries,
    compare_arms,
    guesses,
    latest_comparison,
    ratio_of,
)
from suffice.rollout.experiment import Arm, RunningExperiment
from suffice.rollout.results import (
    EM,
    LATENCY,
    SATISFACTION,
    TOKENS,
    ExperimentData,
    ExperimentResult,
    MetricValue,
    UnitAssignment,
)

HALF: Final = {"full": 0.5, "brisk": 0.5}
TWO: Final = RunningExperiment(
    name="brisk",
    run=1,
    routes=("r",),
    unit="request",
    layer="default",
    slots=((0, 1_000),),
    arms=(Arm(name="full", weight=1.0, full=True), Arm(name="brisk", weight=1.0)),
    control="full",
    primary=TOKENS,
    margins=((EM, 0.02),),
)
CAP_TOKENS: Final = 4_000.0
CAP_S: Final = 60.0
WARMUP: Final = 100
CLASS_FROM: Final = 400  # units of which a class has its 200, from which on it is shown


# --------------------------------------------------------------------------- many experiments at once


def units(
    value: Floats,
    arm: Ints,
    *,
    share: float | Floats = 0.5,
    x: Floats | None = None,
    high: float = 1.0,
    warmup: int = WARMUP,
    planned: int = 0,
) -> UnitSeries:
    """Two arms; arm 1 has `share`, which may change from unit to unit."""
    odds = np.broadcast_to(np.asarray(share, dtype=np.float64), value.shape)
    ones = np.ones((*value.shape, 1))
    return UnitSeries(
        value=value,
        arm=arm,
        propensity=np.where(arm == 1, odds, 1 - odds),
        weight=np.minimum(odds, 1 - odds),
        x=ones if x is None else np.concatenate([ones, x], axis=2),
        n_arms=2,
        warmup=warmup,
        low=0.0,
        high=high,
        planned=planned,
    )


def radius(running: SequentialComparison, alpha: float, at: Ints) -> Floats:
    """Half of the interval at some looks; between 200 points the bound is a line to five digits."""
    deviation, found = running.deviation[:, at], np.empty((len(running.effect), len(at)))
    planned = bool(running.v_plan.any())
    tail = alpha / 2 * (1 - SHARE if planned else 1.0)
    for v_opt in np.unique(running.v_opt):
        mine = running.v_opt == v_opt
        grid = np.concatenate([[0.0], np.geomspace(1e-4, deviation[mine].max() + 1, 200)])
        bound = [gamma_exponential_bound(float(v), tail, v_opt=float(v_opt)) for v in grid]
        found[mine] = np.interp(deviation[mine], grid, bound)
    if planned:
        found = np.minimum(found, _on_plan(running, alpha / 2 * SHARE, at))
    return np.asarray(2 * running.width * found / running.weight[:, at])


def _on_plan(running: SequentialComparison, tail: float, at: Ints) -> Floats:
    """The planned bound of many experiments at once, infinite where it is not used."""
    v, v_plan, c = running.deviation[:, at], running.v_plan[:, np.newaxis], planned_quantile(tail)
    size = np.divide(running.cubed[:, at], v, out=np.zeros_like(v), where=v > 0)
    bound = c * np.sqrt(v_plan) * np.maximum(1.0, v / v_plan) + size * (c * c - 1) / 6
    used = (at >= running.plan_from[:, np.newaxis]) & (v >= LEAST_EVIDENCE * size**2)
    return np.where(used, bound, np.inf)


def ever_off(running: SequentialComparison, alpha: float, at: Ints, truth: float | Floats = 0.0) -> Bools:
    """Which experiments' intervals miss the truth at one look or more."""
    away = np.abs(running.effect[:, at] - (truth if isinstance(truth, float) else truth[:, at]))
    return np.asarray((away > radius(running, alpha, at)).any(axis=1))


def ever_z(values: Floats, arm: Ints, at: Ints, z: float = 1.96) -> Bools:
    """Which experiments a two-sample z-test calls at one look or more, from 30 units of each arm on."""
    off = np.zeros(len(values), dtype=bool)
    sums = [[np.cumsum(np.where(arm == a, values**k, 0.0), axis=1)[:, at] for k in range(3)] for a in (0, 1)]
    with np.errstate(invalid="ignore", divide="ignore"):
        means = [s[1] / s[0] for s in sums]
        errors = [(s[2] / s[0] - mean**2) / s[0] for s, mean in zip(sums, means, strict=True)]
        called = np.abs(means[1] - means[0]) > z * np.sqrt(errors[0] + errors[1])
    off |= (called & (sums[0][0] >= 30) & (sums[1][0] >= 30)).any(axis=1)
    return off


def ever_paired(lost: Floats, gained: Floats, alpha: float, at: Ints) -> Bools:
    """Which experiments' audits refute "no difference" at one look or more, on either side; shape (E, audits) each."""
    sums = [np.cumsum(one, axis=1)[:, at].ravel() for one in (gained, lost)]
    same = np.broadcast_to(at + 1.0, (len(lost), len(at))).ravel() - sums[0] - sums[1]
    goal, found = log(2 / alpha), np.zeros(len(lost), dtype=bool)
    for up, down in ((sums[0], sums[1]), (sums[1], sums[0])):
        wealth = mixed(log_bets(up, same, down, 0.0, bets=BETS))
        found |= (wealth.reshape(len(lost), len(at)) >= goal).any(axis=1)
    return found


@dataclass(frozen=True)
class AA:
    """What peeking at A/A experiments called: by metric, in a class, in any of them; and by a z-test on one metric."""

    n: int
    by_metric: dict[str, float]
    any_metric: float
    z_test: float


def aa(n_experiments: int, n_units: int, n_looks: int, seed: int, *, chunk: int = 100) -> AA:
    """A/A experiments with four metrics and two classes of questions, looked at `n_looks` times each."""
    rng, alpha = np.random.default_rng(seed), alphas(TWO)
    found: dict[str, list[Bools]] = {name: [] for name in (*alpha, "classes", "z")}
    at = np.linspace(n_units // n_looks - 1, n_units - 1, n_looks).astype(np.int64)
    n_audits = n_units // 10
    at_audits = np.unique((at + 1) // 10 - 1)
    at_audits = at_audits[at_audits >= 0]
    for begin in range(0, n_experiments, chunk):
        shape = (min(chunk, n_experiments - begin), n_units + WARMUP)
        arm = rng.integers(0, 2, shape)
        length = rng.normal(size=shape)
        tokens = np.minimum(np.exp(6 + 0.5 * length + 0.4 * rng.normal(size=shape)), CAP_TOKENS)
        latency = np.minimum(tokens / 50 * rng.gamma(4, 0.25, shape), CAP_S)
        liked = (rng.random(shape) < 0.75 + 0.05 * (length < 0)).astype(np.float64)
        classes = [length < 0, length >= 0]
        off = np.zeros(shape[0], dtype=bool)
        for name, value, high in ((TOKENS, tokens, CAP_TOKENS), (LATENCY, latency, CAP_S), (SATISFACTION, liked, 1.0)):
            one = units(value, arm, high=high, x=np.stack([(c - 0.5) for c in classes], axis=2))
            told = guesses(one)
            found[name].append(ever_off(compare_arms(one, told, 1, 0), alpha[name] * FOR_WHOLE, at))
            for where in classes:
                part = compare_arms(one, told, 1, 0, where)
                off |= ever_off(part, alpha[name] * (1 - FOR_WHOLE) / MOST_CLASSES, at[at >= CLASS_FROM])
        found["classes"].append(off)
        u = rng.random((shape[0], n_audits))
        lost, gained = (u < 0.02).astype(np.float64), (u > 0.98).astype(np.float64)
        found[EM].append(ever_paired(lost, gained, alpha[EM] * FOR_WHOLE, at_audits))
        found["z"].append(ever_z(tokens[:, WARMUP:], arm[:, WARMUP:], at))
    each = {name: np.concatenate(parts) for name, parts in found.items()}
    any_metric = np.logical_or.reduce([each[name] for name in (*alpha, "classes")])
    return AA(
        n=n_experiments,
        by_metric={name: float(each[name].mean()) for name in (*alpha, "classes")},
        any_metric=float(any_metric.mean()),
        z_test=float(each["z"].mean()),
    )


# --------------------------------------------------------------------------- a true effect, and its price in EM


@dataclass(frozen=True)
class Price:
    """Points of satisfaction lost for each point of EM lost."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Priced:
    """One experiment on simulated users: satisfaction 3 points lower, EM 1.5 points lower."""

    effect: float
    found: bool
    found_at: int | None  # units at the first look at which it was
    covered: bool
    price: Price | None  # None: the interval for EM still holds 0


@lru_cache
def fallen(fall: float) -> float:
    """By how much satisfaction really falls: taste is cut at 0 and 1, so a little less than `fall`."""
    taste = np.random.default_rng(99).normal(0.72, sqrt(0.2**2 + 0.1**2), 4_000_000)
    return float(np.clip(taste, 0, 1).mean() - np.clip(taste - fall, 0, 1).mean())


def priced(n_users: int, seed: int, *, lost: float = 0.025, gained: float = 0.01, fall: float = 0.03) -> Priced:
    """Users rate from 1 to 5, the brisk arm's `fall` lower; a tenth as many audits show both arms."""
    rng, alpha = np.random.default_rng(seed), alphas(TWO)
    arm = rng.integers(0, 2, (1, n_users))
    taste = np.clip(rng.normal(0.72, 0.2, (1, n_users)) + 0.1 * rng.normal(size=(1, n_users)) - fall * (arm == 1), 0, 1)
    rating = np.floor(taste * 4 + rng.random((1, n_users))) / 4  # whole stars, with the mean of the taste
    one = units(rating, arm)
    running = compare_arms(one, guesses(one), 1, 0)
    told = latest_comparison(running, n_users - WARMUP)
    assert told is not None
    truth = -fallen(fall)
    at = np.arange(99, n_users - WARMUP, 100)
    hits = np.flatnonzero(np.abs(running.effect[0, at]) > radius(running, alpha[SATISFACTION] * FOR_WHOLE, at)[0])
    between = told.between(alpha[SATISFACTION] * FOR_WHOLE)
    n_audits = n_users // 10
    u = rng.random(n_audits)
    n_lost, n_gained = int((u < lost).sum()), int((u > 1 - gained).sum())
    pairs = PairCounts(gained=n_gained, same=n_audits - n_lost - n_gained, lost=n_lost, pending=0)
    drop = pairs.between(alpha[EM] * FOR_WHOLE)
    ratio = ratio_of(Interval(-between.high, -between.low), drop)
    return Priced(
        effect=told.effect,
        found=between.high < 0,
        found_at=int(at[hits[0]]) + 1 if len(hits) else None,
        covered=between.low <= truth <= between.high,
        price=None if ratio is None else Price(-told.effect / pairs.drop, ratio.low, ratio.high),
    )


# --------------------------------------------------------------------------- Simpson, and splits


def simpson(n_units: int, seed: int, *, broken: bool) -> ExperimentResult:
    """The brisk arm loses 5 points of satisfaction in each class, and its plain mean is higher.

    First it has a tenth of the weight while hard questions come, then nine tenths while easy ones do. `broken`: its
    odds are said to be one half all the time, and it is handed the easy ones.
    """
    rng = np.random.default_rng(seed)
    early = np.arange(n_units) < n_units // 2
    hard = rng.random(n_units) < np.where(early, 0.8, 0.2)
    share = np.where(hard, 0.2, 0.8) if broken else np.where(early, 0.1, 0.9)
    brisk = rng.random(n_units) < share
    liked = rng.random(n_units) < np.where(hard, 0.5, 0.9) - 0.05 * brisk
    values, drawn = [], []
    for at in range(n_units):
        odds = HALF if broken else {"full": 1 - float(share[at]), "brisk": float(share[at])}
        arm, name = ("brisk" if brisk[at] else "full"), ("hard" if hard[at] else "easy")
        values.append(MetricValue(arm=arm, odds=odds, query_class=name, value=float(liked[at]), warmup=at < WARMUP))
        drawn.append(UnitAssignment(arm=arm, odds=odds, query_class=name))
    return analyse(TWO, ExperimentData(n_requests=n_units, drawn=drawn, values={SATISFACTION: values}))


def split(n_units: int, seed: int, share: float) -> bool:
    """Is an experiment withheld whose units were to be halved and whose brisk arm got `share`?"""
    brisk = np.random.default_rng(seed).random(n_units) < share
    return (
        sample_ratio([UnitAssignment(arm="brisk" if b else "full", odds=HALF, query_class="") for b in brisk])
        >= LOG_ALARM
    )


# --------------------------------------------------------------------------- CUPED, and ramps


@dataclass(frozen=True)
class Cuped:
    """With a covariate, over the same without it, at the end: means over experiments. And the share that covers."""

    variance: float
    width: float
    covered: float


def cuped(rho: float, n_units: int, n_experiments: int, seed: int) -> Cuped:
    """Experiments without an effect, and a covariate of correlation rho."""
    rng = np.random.default_rng(seed)
    shape = (n_experiments, n_units)
    known, arm = rng.uniform(-1, 1, shape), rng.integers(0, 2, shape)
    # Two even laws, so that values stay in [0, 1] without being cut.
    value = 0.5 + 0.35 * (rho * known + sqrt(1 - rho * rho) * rng.uniform(-1, 1, shape))
    at = np.array([n_units - WARMUP - 1])
    plain, helped = units(value, arm), units(value, arm, x=known[..., np.newaxis])
    of_plain, of_helped = compare_arms(plain, guesses(plain), 1, 0), compare_arms(helped, guesses(helped), 1, 0)
    wide, narrow = radius(of_plain, 0.05, at), radius(of_helped, 0.05, at)
    return Cuped(
        variance=float((of_helped.deviation[:, at] / of_plain.deviation[:, at]).mean()),
        width=float((narrow / wide).mean()),
        covered=float((np.abs(of_helped.effect[:, at]) <= narrow).mean()),
    )


def ramp(n_units: int, n_experiments: int, seed: int) -> float:
    """Share of experiments whose interval ever misses, while the arm grows from 5 % to 50 % and the effect moves."""
    rng = np.random.default_rng(seed)
    place = np.arange(n_units) / n_units
    share = np.where(place < 0.4, 0.05, np.where(place < 0.7, 0.2, 0.5))
    effect = np.where(place < 0.5, 0.08, -0.02)
    shape = (n_experiments, n_units)
    arm = (rng.random(shape) < share).astype(np.int64)
    value = (rng.random(shape) < 0.6 + effect * arm).astype(np.float64)
    one = units(value, arm, share=share)
    weight = np.minimum(share, 1 - share)[WARMUP:]
    truth = np.broadcast_to(np.cumsum(weight * effect[WARMUP:]) / np.cumsum(weight), (n_experiments, n_units - WARMUP))
    return float(
        ever_off(compare_arms(one, guesses(one), 1, 0), 0.05, np.arange(9, n_units - WARMUP, 10), truth).mean()
    )


# --------------------------------------------------------------------------- tables


def percent(k: float, n: int) -> str:
    between = exact_binomial(round(k * n), n, 0.95)
    return f"{k:.1%} [{between.low:.1%}, {between.high:.1%}]"


def table_aa(asked: argparse.Namespace) -> None:
    found = aa(asked.experiments, 10_000, 1_000, 1)
    print("| A/A experiments, 1,000 looks at 10,000 units each | called at least once |", "| --- | --- |", sep="\n")
    for name, share in found.by_metric.items():
        print(f"| {'any metric in a class' if name == 'classes' else name} | {percent(share, found.n)} |")
    print(f"| any of them: a false verdict | {percent(found.any_metric, found.n)} |")
    print(f"| for comparison: tokens by a z-test at each look | {percent(found.z_test, found.n)} |")


def table_priced(asked: argparse.Namespace) -> None:
    print(
        "| users | 3 points found | after units, median | interval covers | per EM point | its interval, median |"
        " covers |",
        "| --- " * 7 + "|",
        sep="\n",
    )
    for n_users in (10_000, 20_000, 40_000, 100_000):
        found = [priced(n_users, seed) for seed in range(asked.seeds)]
        with_price = [one.price for one in found if one.price is not None]
        took = [one.found_at for one in found if one.found_at is not None]
        true = fallen(0.03) / 0.015
        cells = [f"{n_users:,}", f"{np.mean([one.found for one in found]):.1%}"]
        covered = float(np.mean([one.covered for one in found]))
        cells += [f"{np.median(took):,.0f}" if took else "-", percent(covered, len(found))]
        if with_price:
            low, high = (np.median([getattr(one, end) for one in with_price]) for end in ("low", "high"))
            covers = float(np.mean([one.low <= true <= one.high for one in with_price]))
            cells += [f"{np.median([one.value for one in with_price]):.2f} ({len(with_price)} of {len(found)})"]
            cells += [f"{low:.2f} to {high:.2f}", percent(covers, len(with_price))]
        else:
            cells += ["none yet", "-", "-"]
        print("| " + " | ".join(cells) + " |")


def table_simpson(asked: argparse.Namespace) -> None:
    n_seeds = max(10, asked.seeds // 10)
    print("| 20,000 units | plain difference | shown | stratified | verdict |", "| --- " * 5 + "|", sep="\n")
    for broken in (False, True):
        found = [simpson(20_000, seed, broken=broken) for seed in range(n_seeds)]
        name = "odds as they were not" if broken else "odds moved with the mix, and logged"
        of = [one.arms[0].of(SATISFACTION) for one in found]
        withheld = sum(one.withheld is not None for one in found)
        if withheld == n_seeds:
            print(f"| {name} | - | - | - | withheld in {withheld} of {n_seeds} |")
            continue
        fields = ("plain", "effect", "stratified")
        means = [100 * float(np.mean([getattr(one, field) for one in of])) for field in fields]
        words = ("worse", "inconclusive", "better")
        told = ", ".join(f"{word} {sum(one.verdict == word for one in of)}" for word in words)
        print("| " + " | ".join([name, *(f"{mean:+.2f}" for mean in means), told]) + " |")


def table_split(asked: argparse.Namespace) -> None:
    sizes = (2_000, 5_000, 10_000, 20_000)
    print("| split | " + " | ".join(f"{n:,} units" for n in sizes) + " |", "| --- " * (len(sizes) + 1) + "|", sep="\n")
    for share in (0.50, 0.53, 0.55, 0.60):
        found = [[split(n, seed, share) for seed in range(asked.seeds)] for n in sizes]
        cells = [percent(float(np.mean(one)), asked.seeds) for one in found]
        print(f"| {1 - share:.0%} / {share:.0%} withheld | " + " | ".join(cells) + " |")


def table_cuped(asked: argparse.Namespace) -> None:
    print(
        "| correlation | variance, over that without | theory | width | theory | covers |", "| --- " * 6 + "|", sep="\n"
    )
    for rho in (0.0, 0.3, 0.5, 0.7, 0.9):
        found, left = cuped(rho, 20_000, asked.seeds, 5), 1 - rho * rho
        cells = [f"{rho:.1f}", f"{found.variance:.3f}", f"{left:.3f}", f"{found.width:.3f}", f"{sqrt(left):.3f}"]
        print("| " + " | ".join([*cells, percent(found.covered, asked.seeds)]) + " |")


def table_ramp(asked: argparse.Namespace) -> None:
    missed = ramp(5_000, 5 * asked.seeds, 6)
    print(
        "| the arm grows from 5 % to 50 % and the effect turns | missed at any look, 5 % allowed |",
        "| --- | --- |",
        f"| 5,000 units, 490 looks | {percent(missed, 5 * asked.seeds)} |",
        sep="\n",
    )


TABLES: Final[dict[str, Callable[[argparse.Namespace], None]]] = {
    "aa": table_aa,
    "priced": table_priced,
    "simpson": table_simpson,
    "split": table_split,
    "cuped": table_cuped,
    "ramp": table_ramp,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.claims.experiments", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--experiments", type=int, default=2_000, help="A/A experiments")
    parser.add_argument("--seeds", type=int, default=200)
    asked = parser.parse_args(arguments)
    for name in asked.only:
        begin = time.process_time()
        print(f"\n**{name}**")
        TABLES[name](asked)
        print(f"\n{time.process_time() - begin:.1f} s of CPU time")


if __name__ == "__main__":
    main()
