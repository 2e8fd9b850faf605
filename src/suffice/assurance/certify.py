"""The certificate: which stopping levels have been shown to keep the EM budget, from counts alone.

Level 0 never stops. Each higher level has a wealth process that bets against "its EM drop is at least epsilon"; wealth
of 1/delta refutes that at any look. Levels are accepted in order until one fails (fixed-sequence test). Constant bets
make wealth a function of three counts, so late labels, replicas and replays give the same certificate in any order.
Theorem and proof: docs/reference/assurance.md. Betting: Waudby-Smith and Ramdas (2024), JRSS B 86(1), arXiv:2010.09686.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

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


def count_outcomes(z: NDArray[np.int8] | Floats) -> Counts:
    """Count the EM drops of audits, each -1, 0 or +1, shape (audits, M)."""
    gained = (z < 0).sum(axis=0, dtype=np.int64)
    lost = (z > 0).sum(axis=0, dtype=np.int64)
    return Counts(gained, len(z) - gained - lost, lost)


def weighted_log_wealth(
    z: NDArray[np.int8] | Floats, weight: Floats, *, max_em_drop: float | Floats, bets: Sequence[float] = BETS
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


def is_order_refuted(z: NDArray[np.int8], mean: Floats, weight: Floats, *, delta: float) -> bool:
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


def smallest_proved_drop(gained: int, same: int, lost: int, *, delta: float) -> float | None:
    """The smallest drop that these audits refute at `delta`; None: no drop below 1."""
    counts = Counts(np.array([gained]), np.array([same]), np.array([lost]))

    def refutes(drop: float) -> bool:
        return float(log_wealth(counts, max_em_drop=drop)[0]) >= log(1 / delta)

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


def missing_audits(
    z: NDArray[np.int8] | Floats, level: int, *, max_em_drop: float, delta: float, most: int | None = None
) -> int | None:
    """Further audits until a level passes, if outcomes continue as z, shape (n, M).

    None: no number is enough, or more than `most` in total.
    """
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
    return None if most is not None and needed > most else max(1, needed - n)


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
