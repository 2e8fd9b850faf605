"""Forecasts when a route crosses its budget, and alerts only where even the lower end of the interval crosses it.

Audits are few and their losses rare, so the forecast uses three more sources, each with a prior: disagreement at the
deployed level and at those above it (needs no label), the signals of all traffic with the loss that the stop model
predicts, and a ramp in time that no signal shows. The mean outcome of a window is linear in these. The forecast
certifies nothing; docs/reference/assurance.md gives its rates of timely and false alerts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from suffice.arrays import Bools, Floats, Ints
from suffice.assurance.estimate import Account
from suffice.assurance.forecast_grades import HORIZON, LIKELY_SD, ExpectedOutcomes, ForecastGrade, Of, TrackRecord
from suffice.assurance.satisfaction import SATISFACTION, EMPrice, SatisfactionEffect
from suffice.assurance.seasons import Season, find_seasons, strongest
from suffice.assurance.served import ServedLoss

REFERENCE: Final = 15  # first windows of the epoch: the origin of its signals
MEMORY: Final = 200  # latest windows that are fitted
HALF_LIFE: Final = 60.0  # windows after which an outcome counts half
RECENT: Final = 10  # latest windows: the present place of the signals
TREND: Final = 25  # windows over which the trend of a signal is taken
RAMPS: Final = (1.0, 2.0, 4.0, 8.0)  # thousand requests: ages of a drift that no signal shows
FARTHEST: Final = 20_000  # requests ahead
EVERY: Final = 100  # requests between two points of the path
MIN_WINDOWS: Final = 30
SETTLED: Final = 45  # windows before which there are no alerts, only doubt
NEAR: Final = 3.0  # times the deployed level's disagreement: the limit for its neighbours
DROP_PER_NEAR: Final = 0.6  # EM drop for each rise of disagreement among neighbours
DROP_VARIANCE: Final = 0.02  # of Z of one audit: about the rate of losses and gains together
LOW_SD: Final = 0.2  # lower end of the interval: exceeded with probability of 0.58
HIGH_SD: Final = 1.0  # upper end: not exceeded with probability of about 0.85
CALM_SD: Final = 0.6  # an open alert ends when the mean plus this margin
CALM_PART: Final = 0.9  # stays below this part of the limit (hysteresis)


@dataclass(frozen=True, slots=True, kw_only=True)
class Priors:
    away: tuple[float, float]  # mean and sd of the slope per sd (of single requests) of distance
    predicted: tuple[float, float]  # mean and sd of the slope per point that the stop model predicts
    ramp: float  # sd of the slope per 1,000 requests; its mean is 0
    wave: float  # sd of each coefficient of a season; its mean is 0


EM_PRIORS: Final = Priors(away=(0.0, 0.1), predicted=(1.0, 1.0), ramp=0.02, wave=0.03)


def drop_priors(budget: float) -> Priors:
    return Priors(away=(0.05, 0.04), predicted=(1.0, 0.5), ramp=0.2 * budget, wave=0.3 * budget)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastWindow:
    """About 100 requests of one epoch, with audits replayed at the level that is deployed now."""

    until: int  # number of the window's last request
    n_requests: int
    signals: tuple[float, ...]  # means over all traffic of signals that no stop selects, such as first steps
    predicted_drop: float | None  # mean over audits, by the stop model; None: no audits, or no model
    n_audits: int
    near: float  # sum of `near_share` over the audits
    near_squares: float  # sum of its squares
    n_settled: int  # audits whose drop is known or counted (`labels`)
    drop: int  # sum of their Z
    n_labelled: float = 0  # delivered runs labelled right or wrong, as effective sample size (`worth`)
    n_right: float = 0
    at_s: float | None = None  # when it ended, in seconds since 1970; None: no season is looked for

    def outcomes(self, of: Of) -> tuple[float, float]:
        """Sum and number of the outcomes that forecasts are fitted on and graded by."""
        if of == "em_drop":
            return DROP_PER_NEAR * self.near, self.n_audits
        return self.n_labelled - self.n_right, self.n_labelled


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossingForecast:
    """Numbers of the requests at which the limit is crossed. None: not within 20,000 requests."""

    earliest: int | None
    expected: int | None
    latest: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    of: Of
    limit: float
    now: float
    per_1000: float  # change within the next 1,000 requests
    ahead: float  # at the horizon, 3,000 requests from now
    ahead_low: float  # 90 % interval there …
    ahead_high: float  # … whose width follows the grades
    crossing: CrossingForecast
    alert: bool  # even the better end of the interval crosses within the horizon
    doubtful: bool  # only the worse end does; more audits would settle it
    reason: str
    worst: float = 0.0  # cautious end up to the horizon, of the drop or of 1 - EM; an alert ends well below the limit
    outcomes: ExpectedOutcomes | None = None  # by which it is graded; None: by an earlier version of Suffice
    season: str = ""  # that is likelier than none: "day" or "week"


def near_levels(disagrees: Bools, deployed: int) -> range:
    """The levels from the deployed one up to three times its disagreement, shape (N, M); keep them while it stays."""
    n_disagreeing = disagrees[:, deployed:].sum(axis=0)
    too_many = np.flatnonzero(n_disagreeing > NEAR * max(1, n_disagreeing[0]))
    return range(deployed, deployed + (int(too_many[0]) if len(too_many) else len(n_disagreeing)))


def near_share(disagrees: Bools, levels: range) -> Floats:
    """Share of `levels` at which the stop's answer would differ, per audit, shape (N, M) to (N,)."""
    return np.asarray(disagrees[:, levels.start : levels.stop].mean(axis=1), dtype=np.float64)


def forecast_drop(
    windows: Sequence[ForecastWindow], *, budget: float, alerted: bool = False, width: float = 1.0, begun: int = 0
) -> Forecast | None:
    """Forecast when the EM drop at the deployed level crosses the budget. None: under 30 windows, or no audits.

    windows  oldest first, all with the same signals
    budget   EM drop, a fraction in (0, 1)
    alerted  an alert is open; it ends only where the forecast is clearly lower
    width    factor on every sd, from grades of earlier forecasts
    begun    requests when the epoch began: earlier windows count where a season is likelier than none
    """
    return _recurring(lambda kept: _drop(kept, budget, alerted, width), windows, begun)


def _drop(windows: Sequence[ForecastWindow], budget: float, alerted: bool, width: float) -> Forecast | None:
    kept = windows[-MEMORY:]
    n_settled = _column([window.n_settled for window in kept])
    if len(windows) < MIN_WINDOWS or not n_settled.any() or not any(window.n_audits for window in kept):
        return None
    # A certified level loses about a quarter of the budget; its observed drop is selected, so shrink it towards that.
    weights, usual = recency(len(kept)), budget / 4
    observed = float(weights @ _column([window.drop for window in kept]) / (weights @ n_settled))
    variance = DROP_VARIANCE / float((weights @ n_settled) ** 2 / (weights**2 @ n_settled))
    weight = usual**2 / (usual**2 + variance)
    outcomes = _Outcomes(
        n=weights * _column([window.n_audits for window in kept]),
        total=weights * _column([DROP_PER_NEAR * window.near for window in kept]),
        squares=weights * _column([DROP_PER_NEAR**2 * window.near_squares for window in kept]),
        mean=weight * observed + (1 - weight) * usual,
        variance=weight * variance,
    )
    path = _trend(windows, outcomes, drop_priors(budget), width)
    return _judged(path, "em_drop", budget, windows, alerted=alerted)


def forecast_em(
    windows: Sequence[ForecastWindow], *, critical_em: float, alerted: bool = False, width: float = 1.0, begun: int = 0
) -> Forecast | None:
    """As `forecast_drop`, for the EM of delivered answers below `critical_em`, a fraction. None: also without labels.

    If labels come mostly for mistakes, this EM is too low from the start.
    """
    return _recurring(lambda kept: _em(kept, critical_em, alerted, width), windows, begun)


def _em(windows: Sequence[ForecastWindow], critical_em: float, alerted: bool, width: float) -> Forecast | None:
    kept = windows[-MEMORY:]
    n_labelled = _column([window.n_labelled for window in kept])
    if len(windows) < MIN_WINDOWS or not n_labelled.any():
        return None
    weights = recency(len(kept))
    n, wrong = weights * n_labelled, weights * (n_labelled - _column([window.n_right for window in kept]))
    rate = float(wrong.sum() / n.sum())
    variance = max(rate * (1 - rate), 0.01) * float(weights @ n) / float(n.sum()) ** 2
    outcomes = _Outcomes(n=n, total=wrong, squares=wrong, mean=rate, variance=variance)
    return _judged(_trend(windows, outcomes, EM_PRIORS, width), "em", critical_em, windows, alerted=alerted)


def _recurring(
    make: Callable[[Sequence[ForecastWindow]], Forecast | None], windows: Sequence[ForecastWindow], begun: int
) -> Forecast | None:
    """An alarm ends what was usual, not the season: it is looked for in all windows, other trends in the epoch's."""
    forecast = make(windows)
    if not windows or windows[0].until > begun or (forecast is not None and forecast.season):
        return forecast
    return make([one for one in windows if one.until > begun])


# --------------------------------------------------------------------------- trends


def recency(n: int) -> Floats:
    """The weights of n windows, oldest first: 1 for the latest, half of it `HALF_LIFE` windows before."""
    return np.asarray(0.5 ** (np.arange(n)[::-1] / HALF_LIFE), dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Outcomes:
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
    at_horizon: ExpectedOutcomes
    season: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Cause:
    values: Floats
    prior: tuple[float, float]
    path: Floats  # the values ahead
    variance: Floats  # of the path


def _trend(windows: Sequence[ForecastWindow], outcomes: _Outcomes, priors: Priors, width: float) -> _Path:
    """Bayesian linear regression with known noise, averaged over seasons and over the ages of a drift.

    Within a model the variances of slopes, mean and signal paths add up; models weigh as the outcomes make them likely,
    seasons also as the signals do.
    """
    until = _column([window.until for window in windows])
    at = (until[-MEMORY:] - until[-1]) / 1_000
    ahead = np.arange(0, FARTHEST + 1, EVERY) / 1_000
    n, total = outcomes.n, outcomes.total
    mean_observed = total.sum() / n.sum()
    noise = max(1e-6, outcomes.squares.sum() / n.sum() - mean_observed**2)  # variance of one outcome
    ramps = [_ramp(age, priors, at, ahead) for age in RAMPS]
    models = [(None, list(_causes(windows, priors, at, ahead)), 0.0), *_seasonal(windows, priors, at, ahead, ramps)]
    fits = [_fit([*causes, ramp], n, total, noise) for _, causes, _ in models for ramp in ramps]
    evidence, changes, variances = (np.array(parts) for parts in zip(*fits, strict=True))
    evidence = evidence + np.repeat([odds for _, _, odds in models], len(ramps))
    weights = np.exp(evidence - evidence.max())
    weights /= weights.sum()
    season = _likely(weights.reshape(len(models), -1).sum(axis=1), [one for one, _, _ in models])
    change = weights @ changes
    variance = weights @ (variances + (changes - change) ** 2)
    there = HORIZON // EVERY
    expected = ExpectedOutcomes(
        mean=max(0.0, float(mean_observed + change[there])),
        sd=width * float(np.sqrt(noise / n.sum() + variance[there])),
        noise=width**2 * float(noise * max(0.25, 1 + change[there] / mean_observed if mean_observed else 1.0)),
    )
    sd = width * np.sqrt(outcomes.variance + variance)
    return _Path(
        ahead=1_000 * ahead,
        mean=outcomes.mean + change,
        sd=sd,
        at_horizon=expected,
        season="" if season is None else season.name,
    )


def _likely(weights: Floats, seasons: Sequence[Season | None]) -> Season | None:
    """The likeliest season, if any season is likelier than none."""
    return None if weights[0] >= 0.5 else seasons[1 + int(np.argmax(weights[1:]))]


def _seasonal(
    windows: Sequence[ForecastWindow], priors: Priors, at: Floats, ahead: Floats, ramps: Sequence[_Cause]
) -> Iterator[tuple[Season, list[_Cause], float]]:
    """Each season with its causes, and what signals say of it."""
    kept = windows[-MEMORY:]
    times = [one.at_s for one in kept if one.at_s is not None]
    if len(times) < len(kept):
        return
    for season in find_seasons(_column([one.until for one in kept]), _column(times), 1_000 * ahead):
        causes = [
            _Cause(values=values, prior=(0.0, priors.wave), path=path, variance=0 * ahead)
            for values, path in zip(season.values.T, season.path.T, strict=True)
        ]
        columns, signals = list[Floats](), np.array([one.signals for one in kept], dtype=np.float64)
        if signals.ndim == 2 and signals.shape[1]:
            columns += list(signals.T)
            causes.append(_return(season, strongest(season, signals), (0.0, priors.wave), at, ahead))
        predicted = _predicted(windows)
        if predicted is not None:
            columns.append(predicted[-MEMORY:])
            moved = predicted[-MEMORY:] - predicted[:REFERENCE].mean()
            causes.append(_return(season, moved, priors.predicted, at, ahead))
        table = np.stack(columns, axis=1) if columns else np.zeros((len(kept), 0))
        yield season, causes, season.support(table, [ramp.values for ramp in ramps])


def _return(season: Season, values: Floats, prior: tuple[float, float], at: Floats, ahead: Floats) -> _Cause:
    """Extrapolate a signal by its season, and what that leaves by the latest line."""
    seasonal, path = season.fit(values)
    rest = _follow(values - seasonal, prior, at, ahead)
    return _Cause(values=values, prior=prior, path=path + rest.path, variance=rest.variance)


def _fit(causes: Sequence[_Cause], n: Floats, total: Floats, noise: float) -> tuple[float, Floats, Floats]:
    """Logarithm of the evidence, up to a constant; the change of the mean on the way ahead; its variance."""
    design = np.stack([np.ones(len(n)), *(cause.values for cause in causes)], axis=1)
    prior_mean = np.array([total.sum() / n.sum(), *(cause.prior[0] for cause in causes)])
    prior = np.array([1.0, *(cause.prior[1] for cause in causes)]) ** -2.0
    precision = (design * n[:, np.newaxis]).T @ design / noise + np.diag(prior)
    covariance = np.linalg.inv(precision)
    slopes = covariance @ (design.T @ total / noise + prior * prior_mean)

    ahead = causes[0].path
    moved = np.stack([np.ones(len(ahead)), *(cause.path for cause in causes)], axis=1)
    moved = moved - (design * n[:, np.newaxis]).sum(axis=0) / n.sum()  # relative to the design at the mean outcome
    of_paths = sum(slope**2 * cause.variance for slope, cause in zip(slopes[1:], causes, strict=True))
    variance = np.einsum("ij,jk,ik->i", moved, covariance, moved) + of_paths
    evidence = slopes @ precision @ slopes - np.linalg.slogdet(precision)[1]
    evidence += np.log(prior).sum() - prior_mean @ (prior * prior_mean)  # models differ in their causes
    return float(evidence) / 2, moved @ slopes, np.asarray(variance)


def _causes(windows: Sequence[ForecastWindow], priors: Priors, at: Floats, ahead: Floats) -> Iterator[_Cause]:
    signals = np.array([window.signals for window in windows], dtype=np.float64).reshape(len(windows), -1)
    if signals.shape[1]:
        n_requests = _column([window.n_requests for window in windows])
        distance = signal_distance(signals, float(n_requests.mean()))[-MEMORY:]
        yield _follow(distance, priors.away, at, ahead)
    predicted = _predicted(windows)
    if predicted is not None:
        yield _follow(predicted[-MEMORY:] - predicted[:REFERENCE].mean(), priors.predicted, at, ahead)


def _ramp(age: float, priors: Priors, at: Floats, ahead: Floats) -> _Cause:
    return _Cause(values=np.maximum(0.0, at + age), prior=(0.0, priors.ramp), path=age + ahead, variance=0 * ahead)


def signal_distance(signals: Floats, n_requests: float) -> Floats:
    """Signed Mahalanobis distance of each window along the direction in which the signals moved, shape (W,).

    In sd of single requests, for at least 15 windows of `n_requests` requests, shape (W, F). The covariance is that of
    differences of neighbouring windows; the distance is shrunk by its expectation under chance.
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


def _follow(values: Floats, prior: tuple[float, float], at: Floats, ahead: Floats) -> _Cause:
    """Extrapolate the latest line. A signal within its earlier range stays there: seasons are not extrapolated."""
    line = np.stack([np.ones(len(at[-TREND:])), at[-TREND:]], axis=1)
    weights = np.stack([np.ones(len(ahead)), ahead], axis=1) @ np.linalg.inv(line.T @ line) @ line.T
    noise = float(np.mean(np.diff(values) ** 2)) / 2
    path = weights @ values[-TREND:]
    smooth = np.convolve(values, np.ones(RECENT) / RECENT, "valid")
    if len(smooth) > 2 * TREND:
        most = float(smooth[:-TREND].max())
        if smooth[-1] < most + np.sqrt(noise / RECENT):
            path = np.minimum(path, max(most, float(smooth[-1])))
    return _Cause(values=values, prior=prior, path=path, variance=noise * np.square(weights).sum(axis=1))


def _predicted(windows: Sequence[ForecastWindow]) -> Floats | None:
    known = [window for window in windows if window.predicted_drop is not None]
    if 2 * len(known) < len(windows):
        return None
    at, known_at = (_column([window.until for window in part]) for part in (windows, known))
    return np.interp(at, known_at, _column([window.predicted_drop or 0.0 for window in known]))


def _column(values: Sequence[float]) -> Floats:
    return np.array(values, dtype=np.float64)


# --------------------------------------------------------------------------- the verdict


def _judged(path: _Path, of: Of, limit: float, windows: Sequence[ForecastWindow], *, alerted: bool) -> Forecast:
    now = windows[-1].until
    harm = limit if of == "em_drop" else 1 - limit
    low, high = path.mean - LOW_SD * path.sd, path.mean + HIGH_SD * path.sd
    near = path.ahead <= HORIZON
    alert = bool((low[near] >= harm).any()) and len(windows) >= SETTLED
    worst = float((path.mean[near] + CALM_SD * path.sd[near]).max())
    alert |= alerted and worst >= CALM_PART * harm
    reached = [np.flatnonzero(line >= harm) for line in (high, path.mean, low)]
    earliest, expected, latest = (now + int(path.ahead[places[0]]) if len(places) else None for places in reached)
    crossing = CrossingForecast(earliest=earliest, expected=expected, latest=latest)
    at_horizon, middle = HORIZON // EVERY, path.mean if of == "em_drop" else 1 - path.mean
    ahead, margin = float(middle[at_horizon]), LIKELY_SD * float(path.sd[at_horizon])
    per_1000 = float(np.interp(1_000, path.ahead, middle) - middle[0])
    return Forecast(
        of=of,
        limit=limit,
        now=float(middle[0]),
        per_1000=per_1000,
        ahead=ahead,
        ahead_low=ahead - margin,
        ahead_high=ahead + margin,
        crossing=crossing,
        alert=alert,
        doubtful=not alert and bool((high[near] >= harm).any()),
        reason=_reason(of, limit, float(middle[0]), per_1000, crossing, now, path.season),
        worst=worst,
        outcomes=path.at_horizon,
        season=path.season,
    )


def _reason(
    of: Of, limit: float, value: float, per_1000: float, crossing: CrossingForecast, now: int, season: str
) -> str:
    name = "EM drop" if of == "em_drop" else "EM"
    moving = f"{name} is about {value:.2%} and moves by {100 * per_1000:+.2f} points in 1,000 requests"
    if season:
        moving += f", in the course of the {season}"
    if crossing.expected is None:
        return f"{moving}; {limit:.2%} is not in sight"
    if crossing.expected == now:
        return f"{moving}; {limit:.2%} is crossed"
    ends = " to ".join("never" if end is None else f"{end:,}" for end in (crossing.earliest, crossing.latest))
    return f"{moving}; {limit:.2%} is crossed at about request {crossing.expected:,} ({ends})"


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteForecast:
    route: str
    at: int  # requests of the route so far
    epoch: int  # 0: before the control loop's first epoch
    since: int  # requests of the route when the accounts began
    confidence: float  # of each interval by itself, in (0, 1)
    cap_tokens: float | None  # cap of a run's tokens in the accounts; None: not begun
    accounts: tuple[Account, ...] = ()
    drop: Forecast | None = None  # of the EM drop at the deployed level; None: too little is known
    em: Forecast | None = None  # of the EM of delivered answers; None: no critical EM, or too little is known
    alerts: tuple[Of, ...] = ()  # open
    author: str = ""
    likings: tuple[SatisfactionEffect, ...] = ()  # feedback on the same runs, by measure
    price: EMPrice | None = None  # of EM in satisfaction; None: too few runs have a rating and a label
    level: int = 0  # that `drop` is about: without a cap, it would act
    fit: str = ""  # address of its version
    grades: tuple[ForecastGrade, ...] = ()  # of earlier forecasts, given at this look
    records: tuple[TrackRecord, ...] = ()  # all grades so far
    seq: int = 0  # place in the log up to which it read; 0: an earlier version wrote it
    served: ServedLoss | None = None  # since the accounts began; None: nothing to tell

    @property
    def whole(self) -> Account | None:
        return next((one for one in self.accounts if one.query_class is None and one.version is None), None)

    @property
    def satisfaction(self) -> SatisfactionEffect | None:
        return next((one for one in self.whole_effects if one.measure == SATISFACTION), None)

    @property
    def whole_effects(self) -> tuple[SatisfactionEffect, ...]:
        return tuple(one for one in self.likings if one.query_class is None and one.version is None)

    @property
    def classes(self) -> tuple[Account, ...]:
        by_class = tuple(one for one in self.accounts if one.query_class is not None and one.version is None)
        return by_class if len(by_class) > 1 else ()

    @property
    def versions(self) -> tuple[Account, ...]:
        return tuple(one for one in self.accounts if one.query_class is None and one.version is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    route: str
    epoch: int
    at: int  # requests of the route at the alert
    of: Of
    limit: float  # a fraction: the budget, or the critical EM
    expected: int | None  # number of the request at which the forecast mean crosses; None: only its worse end does
    reason: str  # `Forecast.reason`
    author: str = ""


# --------------------------------------------------------------------------- what a forecast makes the control loop do
#
# An action is a row of the log. It only lowers the level and raises the share of audits, so no certificate depends on
# it: a wrong forecast costs tokens.


SMOOTHING: Final = 0.5  # disagreements added to every level before levels are compared


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastAction:
    """In effect until the route's next one, or the end of the epoch."""

    route: str
    epoch: int
    at: int  # requests of the route at the forecast
    level: int  # that the forecast is about: the one that acts without the cap
    cap: int | None  # the highest level that may act; None: no cap
    in_doubt: bool  # audits are drawn as often as in doubt
    reason: str  # a short sentence
    author: str = ""


@dataclass(frozen=True, slots=True)
class Stance:
    """The part of an action that is in effect."""

    cap: int | None = None
    in_doubt: bool = False


def first_disagreement(disagrees: Bools, level: int) -> Ints:
    """Lowest level up to `level` at which each audit disagrees, shape (N, M) to (N,); `level` + 1: none."""
    below = disagrees[:, 1 : level + 1]
    return np.where(below.any(axis=1), 1 + below.argmax(axis=1), level + 1)


def relative_losses(first: Sequence[Ints], level: int) -> Floats:
    """How often each level up to `level` disagrees lately, relative to `level`, shape (level + 1,), rising to 1.

    first  of the audits of each window (`first_disagreement`), oldest window first
    """
    weights = np.repeat(recency(len(first)), [len(window) for window in first])
    counts = np.bincount(np.concatenate([*first, np.zeros(0, dtype=np.int64)]), weights, minlength=level + 2)
    disagreeing = np.cumsum(counts[: level + 1]) + SMOOTHING
    relative = disagreeing / disagreeing[-1]
    relative[0] = 0.0  # a full run loses nothing
    return np.asarray(relative)


def next_stance(
    before: Stance, forecast: Forecast | None, *, at: int, alerted: bool, relative: Callable[[], Floats]
) -> Stance:
    """Decide at a look; without a forecast nothing changes.

    A cap needs two looks in a row with an alert, and is lifted with the alert. It is the highest level that stays
    clearly inside the budget if a drift multiplies the losses of all levels alike.

    alerted   the alert was open before this look
    relative  losses of levels, see `relative_losses`; the forecast is about the last one
    """
    if forecast is None:
        return before
    in_doubt = forecast.alert or forecast.doubtful
    if not forecast.alert:
        return Stance(None, in_doubt)
    latest = forecast.crossing.latest
    if not alerted or latest is None or latest > at + HORIZON:
        return Stance(before.cap, in_doubt)
    inside = np.flatnonzero(relative()[:-1] * forecast.worst < CALM_PART * forecast.limit)
    cap = int(inside[-1]) if len(inside) else 0
    return Stance(cap if before.cap is None else min(cap, before.cap), in_doubt)


def describe_change(before: Stance, after: Stance, forecast: Forecast | None) -> str:
    why = "" if forecast is None else f" ({forecast.reason})"
    if after.cap != before.cap:
        return f"the forecast no longer asks for a cap{why}" if after.cap is None else f"level {after.cap} at most{why}"
    return f"the forecast is {'in' if after.in_doubt else 'no longer in'} doubt{why}"
