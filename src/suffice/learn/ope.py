"""Off-policy evaluation: what another policy would have earned, from the draws of the one that ran.

    LoggedDraws (context, arm, odds of all arms, reward, learned by lot?) ──▶ PolicyValue (value, interval, n_effective)

    naive    mean of the known rewards under the target's arms  biased by who is drawn and by who complains; to compare
    ips      weight x reward                                    unbiased, noisy
    snips    the same over the sum of weights                   a little biased, calmer, always in range
    dr       a guess for every arm, corrected by weight x miss  unbiased whatever the guess, calm where it is good

The weight is P(arm | target) / P(arm | logged odds) / P(reward learned by lot), and 0 where it was not. Unbiased means:
the odds are the true ones, and each reward was either learned by a lot of known odds or is ignored. Rewards that came
by themselves (who complains?) fit the guess of `dr` and never correct it. Intervals hold at every look and under drift:
they cover the mean, over the rows so far, of what the target earns (`assurance.paired`); that of `snips` is that of
`dr` with the mean so far as its guess, and that of `naive` is as wrong as its mean.

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

RIDGE: Final = 4.0  # in rows: what an arm's own part must outweigh
_NEWTON_STEPS: Final = 12
_LARGEST_LOGIT: Final = 12.0


def fit_rewards(x: Floats, arm: Ints, reward: Floats, *, n_arms: int, kind: ModelKind, ridge: float = RIDGE) -> Guess:
    """Fit the mean reward of every arm as a function of the context: the part of doubly robust that may be wrong.

    One linear model over context x arm: what all arms share, and for each arm its own intercept and slopes, held back
    by a ridge (on all but the common intercept) so that an arm with few draws stays near the others. Without rows every
    guess is 1/2. Raises ValueError for shapes that do not fit and for rewards outside [0, 1].
    """
    if x.ndim != 2 or not len(x) == len(arm) == len(reward):
        raise ValueError(f"need one arm and one reward a row; got {x.shape=} {len(arm)=} {len(reward)=}")
    if ridge <= 0 or (reward < 0).any() or (reward > 1).any():
        raise ValueError(f"need ridge > 0 and rewards in [0, 1]; got {ridge=}")
    if not len(x):
        return lambda rows: np.full((len(rows), n_arms), 0.5)
    design = _design(x, arm, n_arms)
    penalty = np.full(design.shape[1], ridge)
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
    """Rows of: 1, context, then for each arm its own 1 and context, 0 where another arm was drawn."""
    shared = np.column_stack([np.ones(len(x)), x])
    own = np.zeros((len(x), n_arms, shared.shape[1]))
    own[np.arange(len(x)), arm] = shared
    return np.column_stack([shared, own.reshape(len(x), -1)])


def _newton(design: Floats, reward: Floats, penalty: Floats) -> Floats:
    """Penalised logistic regression, by steps of weighted least squares."""
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

FIRST_FIT: Final = 32  # rows before the first guess is fitted; refitted whenever they have doubled
REACH: Final = 8.0  # weight up to which the guess is used in full; any fixed number gives a valid interval


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoggedDraws:
    x: Floats  # (N, d): contexts, as a reward model reads them; no intercept
    arm: Ints  # (N,): what was drawn, 0 … K - 1
    odds: Floats  # (N, K): P(arm) of every arm when it was drawn; rows sum to 1
    reward: Floats  # (N,): not a number: unknown
    by_lot: Bools  # (N,): was the reward learned because a lot chose this row? False for who complained
    p_by_lot: Floats  # (N,): the odds of that lot, the same whatever the arm, in (0, 1]; 1: always learned
    low: float = 0.0  # smallest reward there can be
    high: float = 1.0  # largest

    def __post_init__(self) -> None:
        n = len(self.odds)
        if not n == len(self.x) == len(self.arm) == len(self.reward) == len(self.by_lot) == len(self.p_by_lot):
            raise ValueError(f"logged: need one of everything for each of {n} rows")
        if n and not (np.abs(self.odds.sum(axis=1) - 1) < 1e-6).all():
            raise ValueError("logged.odds: each row must sum to 1")
        if n and (self.odds[np.arange(n), self.arm] <= 0).any():
            raise ValueError("logged.odds: got 0 for an arm that was drawn; above 0")
        if (self.p_by_lot <= 0).any() or (self.p_by_lot > 1).any():
            raise ValueError("logged.p_by_lot: above 0, at most 1")
        known = self.reward[~np.isnan(self.reward)]
        if not self.low < self.high or (known < self.low).any() or (known > self.high).any():
            raise ValueError(f"logged.reward: outside [{self.low:g}, {self.high:g}]")
        if np.isnan(self.reward[self.by_lot]).any():
            raise ValueError("logged.reward: unknown in a row whose lot was drawn; time-outs need a value, the bad one")

    def __len__(self) -> int:
        return len(self.arm)

    @property
    def n_arms(self) -> int:
        return int(self.odds.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyValue:
    """What a policy would have earned, in the unit of the rewards."""

    method: Method
    value: float  # not a number: no row says anything
    low: float  # with `confidence` the mean lies between the two, at every look
    high: float
    confidence: float
    n: int  # rows
    n_effective: float  # Kish: (sum of weights)^2 / sum of squares; few of many: the interval rests on few rows
    largest_weight: float
    clipped_share: float = 0.0  # of the weight, cut off by `clip`: bias of the value, never of the interval


def estimate_value(
    logged: LoggedDraws,
    target: Floats,
    method: Method = "dr",
    *,
    confidence: float = 0.95,
    clip: float | None = None,
    kind: ModelKind = "ridge",
) -> PolicyValue:
    """Estimate what a target policy would have earned, by one of the methods at the head of this file.

    target  (N, K): the odds that it would have given, known without looking at rewards
    clip    of `ips` and `snips`: largest weight in `value`, which it can only make too small; `low` and `high` never
            clip
    kind    of the guesses of `dr`: logistic where rewards are right or wrong

    Raises ValueError for shapes that do not fit, and for a target of arms that could not be drawn.
    """
    weights = _weights(logged, target, confidence)
    if method == "naive":
        return _naive(logged, target, confidence)
    counted = weights if clip is None or method == "dr" else np.minimum(weights, clip)
    guess = guess_in_sequence(logged, kind=kind) if method == "dr" else np.zeros_like(logged.odds)
    if method == "snips":  # the mean so far, of one row added
        gained = weights * _unit(logged)
        guess += ((np.cumsum(gained) - gained + 0.5) / (np.cumsum(weights) - weights + 1))[:, np.newaxis]
    if method == "snips":
        value = float(counted @ _unit(logged)) / float(counted.sum()) if counted.any() else float("nan")
    else:
        value = float(_terms(logged, target, counted, guess).mean()) if len(logged) else float("nan")
    alpha = (1 - confidence) / 2
    low = _lower_end(logged, target, weights, guess, alpha)
    # The upper end is one minus the lower end of what is missing to 1.
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


def compute_dr_terms(logged: LoggedDraws, target: Floats, *, kind: ModelKind = "ridge") -> Floats:
    """Terms whose mean is the value of `dr`, shape (N,): for differences of two targets on the same rows."""
    terms = _terms(logged, target, _weights(logged, target, 0.5), guess_in_sequence(logged, kind=kind))
    return logged.low + (logged.high - logged.low) * terms


def guess_in_sequence(logged: LoggedDraws, *, kind: ModelKind, first_fit: int = FIRST_FIT) -> Floats:
    """Rewards of all arms in every row, in [0, 1], guessed from all that earlier rows know, shape (N, K).

    Fitted again whenever the rows have doubled, so the value is unbiased and the interval exact at every look.
    """
    guess = np.full((len(logged), logged.n_arms), 0.5)
    known = ~np.isnan(logged.reward)
    unit = _unit(logged)
    begin = first_fit
    while begin < len(logged):
        end = min(2 * begin, len(logged))
        rows = np.flatnonzero(known[:begin])
        fitted: Guess = fit_rewards(logged.x[rows], logged.arm[rows], unit[rows], n_arms=logged.n_arms, kind=kind)
        guess[begin:end] = fitted(logged.x[begin:end])
        begin = end
    return guess


def _weights(logged: LoggedDraws, target: Floats, confidence: float) -> Floats:
    """Weight of each row, shape (N,). Raises ValueError as `estimate_value` does."""
    if target.shape != logged.odds.shape or not 0 < confidence < 1:
        raise ValueError(f"need a target of shape {logged.odds.shape}, 0 < confidence < 1; got {target.shape=}")
    if len(logged) and ((target < 0).any() or not (np.abs(target.sum(axis=1) - 1) < 1e-6).all()):
        raise ValueError("target: each row must be odds that sum to 1")
    if ((target > 0) & (logged.odds <= 0)).any():
        raise ValueError("target: gives odds to an arm that the lottery could not draw; nothing was learned of it")
    rows = np.arange(len(logged))
    ratio = target[rows, logged.arm] / logged.odds[rows, logged.arm] / logged.p_by_lot
    return np.where(logged.by_lot, ratio, 0.0)


def _unit(logged: LoggedDraws) -> Floats:
    """Rewards in [0, 1]; 0 where unknown, which only ever meets a weight of 0."""
    return np.asarray(np.nan_to_num((logged.reward - logged.low) / (logged.high - logged.low)))


def _in_rewards(logged: LoggedDraws, unit: float) -> float:
    return logged.low + (logged.high - logged.low) * unit


def _terms(logged: LoggedDraws, target: Floats, weights: Floats, guess: Floats) -> Floats:
    """One term a row, in the unit [0, 1], whose mean is the doubly robust value."""
    of_arm = guess[np.arange(len(logged)), logged.arm]
    return np.asarray((target * guess).sum(axis=1) + weights * (_unit(logged) - of_arm))


def _lower_end(logged: LoggedDraws, target: Floats, weights: Floats, guess: Floats, alpha: float) -> float:
    """In the unit [0, 1]. The guess is cut where a weight could make a term fall below -REACH."""
    could_be = np.divide(target, logged.odds, out=np.zeros_like(target), where=logged.odds > 0)
    could_be /= logged.p_by_lot[:, np.newaxis]
    cut = np.minimum(guess, np.divide(REACH, could_be, out=np.ones_like(guess), where=could_be > 0))
    return lower_bound(_terms(logged, target, weights, cut), floor=REACH if cut.any() else 0.0, alpha=alpha)


def _effective(weights: Floats) -> float:
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares else 0.0
