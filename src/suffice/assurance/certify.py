"""The certificate: which stopping levels have been shown to keep the EM budget, from counts alone.

Level 0 never stops. Each higher level has a wealth process that bets against "its EM drop is at least epsilon"; wealth
of 1/delta refutes that at any look. Levels are accepted in order until one fails (fixed-sequence test). Constant bets
make wealth a function of three counts, so late labels, replicas and replays give the same certificate in any order.
Theorem and proof: docs/reference/assurance.md. Betting: Waudby-Smith and Ramdas (2024), JRSS B 86(1), arXiv:2010.09686.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, exp, floor, inf, log
from typing import Final

import numpy as np

from suffice.arrays import Bools, Floats, Ints, Small

# Fractions of the largest bet that cannot go bankrupt. The best bet is near 1 - drop/epsilon; four cover the range.
BETS: Final = (0.25, 0.45, 0.65, 0.85)


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    gained: Ints  # (M,): audits where the stop would have been right and the full run was wrong, Z = -1
    same: Ints  # (M,): Z = 0
    lost: Ints  # (M,): Z = +1

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.gained + other.gained, self.same + other.same, self.lost + other.lost)

    @property
    def n(self) -> Ints:
        return self.gained + self.same + self.lost

    @property
    def drop(self) -> Floats:
        """Mean EM drop, a fraction, shape (M,); nan without audits."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((self.lost - self.gained) / self.n, dtype=np.float64)


def count_outcomes(z: Small | Floats) -> Counts:
    """Count the EM drops of audits, each -1, 0 or +1, shape (audits, M)."""
    gained = (z < 0).sum(axis=0, dtype=np.int64)
    lost = (z > 0).sum(axis=0, dtype=np.int64)
    return Counts(gained, len(z) - gained - lost, lost)


def weighted_log_wealth(
    z: Small | Floats, weight: Floats, *, max_em_drop: float | Floats, bets: Sequence[float] = BETS
) -> Floats:
    """`log_wealth` of audits with different shares: the product of 1 + nu w (eps - Z), shape (M,).

    With w = c/rho, c a lower bound of all shares, this is a non-negative supermartingale whenever the mean drop over
    *all requests* so far is at least eps, whatever their order or dependence. `max_em_drop` is one for all levels or
    one for each; a level whose eps is 0 or less gets -infinity. Z may be a mean over the orders of a vote's samples.
    """
    eps = np.broadcast_to(np.asarray(max_em_drop, dtype=np.float64), z.shape[1:])
    tested = np.where(eps > 0, eps, 0.5)
    each = np.zeros((len(bets), z.shape[1]))
    mean = (z != np.rint(z)).any(axis=1)
    weights, group = np.unique(weight, return_inverse=True)
    for number, one in enumerate(weights.tolist()):
        counts = count_outcomes(z[(group == number) & ~mean])
        each += log_bets(counts.gained, counts.same, counts.lost, tested, bets=bets, weight=one)
    stakes = weight[mean, np.newaxis] * (tested - z[mean]) / (1 - tested)
    each += np.array([np.log1p(bet * stakes).sum(axis=0) for bet in bets])
    return np.where(eps > 0, mixed(each), -np.inf)


def is_order_refuted(z: Small, mean: Floats, weight: Floats, *, delta: float) -> bool:
    """Whether audited votes lose more in their own order of samples, z, than on average over orders, (n, M) each.

    If every order was equally likely, z has the expectation `mean`, so the product of 1 + w/3 (z - mean) is an e-value
    at each level, and so is the average of these over levels. 1/delta refutes it.
    """
    log_e = np.log1p(weight[:, np.newaxis] / 3 * (z - mean)).sum(axis=0)[1:]
    return bool(len(log_e)) and float(np.logaddexp.reduce(log_e)) >= log(len(log_e) / delta)


def e_value_of(log_e: float) -> float:
    """The e-value of its natural logarithm, as a finite number: beyond e^700 it counts as that."""
    return exp(min(700.0, log_e))


def log_wealth(counts: Counts, *, max_em_drop: float, bets: Sequence[float] = BETS) -> Floats:
    """Natural logarithm of the e-process of each level, shape (M,): the mean of constant bets.

    E_j = mean_b (1 + nu_b (eps + 1))^gained (1 + nu_b eps)^same (1 + nu_b (eps - 1))^lost, nu_b = BETS[b] / (1 - eps).
    At each look it is an e-value against "the drop is at least eps". Where nothing is gained it never exceeds n KL(drop
    || eps), the best bet in hindsight. Raise ValueError for a budget outside (0, 1).
    """
    check_budget(max_em_drop)
    return mixed(log_bets(counts.gained, counts.same, counts.lost, max_em_drop, bets=bets))


def certified_level(wealth: Floats, *, delta: float) -> int:
    """The last of the unbroken run of levels that pass at `delta`. Also accepts p-values, as -log(p); nan fails.

    At a delta of 1 these are the levels whose audits speak for them at all: their wealth is at least 1.
    """
    if not 0 < delta <= 1:
        raise ValueError(f"delta: got {delta}; above 0 and at most 1")
    failed = np.flatnonzero(~(wealth[1:] >= log(1 / delta)))
    return int(failed[0]) if len(failed) else max(0, len(wealth) - 1)


def spent_delta(delta: float, version: int) -> float:
    """The delta of version v (from 1) if all versions of a window together must keep it: delta * 6 / (pi^2 v^2)."""
    if version < 1:
        raise ValueError(f"version: got {version}; the first is 1")
    return delta * 6 / (np.pi**2 * version**2)


def smallest_proved_drop(counts: Counts, *, delta: float, bets: Sequence[float] = BETS) -> float | None:
    """The smallest drop that these audits, at one level, refute at `delta`; None: no drop below 1."""
    if not 0 < delta < 1:
        raise ValueError(f"delta: got {delta}; above 0 and below 1")

    def refutes(drop: float) -> bool:
        return float(log_wealth(counts, max_em_drop=drop, bets=bets)[0]) >= log(1 / delta)

    low, high = 0.0, 1 - 1e-9
    if not refutes(high):
        return None
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if refutes(middle) else (middle, high)
    return high


def audits_to_certify(drop: float, *, max_em_drop: float, delta: float, gained: float = 0.0) -> int:
    """The smallest number of audits that certifies a level if they show exactly what is expected.

    With random losses, two thirds of levels are certified by then, half at 0.7 n and nine in ten before 1.75 n
    (docs/reference/assurance.md). Losses have the rate `drop + gained`. Raise ValueError for impossible rates, and
    where no number of audits is enough.
    """
    lost = drop + gained
    if gained < 0 or lost < 0 or gained + lost > 1:
        raise ValueError(f"need gained >= 0, drop + gained >= 0 and both together at most 1; got {drop=} {gained=}")
    check_budget(max_em_drop)
    per_audit = log_bets(np.array([gained]), np.array([1 - gained - lost]), np.array([lost]), max_em_drop)
    return _needed(per_audit, max_em_drop=max_em_drop, delta=delta)


def _needed(per_audit: Floats, *, max_em_drop: float, delta: float) -> int:
    """Audits until the wealth reaches 1/delta, if each adds this to its logarithm, shape (bets, 1)."""
    growth = float(per_audit.max())  # for many audits the best bet dominates
    if growth <= 0:
        raise ValueError(f"no number of audits certifies such a drop against a budget of {max_em_drop:g}")
    enough = int(np.ceil((log(1 / delta) + log(len(BETS))) / growth)) + 1

    def passes(n: int) -> bool:
        return bool(mixed(n * per_audit)[0] >= log(1 / delta))

    # The wealth of expected counts is convex and starts at 1, so it crosses once.
    return 1 + bisect_left(range(1, enough), True, key=passes)


def missing_audits(z: Small | Floats, level: int, *, max_em_drop: float, delta: float) -> int | None:
    """Further audits until a level passes if outcomes continue as z, (n, M); None: never."""
    n = len(z)
    if level >= z.shape[1] or not n:
        return None
    try:
        check_budget(max_em_drop)
        stakes = (max_em_drop - z[:, level]) / (1 - max_em_drop)
        per_audit = np.array([[float(np.log1p(bet * stakes).mean())] for bet in BETS])
        needed = _needed(per_audit, max_em_drop=max_em_drop, delta=delta)
    except ValueError:
        return None
    return max(1, needed - n)


def check_budget(max_em_drop: float) -> None:
    if not 0 < max_em_drop < 1:
        raise ValueError(f"max_em_drop: got {max_em_drop}; a fraction above 0 and below 1")


def log_bets(
    gained: Ints | Floats,
    same: Ints | Floats,
    lost: Ints | Floats,
    drop: float | Floats,
    *,
    bets: Sequence[float] = BETS,
    weight: float = 1.0,
) -> Floats:
    """Log wealth of each bet alone against "the drop is at least `drop`", shape (bets, M).

    The product of 1 + nu (drop - Z), for a drop in (-1, 1); below 0 it is a gain. `weight`, in (0, 1], scales every
    bet.
    """
    nu = weight * np.array(bets)[:, np.newaxis] / (1 - drop)
    return np.asarray(
        gained * np.log1p(nu * (drop + 1)) + same * np.log1p(nu * drop) + lost * np.log1p(nu * (drop - 1))
    )


def mixed(each: Floats) -> Floats:
    """Log of the mean wealth of the bets, shape (bets, M) to (M,)."""
    peak = each.max(axis=0)
    return np.asarray(peak + np.log(np.exp(each - peak).mean(axis=0)))


# --------------------------------------------------------------------------- windows
#
# In a window every request was audited with probability rho >= c, its *share*; an audit has weight c/rho, so that each
# request counts alike. A share below c closes the window; one of twice c or more opens another. The choice of window
# depends on the draws and never on outcomes, so its claim has all of delta.
#
# In a ramp, where shares follow the evidence, a window has no such c: every audit weighs 1, and the claim is about its
# requests, each weighed by its chance of an audit. Any weight that is fixed before the draw and at most rho will do.


WINDOW_LAW: Final = 16.0  # audits of a window, times the budget
STRETCH: Final = 1.5  # by which a window may be longer before it forgets
STARTS: Final = 8  # starts on the grid, in the time that a window takes to gather its audits
RISE: Final = 2.0  # growth of the share that opens another window
LEAST_DELTA_SHARE: Final = 1e-6  # of delta, for an epoch that begins immediately after another
LEAST_REQUESTS: Final = 10  # of a closed window: while a share changes, requests of both shares are in flight
MOST_WINDOWS: Final = 32  # the latest that are kept
SAME_SHARE: Final = 1e-9  # tolerance for rounding
RAMP: Final = 0.0  # stands for the share of a window whose audits all weigh 1


def window_audits(max_em_drop: float) -> int:
    """Audits of a window: 16 over the budget, at which a level that loses half of it is almost surely certified."""
    return round(WINDOW_LAW / max_em_drop)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Requests start <= t < end, each audited with probability `share` or more."""

    start: float
    share: float  # c, in (0, 1]; `RAMP`: every audit weighs 1
    end: float = inf  # infinite: the window is open

    @property
    def is_ramp(self) -> bool:
        return self.share == RAMP

    def holds(self, at: Floats) -> Bools:
        return (at >= self.start) & (at < self.end)

    def n_audits(self, at: Floats, share: Floats) -> float:
        return float(self.weights(share[self.holds(at)]).sum())

    def weights(self, share: Floats) -> Floats:
        """c/rho, at most 1, of audits drawn at these shares, shape (n,)."""
        return np.ones(len(share)) if self.is_ramp else np.minimum(1.0, self.share / share)


@dataclass(slots=True)
class Windows:
    known: list[Window] = field(default_factory=list)

    def plain(self) -> tuple[tuple[float, float, float | None], ...]:
        return tuple((one.start, one.share, None if one.end == inf else one.end) for one in self.known)

    def note(self, at: float, share: float) -> None:
        """From request `at` on, requests are audited with at least this probability, until the next call.

        A share of 0 closes all windows. Raise ValueError for a share outside [0, 1].
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share: got {share}; at least 0 and at most 1")
        highest = max((one.share for one in self._open), default=inf)
        if highest <= share + SAME_SHARE < RISE * highest:
            return  # the common case: no change
        self.known = [
            replace(one, end=at) if one.end == inf and one.share > share + SAME_SHARE else one for one in self.known
        ]
        self.known = [one for one in self.known if one.end - one.start >= LEAST_REQUESTS]
        if share and not any(RISE * one.share > share + SAME_SHARE for one in self._open):
            self.known.append(Window(start=at, share=share))
        for one in [one for one in self.known if not one.is_ramp][:-MOST_WINDOWS]:
            self.known.remove(one)

    @property
    def _open(self) -> list[Window]:
        return [one for one in self.known if one.end == inf and not one.is_ramp]

    def cut(self, first: float, last: float) -> None:
        """End windows before request `first`; drop those that began since, up to `last`. The next request opens one."""
        ramps = any(one.is_ramp and one.end == inf and one.start <= last for one in self.known)
        kept = [one for one in self.known if not first <= one.start <= last]
        ended = [replace(one, end=min(one.end, first)) if one.start < first else one for one in kept]
        self.known = [one for one in ended if one.end - one.start >= LEAST_REQUESTS]
        if ramps:
            self.known.append(Window(start=last + 1, share=RAMP))

    def lower(self, at: float, share: float) -> None:
        """As `note`, but ignores a rise."""
        if all(share < one.share for one in self._open):
            self.note(at, share)

    def chosen(
        self, at: Floats, share: Floats, *, wanted: float, size_of: Callable[[Bools], float] | None = None
    ) -> Window | None:
        """The newest window with `wanted` weighted audits, else the one with the most; None without windows.

        One with more than STRETCH times `wanted` is cut to a later start on an even grid, so that a long-running route
        forgets. `size_of` some audits is how many of them are one observation, by which a window takes more.
        """
        best, most = None, -1.0
        for base in reversed(self.known):
            inside = base.holds(at)
            weight = base.weights(share[inside])
            total = float(weight.sum())
            # A size is 1 or more, and counting clusters takes longer than adding weights.
            enough = inf if total < wanted else wanted * (size_of(inside) if size_of else 1.0)
            if total >= enough:
                return base if total <= STRETCH * enough else _moved_up(base, at[inside], weight, enough)
            if total > most:
                best, most = base, total
        return best


def _moved_up(base: Window, began: Floats, weight: Floats, wanted: float) -> Window:
    order = np.argsort(-began, kind="stable")
    latest = began[order][int(np.searchsorted(np.cumsum(weight[order]), STRETCH * wanted - SAME_SHARE))]
    step = wanted / (STARTS * (base.share or 1.0))
    return replace(base, start=float(base.start + step * floor((latest - base.start) / step)))


def restart_share(n_requests: float, *, window: int, share: float) -> float:
    """The part of delta for an epoch that begins because of an alarm from audits, `n_requests` after the last one.

    Such alarms depend on the draws: if every epoch used all of delta, windows cut short by alarms could serve more than
    delta of the requests above the budget. So an epoch that begins r requests after the last one gets min(1, r / L) of
    delta. L is the longest use of a window: the requests until the next one has its audits at the usual share. Over any
    number of epochs, the expected number of requests served above the budget is then at most delta times all requests.
    """
    longest = window / share if share else inf
    return max(LEAST_DELTA_SHARE, min(1.0, n_requests / longest))


def read_windows(written: Sequence[tuple[float, float, float | None]]) -> Windows:
    return Windows([Window(start=start, share=share, end=inf if end is None else end) for start, share, end in written])


# --------------------------------------------------------------------------- one promise for all routes
#
# Of the routes that are certified, few are wrong in expectation. A certificate needs the wealth 1/delta of its own
# route, and here also the wealth that the fleet requires: R / (alpha K) for K certified routes of R (e-BH: Wang and
# Ramdas 2022, JRSS B 84(3), arXiv:2009.02824). What the promise says, when it holds and its proof:
# docs/reference/assurance.md.

STEP: Final = 1.25  # ratio of neighbouring requirements: a few routes more or less change nothing
SLACK: Final = 1.1  # times the wealth that a lower requirement takes, so that it does not alternate
NO_REQUIREMENT: Final = 1.0  # each route keeps its own confidence alone


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteWealth:
    """The evidence for one route's safest level."""

    route: str
    epoch: int
    wealth: float  # times the part of delta that its epoch and version may use
    own: float  # wealth that its own confidence requires


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetRequirement:
    """From this place in the log on, a certificate of any route needs at least this wealth."""

    number: int  # from 1
    wealth: float  # 1: nothing beyond each route's own confidence
    confidence: float | None  # of the fleet; None: no fleet promise
    n_routes: int  # that can be certified
    n_certified: int  # whose evidence reaches the requirement
    evidence: tuple[RouteWealth, ...]  # from which it follows
    reason: str
    author: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStart:
    """A new route tests the levels of a version that a similar route serves; its own audits alone certify them."""

    route: str
    epoch: int
    fit: str  # address of the version
    source: str  # the route that serves it
    burst: int  # requests from the start of the epoch that run in full on a route with little traffic
    reason: str
    author: str


def require_wealth(evidence: Sequence[RouteWealth], *, confidence: float, before: float = 0.0) -> tuple[float, int]:
    """Return the least requirement that keeps the fleet's promise, and how many routes reach it.

    A requirement w keeps it if at least R / (alpha w) of the R routes reach w and their own. Requirements lie on a
    geometric grid from 1/alpha. To lower it from `before`, routes must have a tenth more.
    """
    least, n = 1 / (1 - confidence), len(evidence)
    wealths = sorted(one.wealth for one in evidence if one.wealth >= one.own)

    def count(wealth: float) -> int:
        return len(wealths) - bisect_left(wealths, wealth)

    top = ceil(log(max(1, n)) / log(STEP))
    for wealth in (least * STEP**place for place in range(top + 1)):
        if count(SLACK * wealth if STEP * wealth < SLACK * before else wealth) * wealth >= n * least:
            break
    return wealth, count(wealth)


def fleet_sentence(requirement: FleetRequirement, *, n_certified: int) -> str:
    if requirement.confidence is None:
        return ""
    most = f"{100 * (1 - requirement.confidence):.4g} %"
    return (
        f"fleet: {n_certified:,} of {requirement.n_routes:,} routes certified; expected wrong among them at most {most}"
    )
