"""Streams for the forecast where the truth is known, and what it made of them: python -m tests.claims.forecasts.

Two makers of streams. *Worlds*: simulated runs judged by a real stop model at a level that a certificate would allow;
on the way to another world its confidence grows bolder and its plateaus false. *Laws*: outcomes drawn from a drop that
climbs from 0.3 to 4 %, with signals that tell it all, half of it, something else, or nothing.

All are 100 requests to a window, after 1,000 full runs at the start of an epoch; drifts begin at request 10,000.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Final

import numpy as np
from bench.claims.score import Logistic
from bench.claims.streams import online

from suffice.arrays import Floats, Ints, Small
from suffice.assurance.drift import DOUBT_SHARE
from suffice.assurance.forecast import (
    Forecast,
    ForecastWindow,
    Stance,
    first_disagreement,
    forecast_drop,
    near_levels,
    near_share,
    next_stance,
    relative_losses,
)
from suffice.assurance.forecast_grades import HORIZON, ExpectedOutcomes, TrackRecord, grade_due, record_of
from suffice.learn.audits import AuditRuns
from suffice.learn.version import FoldedModels, fit_served
from tests.simulators.traffic_worlds import USUAL, WORLDS, ClassWorld
from tests.simulators.traffic_worlds.traffic import SimulatedTraffic, draw_traffic

BUDGET: Final = 0.02
SIZE: Final = 100  # requests in a window
BURST: Final = 1_000  # full runs at the start
ONSET: Final = 10_000  # first request of a drift
FIRST_LOOK: Final = 30  # windows
LEAD: Final = 300  # requests before the crossing that an alert must come
N_WAYS: Final = 21  # steps from one world to another
N_RUNS: Final = 4_000  # of each
LAW_LEVEL: Final = 20  # that is deployed
FRESH: Final = 400  # first seed of the tables; the constants of the forecast were chosen on those before it


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """What each of n requests would show if it were an audit, and what all traffic shows, by window."""

    near: Floats  # (n,)
    z: Small  # (n,)
    first: Ints  # (n,): lowest level at which it disagrees; `level` + 1: none
    signals: Floats  # (n / 100, F)
    predicted: Floats  # (n,): what the stop model expects it to lose at the deployed level
    lot: Floats  # (n,): a request is an audit if it is below the share
    drop: Floats  # (level + 1, n): the true drop at each level
    budget: float = BUDGET
    crossing: int | None = field(init=False)  # request at which the true drop reaches the budget; None: never

    def __post_init__(self) -> None:
        over = np.flatnonzero(self.drop[-1] >= self.budget)
        object.__setattr__(self, "crossing", int(over[0]) if len(over) else None)

    @property
    def level(self) -> int:
        return len(self.drop) - 1

    @property
    def n_watched(self) -> int:
        """Windows until the crossing."""
        return len(self.signals) if self.crossing is None else self.crossing // SIZE


@dataclass(frozen=True, slots=True)
class Report:
    """What the forecast said and did of one stream until its crossing, and how all its forecasts were graded."""

    raised: tuple[int, ...]  # requests at which an alert began
    ended: tuple[int, ...]  # … and ended, where it did
    capped: tuple[int, ...]  # requests at which a cap began
    is_capped: bool  # at the crossing
    doubted: int | None  # request of the drift at which the share of audits was first raised
    kept: bool | None  # the true drop at the last cap stayed inside the budget to the stream's end; None: no cap
    last: Forecast | None
    n_looks: int
    share: float  # of requests behind the burst that were audited
    crossing: int | None
    record: TrackRecord
    n_true: int  # forecasts whose horizon is within the stream …
    n_covered: int  # … and whose 90 % interval holds the true drop there

    @property
    def acted(self) -> bool:
        """Did a cap begin within the drift before the crossing, or stand there?"""
        return self.is_capped or any(at > ONSET for at in self.capped)

    @property
    def in_time(self) -> bool:
        """Did an alert begin within the drift, and at least 300 requests before the crossing?"""
        assert self.crossing is not None
        return any(ONSET < at <= self.crossing - LEAD for at in self.raised)

    @property
    def standing(self) -> bool:
        """Did an alert stand within the drift, at least 300 requests before the crossing? It may be an older one."""
        assert self.crossing is not None
        before = sum(at <= ONSET for at in self.raised) - sum(at <= ONSET for at in self.ended)
        return self.in_time or before > 0


def report_of(stream: Stream, share: float, doubt_share: float = 0.0) -> Report:
    """Look at a stream after every window.

    share        of requests that are audited
    doubt_share  … while the last look was in doubt or alerted, if that is more
    """
    watch = Watch(stream, share, doubt_share)
    raised, ended, capped = list[int](), list[int](), list[int]()
    doubted = None
    for _ in range(stream.n_watched):
        before, stance = watch.alerted, watch.stance
        watch.look()
        at = watch.windows[-1].until
        if watch.alerted != before:
            (raised if watch.alerted else ended).append(at)
        if watch.stance.cap is not None and stance.cap is None:
            capped.append(at)
        if doubted is None and watch.stance.in_doubt and at > ONSET:
            doubted = at
    cap, last, n_audited = watch.stance.cap, watch.forecast, watch.n_audited
    for _ in range(stream.n_watched, len(stream.signals)):
        watch.look()
    return Report(
        raised=tuple(raised),
        ended=tuple(ended),
        capped=tuple(capped),
        is_capped=cap is not None,
        doubted=doubted,
        kept=None if cap is None else bool(stream.drop[cap, -1] < stream.budget),
        last=last,
        n_looks=stream.n_watched - FIRST_LOOK,
        share=n_audited / (stream.n_watched * SIZE - BURST),
        crossing=stream.crossing,
        record=watch.record,
        n_true=len(watch.covered),
        n_covered=sum(watch.covered),
    )


class Watch:
    """What the job `monitor` does with a stream, one window at a time."""

    def __init__(self, stream: Stream, share: float, doubt_share: float = 0.0) -> None:
        self.stream, self.share, self.doubt_share = stream, share, doubt_share
        self.windows = list[ForecastWindow]()
        self.forecast: Forecast | None = None
        self.stance = Stance()
        self.record = record_of((), "em_drop")
        self.covered = list[bool]()
        self.n_audited = 0  # behind the burst
        self._first = list[Ints]()  # by window
        self._pending = deque[tuple[int, ExpectedOutcomes]]()

    @property
    def alerted(self) -> bool:
        return self.forecast is not None and self.forecast.alert

    def look(self) -> None:
        stream, b = self.stream, len(self.windows)
        rows = slice(b * SIZE, (b + 1) * SIZE)
        raised = max(self.share, self.doubt_share) if self.stance.in_doubt else self.share
        drawn = stream.lot[rows] < (1.0 if b * SIZE < BURST else raised)
        near, z, expected = (part[rows][drawn] for part in (stream.near, stream.z, stream.predicted))
        self.n_audited += int(drawn.sum()) if b * SIZE >= BURST else 0
        self._first.append(stream.first[rows][drawn])
        self.windows.append(
            ForecastWindow(
                until=(b + 1) * SIZE,
                n_requests=SIZE,
                signals=tuple(stream.signals[b].tolist()),
                predicted_drop=float(expected.mean()) if len(z) else None,
                n_audits=len(z),
                near=float(near.sum()),
                near_squares=float((near**2).sum()),
                n_settled=len(z),
                drop=int(z.sum()),
            )
        )
        if len(self.windows) >= FIRST_LOOK:
            self._forecast()

    def _forecast(self) -> None:
        at, was_open = self.windows[-1].until, self.alerted
        self.record = self.record.with_grades(grade_due(self._pending, "em_drop", at, self.windows))
        result = forecast_drop(self.windows, budget=self.stream.budget, alerted=was_open, width=self.record.width)
        self.forecast = result
        if result is None:
            return
        assert result.outcomes is not None
        self._pending.append((at, result.outcomes))
        if at + HORIZON < self.stream.drop.shape[1]:
            self.covered.append(result.ahead_low <= self.stream.drop[-1, at + HORIZON] <= result.ahead_high)
        crossed = result.now >= self.stream.budget
        self.record = self.record.with_alert(at, is_open=result.alert, was_open=was_open, crossed=crossed)
        self.stance = next_stance(
            self.stance,
            result,
            at=at,
            alerted=was_open,
            relative=lambda: relative_losses(self._first, self.stream.level),
        )


# --------------------------------------------------------------------------- worlds


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Runs on each part of the way from the usual world to another, at one level."""

    near: Floats  # (ways, runs)
    z: Small
    first: Ints
    signals: Floats  # (ways, runs, F)
    predicted: Floats
    drop: Floats  # (levels, ways): true drop, smoothed

    def stream(self, ways: Floats, rng: np.random.Generator) -> Stream:
        """A stream whose request i is so far on the way, 0 … 1."""
        grid, n = np.linspace(0, 1, N_WAYS), len(ways) // SIZE * SIZE
        drop = np.stack([np.interp(ways, grid, drops) for drops in self.drop])
        at, pick = np.rint(ways[:n] * (N_WAYS - 1)).astype(int), rng.integers(N_RUNS, size=n)
        return Stream(
            near=self.near[at, pick],
            z=self.z[at, pick],
            first=self.first[at, pick],
            lot=rng.random(n),
            signals=_by_window(self.signals[at, pick]).mean(axis=1),
            predicted=self.predicted[at, pick],
            drop=drop[:, :n],
        )


@cache
def stop_model() -> FoldedModels:
    """A stop model fitted on 1,500 full runs of the usual world, with its levels."""
    served = fit_served(_runs(USUAL, 0.0, 1_500, seed=1)[1], Logistic(), now=np.inf)
    assert served is not None
    return served


@cache
def pool(world: str, safer: int) -> Pool:
    """The pool of one world.

    safer  levels below the highest one that loses at most 0.3 % in the usual world
    """
    served, usual = stop_model(), _runs(USUAL, 0.0, 20_000, seed=2)[1]
    rows = served.rows(usual)
    level = int(np.flatnonzero(usual.z[rows].mean(axis=0) <= 0.003)[-1]) - safer
    levels = near_levels(usual.d[rows], level)
    parts, drops = [], []
    for way in np.linspace(0, 1, N_WAYS):
        traffic, runs = _runs(WORLDS[world], float(way), N_RUNS, seed=3)
        stops = served.rows(runs)
        predicted = served.expected(runs, stops[:, level])
        first = first_disagreement(runs.d[stops], level)
        parts.append((near_share(runs.d[stops], levels), runs.z[stops[:, level]], first, traffic.early, predicted))
        drops.append(runs.z[stops[:, : level + 1]].mean(axis=0))
    near, z, first, signals, predicted = (np.stack(part) for part in zip(*parts, strict=True))
    ways = np.linspace(0, 1, N_WAYS)
    drop = [np.polyval(np.polyfit(ways, column, 2), ways) for column in np.array(drops).T]
    return Pool(near, z, first, signals, predicted, np.array(drop))


def _runs(world: ClassWorld, way: float, n: int, seed: int) -> tuple[SimulatedTraffic, AuditRuns]:
    made = draw_traffic(USUAL, world, np.full(n, way), np.random.default_rng([seed, round(100 * way)]))
    return made, online(made, np.zeros(n), seed=seed).runs


def _by_window(values: Floats) -> Floats:
    return values.reshape(-1, SIZE, *values.shape[1:])


# --------------------------------------------------------------------------- laws


def by_law(
    drops: Floats,
    moved: Floats,
    rng: np.random.Generator,
    *,
    away: float = 0.0,
    predicts: float = 0.0,
    budget: float = BUDGET,
) -> Stream:
    """A stream whose request i has so large a true drop, at a budget of 2 %; at another one, all shares in proportion.

    moved     how far the signals have moved, 0 … 1, shape (n,)
    away      … at 1, in sd of single requests, in a direction that is drawn
    predicts  part of the climb of the drop that the stop model sees
    """
    n = len(drops) // SIZE * SIZE
    of_two = budget / BUDGET
    drops, moved = of_two * drops[:n], moved[:n]
    differs = (
        drops + 0.022 * of_two
    )  # at the deployed level; each level above has an eighth more, up to three times as many
    u, v = rng.random(n), rng.random(n)
    above = np.ceil(np.log(np.maximum(u / differs, 1e-9)) / np.log(1.12))  # levels above the deployed one; < 0: below
    near = np.clip(11 - np.maximum(above, 0), 0, 11) / 11
    first = np.clip(LAW_LEVEL + above, 1, LAW_LEVEL + 1).astype(np.int64)
    drop = drops / 1.12 ** np.arange(LAW_LEVEL, -1, -1)[:, np.newaxis]
    drop[0] = 0.0
    lost, gained = (drops + 0.004 * of_two) / differs, 0.004 * of_two / differs
    z = np.where(u < differs, np.where(v < lost, 1, np.where(v < lost + gained, -1, 0)), 0).astype(np.int8)
    mixing = np.eye(4) + 0.4 * rng.normal(size=(4, 4))
    direction = rng.normal(size=4)
    direction *= away / np.sqrt(direction @ np.linalg.solve(mixing @ mixing.T, direction))
    predicted = rng.gamma(2.0, (0.012 * of_two + predicts * (drops - drops[0])) / 2)
    signals = rng.normal(size=(n, 4)) @ mixing.T + np.outer(moved, direction)
    return Stream(
        near=near,
        z=z,
        first=first,
        signals=_by_window(signals).mean(axis=1),
        predicted=predicted,
        lot=rng.random(n),
        drop=drop,
        budget=budget,
    )


# --------------------------------------------------------------------------- scenarios


def _line(over: int, n: int | None = None) -> Floats:
    return np.clip((np.arange(n or ONSET + over) - ONSET) / over, 0.0, 1.0)


def _season(period: int, n: int = 20_000) -> Floats:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.maximum(np.arange(n) - BURST, 0) / period)


def _climb(rng: np.random.Generator, **signals: float) -> Stream:
    way = _line(int(rng.integers(5_000, 10_001)))
    return by_law(0.003 + 0.037 * way, way, rng, **signals)


def _calm(rng: np.random.Generator, n: int = 20_000, **of: float) -> Stream:
    return by_law(np.full(n, rng.uniform(0.001, 0.006)), np.zeros(n), rng, **of)


def _wave(rng: np.random.Generator, **signals: float) -> Stream:
    way = _season(int(rng.integers(5_000, 10_001)))
    return by_law(0.003 + (rng.uniform(0.006, 0.012) - 0.003) * way, rng.uniform(0.3, 1.0) * way, rng, **signals)


Maker = Callable[[np.random.Generator], Stream]


def _to(world: str, ways: Callable[[np.random.Generator], Floats], n_levels: int = 3) -> Maker:
    return lambda rng: pool(world, int(rng.integers(n_levels))).stream(ways(rng), rng)


DRIFTS: Final[Mapping[str, Maker]] = {
    "world: harsh over 5,000 requests": _to("harsh", lambda _: _line(5_000)),
    "world: harsh over 7,500": _to("harsh", lambda _: _line(7_500)),
    "world: harsh over 10,000": _to("harsh", lambda _: _line(10_000)),
    "world: stealth over 10,000": _to("stealth", lambda _: _line(10_000), n_levels=1),
    "law: the stop model sees all of it": lambda rng: _climb(rng, away=0.6, predicts=1.0),
    "law: the stop model sees half of it": lambda rng: _climb(rng, away=0.6, predicts=0.5),
    "law: signals move, the model sees nothing": lambda rng: _climb(rng, away=0.6),
    "law: nothing shows": _climb,
    "law: nothing shows, budget 10 %": lambda rng: _climb(rng, budget=0.1),
    "law: nothing shows, budget 0.5 %": lambda rng: _climb(rng, budget=0.005),
}

CALM: Final[Mapping[str, Maker]] = {
    "world: none": _to("harsh", lambda _: np.zeros(20_000)),
    "world: harder mix, to and fro": _to("harder", lambda rng: _season(int(rng.choice([5_000, 10_000])))),
    "world: harder mix, for good": _to("harder", lambda _: _line(6_000, 20_000)),
    "world: a fifth of harsh, to and fro": _to("harsh", lambda rng: 0.2 * _season(int(rng.choice([5_000, 10_000])))),
    "world: benign, for good": _to("benign", lambda _: _line(6_000, 20_000)),
    "law: none": _calm,
    "law: none, budget 10 %": lambda rng: _calm(rng, budget=0.1),
    "law: none, budget 0.5 %": lambda rng: _calm(rng, budget=0.005),
    "law: up to 0.6 … 1.2 % and back, seen": lambda rng: _wave(rng, away=0.6, predicts=1.0),
    "law: up to 0.6 … 1.2 % and back, not seen": lambda rng: _wave(rng, away=0.6),
    "law: signals move, the drop does not": lambda rng: by_law(
        np.full(20_000, 0.003), _line(7_500, 20_000), rng, away=0.6
    ),
}

LONG: Final[Mapping[str, Maker]] = {
    "60,000 requests: nothing changes": lambda rng: _calm(rng, 60_000),
    "60,000 requests: up to 1.5 % and back": lambda rng: by_law(
        0.003 + 0.012 * _season(15_000, 60_000), _season(15_000, 60_000), rng, away=0.6, predicts=0.5
    ),
}


def measure(make: Maker, seeds: range, share: float, doubt_share: float = 0.0) -> list[Report]:
    """What the forecast said of one stream for each seed."""
    return [report_of(make(np.random.default_rng([seed, 71])), share, doubt_share) for seed in seeds]


def in_time(tolds: list[Report]) -> float:
    """Share of the drifts with an alert in time."""
    return sum(each.in_time for each in tolds) / len(tolds)


def false_alerts(tolds: list[Report]) -> float:
    """Alerts in 10,000 requests."""
    return sum(len(each.raised) for each in tolds) / sum(each.n_looks for each in tolds) * 10_000 / SIZE


def false_caps(tolds: list[Report]) -> float:
    """Caps in 20,000 requests."""
    return sum(len(each.capped) for each in tolds) / sum(each.n_looks for each in tolds) * 20_000 / SIZE


def coverage(tolds: list[Report]) -> tuple[float, float]:
    """Share of graded forecasts inside their interval, and of intervals that hold the true drop."""
    graded = sum(each.record.n_inside for each in tolds) / sum(each.record.n_graded for each in tolds)
    return graded, sum(each.n_covered for each in tolds) / sum(each.n_true for each in tolds)


def describe(name: str, tolds: list[Report]) -> str:
    """A row of the tables of bench/assurance.md."""
    graded, covered = coverage(tolds)
    share = np.mean([each.share for each in tolds])
    if any(each.crossing is None for each in tolds):
        cells = [f"{false_caps(tolds):.2f}", f"{false_alerts(tolds):.2f}"]
    else:
        doubted, acted = [each.doubted is not None for each in tolds], [each.acted for each in tolds]
        kept = [each.kept for each in tolds if each.kept is not None]
        now = np.mean([each.last.now for each in tolds if each.last is not None])
        leads = [lead for each in tolds for lead in each.record.leads]
        cells = [f"{np.mean(doubted):.0%}", f"{np.mean(acted):.0%}", f"{in_time(tolds):.0%}"]
        cells += [f"{np.mean(kept):.0%}" if kept else "–", f"{now:.2%}", f"{np.median(leads):,.0f}" if leads else "–"]
    return "| " + " | ".join([name, *cells, f"{share:.0%}", f"{graded:.1%}", f"{covered:.1%}"]) + " |"


def main(n_seeds: int) -> None:
    """Print the tables of bench/assurance.md."""
    seeds = range(FRESH, FRESH + n_seeds)
    for share in (0.05, 0.1):
        print(f"\n{n_seeds} seeds; {share:.0%} audits, {DOUBT_SHARE:.0%} while in doubt")
        for title, head, makers in (
            ("drift", "doubted | capped | alert in time | kept | estimate at 2 % | lead", DRIFTS),
            ("no crossing", "caps in 20,000 | alerts in 10,000", CALM),
        ):
            print(f"| {title} | {head} | audited | graded inside | truth inside |", flush=True)
            everything = list[Report]()
            for name, make in makers.items():
                tolds = measure(make, seeds, share, DOUBT_SHARE)
                everything += tolds
                print(describe(name, tolds), flush=True)
            print(describe("all", everything), flush=True)
    for name, make in LONG.items():
        print(describe(name, measure(make, range(FRESH, FRESH + 5), 0.05, DOUBT_SHARE)), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
