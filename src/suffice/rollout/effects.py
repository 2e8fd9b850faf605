"""Estimates how much better one arm is than another, with intervals that hold at every look.

**Unpaired.** A unit with value Y in arm A contributes g_a - g_b + [A = a] (Y - g_a) / p_a - [A = b] (Y - g_b) / p_b.
Its mean is E Y(a) - E Y(b) for any guesses g (Robins, Rotnitzky, Zhao 1994, JASA 89: augmented inverse probability).
The guesses are a ridge regression of each arm's earlier units on class and covariates: CUPED (Deng, Xu, Kohavi, Walker
2013) and post-stratification at once, so a class that one arm has more of cannot make it look better. A unit is
weighted by the odds of the rarest arm when it was assigned, which keeps every contribution within the range of the
metric, also when the weights change. The interval is the conjugate-mixture empirical Bernstein sequence of
`assurance.bounds`; where a number of units is planned, it has a tenth of the error, and `assurance.planned` the rest.
Labels that are missing at random weigh by the inverse of their probability, too (`assurance.labels`): with weights of
at most 1, contributions stay within that range.

**Paired.** An audit shows what each replayable arm would have answered; the interval for its EM drop is all drops that
bets of `assurance.paired` do not refute (Waudby-Smith and Ramdas 2024), with the same parts of the error beside
`assurance.planned`. There Z of an audit stays for its request, the draws of audits are what is random, and the squares
of Z add up to at least the squared deviations. Covariates would not help: with a drop of a few points, what varies is
whether answers differ.

Arrays have a leading axis of experiments, so that simulations run the same functions as a single experiment.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import log, sqrt
from typing import Final

import numpy as np

from suffice.arrays import Bools, Floats, Ints
from suffice.assurance.bounds import V_OPT, Interval, gamma_exponential_bound
from suffice.assurance.certify import log_bets, mixed
from suffice.assurance.paired import BETS
from suffice.assurance.planned import FIRST_PART, SHARE, planned_bound

PLANNED_UNITS: Final = 10_000  # at which an interval is tightest where none is planned; any number is valid
GROWTH: Final = 1.2  # refit the guesses whenever the number of units has grown by this factor
RIDGE: Final = 1.0  # weight of the pooled mean in the guesses, in units
_ALMOST_ONE: Final = 1 - 1e-9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnitSeries:
    """E experiments of n units in the order of assignment; the first `warmup` only train the guesses."""

    value: Floats  # (E, n)
    arm: Ints  # (E, n): 0 … n_arms - 1
    propensity: Floats  # (E, n): P(that arm), when it was assigned
    weight: Floats  # (E, n): P of the rarest arm at that time, times the weight of a label, in (0, 1]
    x: Floats  # (E, n, d): known before the first token; the first column is 1
    n_arms: int
    warmup: int
    low: float
    high: float
    planned: int = 0  # units, the warm-up among them, at which intervals are to be tightest; 0: no plan
    place: Ints | None = None  # (E, n): of each unit among all that were assigned, from 0; None: all are here

    @property
    def width(self) -> float:
        return self.high - self.low


def guesses(units: UnitSeries) -> Floats:
    """Predict each unit in each arm from earlier units, within the warm-up from all of it; (E, n, n_arms)."""
    n_experiments, n, d = units.x.shape
    guessed = np.empty((n_experiments, n, units.n_arms))
    for begin, end in _blocks(units.warmup, n):
        first = begin if begin > units.warmup else 0
        x = units.x[:, :begin]
        y = units.value[:, :begin]
        arm = units.arm[:, :begin]
        centre = y.mean(axis=1)
        for a in range(units.n_arms):
            mine = x * (arm == a)[..., np.newaxis]
            gram = np.swapaxes(mine, 1, 2) @ x + RIDGE * np.eye(d)
            slope = np.linalg.solve(gram, np.swapaxes(mine, 1, 2) @ (y - centre[:, np.newaxis])[..., np.newaxis])
            predicted = centre[:, np.newaxis] + (units.x[:, first:end] @ slope)[..., 0]
            guessed[:, first:end, a] = np.clip(predicted, units.low, units.high)
    return guessed


def _blocks(warmup: int, n: int) -> Iterator[tuple[int, int]]:
    begin = warmup
    while begin < n:
        end = min(n, max(begin + 10, int(begin * GROWTH)))
        yield begin, end
        begin = end


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SequentialComparison:
    """The comparison of two arms after each unit that follows the warm-up, shape (E, n - warmup) each."""

    effect: Floats  # weighted mean of the contributions so far
    weight: Floats  # sum of the weights so far
    deviation: Floats  # squared, of contributions scaled to [0, 1], each from the preceding effect
    width: float  # of the metric's range
    v_opt: Floats  # (E,): deviation at which the interval is tightest, a power of 2, fixed by the warm-up
    cubed: Floats  # (E, n - warmup): sum of the cubes of the deviations so far
    v_plan: Floats  # (E,): deviation at the plan, predicted from its first part, or from less; 0: there is no plan
    plan_from: Ints  # (E,): units behind the warm-up after which that prediction stands


def compare_arms(
    units: UnitSeries, predicted: Floats, a: int, b: int, where: Bools | None = None
) -> SequentialComparison:
    """Compare arm a with arm b, in the metric's unit.

    where  units that count, shape (E, n), by facts known before their first token, such as their class; None: all
    """
    arm = units.arm
    odds = units.propensity
    weight = units.weight
    away = np.take_along_axis(predicted, arm[..., np.newaxis], axis=2)[..., 0]
    sign = np.where(arm == a, 1.0, 0.0) - np.where(arm == b, 1.0, 0.0)
    each = weight * (predicted[..., a] - predicted[..., b] + sign * (units.value - away) / odds)
    if where is not None:
        each, weight = np.where(where, each, 0.0), np.where(where, weight, 0.0)
    each, weight = each[:, units.warmup :], weight[:, units.warmup :]
    total, weights = np.cumsum(each, axis=1), np.cumsum(weight, axis=1)
    effect = np.divide(total, weights, out=np.zeros_like(total), where=weights > 0)
    before = np.concatenate([np.zeros((len(effect), 1)), effect[:, :-1]], axis=1)[:, : effect.shape[1]]
    off = np.abs(each - np.clip(weight * before, -units.width, units.width)) / (2 * units.width)
    off = np.where(weight > 0, off, 0.0)
    deviation = np.cumsum(off**2, axis=1)
    v_plan, plan_from = _plan(units, deviation)
    return SequentialComparison(
        effect=effect,
        weight=weights,
        deviation=deviation,
        width=units.width,
        v_opt=_tightest(units, away),
        cubed=np.cumsum(off**3, axis=1),
        v_plan=v_plan,
        plan_from=plan_from,
    )


def _plan(units: UnitSeries, deviation: Floats) -> tuple[Floats, Ints]:
    """Predict the deviation at the plan from that of the units of its first part; return it and their number."""
    n_experiments, n = deviation.shape
    if not units.planned or not n:
        return np.zeros(n_experiments), np.full(n_experiments, n)
    place = np.arange(units.warmup + n)[np.newaxis] if units.place is None else units.place
    place = np.broadcast_to(place, units.value.shape)[:, units.warmup :]
    begins = place[:, 0]
    part = begins + FIRST_PART * np.maximum(0, units.planned - begins)
    plan_from = (place < part[:, np.newaxis]).sum(axis=1)
    last = np.clip(plan_from, 1, n) - 1
    rows = np.arange(n_experiments)
    times = np.maximum(1, units.planned - begins) / (place[rows, last] + 1 - begins)
    predicted = deviation[rows, last] * np.maximum(1.0, times)
    return np.asarray(np.maximum(predicted, np.finfo(np.float64).tiny)), plan_from


def _tightest(units: UnitSeries, predicted: Floats) -> Floats:
    first = slice(0, units.warmup)
    off = (units.value - predicted)[:, first] / units.width
    spread = off.var(axis=1) * units.weight[:, first].mean(axis=1) / 2
    v = (units.planned or PLANNED_UNITS) * spread
    return np.asarray(np.exp2(np.round(np.log2(np.maximum(V_OPT, v)))))


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonState:
    n: int
    effect: float
    weight: float
    deviation: float
    width: float
    v_opt: float
    cubed: float = 0.0
    v_plan: float = 0.0  # 0: there is no plan
    on_plan: bool = False  # enough was seen to predict `v_plan`

    @property
    def error(self) -> float:
        """The standard error of the effect."""
        return 2 * self.width * sqrt(self.deviation) / self.weight if self.weight > 0 else self.width

    def between(self, alpha: float, *, times: float = 1.0) -> Interval:
        """Return the interval, extrapolated to `times` the units; each end is ever wrong with P <= `alpha` / 2."""
        whole = Interval(-self.width, self.width)
        if self.weight <= 0:
            return whole
        bound = self._bound(alpha / 2, times)
        radius = 2 * self.width * bound / (self.weight * times)
        return Interval(max(whole.low, self.effect - radius), min(whole.high, self.effect + radius))

    def _bound(self, alpha: float, times: float) -> float:
        v = self.deviation * times
        if not self.v_plan:
            return gamma_exponential_bound(v, alpha, v_opt=self.v_opt)
        bound = gamma_exponential_bound(v, alpha * (1 - SHARE), v_opt=self.v_opt)
        if not v or not (self.on_plan or v >= FIRST_PART * self.v_plan):
            return bound
        tighter = planned_bound(v, alpha * SHARE, v_plan=self.v_plan, size=self.cubed / self.deviation)
        return bound if tighter is None else min(bound, tighter)


def latest_comparison(running: SequentialComparison, n: int) -> ComparisonState | None:
    if not n or not running.effect.shape[1]:
        return None
    return ComparisonState(
        n=n,
        effect=float(running.effect[0, -1]),
        weight=float(running.weight[0, -1]),
        deviation=float(running.deviation[0, -1]),
        width=running.width,
        v_opt=float(running.v_opt[0]),
        cubed=float(running.cubed[0, -1]),
        v_plan=float(running.v_plan[0]),
        on_plan=int(running.plan_from[0]) < running.effect.shape[1],
    )


# --------------------------------------------------------------------------- paired by audits


@dataclass(frozen=True, slots=True, kw_only=True)
class PairCounts:
    gained: int = 0  # wrong with the first, right with the second
    same: int = 0
    lost: int = 0  # right with the first, wrong with the second
    pending: int = 0  # the answers differ, and no label says which is right: lost for a proof, and no sign of harm

    @property
    def n(self) -> int:
        return self.gained + self.same + self.lost + self.pending

    def __add__(self, other: PairCounts) -> PairCounts:
        return PairCounts(
            gained=self.gained + other.gained,
            same=self.same + other.same,
            lost=self.lost + other.lost,
            pending=self.pending + other.pending,
        )

    @property
    def drop(self) -> float:
        """Mean loss of EM, where pending pairs count as no difference; NaN without pairs."""
        return (self.lost - self.gained) / self.n if self.n else float("nan")

    @property
    def error(self) -> float:
        """The standard error of the drop; there must be pairs."""
        return sqrt(max(0.0, (self.lost + self.gained) / self.n - self.drop**2) / self.n)

    def squares(self, *, pending: bool) -> float:
        """Return the sum of Z squared, where pending pairs differ or not."""
        return float(self.gained + self.lost + pending * self.pending)

    @property
    def worst_drop(self) -> float:
        """Mean loss of EM, where pending pairs count as lost; there must be pairs."""
        return (self.lost + self.pending - self.gained) / self.n

    def between(self, alpha: float, *, times: float = 1.0, plan: PairPlan | None = None) -> Interval:
        """Return the interval of the drop; it is wrong at any look with probability at most `alpha`.

        Pending pairs count as lost at the upper end and as gained at the lower one.
        """
        end = alpha / 2 * (1 if plan is None else 1 - SHARE)
        up = _smallest_refuted(times * self.gained, times * self.same, times * (self.lost + self.pending), end)
        down = _smallest_refuted(times * self.lost, times * self.same, times * (self.gained + self.pending), end)
        bound = None if plan is None else plan.bound(self, alpha / 2 * SHARE, times=times)
        if bound is not None:
            radius = bound / (times * self.n)
            up = min(up, self.worst_drop + radius)
            down = min(down, (self.gained + self.pending - self.lost) / self.n + radius)
        return Interval(-down, up)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPlan:
    """Squares of Z that pairs are expected to have at the plan, predicted from the first part of it."""

    low: float  # where pending pairs do not differ
    high: float  # … where they do
    complete: bool  # the first part is over, and the prediction stands

    @staticmethod
    def of(first: PairCounts, *, n_units: int, planned: int) -> PairPlan:
        """Predict from the pairs that came within the first part, after `n_units` of `planned` units."""
        times = max(1.0, planned / max(1.0, min(n_units, FIRST_PART * planned)))
        low, high = (times * first.squares(pending=pending) for pending in (False, True))
        return PairPlan(low=low, high=high, complete=n_units >= FIRST_PART * planned)

    def bound(self, pairs: PairCounts, alpha: float, *, times: float) -> float | None:
        """Return the largest bound, whichever pending pairs differ; None: too little was seen."""
        sure, most = (times * pairs.squares(pending=pending) for pending in (False, True))
        if not self.complete and sure < FIRST_PART * self.high:
            return None
        each = [planned_bound(v, alpha, v_plan=plan, size=1.0) for v in (sure, most) for plan in (self.low, self.high)]
        bounds = [one for one in each if one is not None]
        return max(bounds) if len(bounds) == len(each) else None


def _smallest_refuted(gained: float, same: float, lost: float, alpha: float) -> float:
    goal, (up, level, down) = log(1 / alpha), (np.array([n], dtype=np.float64) for n in (gained, same, lost))
    low, high = -_ALMOST_ONE, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        refuted = mixed(log_bets(up, level, down, middle, bets=BETS))[0] >= goal
        low, high = (low, middle) if refuted else (middle, high)
    return high


# --------------------------------------------------------------------------- ratios


def ratio_of(part: Interval, whole: Interval) -> Interval | None:
    """Return all ratios of numbers in two intervals, under any dependence; None: the second may be 0."""
    if whole.low <= 0 <= whole.high:
        return None
    corners = [part.low / whole.low, part.low / whole.high, part.high / whole.low, part.high / whole.high]
    return Interval(min(corners), max(corners))
