"""One promise for many routes, measured: `python -m bench.fleet [--seeds 200] [--routes 300]`.

Routes are simulated in families that share a kind of traffic; what their levels lose and save comes from versions that
the product's own code fits on each route's traffic. One route in seven is in no family, though it looks like one: what
a similar route has learnt misleads there. Others lose exactly their budget at every level, so that each certificate of
theirs is wrong. Evidence is drawn anew for each seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from bench.claims.score import Logistic
from bench.claims.streams import online
from scipy.stats import beta
from tests.simulators.traffic_worlds import scenarios, worlds

from suffice.arrays import Bools, Floats, Ints
from suffice.assurance.certify import Counts, RouteWealth, log_wealth, require_wealth
from suffice.control.evidence.cold_start import burst_of, warm_burst
from suffice.learn.audits import AuditRuns
from suffice.learn.version import FoldedModels, fit_served
from suffice.settings import Control, Route

N_REQUESTS: Final = 1_000  # of each route
LOOK: Final = 20  # requests between two looks
LATER: Final = 0.05  # of requests that are audited once something is certified
SIZE: Final = 10  # routes of a family
MISLED: Final = 0.15  # of routes
N_TEST: Final = 4_000  # runs on which a level's truth is measured
BASES: Final = (worlds.USUAL, worlds.HARSH, worlds.BENIGN, worlds.STEALTH, worlds.SWAPPED, worlds.HARDER)
N_LEVELS: Final = 21
N_FIT: Final = 480  # audits from which a version is fitted
LEAST_OWN: Final = 200  # audits before a route's own version counts
N_STEPS: Final = 40  # looks at the fleet, in each of two phases
DELTA: Final = 0.05  # of each route
FLEET: Final = 0.95  # confidence


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Truth:
    """What each level of a version does on one route, shape (M,)."""

    lost: Floats  # P(Z = 1)
    gained: Floats  # P(Z = -1)
    saved: Floats  # fraction of tokens

    @property
    def drop(self) -> Floats:
        return self.lost - self.gained


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRoute:
    family: int
    own: Truth  # of a version fitted on the route's own first audits
    warm: Truth  # of the version of another route of its family
    is_misled: bool


def jitter(world: worlds.ClassWorld, rng: np.random.Generator, size: float) -> worlds.ClassWorld:
    def times(value: float, part: float = 1.0, most: float = 0.5) -> float:
        return float(np.clip(value * np.exp(rng.normal(0, part * size)), 0, most))

    classes = tuple(
        replace(
            one,
            share=times(one.share, most=9.0),
            p_right=1 - times(1 - one.p_right, 0.6, 0.95),
            p_plateau=times(one.p_plateau),
            p_overthink=times(one.p_overthink),
            steps=max(4.0, times(one.steps, 0.3, 15.0)),
            boldness=one.boldness + rng.normal(0, size / 2),
            false_boldness=one.false_boldness + rng.normal(0, size / 2),
        )
        for one in world.classes
    )
    return replace(world, classes=classes, shift=world.shift + rng.normal(0, 0.3 * size))


def runs_of(world: worlds.ClassWorld, n: int, seed: int) -> AuditRuns:
    return online(scenarios.in_world(world, n, seed=seed), np.zeros(n), seed=seed).runs


def fit_version(world: worlds.ClassWorld, n: int, seed: int) -> FoldedModels:
    version = fit_served(runs_of(world, n, seed), Logistic(), now=np.inf, n_levels=N_LEVELS)
    assert version is not None
    return version


def truth_of(version: FoldedModels, runs: AuditRuns) -> Truth:
    rows = version.rows(runs)
    z = runs.losses(rows)
    saved = 1 - runs.cost[rows].sum(axis=0) / runs.full.sum()
    return Truth(lost=(z > 0).mean(axis=0), gained=(z < 0).mean(axis=0), saved=np.asarray(saved))


def build_routes(n: int, n_fit: int, seed: int = 0) -> list[SimulatedRoute]:
    """Routes with versions fitted on `n_fit` audits: their own, and one of another route of the family."""
    rng, routes = np.random.default_rng(seed), list[SimulatedRoute]()
    family = donor = None
    for number in range(n):
        if number % SIZE == 0:
            family = jitter(BASES[number // SIZE % len(BASES)], rng, 0.4)
            donor = fit_served(
                runs_of(jitter(family, rng, 0.2), n_fit, 7 * number + 1), Logistic(), now=np.inf, n_levels=N_LEVELS
            )
        assert family is not None
        assert donor is not None
        is_misled = rng.random() < MISLED
        base = jitter(BASES[rng.integers(len(BASES))], rng, 0.8) if is_misled else family
        world = jitter(base, rng, 0.2)
        own = fit_version(world, n_fit, 7 * number + 2)
        test = runs_of(world, N_TEST, 7 * number + 3)
        made = truth_of(own, test), truth_of(donor, test)
        routes.append(SimulatedRoute(family=number // SIZE, own=made[0], warm=made[1], is_misled=is_misled))
    return routes


# --------------------------------------------------------------------------- evidence


def draw_log_wealth(truths: Sequence[Truth], n: int, eps: float, rng: np.random.Generator) -> Floats:
    """The log wealth of each level at each look over n audits, shape (looks, routes, M).

    The levels of one audit share a random number, as those of a run do. Losses and gains are drawn independently.
    """
    n_lost, n_gained = (
        _draw_below(np.stack([getattr(one, name) for one in truths]), n, rng) for name in ("lost", "gained")
    )
    n_audits = np.broadcast_to(LOOK * np.arange(1, n // LOOK + 1)[:, None, None], n_lost.shape)
    counts = Counts(*(part.ravel() for part in (n_gained, n_audits - n_lost - n_gained, n_lost)))
    return log_wealth(counts, max_em_drop=eps).reshape(n_lost.shape)


def _draw_below(rates: Floats, n: int, rng: np.random.Generator) -> Ints:
    """How many of the first audits at each look have a uniform number below each rate, shape (looks, routes, M)."""
    order = np.argsort(rates, axis=1)
    edges = np.take_along_axis(rates, order, axis=1)
    cells = np.diff(edges, axis=1, prepend=0.0, append=1.0)
    drawn = rng.multinomial(LOOK, cells, size=(n // LOOK, len(rates)))[:, :, :-1].cumsum(axis=2).cumsum(axis=0)
    below = np.empty_like(drawn)
    np.put_along_axis(below, np.broadcast_to(order, drawn.shape), drawn, axis=2)
    return below


@dataclass(slots=True, eq=False)
class Result:
    """What one design did in one seed, by route."""

    saved: Floats  # fraction of the tokens of a route's first N_REQUESTS requests
    is_certified: Bools
    is_wrong: Bools
    begins: Floats  # requests before a level acted; infinite: none did
    shares: list[float]  # of wrong ones among the certified, over time


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    cold: int  # full runs of a cold start
    warm: int | None = None  # full runs of a route whose family has a certified one; None: as cold
    fleet: float | None = None  # the fleet's confidence; None: each route's own alone


class Serving:
    """Serves all routes under one design. A level stays as the full runs have certified it.

    wealth  of the levels of each route's own version, and of the other one's, shape (looks, routes, M) each
    """

    def __init__(self, routes: Sequence[SimulatedRoute], wealth: tuple[Floats, Floats], design: Design) -> None:
        n = len(routes)
        self.routes, self.wealth, self.design = routes, wealth, design
        self.family = np.array([one.family for one in routes])
        self.saved = np.stack([[one.own.saved for one in routes], [one.warm.saved for one in routes]])  # (2, n, M)
        self.drop = np.stack([[one.own.drop for one in routes], [one.warm.drop for one in routes]])
        self.burst, self.is_warm = np.full(n, design.cold), np.zeros(n, bool)
        self.level, self.which, self.begins = np.zeros(n, int), np.zeros(n, int), np.full(n, np.inf)
        self.first = np.zeros(n)  # wealth of the safest level, at its best version
        self.required = 0.0

    def step(self, n_seen: Ints, has_begun: Bools) -> None:
        design = self.design
        if design.warm is not None:
            new = ~self.is_warm & (n_seen < self.burst) & np.isin(self.family, self.family[self.level > 0])
            self.burst[new] = np.maximum(n_seen[new], design.warm)
            self.is_warm |= new
        open_ = np.flatnonzero((self.level == 0) & (n_seen >= self.burst) & (n_seen > 0))
        look = n_seen[open_] // LOOK - 1
        wealth = np.stack([one[look, open_] for one in self.wealth])  # (2, open, M)
        wealth[0, n_seen[open_] < np.minimum(LEAST_OWN, design.cold)] = -np.inf
        wealth[1, ~self.is_warm[open_]] = -np.inf
        self.first[open_] = np.exp(np.minimum(700, wealth[:, :, 1].max(axis=0)))
        if design.fleet is not None:
            held = [RouteWealth(route="", epoch=1, wealth=one, own=1 / DELTA) for one in self.first[has_begun].tolist()]
            self.required = require_wealth(held, confidence=design.fleet, before=self.required)[0]
            self.level[self.first < self.required * (1 - 1e-9)] = 0
        passes = wealth[:, :, 1:] >= np.log(max(1 / DELTA, self.required) * (1 - 1e-9))
        level = np.where(passes.all(axis=2), passes.shape[2], passes.argmin(axis=2))
        best = np.take_along_axis(self.saved[:, open_], level[:, :, None], axis=2)[:, :, 0].argmax(axis=0)
        self.level[open_], self.which[open_] = level[best, np.arange(len(open_))], best
        acts = open_[self.level[open_] > 0]
        self.begins[acts] = n_seen[acts]

    @property
    def is_wrong(self) -> Bools:
        everyone = np.arange(len(self.level))
        return (self.level > 0) & (self.drop[self.which, everyone, self.level] >= self.eps)

    eps = 0.0


def serve(
    routes: Sequence[SimulatedRoute], wealth: tuple[Floats, Floats], eps: float, speed: Floats, design: Design
) -> Result:
    """Serve N_REQUESTS requests of each route; the first route of each family begins before the others.

    speed  requests of each route in a unit of time, shape (routes,)
    """
    serving, n = Serving(routes, wealth, design), LOOK * len(wealth[0])
    serving.eps = eps
    is_first = np.arange(len(routes)) % SIZE == 0
    start = np.where(is_first, 0.0, (n / speed[is_first]).max())
    shares = list[float]()
    for phase in (is_first, ~is_first):
        least, most = start[phase].min(), (start + n / speed)[phase].max()
        for now in least + np.geomspace(LOOK / speed[phase].max(), most - least, N_STEPS):
            n_seen = np.clip((now - start) * speed * (1 + 1e-9), 0, n).astype(int) // LOOK * LOOK
            serving.step(n_seen, start <= now)
            shares.append(float(serving.is_wrong.sum() / max(1, (serving.level > 0).sum())))
    rest = 1 - np.minimum(serving.begins, N_REQUESTS) / N_REQUESTS
    saved = serving.saved[serving.which, np.arange(len(routes)), serving.level]
    saved = np.where(serving.level > 0, (1 - LATER) * saved * rest, 0.0)
    return Result(saved, serving.level > 0, serving.is_wrong, serving.begins, shares)


def spoil(routes: Sequence[SimulatedRoute], share: float, eps: float, seed: int) -> list[SimulatedRoute]:
    """Let this share of the routes lose exactly the budget at every level but 0."""
    rng = np.random.default_rng([seed, 1])

    def bad(truth: Truth) -> Truth:
        lost = np.where(np.arange(len(truth.lost)) > 0, eps, 0.0)
        return Truth(lost=lost, gained=np.zeros_like(lost), saved=truth.saved)

    spoilt = rng.random(len(routes)) < share
    return [
        replace(one, own=bad(one.own), warm=bad(one.warm)) if is_bad else one
        for one, is_bad in zip(routes, spoilt, strict=True)
    ]


def interval(k: int, n: int) -> tuple[float, float]:
    """Clopper and Pearson, two-sided 95 %."""
    low = float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0
    return low, float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0


HEAD: Final = (
    "| design | certified | wrong | share wrong (95 %) | mean share, over time | … at the worst time"
    " | first stop after | tokens saved | × |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def row(name: str, results: Sequence[Result], baseline: float | None) -> tuple[str, float]:
    k, n = (int(sum(getattr(one, field).sum() for one in results)) for field in ("is_wrong", "is_certified"))
    low, high = interval(k, n) if n else (0.0, 0.0)
    over_time = np.array([one.shares for one in results]).mean(axis=0)
    saved = float(np.mean([one.saved.mean() for one in results]))
    median = float(np.median(np.concatenate([one.begins for one in results])))
    ratio = f"{saved / baseline:.2f}" if baseline else "–"
    text = (
        f"| {name} | {n / len(results):.0f} | {k:,} of {n:,} | {k / max(1, n):.2%} ({low:.2%} to {high:.2%})"
        f" | {over_time.mean():.2%} | {over_time.max():.2%} | {median:.0f} | {saved:.2%} | {ratio} |"
    )
    return text, saved


def designs(eps: float) -> dict[str, Design]:
    route = Route(kind="samples", max_em_drop=eps, confidence=1 - DELTA)
    cold, warm = burst_of(route, Control()), warm_burst(route, Control(), delta=DELTA)
    return {
        "separate routes": Design(cold=cold),
        "separate, full runs cut to those of a warm start": Design(cold=warm),
        "fleet, cold starts": Design(cold=cold, fleet=FLEET),
        "fleet": Design(cold=cold, warm=warm, fleet=FLEET),
    }


def serve_all(built: Sequence[SimulatedRoute], seed: int, eps: float, spoilt: float) -> dict[str, Result]:
    """Serve under every design, on the same evidence."""
    n = max(N_REQUESTS, -(-max(one.cold for one in designs(eps).values()) // LOOK) * LOOK)
    routes, rng = spoil(built, spoilt, eps, seed), np.random.default_rng([seed, 3])
    own = draw_log_wealth([one.own for one in routes], n, eps, rng)
    wealth = own, draw_log_wealth([one.warm for one in routes], n, eps, rng)
    speed = np.exp(rng.normal(0, 1.2, len(routes)))
    return {name: serve(routes, wealth, eps, speed, design) for name, design in designs(eps).items()}


def measure(built: Sequence[SimulatedRoute], n_seeds: int, eps: float, spoilt: float) -> list[str]:
    """Return a table of all designs."""
    results: dict[str, list[Result]] = {name: [] for name in designs(eps)}
    for seed in range(n_seeds):
        for name, one in serve_all(built, seed, eps, spoilt).items():
            results[name].append(one)
    lines, baseline = list[str](), None
    for name, made in results.items():
        text, saved = row(name, made, baseline)
        lines.append(text)
        baseline = saved if baseline is None else baseline
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--routes", type=int, default=300)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.02, 0.05])
    parser.add_argument("--spoilt", type=float, nargs="+", default=[0.1, 0.95])
    options = parser.parse_args()
    built = build_routes(options.routes, N_FIT)
    for eps in options.budgets:
        for spoilt in options.spoilt:
            what = f"{options.routes} routes, {options.seeds} seeds, EM budget {eps:.0%}"
            print(f"\n{what}; {spoilt:.0%} of the routes lose exactly that at every level\n\n{HEAD}")
            print("\n".join(measure(built, options.seeds, eps, spoilt)), flush=True)


if __name__ == "__main__":
    main()
