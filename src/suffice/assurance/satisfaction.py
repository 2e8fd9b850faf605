"""Tests whether people rate stopped answers lower than full ones: paired by the audit draw, valid at every look.

Audits are random and deliver the full answer, so the difference in ratings is the effect of stopping, as far as both
are rated equally often. Each pair is a bet that audits are rated better; while they are not, the bets have no expected
growth (Waudby-Smith and Ramdas 2024, JRSS B 86(1), arXiv:2010.09686; Ville's inequality).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import floor, isfinite, pi, sqrt
from statistics import NormalDist
from typing import Final, Literal, NamedTuple

import numpy as np

from suffice.arrays import Bools, Floats
from suffice.assurance.bounds import mean_between, watch, weighted_between
from suffice.assurance.estimate import IntervalEstimate
from suffice.assurance.labels import JUDGE, MAX_SHARE, covariates, label_weights
from suffice.settings import Metric
from suffice.settings.checks import span_of
from suffice.types import Feedback

BETS: Final = (0.1, 0.3, 0.6, 0.9)  # parts of the wealth: small ones for small drops, large ones for large drops
START_EVERY: Final = 50  # pairs after which new bets begin, so that a drop after a long calm is still noticed
MEMORY_RATINGS: Final = 200  # latest ratings of stopped runs in the mean that is compared with the floor
MOST_WEALTH: Final = 1e100
STRAIGHT: Final = 10.0  # audits' worth of the assumption that satisfaction falls evenly from level to level
TELLING: Final = (10, 30)  # pairs and rated stopped runs from which the estimate of one class is used


def satisfaction_of(feedback: Feedback) -> float | None:
    """Satisfaction in [0, 1]: a rating from 1 to 5, else a thumb, else a survey; None without any."""
    if feedback.rating is not None:
        return (feedback.rating - 1) / 4
    return feedback.satisfaction if feedback.thumbs is None else float(feedback.thumbs == "up")


def satisfaction_of_people(feedback: Feedback) -> float | None:
    return None if feedback.source == JUDGE else satisfaction_of(feedback)


def satisfaction_floor(min_satisfaction: float) -> float:
    """Scale the setting `min_satisfaction`, a fraction up to 1 or a rating in (1, 5], to [0, 1]."""
    return min_satisfaction if min_satisfaction <= 1 else (min_satisfaction - 1) / 4


def scaled(value: float, metric: Metric) -> float:
    """Scale a declared metric to [0, 1], 1 being best. Raise ValueError for a category."""
    span = span_of(metric)
    if span is None:
        raise ValueError("metric: a category has no best value")
    share = (value - span[0]) / (span[1] - span[0])
    return share if metric.direction == "higher" else 1 - share


@dataclass(slots=True)
class _Mean:
    total: float = 0.0
    weight: float = 0.0
    n: int = 0

    def add(self, value: float, weight: float = 1.0) -> None:
        self.total += weight * value
        self.weight += weight
        self.n += 1

    @property
    def mean(self) -> float | None:
        return self.total / self.weight if self.n else None


@dataclass(slots=True)
class RatingPairs:
    _audits: _Mean = field(default_factory=_Mean)  # without a partner yet
    _partners: _Mean = field(default_factory=_Mean)  # stopped runs since the last pair

    def add(self, value: float, *, audit: bool, weight: float = 1.0) -> tuple[float, float] | None:
        """Add a run; return the pair that it completes, as (audits minus partners, weight), or None.

        weight  above 0: the inverse of the sampling probability of the rating
        """
        (self._audits if audit else self._partners).add(value, weight)
        audits, partners = self._audits.mean, self._partners.mean
        if not audit or audits is None or partners is None:
            return None
        made = audits - partners, self._audits.weight / self._audits.n
        self._audits, self._partners = _Mean(), _Mean()
        return made


@dataclass(slots=True, kw_only=True)
class SatisfactionTest:
    """Test whether stopped runs are rated worse than audits and below the floor, one rating at a time.

    Without an effect of stopping, a move is ever requested with probability of at most `delta`. Use a new test after a
    move.
    """

    min_satisfaction: float  # as in the settings: a fraction up to 1, or a rating in (1, 5]
    delta: float  # in (0, 1)
    step_down_reason: str | None = None  # why the next safer level is due; None: it is not
    n_pairs: int = 0
    e_value: float = 1.0  # against "stopped runs are rated as well"; 1/delta proves a drop
    stopped: float | None = None  # mean satisfaction of the latest stopped runs; None: unrated
    drops: _Mean = field(default_factory=_Mean)  # of audits minus stopped runs, over pairs
    _pairing: RatingPairs = field(default_factory=RatingPairs)
    _wealth: list[float] = field(default_factory=lambda: [0.0] * len(BETS))  # of the begun bets
    _unspent: float = 1.0  # reserved for later bets
    _n_stopped: int = 0
    _mean_weight: float = 0.0  # of the latest stopped runs
    _praise: list[float] = field(default_factory=lambda: [1.0] * len(BETS))  # against "stopped runs miss the floor"

    @property
    def floor(self) -> float:
        return satisfaction_floor(self.min_satisfaction)

    @property
    def is_telling(self) -> bool:
        return self.n_pairs >= TELLING[0] and self._n_stopped >= TELLING[1]

    @property
    def may_rise(self) -> bool:
        """Whether stopped runs are proved to be rated above the floor."""
        return self.is_telling and sum(self._praise) / len(BETS) >= 1 / self.delta

    def satisfactory_level(self, n_lost: Floats, *, served: int, most: int) -> int:
        """Estimate the highest level up to `most` that meets the floor.

        Live runs show the served level and, through audits, level 0. Elsewhere satisfaction is assumed to fall in
        proportion to the answers that a level loses. Level 0 follows only on level 1: an estimate alone does not end
        the ratings of stopped runs that could correct it.

        n_lost  audits whose right answer each level loses, shape (M,); made monotone, and drawn towards a straight line
                by `STRAIGHT` audits
        served  level of the ratings
        """
        if self.stopped is None or not served:
            return served
        lost = np.maximum.accumulate(n_lost[: most + 1]) + STRAIGHT * np.arange(most + 1) / served
        meets = self.stopped + max(0.0, self.drops.mean or 0.0) * (1 - lost / lost[served]) >= self.floor
        return max(int(served > 1), int(np.count_nonzero(np.logical_and.accumulate(meets))) - 1)

    def add(self, satisfaction: float, *, audit: bool, weight: float = 1.0) -> None:
        """Add the rating of an audit, or of a stopped run that could have been one. Raise ValueError outside [0, 1].

        weight  of the run, at least 1 (`sampling`)
        """
        if not (isfinite(satisfaction) and 0 <= satisfaction <= 1):
            raise ValueError(f"satisfaction: got {satisfaction}; a fraction from 0 to 1")
        if not audit:
            self._n_stopped += 1
            n, before = min(self._n_stopped, MEMORY_RATINGS), satisfaction if self.stopped is None else self.stopped
            self._mean_weight += (weight - self._mean_weight) / n
            self.stopped = before + (satisfaction - before) * weight / (self._mean_weight * n)
            gain = (satisfaction / self.floor - 1) * min(1.0, weight / self._mean_weight)
            self._praise = [min(MOST_WEALTH, w * (1 + bet * gain)) for w, bet in zip(self._praise, BETS, strict=True)]
        pair = self._pairing.add(satisfaction, audit=audit, weight=weight)
        if pair is not None:
            self._bet(pair[0])
        proven = self.e_value >= 1 / self.delta
        if self.step_down_reason is None and proven and self.stopped is not None and self.stopped < self.floor:
            self.step_down_reason = (
                f"stopped runs are rated {self.stopped:.2f}, below {self.floor:.2f}, and worse than audits"
                f" (by {self.drops.mean:.2f} in {self.n_pairs} pairs)"
            )

    def _bet(self, drop: float) -> None:
        """Bet on one pair. Bets that begin later have a reserved part of the wealth: sum of 6/(pi v)^2 = 1."""
        if self.n_pairs % START_EVERY == 0:
            start = 6 / (pi * (1 + self.n_pairs // START_EVERY)) ** 2
            self._unspent -= start
            self._wealth = [wealth + start for wealth in self._wealth]
        self.n_pairs += 1
        self.drops.add(drop)
        self._wealth = [min(MOST_WEALTH, w * (1 + bet * drop)) for w, bet in zip(self._wealth, BETS, strict=True)]
        self.e_value = sum(self._wealth) / len(BETS) + self._unspent


# --------------------------------------------------------------------------- effect of stopping
#
# The effect is that of the audit draw: of runs in which the policy stopped, audits ran on. Means are those of the
# raters. For the *effect*, ratings are weighted by the inverse probability of a survey or, without one, by the
# estimated probability that such a run is rated, given its class, its length, whether it was stopped, and whether an
# audit's answers agree. It assumes that these explain who rates, or that rating depends on the answer alone (then its
# sign is right). The rated shares of audits and stopped runs are reported, with a note where they provably differ.

SATISFACTION: Final = "satisfaction"
EVENTS: Final[Mapping[str, str]] = {  # event: its measure
    "regenerate": "regenerated",
    "abandon": "abandoned",
    "answer_now": "hurried",
    "think_more": "prolonged",
}
METHOD: Final = "valid at every look, empirical Bernstein"
PAIRED: Final = "by the audit assignment, valid at every look, empirical Bernstein"
WEIGHTED: Final = "; ratings weighted by how often such runs are rated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    name: str
    low: float = 0.0
    high: float = 1.0
    better: Literal["higher", "lower"] = "higher"
    level: Literal["request", "conversation", "user"] = "request"  # the unit of one value
    silent: float | None = None  # value of a run without feedback; None: left out


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackValue:
    seq: int  # place in the log: the order of receipt
    source: str  # label source; its later label replaces an earlier one
    values: tuple[tuple[str, float], ...]  # measure and value, in the measure's own unit
    capped: bool = False  # its key counts for at most a share of the runs
    weight: float = 1.0  # inverse probability of the survey, at least 1
    user: str = ""  # the person, where named


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFeedback:
    query_class: str
    version: str
    full: bool  # it ran in full by design
    stopped: bool  # the policy ended it early
    drawn: bool  # the policy stopped, and the audit assignment was random
    audit: bool
    conversation: str  # of the run, or the run itself
    propensity: float = 1.0  # P(this audit assignment)
    feedback: tuple[FeedbackValue, ...] = ()
    weight: float = 1.0  # at least 1 (`sampling`)
    later: tuple[float, ...] = (0.0,)  # known beside its class: length of the answer, agreement of an audit


@dataclass(frozen=True, slots=True, kw_only=True)
class SatisfactionEffect:
    measure: str
    better: Literal["higher", "lower"]
    query_class: str | None  # None: all classes
    version: str | None  # None: all versions
    n_runs: int
    n_heard: int  # of them with feedback of this measure
    everybody: IntervalEstimate | None  # full and stopped runs together
    full: IntervalEstimate | None
    stopped: IntervalEstimate | None  # not comparable with `full`: stopped runs are easier
    effect: IntervalEstimate | None  # stopped minus full, paired; None: no pair, or a measure of users
    rated_audits: float | None  # share of drawn audits with feedback; None: no drawn audits
    rated_stopped: float | None  # likewise, of drawn stopped runs
    n_set_aside: int = 0  # labels beyond the share of one key


def estimate_satisfaction(
    runs: Sequence[RunFeedback], measures: Iterable[Measure], *, confidence: float = 0.95, most_weight: float = 1.0
) -> tuple[SatisfactionEffect, ...]:
    """Estimate every measure that has feedback, for the route and, where there are several, each class and version.

    runs         in the log's order; intervals depend on it
    confidence   of each interval by itself, in (0, 1)
    most_weight  cap of a label's weight, at least 1; the weights of runs multiply it
    """
    most_weight *= max((run.weight for run in runs), default=1.0)
    whole = list(enumerate(runs))
    groups: dict[tuple[str | None, str | None], list[tuple[int, RunFeedback]]] = {(None, None): whole}
    has_classes = len({run.query_class for run in runs}) > 1
    has_versions = len({run.version for run in runs}) > 1
    for place, run in whole:
        if has_classes:
            groups.setdefault((run.query_class, None), []).append((place, run))
        if has_versions:
            groups.setdefault((None, run.version), []).append((place, run))
    effects = list[SatisfactionEffect]()
    for measure in measures:
        values, n_set_aside = _values(runs, measure, most_weight)
        estimator = _Estimator(measure, confidence, most_weight, values)
        for (query_class, version), members in groups.items():
            if any(place in values for place, _ in members):
                effect = estimator.effect_in(members, query_class, version)
                effects.append(replace(effect, n_set_aside=n_set_aside) if members is whole else effect)
    return tuple(effects)


class _Value(NamedTuple):
    value: float
    weight: float


def _values(runs: Sequence[RunFeedback], measure: Measure, most_weight: float) -> tuple[dict[int, _Value], int]:
    """Return the values by place of their run, and the number of labels set aside.

    The last label of each source counts; a capped source counts for at most a share of the runs. A conversation or a
    user counts once, at its first run.
    """
    last: dict[tuple[int, str], tuple[FeedbackValue, float]] = {}
    place_of: dict[str, int] = {}
    for place, run in enumerate(runs):
        for label in run.feedback:
            value = dict(label.values).get(measure.name)
            if value is None or (measure.level == "user" and not label.user):
                continue
            of = {"request": "", "conversation": run.conversation, "user": label.user}[measure.level]
            at = place if not of else place_of.setdefault(of, place)
            if (at, label.source) not in last or label.seq > last[at, label.source][0].seq:
                last[at, label.source] = label, value
    allowed, counted = max(1, floor(MAX_SHARE * len(runs))), defaultdict[str, set[int]](set)
    by_run, n_set_aside = defaultdict[int, list[_Value]](list), 0
    for (at, source), (label, value) in sorted(last.items(), key=lambda item: item[1][0].seq):
        if label.capped and at not in counted[source] and len(counted[source]) >= allowed:
            n_set_aside += 1
            continue
        counted[source].add(at)
        weight = min(max(1.0, label.weight) * runs[at].weight, most_weight)
        by_run[at].append(_Value(min(max(value, measure.low), measure.high), weight))
    means = {
        at: _Value(*(sum(column) / len(column) for column in zip(*values, strict=True)))
        for at, values in sorted(by_run.items())
    }
    return means, n_set_aside


@dataclass(frozen=True, slots=True)
class _Estimator:
    measure: Measure
    confidence: float
    most_weight: float
    values: Mapping[int, _Value]  # by place of the run

    def effect_in(
        self, members: Sequence[tuple[int, RunFeedback]], query_class: str | None, version: str | None
    ) -> SatisfactionEffect:
        """A run without feedback gets the measure's `silent` value or is left out."""
        silent = self.measure.silent
        values = [
            (run, self.values.get(place) or (None if silent is None else _Value(silent, run.weight)))
            for place, run in members
        ]
        drawn = [(run, self.values.get(place)) for place, run in members if run.drawn]
        of_users = self.measure.level == "user"
        rated = {audit: [one is not None for run, one in drawn if run.audit is audit] for audit in (True, False)}
        return SatisfactionEffect(
            measure=self.measure.name,
            better=self.measure.better,
            query_class=query_class,
            version=version,
            n_runs=len(members),
            n_heard=sum(place in self.values for place, _ in members),
            everybody=self._mean([one for _, one in values]),
            full=None if of_users else self._mean([one for run, one in values if run.full]),
            stopped=None if of_users else self._mean([one for run, one in values if run.stopped]),
            effect=None if of_users else self._effect(drawn),
            rated_audits=sum(rated[True]) / len(rated[True]) if rated[True] else None,
            rated_stopped=sum(rated[False]) / len(rated[False]) if rated[False] else None,
        )

    def _mean(self, values: Sequence[_Value | None]) -> IntervalEstimate | None:
        known = [one for one in values if one is not None]
        if not known:
            return None
        n_silent = len(values) - len(known)
        note = f"of the runs with feedback; {n_silent:,} without any are left out" if n_silent else None
        weights = np.array([one.weight for one in known])
        return self._estimate(self._scaled(known), weights, low=0.0, offset=self.measure.low, method=METHOD, note=note)

    def _effect(self, drawn: Sequence[tuple[RunFeedback, _Value | None]]) -> IntervalEstimate | None:
        """A run counts with (value - mean so far) / P(its assignment), negative for audits; its mean is the effect."""
        silent, heard = self.measure.silent, np.array([one is not None for _, one in drawn], dtype=bool)
        filled = [one or (None if silent is None else _Value(silent, run.weight)) for run, one in drawn]
        known = [(run, one) for (run, _), one in zip(drawn, filled, strict=True) if one is not None]
        audits = np.array([run.audit for run, _ in known], dtype=bool)
        if audits.all() or not audits.any():
            return None
        weights = np.array([one.weight for _, one in known])
        by_chance = silent is not None or any(one.weight != run.weight for run, one in known)  # as a survey asks
        if not by_chance:
            weights = weights * self._label_weights([run for run, _ in drawn], heard)[heard]
        scaled = self._scaled([one for _, one in known])
        before = np.cumsum(weights * scaled) - weights * scaled + 0.5
        centred = scaled - before / (np.cumsum(weights) - weights + 1)
        odds = np.array([run.propensity for run, _ in known])
        effects = np.where(audits, -1.0, 1.0) * centred * odds.min() / odds
        note = None if silent is not None else self._who_votes([run for run, _ in drawn], heard)
        method, times = PAIRED if by_chance else PAIRED + WEIGHTED, 1 / float(odds.min())
        return self._estimate(effects, weights, low=-1.0, offset=0.0, method=method, note=note, times=times)

    def _label_weights(self, drawn: Sequence[RunFeedback], heard: Bools) -> Floats:
        x = covariates([run.query_class for run in drawn], np.array([run.later for run in drawn], dtype=np.float64))
        return label_weights(x, heard, np.array([run.audit for run in drawn], dtype=np.int64))

    def _estimate(
        self,
        scaled: Floats,
        weights: Floats,
        *,
        low: float,
        offset: float,
        method: str,
        note: str | None,
        times: float = 1.0,
    ) -> IntervalEstimate:
        """A mean of values in [low, 1], `times` the measure's own unit."""
        mean, between = weighted_between(scaled, weights, self.confidence, most_weight=self.most_weight, low=low)
        ends = (min(1.0, max(low, times * one)) for one in (mean, between.low, between.high))
        value, lowest, highest = (offset + self._span * one for one in ends)
        return IntervalEstimate(value=value, low=lowest, high=highest, n=len(scaled), method=method, note=note)

    @property
    def _span(self) -> float:
        return self.measure.high - self.measure.low

    def _who_votes(self, drawn: Sequence[RunFeedback], heard: Bools) -> str | None:
        audits, odds = (np.array([getattr(run, name) for run in drawn]) for name in ("audit", "propensity"))
        differences = np.where(audits, 1.0, -1.0) * (heard - heard.mean()) * odds.min() / odds
        between = mean_between(watch(differences, low=-1.0), self.confidence, low=-1.0)
        if between.low <= 0 <= between.high:
            return None
        more = "audits" if between.low > 0 else "stopped runs"
        return f"{more} are rated more often, so the raters differ as well"

    def _scaled(self, known: Sequence[_Value]) -> Floats:
        values = np.array([one.value for one in known], dtype=np.float64)
        return np.clip((values - self.measure.low) / self._span, 0.0, 1.0)


# --------------------------------------------------------------------------- the price of EM
#
# How much less people like an answer because it is wrong, or because it was stopped. Runs that have both a rating and a
# label of correctness are compared within their query class by least squares, with standard errors that hold for
# unequal variances (White 1980, Econometrica 48(4)). It is the price only as far as people who differ in nothing but
# the answer would rate so: what else makes hard questions unpopular is a class's own mean.

LEAST_RUNS: Final = 100  # with a rating and a label
LEAST_WRONG: Final = 20  # of them, and as many right
PRICE_METHOD: Final = "least squares within query classes, robust standard errors, for one look"


class RatedRun(NamedTuple):
    query_class: str
    satisfaction: float  # [0, 1]
    correct: bool
    full: bool  # it ran in full by design
    stopped: bool
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EMPrice:
    n: int  # runs
    per_point: IntervalEstimate  # points of satisfaction lost with each lost point of EM
    by_stop: IntervalEstimate | None  # lost by a stop whose answer is as right, a fraction; None: no stop, or all
    full: float  # mean satisfaction of full runs, a fraction

    def affordable_drop(self, least_satisfaction: float) -> float | None:
        """The largest EM drop, in tenths of a point, that keeps the floor by the cautious ends; None: unknown."""
        low, high = self.per_point.low, self.per_point.high
        if low is None or high is None or low <= 0:
            return None
        by_stop = 0.0 if self.by_stop is None or (self.by_stop.low or 0.0) <= 0 else self.by_stop.high or 0.0
        drop = floor(1_000 * (self.full - by_stop - least_satisfaction) / high + 1e-9) / 1_000
        return min(drop, 1.0) if drop > 0 else None

    @property
    def sentence(self) -> str:
        one = self.per_point
        if one.low is None or one.high is None or one.low <= 0:
            return f"what a lost point of EM costs in satisfaction is not known from {self.n:,} rated and labelled runs"
        return (
            f"a lost point of EM costs {one.value:.2f} points of satisfaction here, between {one.low:.2f} and"
            f" {one.high:.2f} (from {self.n:,} rated and labelled runs)"
        )


def em_price(runs: Sequence[RatedRun], *, confidence: float = 0.95) -> EMPrice | None:
    """Estimate the price; None: too few runs.

    confidence  of each interval by itself, in (0, 1)
    """
    full = [run for run in runs if run.full]
    n_wrong = sum(not run.correct for run in runs)
    if len(runs) < LEAST_RUNS or min(n_wrong, len(runs) - n_wrong) < LEAST_WRONG or not full:
        return None
    classes = covariates([run.query_class for run in runs], np.zeros((len(runs), 0)))
    wrong, stopped = np.array([(not run.correct, run.stopped) for run in runs], dtype=np.float64).T
    has_both = 0 < stopped.sum() < len(runs)
    x = np.column_stack([wrong, *([stopped] if has_both else []), classes])
    y, weight = np.array([(run.satisfaction, run.weight) for run in runs], dtype=np.float64).T
    inverse = np.linalg.pinv((x * weight[:, np.newaxis]).T @ x)
    slope = inverse @ (x.T @ (weight * y))
    away = (weight * (y - x @ slope))[:, np.newaxis] * x
    variance = inverse @ (away.T @ away) @ inverse * len(x) / max(1, len(x) - np.linalg.matrix_rank(x))
    z = NormalDist().inv_cdf((1 + confidence) / 2)

    def loss(at: int) -> IntervalEstimate:
        value, radius = -float(slope[at]), z * sqrt(max(0.0, float(variance[at, at])))
        return IntervalEstimate(value=value, low=value - radius, high=value + radius, n=len(runs), method=PRICE_METHOD)

    mean = sum(run.weight * run.satisfaction for run in full) / sum(run.weight for run in full)
    return EMPrice(n=len(runs), per_point=loss(0), by_stop=loss(1) if has_both else None, full=mean)
