"""Where rare outcomes are heading, from few of them and from much that moves with them: a regression with priors.

    outcomes by window, signals by window ──▶ slopes (prior, then audits) ──▶ signals go on ──▶ mean and sd ahead

The model is linear: the mean outcome of a window is a constant, plus a slope for how far its signals lie from where the
epoch began, plus one for what a stop model predicted, plus one for a ramp in time that nothing shows. Each slope has a
normal prior, so with few outcomes the forecast says what is believed, and with many what was seen.

Knows columns of numbers; refuses to know what is forecast and when to warn (`forecast`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

REFERENCE: Final = 15  # windows, from the beginning of the epoch, that say where its signals were
MEMORY: Final = 200  # latest windows that are fitted
RECENT: Final = 10  # windows that say where signals are now
TREND: Final = 25  # windows over which the trend of a signal is taken
RAMP: Final = 4.0  # thousand requests: how long a drift that no signal shows may have been under way
FARTHEST: Final = 20_000  # requests ahead
EVERY: Final = 100  # requests between two points of the path ahead


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Series:
    """The windows of one epoch, oldest first, W of them."""

    until: Floats  # (W,): number of the last request
    n_requests: Floats  # (W,)
    signals: Floats  # (W, F): means over all traffic; F may be 0
    predicted: Floats | None  # (W,): mean harm that the stop model predicts; None: no model
    n: Floats  # (W,): outcomes
    total: Floats  # (W,): their sum
    squares: Floats  # (W,): sum of their squares


@dataclass(frozen=True, slots=True, kw_only=True)
class Priors:
    """What is believed of each slope before outcomes say anything."""

    away: tuple[float, float]  # mean and sd, for one sd (of single requests) that the signals are away
    predicted: tuple[float, float]  # mean and sd, for each point that the stop model predicts
    ramp: float  # sd, for 1,000 requests; its mean is 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """The mean of what is forecast, over the windows that are fitted, and the variance of this mean."""

    mean: float
    variance: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrendForecast:
    """What is forecast at 0, 100, 200 … requests from now."""

    ahead: Floats  # requests
    mean: Floats
    sd: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Cause:
    """One thing that may move the outcomes, over the windows that are fitted."""

    values: Floats
    prior: tuple[float, float]
    path: Floats  # where it leads
    variance: Floats  # … and how well that is known


def trend(series: Series, priors: Priors, anchor: Anchor) -> TrendForecast:
    """Fit the latest 200 windows and follow what moved into the future.

    Bayesian linear regression with known noise; the uncertainty of the slopes, of the anchor and of the signals' own
    paths is added up.

    series  at least 30 windows, and an outcome among the latest 200
    """
    at = (series.until[-MEMORY:] - series.until[-1]) / 1_000
    ahead = np.arange(0, FARTHEST + 1, EVERY) / 1_000
    n, total = series.n[-MEMORY:], series.total[-MEMORY:]
    mean_seen = total.sum() / n.sum()
    noise = max(1e-6, series.squares[-MEMORY:].sum() / n.sum() - mean_seen**2)  # variance of one outcome
    causes = [*_of_signals(series, priors, at, ahead), _ramp(priors, at, ahead)]

    design = np.stack([np.ones(len(at)), *(cause.values for cause in causes)], axis=1)
    prior_mean = np.array([mean_seen, *(cause.prior[0] for cause in causes)])
    precision = np.diag(np.array([1.0, *(cause.prior[1] for cause in causes)]) ** -2.0)
    covariance = np.linalg.inv((design * n[:, np.newaxis]).T @ design / noise + precision)
    slopes = covariance @ (design.T @ total / noise + precision @ prior_mean)

    moved = np.stack([np.ones(len(ahead)), *(cause.path for cause in causes)], axis=1)
    moved = moved - (design * n[:, np.newaxis]).sum(axis=0) / n.sum()  # against the mean outcome's own place
    of_paths = sum(slope**2 * cause.variance for slope, cause in zip(slopes[1:], causes, strict=True))
    variance = anchor.variance + np.einsum("ij,jk,ik->i", moved, covariance, moved) + of_paths
    return TrendForecast(ahead=1_000 * ahead, mean=anchor.mean + moved @ slopes, sd=np.sqrt(variance))


def _ramp(priors: Priors, at: Floats, ahead: Floats) -> _Cause:
    """A drift that nothing shows: none until 4,000 requests ago, then steady, and it goes on."""
    return _Cause(values=np.maximum(0.0, at + RAMP), prior=(0.0, priors.ramp), path=RAMP + ahead, variance=0 * ahead)


def _of_signals(series: Series, priors: Priors, at: Floats, ahead: Floats) -> list[_Cause]:
    """What all traffic shows: how far its signals are from the reference, and what the model predicts."""
    found: list[tuple[Floats, tuple[float, float]]] = []
    if series.signals.shape[1]:
        found.append((away(series.signals, float(series.n_requests.mean()))[-MEMORY:], priors.away))
    if series.predicted is not None:
        start = series.predicted[:REFERENCE].mean()
        found.append((series.predicted[-MEMORY:] - start, priors.predicted))
    paths = [_followed(values, at, ahead) for values, _ in found]
    return [
        _Cause(values=values, prior=prior, path=path, variance=variance)
        for (values, prior), (path, variance) in zip(found, paths, strict=True)
    ]


def away(signals: Floats, n_requests: float) -> Floats:
    """How far each window lies in the direction in which the signals have moved, in sd of single requests, shape (W,).

    A Mahalanobis distance with a sign. The spread comes from differences of neighbouring windows, which a slow drift
    hardly touches, and the distance is shrunk by what chance alone would make of it.

    signals     (W, F), at least 15 windows
    n_requests  in a window
    """
    steps = np.diff(signals, axis=0)
    covariance = n_requests * (steps.T @ steps) / (2 * len(steps))
    scale = np.sqrt(np.diag(covariance)) + 1e-9 * (1 + np.abs(signals).max(axis=0))
    distance = (signals - signals[:REFERENCE].mean(axis=0)) / scale
    correlation = covariance / np.outer(scale, scale) + 1e-3 * np.eye(len(scale))
    moved = distance[-RECENT:].mean(axis=0)
    direction = np.linalg.solve(correlation, moved)
    squared = max(float(moved @ direction), 1e-12)
    by_chance = len(scale) * (1 / RECENT + 1 / REFERENCE) / n_requests
    return np.asarray(distance @ direction / np.sqrt(squared) * max(0.0, 1 - by_chance / squared))


def _followed(values: Floats, at: Floats, ahead: Floats) -> tuple[Floats, Floats]:
    """Where a signal leads if its line of the latest windows goes on, and the variance of that.

    One that is within the range where it has been before does not leave it: a season comes back.
    """
    line = np.stack([np.ones(len(at[-TREND:])), at[-TREND:]], axis=1)
    weights = np.stack([np.ones(len(ahead)), ahead], axis=1) @ np.linalg.inv(line.T @ line) @ line.T
    noise = float(np.mean(np.diff(values) ** 2)) / 2
    path = weights @ values[-TREND:]
    smooth = np.convolve(values, np.ones(RECENT) / RECENT, "valid")
    if len(smooth) > 2 * TREND:
        most = float(smooth[:-TREND].max())
        if smooth[-1] < most + np.sqrt(noise / RECENT):
            path = np.minimum(path, max(most, float(smooth[-1])))
    return path, noise * np.square(weights).sum(axis=1)


def column(values: Sequence[float]) -> Floats:
    """Numbers of windows as an array."""
    return np.array(values, dtype=np.float64)
