"""The value model: reinforcement learning of when to stop, as a finite-horizon decision process.

State: the features after a step. Actions: stop, and be paid EM minus the price of the tokens spent so far;
or continue, and decide again after the next step. Q of both actions is fitted on full trajectories with
forward-view Q(λ) targets (Stop-RAG, arXiv:2510.14337, which has no price on tokens):

    stop      r_k = ok_k − price · tokens_k / mean full tokens
    continue  target_k = (1 − λ) · max(Q_stop, Q_continue)_{k+1} + λ · target_{k+1},  target_{n−1} = r_n

Full runs show every reward that any policy would have got, so nothing is off-policy here. A run that was stopped
early shows what stopping pays, up to and with its stop, and nothing of going on: it takes part with a weight in
the one fit and with none in the other. One model is
fitted for every price of a sweep at once (a linear Q has one factorisation for all targets), and the sweep is
a ladder: a low price stops late. Knows trajectories as arrays; refuses to know files and policies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from suffice.learn.stop_model import one_thread

Floats = NDArray[np.float64]
Bits = NDArray[np.uint64]

# EM that the tokens of one mean full run are worth: from "hardly anything" to "more than any answer".
PRICES: Floats = np.geomspace(0.01, 10.0, 61)
LAMBDA = 0.8  # near 1: long looks ahead on recorded ends; near 0: one step, then the model's own word
N_SWEEPS = 4  # of policy improvement; the targets hardly move after the third
MAX_ROWS = 120_000  # that are worth fitting on: each is held once for every price, several times over
RIDGE = 300.0  # in rows: with standardised features, about one question's worth


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectories:
    """Full runs as arrays: R rows in all, run after run, the last row of each being its end."""

    x: Floats  # (R, P): features
    starts: NDArray[np.int64]  # (runs + 1,)
    ok: NDArray[np.bool_]  # R: would the answer be right if the run were stopped after the step
    tokens: Floats  # R: spent up to and with the step
    stop_weight: Floats | None = None  # R, at least 0: of what stopping pays; None: 1, and 0 at the ends
    go_on_weight: Floats | None = None  # R, at least 0: of what going on pays; a run without any has no known end


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """Fitted linear Q for each price: plain arrays."""

    mean: Floats  # P
    scale: Floats  # P
    stop: Floats  # (P + 1, 1): P(right) if stopped; the last weight is the constant
    go_on: Floats  # (P + 1, prices): EM to come minus the price of the tokens still to come, if continued
    mean_tokens: float  # of a full run: the unit of prices
    prices: Floats

    def advantage(self, x: Floats) -> Floats:
        """Q(stop) − Q(continue) of each row at each price, shape (R, prices): stop where it is at least 0.

        What is already spent is spent either way, so both sides leave it out.
        """
        z = _with_one((x - self.mean) / self.scale)
        with one_thread():
            gain: Floats = z @ self.stop - z @ self.go_on
        return gain

    def stopping_prices(self, x: Floats) -> Bits:
        """At which prices each row would stop, shape (R,): bit j stands for price j; at most 64 prices.

        An advantage need not rise with the price, so that one number a row would not tell.
        """
        stops = self.advantage(x) >= 0
        bits = np.zeros(len(x), dtype=np.uint64)
        for at in range(stops.shape[1]):
            bits |= stops[:, at].astype(np.uint64) << np.uint64(at)
        return bits


def fit_values(t: Trajectories, *, prices: Floats = PRICES, lam: float = LAMBDA, sweeps: int = N_SWEEPS) -> Values:
    """Fit Q(stop) and Q(continue) on full trajectories for each price.

    lam     in [0, 1], see the head of this file
    sweeps  how often targets are rebuilt from the last fit, at least 1

    Raises ValueError without a run of two steps, for parameters out of range, and for weights that are none.
    """
    if not 0 <= lam <= 1 or sweeps < 1:
        raise ValueError(f"need 0 <= lam <= 1 and sweeps >= 1; got {lam=} {sweeps=}")
    for name in ("stop_weight", "go_on_weight"):
        weight = getattr(t, name)
        if weight is not None and (weight.shape != t.ok.shape or not (weight >= 0).all() or np.isinf(weight).any()):
            raise ValueError(f"{name}: got shape {weight.shape} for {len(t.ok)} rows; one a row, finite and at least 0")
    with one_thread():
        return _fit(t, prices, lam, sweeps)


def _fit(t: Trajectories, prices: Floats, lam: float, sweeps: int) -> Values:
    last = t.starts[1:] - 1
    stop_weight, go_on_weight = _weights(t, last)
    rows = np.flatnonzero(go_on_weight)
    if not len(rows):
        raise ValueError("value model: needs at least one run of two steps")
    stops = np.flatnonzero(stop_weight)
    mean_tokens = float(np.maximum(np.average(t.tokens[last], weights=_of_runs(t)), 1.0))
    mean, scale = _moments(t.x[rows], go_on_weight[rows])
    z = _with_one((t.x - mean) / scale)
    solve = _solver(z[rows], go_on_weight[rows])
    spent = np.outer(t.tokens / mean_tokens, prices)  # (R, prices)
    reward = t.ok[:, None] - spent  # what stopping after the row pays
    stop = _solver(z[stops], stop_weight[stops])(t.ok[stops].astype(np.float64)[:, None])
    value = reward.copy()  # of each row as its successor sees it
    go_on = np.zeros((z.shape[1], len(prices)))
    for sweep in range(sweeps):
        if sweep:
            value = np.maximum(z @ stop, z @ go_on) - spent
            value[last] = reward[last]
        target = _targets(value, reward, t.starts, 1.0 if sweep == 0 else lam)
        go_on = solve(target[rows] + spent[rows])
    return Values(mean=mean, scale=scale, stop=stop, go_on=go_on, mean_tokens=mean_tokens, prices=prices)


def _weights(t: Trajectories, last: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Of stopping and of going on, shape (R,) each; at its end a run has nothing left to decide."""
    inner = np.ones(len(t.x))
    inner[last] = 0.0
    stop = inner if t.stop_weight is None else t.stop_weight
    return stop, inner if t.go_on_weight is None else t.go_on_weight * inner


def _of_runs(t: Trajectories) -> Floats | None:
    """What each run's length counts for, shape (runs,): a run without an end has no length. None: all the same."""
    return None if t.go_on_weight is None else np.asarray(np.maximum.reduceat(t.go_on_weight, t.starts[:-1]))


def _moments(x: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Weighted mean and standard deviation of each feature, the latter 1 where nothing moves."""
    mean = np.average(x, axis=0, weights=weight)
    scale = np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weight))
    return np.asarray(mean), np.where(scale > 0, scale, 1.0)


def _targets(value: Floats, reward: Floats, starts: NDArray[np.int64], lam: float) -> Floats:
    """Forward-view λ-returns of continuing after each row, shape (R, prices); 0 at the ends.

    All runs step back together, from the row before their last one to their first.
    """
    target = np.zeros_like(value)
    last = starts[1:] - 1
    later = reward[last]  # a run's end pays what it pays
    longest = int(np.diff(starts).max())
    for back in range(1, longest):
        runs = np.flatnonzero(last - back >= starts[:-1])
        row = last[runs] - back
        following = value[row + 1] if back > 1 else reward[row + 1]
        later[runs] = (1 - lam) * following + lam * later[runs]
        target[row] = later[runs]
    return target


def _solver(z: Floats, weight: Floats) -> Callable[[Floats], Floats]:
    """Ridge regression on these rows for any number of targets, from one factorisation."""
    weighted = z * weight[:, None]
    gram = weighted.T @ z + RIDGE * np.eye(z.shape[1])
    gram[-1, -1] -= RIDGE  # the constant is not shrunk
    inverse = np.linalg.inv(gram)

    def solve(y: Floats) -> Floats:
        found: Floats = inverse @ (weighted.T @ y)
        return found

    return solve


def _with_one(z: Floats) -> Floats:
    return np.hstack([z, np.ones((len(z), 1))])
