"""Off-policy evaluation: the value of another policy, from the logged draws of the one that ran.

    naive    mean of the known rewards under the target's arms  biased by draws and selective feedback; for comparison
    ips      weight x reward                                    unbiased, noisy
    snips    ips over the sum of weights                        slightly biased, less noisy, always in range
    dr       a guess for every arm, corrected by weight x error unbiased with any guess, precise with a good one

The weight is P(arm | target) / P(arm | logged odds) / P(reward sampled), and 0 where the reward was not sampled.
Unbiased requires true odds and ignores unsampled rewards: feedback that users chose to give fits the guess of `dr` and
never corrects it. Intervals hold at every look and under drift: they cover the mean value of the target over the rows
so far (`assurance.paired`). That of `snips` is the interval of `dr` with the mean so far as its guess; that of `naive`
shares its bias.

Dudik, Langford, Li (2011), arXiv:1103.4601; `snips`: Swaminathan and Joachims (2015), NeurIPS 28; intervals: Waudby-
Smith et al. (2024), arXiv:2210.10768.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

import numpy as np

from suffice.assurance.paired import lower_bound
from suffice.learn.audits import Bools, Floats, Ints

ModelKind: TypeAlias = Literal["ridge", "logistic"]
Guess: TypeAlias = Callable[[Floats], Floats]  # (n, d) contexts → (n, K) guessed rewards in [0, 1]

RIDGE: Final = 4.0  # in rows
_NEWTON_STEPS: Final = 12
_LARGEST_LOGIT: Final = 12.0


def fit_rewards(x: Floats, arm: Ints, reward: Floats, *, n_arms: int, kind: ModelKind) -> Guess:
    """Fit the mean reward of every arm by one linear model with shared and, under the ridge, own weights of each arm.

    Without rows every guess is 1/2. Raise ValueError for shapes that do not fit and for rewards outside [0, 1].
    """
    if x.ndim != 2 or not len(x) == len(arm) == len(reward):
        raise ValueError(f"need one arm and one reward a row; got {x.shape=} {len(arm)=} {len(reward)=}")
    if (reward < 0).any() or (reward > 1).any():
        raise ValueError(f"need rewards in [0, 1]; got {reward.min():g} to {reward.max():g}")
    if not len(x):
        return lambda rows: np.full((len(rows), n_arms), 0.5)
    design = _design(x, arm, n_arms)
    penalty = np.full(design.shape[1], RIDGE)
    penalty[0] = 1e-6
    if kind == "ridge":
        weights = np.asarray(np.linalg.solve(design.T @ design + np.diag(penalty), design.T @ reward))
    else:
        weights = _newton(design, reward, penalty)

    def guess(rows: Floats) -> Floats:
        raw = np.column_stack([_design(rows, np.full(len(rows), a), n_arms) @ weights for a in range(n_arms)])
        return np.asarray(np.clip(raw, 0.0, 1.0) if kind == "ridge" else _sigmoid(raw))

    return guess


def _design(x: Floats, arm: Ints, n_arms: int) -> Floats:
    shared = np.column_stack([np.ones(len(x)), x])
    own = np.zeros((len(x), n_arms, shared.shape[1]))
    own[np.arange(len(x)), arm] = shared
    return np.column_stack([shared, own.reshape(len(x), -1)])


def _newton(design: Floats, reward: Floats, penalty: Floats) -> Floats:
    weights = np.zeros(design.shape[1])
    for _ in range(_NEWTON_STEPS):
        p = _sigmoid(design @ weights)
        slope = np.maximum(p * (1 - p), 1e-6)
        gradient = design.T @ (reward - p) - penalty * weights
        weights = weights + np.linalg.solve((design * slope[:, np.newaxis]).T @ design + np.diag(penalty), gradient)
    return weights


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -_LARGEST_LOGIT, _LARGEST_LOGIT))))


Method: TypeAlias = Literal["naive", "ips", "snips", "dr"]

FIRST_FIT: Final = 32  # rows before the first fit; refitted whenever they have doubled
REACH: Final = 8.0  # weight up to which the guess is used in full; the interval is valid with any constant


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoggedDraws:
    x: Floats  # (N, d): contexts, without intercept
    arm: Ints  # (N,): the drawn arm, 0 … K - 1
    odds: Floats  # (N, K): P(arm) of every arm at the draw; rows sum to 1
    reward: Floats  # (N,): nan: unknown
    sampled: Bools  # (N,): the reward was sampled at random; False for feedback that users chose to give
    p_sampled: Floats  # (N,): probability of that sample, the same for every arm, in (0, 1]; 1: always sampled
    low: float = 0.0  # smallest possible reward
    high: float = 1.0  # largest possible reward

    def __post_init__(self) -> None:
        n = len(self.odds)
        if not n == len(self.x) == len(self.arm) == len(self.reward) == len(self.sampled) == len(self.p_sampled):
            raise ValueError(f"logged: need one of everything for each of {n} rows")
        if n and not (np.abs(self.odds.sum(axis=1) - 1) < 1e-6).all():
            raise ValueError("logged.odds: each row must sum to 1")
        if n and (self.odds[np.arange(n), self.arm] <= 0).any():
            raise ValueError("logged.odds: got 0 for an arm that was drawn; above 0")
        if (self.p_sampled <= 0).any() or (self.p_sampled > 1).any():
            raise ValueError("logged.p_sampled: above 0, at most 1")
        known = self.reward[~np.isnan(self.reward)]
        if not self.low < self.high or (known < self.low).any() or (known > self.high).any():
            raise ValueError(f"logged.reward: outside [{self.low:g}, {self.high:g}]")
        if np.isnan(self.reward[self.sampled]).any():
            raise ValueError("logged.reward: unknown in a sampled row; give time-outs the lowest value")

    def __len__(self) -> int:
        return len(self.arm)

    @property
    def n_arms(self) -> int:
        return int(self.odds.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyValue:
    method: Method
    value: float  # nan: no usable row
    low: float  # ends of the interval, valid at every look
    high: float
    confidence: float
    n: int  # rows
    n_effective: float  # Kish: (sum of weights)^2 / sum of squares
    largest_weight: float
    clipped_share: float = 0.0  # of the weight, cut off by `clip`: biases the value, never the interval


def estimate_value(
    logged: LoggedDraws,
    target: Floats,
    method: Method = "dr",
    *,
    confidence: float = 0.95,
    clip: float | None = None,
    kind: ModelKind = "ridge",
) -> PolicyValue:
    """Estimate the value of a target policy by one of the methods at the head of this file.

    target  (N, K): its odds, known without looking at rewards
    clip    of `ips` and `snips`: largest weight in `value`, which it biases downwards; `low` and `high` never clip
    kind    of the guesses of `dr`: logistic for rewards of 0 or 1

    Raise ValueError for shapes that do not fit, and for a target of arms that could not be drawn.
    """
    weights = _weights(logged, target, confidence)
    if method == "naive":
        return _naive(logged, target, confidence)
    counted = weights if clip is None or method == "dr" else np.minimum(weights, clip)
    guess = guess_in_sequence(logged, kind=kind) if method == "dr" else np.zeros_like(logged.odds)
    if method == "snips":  # the guess is the mean so far, shrunk to 1/2 by one row
        gained = weights * _unit(logged)
        guess += ((np.cumsum(gained) - gained + 0.5) / (np.cumsum(weights) - weights + 1))[:, np.newaxis]
        value = float(counted @ _unit(logged)) / float(counted.sum()) if counted.any() else float("nan")
    else:
        value = float(_terms(logged, target, counted, guess).mean()) if len(logged) else float("nan")
    alpha = (1 - confidence) / 2
    low = _lower_end(logged, target, weights, guess, alpha)
    # The upper end is one minus the lower end of 1 - reward.
    missing = replace(logged, reward=logged.low + logged.high - logged.reward)
    high = 1 - _lower_end(missing, target, weights, 1 - guess, alpha)
    return PolicyValue(
        method=method,
        value=_in_rewards(logged, value),
        low=_in_rewards(logged, low),
        high=_in_rewards(logged, high),
        confidence=confidence,
        n=len(logged),
        n_effective=_effective(weights),
        largest_weight=float(weights.max(initial=0.0)),
        clipped_share=float(1 - counted.sum() / weights.sum()) if counted is not weights and weights.any() else 0.0,
    )


def _naive(logged: LoggedDraws, target: Floats, confidence: float) -> PolicyValue:
    known = ~np.isnan(logged.reward)
    share = target[np.arange(len(logged)), logged.arm][known]
    reward, total = logged.reward[known], share.sum()
    value = float(share @ reward / total) if total else float("nan")
    spread = 2 * float(np.sqrt(share**2 @ (reward - value) ** 2) / total) if total else float("nan")
    return PolicyValue(
        method="naive",
        value=value,
        low=value - spread,
        high=value + spread,
        confidence=confidence,
        n=len(logged),
        n_effective=_effective(share),
        largest_weight=float(share.max(initial=0.0)),
    )


def guess_in_sequence(logged: LoggedDraws, *, kind: ModelKind) -> Floats:
    """Guess the rewards of all arms in every row, in [0, 1], from earlier rows alone, shape (N, K)."""
    guess = np.full((len(logged), logged.n_arms), 0.5)
    known = ~np.isnan(logged.reward)
    unit = _unit(logged)
    begin = FIRST_FIT
    while begin < len(logged):
        end = min(2 * begin, len(logged))
        rows = np.flatnonzero(known[:begin])
        fitted: Guess = fit_rewards(logged.x[rows], logged.arm[rows], unit[rows], n_arms=logged.n_arms, kind=kind)
        guess[begin:end] = fitted(logged.x[begin:end])
        begin = end
    return guess


def _weights(logged: LoggedDraws, target: Floats, confidence: float) -> Floats:
    if target.shape != logged.odds.shape or not 0 < confidence < 1:
        raise ValueError(f"need a target of shape {logged.odds.shape}, 0 < confidence < 1; got {target.shape=}")
    if len(logged) and ((target < 0).any() or not (np.abs(target.sum(axis=1) - 1) < 1e-6).all()):
        raise ValueError("target: each row must be odds that sum to 1")
    if ((target > 0) & (logged.odds <= 0)).any():
        raise ValueError("target: gives odds to an arm that could not be drawn, about which nothing is known")
    rows = np.arange(len(logged))
    ratio = target[rows, logged.arm] / logged.odds[rows, logged.arm] / logged.p_sampled
    return np.where(logged.sampled, ratio, 0.0)


def _unit(logged: LoggedDraws) -> Floats:
    """In [0, 1]; 0 where unknown, since its weight is 0."""
    return np.asarray(np.nan_to_num((logged.reward - logged.low) / (logged.high - logged.low)))


def _in_rewards(logged: LoggedDraws, unit: float) -> float:
    return logged.low + (logged.high - logged.low) * unit


def _terms(logged: LoggedDraws, target: Floats, weights: Floats, guess: Floats) -> Floats:
    of_arm = guess[np.arange(len(logged)), logged.arm]
    return np.asarray((target * guess).sum(axis=1) + weights * (_unit(logged) - of_arm))


def _lower_end(logged: LoggedDraws, target: Floats, weights: Floats, guess: Floats, alpha: float) -> float:
    """In the unit [0, 1]. The guess is cut where a weight could bring a term below -REACH."""
    could_be = np.divide(target, logged.odds, out=np.zeros_like(target), where=logged.odds > 0)
    could_be /= logged.p_sampled[:, np.newaxis]
    cut = np.minimum(guess, np.divide(REACH, could_be, out=np.ones_like(guess), where=could_be > 0))
    return lower_bound(_terms(logged, target, weights, cut), floor=REACH if cut.any() else 0.0, alpha=alpha)


def _effective(weights: Floats) -> float:
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares else 0.0
