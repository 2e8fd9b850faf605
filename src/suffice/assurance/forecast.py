"""Forecasts when a route crosses its budget, and alerts only where even the lower end of the interval crosses it.

    windows of all traffic and audits ──▶ trend of the harm ──▶ the request of the crossing, an alert, or doubt

Audits are few and their losses rare: at 5 % of traffic, a drop that climbs from 0.3 to 2 % within 2,000 requests shows
one loss. So the forecast borrows strength three times, each time for an assumption that is written as a prior:

    neighbouring levels   an audit that bolder levels would lose is a loss foreseen. Disagreement at the deployed level
                          and those above it that disagree up to three times as often counts, and needs no label
    all traffic           signals far from where they were certified lose trust until audits show that they may keep it;
                          what the stop model itself predicts to lose is believed until audits contradict
    time                  a drift that no signal shows may still be under way

The model is linear: the mean outcome of a window is a constant, plus a slope for how far its signals lie from where the
epoch began, plus one for what a stop model predicted, plus one for a ramp in time that nothing shows. With few outcomes
the forecast says what is believed, and with many what was observed.

How often it warns in time, and how often for nothing: docs/reference/assurance.md. It steers nothing and certifies
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from suffice.assurance.ledger import Account
from suffice.assurance.satisfaction import SATISFACTION, SatisfactionEffect

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Of = Literal["em_drop", "em"]

REFERENCE: Final = 15  # windows, from the beginning of the epoch, that say where its signals were
MEMORY: Final = 200  # latest windows that are fitted
RECENT: Final = 10  # windows that say where signals are now
TREND: Final = 25  # windows over which the trend of a signal is taken
RAMP: Final = 4.0  # thousand requests: how long a drift that no signal shows may have been under way
FARTHEST: Final = 20_000  # requests ahead
EVERY: Final = 100  # requests between two points of the path ahead
HORIZON: Final = 3_000  # requests ahead: an alert says that the crossing is nearer
MIN_WINDOWS: Final = 30
SETTLED: Final = 45  # windows from which an alert is raised; what would be one before is doubt
NEAR: Final = 3.0  # times the deployed level's disagreement: up to there levels are its neighbours
DROP_PER_NEAR: Final = 0.6  # EM drop for each rise of disagreement among neighbours
DROP_VARIANCE: Final = 0.02  # of Z of one audit: losses and gains are about so many
LOW_SD: Final = 0.3  # lower end of the interval: six in ten that the truth is above
HIGH_SD: Final = 1.25  # upper end: about nine in ten that it is below
CALM_SD: Final = 0.6  # a standing alert ends when the mean and so much more stays below
CALM_PART: Final = 0.9  # … so much of the limit: no flapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Priors:
    away: tuple[float, float]  # mean and sd, for one sd (of single requests) that the signals are away
    predicted: tuple[float, float]  # mean and sd, for each point that the stop model predicts
    ramp: float  # sd, for 1,000 requests; its mean is 0


DROP_PRIORS: Final = Priors(away=(0.05, 0.04), predicted=(1.0, 0.5), ramp=0.004)
EM_PRIORS: Final = Priors(away=(0.0, 0.1), predicted=(1.0, 1.0), ramp=0.01)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastWindow:
    """What about 100 requests of one epoch showed, everything at the level deployed now: audits are replayed at it."""

    until: int  # number of the window's last request
    n_requests: int
    signals: tuple[float, ...]  # means over all traffic of what no stop selects, such as first steps; () for none
    predicted_drop: float | None  # mean over audits of what the stop model expects to lose; None: no audits, no model
    n_audits: int
    near: float  # sum of `near_share` over the audits
    near_squares: float  # sum of its squares
    n_settled: int  # audits whose drop is known or counted (`labels`)
    drop: int  # sum of their Z
    n_labelled: float = 0  # delivered runs that a label calls right or wrong, as many as tell as much (`worth`)
    n_right: float = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossingForecast:
    """Numbers of the requests at which the limit is crossed. None: not within 20,000 requests."""

    earliest: int | None
    expected: int | None
    latest: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A trend and what it leads to. Values are fractions: an EM drop, or an EM."""

    of: Of
    limit: float
    now: float
    per_1000: float  # change within the next 1,000 requests
    ahead: float  # at the horizon, 3,000 requests from now
    ahead_low: float
    ahead_high: float
    crossing: CrossingForecast
    alert: bool  # even the end of the interval that is farther from harm crosses within the horizon
    doubtful: bool  # the end that is nearer to it does: more audits now would tell
    reason: str


def near_levels(disagrees: Bools, deployed: int) -> range:
    """The deployed level and those above it, up to where three times as many audits disagree, shape (N, M).

    To be chosen once, on the audits of the certificate, and kept while the level stays.
    """
    n_disagreeing = disagrees[:, deployed:].sum(axis=0)
    too_many = np.flatnonzero(n_disagreeing > NEAR * max(1, n_disagreeing[0]))
    return range(deployed, deployed + (int(too_many[0]) if len(too_many) else len(n_disagreeing)))


def near_share(disagrees: Bools, levels: range) -> Floats:
    """Part of those levels at which a stop would have answered otherwise, by audit, shape (N, M) to (N,)."""
    return np.asarray(disagrees[:, levels.start : levels.stop].mean(axis=1), dtype=np.float64)


def forecast_drop(windows: Sequence[ForecastWindow], *, budget: float, alerted: bool = False) -> Forecast | None:
    """When will the EM drop at the deployed level cross the budget? None: under 30 windows, or no audits.

    windows  of one epoch, oldest first, all with the same signals
    budget   EM drop, a fraction in (0, 1)
    alerted  is an alert open? It ends only where the forecast is clearly lower
    """
    kept = windows[-MEMORY:]
    n_settled = sum(window.n_settled for window in kept)
    if len(windows) < MIN_WINDOWS or not n_settled or not any(window.n_audits for window in kept):
        return None
    # A certified level loses a quarter of the budget or so; chance has chosen it, so it is not believed at once.
    observed, variance, usual = sum(window.drop for window in kept) / n_settled, DROP_VARIANCE / n_settled, budget / 4
    weight = usual**2 / (usual**2 + variance)
    outcomes = _Outcomes(
        n=_column([window.n_audits for window in kept]),
        total=_column([DROP_PER_NEAR * window.near for window in kept]),
        squares=_column([DROP_PER_NEAR**2 * window.near_squares for window in kept]),
        mean=weight * observed + (1 - weight) * usual,
        variance=weight * variance,
    )
    return _judged(_trend(windows, outcomes, DROP_PRIORS), "em_drop", budget, windows, alerted=alerted)


def forecast_em(windows: Sequence[ForecastWindow], *, critical_em: float, alerted: bool = False) -> Forecast | None:
    """When will the EM of delivered answers fall below the critical one? None: under 30 windows, or no labels.

    Of labelled runs alone: if labels come mostly for mistakes, this EM is too low from the start. Arguments as in
    `forecast_drop`; `critical_em` is a fraction in (0, 1).
    """
    kept = windows[-MEMORY:]
    n_labelled = sum(window.n_labelled for window in kept)
    if len(windows) < MIN_WINDOWS or not n_labelled:
        return None
    wrong = [window.n_labelled - window.n_right for window in kept]
    rate = sum(wrong) / n_labelled
    outcomes = _Outcomes(
        n=_column([window.n_labelled for window in kept]),
        total=_column(wrong),
        squares=_column(wrong),
        mean=rate,
        variance=max(rate * (1 - rate), 0.01) / n_labelled,
    )
    return _judged(_trend(windows, outcomes, EM_PRIORS), "em", critical_em, windows, alerted=alerted)


# --------------------------------------------------------------------------- trends


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Outcomes:
    """What the latest windows, up to `MEMORY`, showed, and the mean of what is forecast over them."""

    n: Floats  # (W,): outcomes
    total: Floats  # (W,): their sum
    squares: Floats  # (W,): sum of their squares
    mean: float
    variance: float  # of this mean


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Path:
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


def _trend(windows: Sequence[ForecastWindow], outcomes: _Outcomes, priors: Priors) -> _Path:
    """Fit the latest 200 windows and follow what moved into the future.

    Bayesian linear regression with known noise; the uncertainty of the slopes, of the mean and of the signals' own
    paths is added up.
    """
    until = _column([window.until for window in windows])
    at = (until[-MEMORY:] - until[-1]) / 1_000
    ahead = np.arange(0, FARTHEST + 1, EVERY) / 1_000
    n, total = outcomes.n, outcomes.total
    mean_observed = total.sum() / n.sum()
    noise = max(1e-6, outcomes.squares.sum() / n.sum() - mean_observed**2)  # variance of one outcome
    causes = list(_causes(windows, priors, at, ahead))

    design = np.stack([np.ones(len(at)), *(cause.values for cause in causes)], axis=1)
    prior_mean = np.array([mean_observed, *(cause.prior[0] for cause in causes)])
    precision = np.diag(np.array([1.0, *(cause.prior[1] for cause in causes)]) ** -2.0)
    covariance = np.linalg.inv((design * n[:, np.newaxis]).T @ design / noise + precision)
    slopes = covariance @ (design.T @ total / noise + precision @ prior_mean)

    moved = np.stack([np.ones(len(ahead)), *(cause.path for cause in causes)], axis=1)
    moved = moved - (design * n[:, np.newaxis]).sum(axis=0) / n.sum()  # against the mean outcome's own place
    of_paths = sum(slope**2 * cause.variance for slope, cause in zip(slopes[1:], causes, strict=True))
    variance = outcomes.variance + np.einsum("ij,jk,ik->i", moved, covariance, moved) + of_paths
    return _Path(ahead=1_000 * ahead, mean=outcomes.mean + moved @ slopes, sd=np.sqrt(variance))


def _causes(windows: Sequence[ForecastWindow], priors: Priors, at: Floats, ahead: Floats) -> Iterator[_Cause]:
    """What all traffic shows, then a drift that nothing shows: none until 4,000 requests ago, then steady."""
    signals = np.array([window.signals for window in windows], dtype=np.float64).reshape(len(windows), -1)
    if signals.shape[1]:
        n_requests = _column([window.n_requests for window in windows])
        distance = away(signals, float(n_requests.mean()))[-MEMORY:]
        path, variance = _followed(distance, at, ahead)
        yield _Cause(values=distance, prior=priors.away, path=path, variance=variance)
    predicted = _predicted(windows)
    if predicted is not None:
        change = predicted[-MEMORY:] - predicted[:REFERENCE].mean()
        path, variance = _followed(change, at, ahead)
        yield _Cause(values=change, prior=priors.predicted, path=path, variance=variance)
    yield _Cause(values=np.maximum(0.0, at + RAMP), prior=(0.0, priors.ramp), path=RAMP + ahead, variance=0 * ahead)


def away(signals: Floats, n_requests: float) -> Floats:
    """How far each window lies in the direction in which the signals have moved, in sd of single requests, shape (W,).

    A Mahalanobis distance with a sign, of at least 15 windows of `n_requests` requests, shape (W, F). The spread comes
    from differences of neighbouring windows, which a slow drift hardly touches, and the distance is shrunk by what
    chance alone would make of it.
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


def _predicted(windows: Sequence[ForecastWindow]) -> Floats | None:
    """What the stop model expected in each window, along a line over those without an audit; None: most have none."""
    known = [window for window in windows if window.predicted_drop is not None]
    if 2 * len(known) < len(windows):
        return None
    at, known_at = (_column([window.until for window in part]) for part in (windows, known))
    return np.interp(at, known_at, _column([window.predicted_drop or 0.0 for window in known]))


def _column(values: Sequence[float]) -> Floats:
    return np.array(values, dtype=np.float64)


# --------------------------------------------------------------------------- the verdict


def _judged(path: _Path, of: Of, limit: float, windows: Sequence[ForecastWindow], *, alerted: bool) -> Forecast:
    """Read crossings, alert and doubt off a trend of harm: the drop itself, or what an EM lacks to 1."""
    now = windows[-1].until
    harm = limit if of == "em_drop" else 1 - limit
    low, high = path.mean - LOW_SD * path.sd, path.mean + HIGH_SD * path.sd
    near = path.ahead <= HORIZON
    alert = bool((low[near] >= harm).any()) and len(windows) >= SETTLED
    if alerted and not alert:
        alert = bool((path.mean[near] + CALM_SD * path.sd[near] >= CALM_PART * harm).any())
    crossings = []
    for line in (high, path.mean, low):
        reached = np.flatnonzero(line >= harm)
        crossings.append(now + int(path.ahead[reached[0]]) if len(reached) else None)
    crossing = CrossingForecast(earliest=crossings[0], expected=crossings[1], latest=crossings[2])
    middle, better, worse = (path.mean, low, high) if of == "em_drop" else (1 - path.mean, 1 - low, 1 - high)
    at_horizon = int(np.flatnonzero(near)[-1])
    ends = sorted((float(better[at_horizon]), float(worse[at_horizon])))
    per_1000 = float(np.interp(1_000, path.ahead, middle) - middle[0])
    return Forecast(
        of=of,
        limit=limit,
        now=float(middle[0]),
        per_1000=per_1000,
        ahead=float(middle[at_horizon]),
        ahead_low=ends[0],
        ahead_high=ends[1],
        crossing=crossing,
        alert=alert,
        doubtful=not alert and bool((high[near] >= harm).any()),
        reason=_reason(of, limit, float(middle[0]), per_1000, crossing, now),
    )


def _reason(of: Of, limit: float, value: float, per_1000: float, crossing: CrossingForecast, now: int) -> str:
    name = "EM drop" if of == "em_drop" else "EM"
    moving = f"{name} is about {value:.2%} and moves by {100 * per_1000:+.2f} points in 1,000 requests"
    if crossing.expected is None:
        return f"{moving}; {limit:.2%} is not in sight"
    if crossing.expected == now:
        return f"{moving}; {limit:.2%} is crossed"
    ends = " to ".join("never" if end is None else f"{end:,}" for end in (crossing.earliest, crossing.latest))
    return f"{moving}; {limit:.2%} is crossed at about request {crossing.expected:,} ({ends})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    route: str
    at: int  # requests of the route so far
    epoch: int  # 0: no control loop has begun with it
    since: int  # requests of the route when the accounts began
    confidence: float  # of each interval by itself, in (0, 1)
    cap_tokens: float | None  # that a run can count with in the accounts; None: they have not begun
    accounts: tuple[Account, ...] = ()
    drop: Forecast | None = None  # of the EM drop at the deployed level; None: too little is known
    em: Forecast | None = None  # of the EM of delivered answers; None: no critical EM, or too little is known
    alerts: tuple[Of, ...] = ()  # that stand
    author: str = ""
    likings: tuple[
        SatisfactionEffect, ...
    ] = ()  # what people say of the same runs, by measure; (): nobody said anything

    @property
    def whole(self) -> Account | None:
        return next((one for one in self.accounts if one.query_class is None and one.version is None), None)

    @property
    def satisfaction(self) -> SatisfactionEffect | None:
        """What people say of the whole route: ratings, thumbs and surveys; None: nobody said anything."""
        return next((one for one in self.whole_likings if one.measure == SATISFACTION), None)

    @property
    def whole_likings(self) -> tuple[SatisfactionEffect, ...]:
        return tuple(one for one in self.likings if one.query_class is None and one.version is None)

    @property
    def classes(self) -> tuple[Account, ...]:
        """The accounts by class, all versions together; () where there is but one."""
        by_class = tuple(one for one in self.accounts if one.query_class is not None and one.version is None)
        return by_class if len(by_class) > 1 else ()

    @property
    def versions(self) -> tuple[Account, ...]:
        return tuple(one for one in self.accounts if one.query_class is None and one.version is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A limit will be crossed within 3,000 requests, as far as the forecast can tell."""

    route: str
    epoch: int
    at: int  # requests of the route when it was raised
    of: Of
    limit: float  # a fraction: the budget, or the critical EM
    expected: int | None  # number of the request at which the forecast crosses; None: only its worse end does
    reason: str  # the forecast's sentence
    author: str = ""
