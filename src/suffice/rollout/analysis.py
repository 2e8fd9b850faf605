"""Analyses an experiment: compares every arm with the control in every metric, valid at every look.

EM is paired by audits that show both arms; all other metrics come from live runs, because a replay knows neither the
cost of a stop transition nor how users like it. All intervals of an experiment hold together, at all looks, with its
confidence (`alphas`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Final

import numpy as np

from suffice.arrays import Floats
from suffice.assurance.bounds import Interval
from suffice.assurance.guarantee import KNOWN_AUDITS
from suffice.assurance.planned import FIRST_PART
from suffice.assurance.sampling import LOG_ALARM, count_draws, log_sample_ratio
from suffice.rollout.effects import (
    PLANNED_UNITS,
    PairCounts,
    PairPlan,
    UnitSeries,
    compare_arms,
    guesses,
    latest_comparison,
    ratio_of,
)
from suffice.rollout.experiment import RunningExperiment
from suffice.rollout.results import (
    EM,
    LATENCY,
    METRICS,
    SATISFACTION,
    TOKENS,
    ArmComparison,
    ArmEvidence,
    ArmResult,
    AuditAnswers,
    ClassEffect,
    ExperimentData,
    ExperimentResult,
    MetricValue,
    RunMetric,
    UnitAssignment,
    Verdict,
    guarded,
    metric_of,
)

CAP_TIMES: Final = 2.0  # a run's cost is capped at so many times the largest of the warm-up
LEAST_TAUGHT: Final = 20  # values that train the guesses before one counts
MOST_CLASSES: Final = 8  # reported, in the order in which they came
FOR_WHOLE: Final = 0.85  # of a metric's error; the classes share the rest
FOR_PRIMARY: Final = 0.6  # of an experiment's error, where other metrics have margins
FOR_OTHERS: Final = 0.15  # for metrics that decide nothing; those with margins share the rest
TELLING: Final = 2.0  # standard errors from where a verdict turns, from which on missing requests are estimated
GROUP_PRIOR: Final = 3.0  # values at the overall mean with which a group begins
MOST_REQUESTS: Final = 10_000_000  # a larger number of missing requests is not reported
_REST: Final = "\x00rest"  # cannot be the name of a class


def analyse(one: RunningExperiment, material: ExperimentData) -> ExperimentResult:
    taken = {unit.arm for unit in material.drawn} | {arm.name for arm in one.arms if arm.weight}
    others = [arm.name for arm in one.arms if arm.name != one.control and arm.name in taken]
    withheld = _unfit_split(material.drawn, "units")
    judged = _Judge(one, material, alphas(one), withheld)
    return ExperimentResult(
        experiment=one.name,
        run=one.run,
        control=one.control,
        primary=one.primary,
        confidence=one.confidence,
        n_requests=material.n_requests,
        n_units=len(material.drawn),
        n_by_arm=dict(Counter(unit.arm for unit in material.drawn)),
        planned_units=one.planned_units or PLANNED_UNITS,
        withheld=withheld,
        arms=tuple(judged.arm(name) for name in others),
    )


def compared_metrics(one: RunningExperiment) -> tuple[str, ...]:
    return tuple(dict.fromkeys((one.primary, *METRICS, *(name for name, _ in one.margins))))


def alphas(one: RunningExperiment) -> Mapping[str, float]:
    """Divide an arm's part of the error among the metrics, most of it among those that decide."""
    error, (primary, *others) = (1 - one.confidence) / max(1, len(one.arms) - 1), compared_metrics(one)
    guards = [name for name in others if name in dict(one.margins)]
    silent = [name for name in others if name not in guards]
    for_silent = FOR_OTHERS if silent else 0.0
    for_primary = FOR_PRIMARY if guards else 1 - for_silent
    shares = {primary: for_primary}
    shares |= dict.fromkeys(guards, (1 - for_primary - for_silent) / max(1, len(guards)))
    shares |= dict.fromkeys(silent, for_silent / max(1, len(silent)))
    return {name: error * share for name, share in shares.items()}


# --------------------------------------------------------------------------- does the split fit the odds?


def sample_ratio(units: Sequence[UnitAssignment]) -> float:
    """Return the natural logarithm of the e-value against "every unit drew its arm with its odds".

    Averages the sample-ratio e-values of the arms (`assurance.sampling`) over all units, and by class, because a split
    can be right as a whole and wrong in each class.
    """
    if not units:
        return 0.0
    common = {name for name, n in Counter(unit.query_class for unit in units).items() if n >= KNOWN_AUDITS}
    groups: dict[str, list[UnitAssignment]] = {}
    for unit in units:
        groups.setdefault(unit.query_class if unit.query_class in common else _REST, []).append(unit)
    each = list[float]()
    for arm in sorted({name for unit in units for name in unit.odds}):
        each.append(_log_e(arm, units))
        if len(groups) > 1:
            each.append(sum(_log_e(arm, group) for group in groups.values()))
    peak = max(each)
    return peak if peak == np.inf else float(peak + np.log(np.mean(np.exp(np.array(each) - peak))))


def _log_e(arm: str, units: Sequence[UnitAssignment]) -> float:
    mine = np.array([unit.arm == arm for unit in units])
    odds = np.array([unit.odds.get(arm, 0.0) for unit in units])
    return log_sample_ratio(count_draws(mine, np.where(mine, odds, 1 - odds)))


def _unfit_split(units: Sequence[UnitAssignment], what: str) -> str | None:
    if sample_ratio(units) < LOG_ALARM:
        return None
    counts = _counts(units)
    if max(_log_e(arm, units) for arm in units[0].odds) < LOG_ALARM:  # right as a whole
        largest = Counter(unit.query_class for unit in units).most_common(3)
        counts = "; ".join(
            f"in class {name or 'none'} {_counts([unit for unit in units if unit.query_class == name])}"
            for name, _ in largest
        )
    return f"{len(units):,} {what} are split {counts}, which does not fit the odds that they were drawn with"


def _counts(units: Sequence[UnitAssignment]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in sorted(Counter(unit.arm for unit in units).items()))


# --------------------------------------------------------------------------- one comparison


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    n: int
    effect: float  # arm minus control
    error: float  # standard error of the effect
    between: Callable[..., Interval]  # of the effect, at an alpha, extrapolated to `times` as much

    @staticmethod
    def of_pairs(pairs: PairCounts, plan: PairPlan | None) -> _Seen:
        def between(alpha: float, *, times: float) -> Interval:
            drop = pairs.between(alpha, times=times, plan=plan)
            return Interval(-drop.high, -drop.low)

        return _Seen(pairs.n, -pairs.drop, pairs.error, between)


@dataclass(frozen=True, slots=True, eq=False)
class _Judge:
    one: RunningExperiment
    material: ExperimentData
    alphas: Mapping[str, float]
    withheld: str | None

    def arm(self, name: str) -> ArmResult:
        comparisons = tuple(self._compared(name, metric_of(metric)) for metric in compared_metrics(self.one))
        per_point = ratio = None
        of = {one.metric: one for one in comparisons}
        rating, em = of[SATISFACTION], of[EM]
        if rating.between is not None and em.between is not None and rating.effect is not None and em.effect:
            per_point = ratio_of(rating.between, em.between)
            ratio = rating.effect / em.effect if per_point is not None else None
        verdict, n_missing = _whole(comparisons)
        return ArmResult(name, verdict, comparisons, n_missing, ratio, per_point)

    def _compared(self, arm: str, metric: RunMetric) -> ArmComparison:
        paired = metric.name == EM and {arm, self.one.control} <= self.material.paired
        alpha, margin = self.alphas[metric.name], dict(self.one.margins).get(metric.name)
        base = ArmComparison(
            arm=arm,
            metric=metric.name,
            paired=paired,
            confidence=1 - alpha * FOR_WHOLE,
            margin=margin,
            why="nothing was measured yet",
        )
        if self.withheld is not None:
            return replace(base, verdict="withheld", why=self.withheld)
        return self._paired(base, metric, alpha) if paired else self._unpaired(base, metric, alpha)

    def _paired(self, base: ArmComparison, metric: RunMetric, alpha: float) -> ArmComparison:
        seen = [one for one in self.material.audits if {base.arm, self.one.control} <= set(one.arms)]
        whole = self._pairs(seen, base.arm)
        if not whole.n:
            return base
        names = dict.fromkeys(one.query_class for one in seen)
        classes = {name: self._seen([one for one in seen if one.query_class == name], base.arm) for name in names}
        base = replace(base, n_pending=whole.pending, stratified=-whole.drop)
        return self._decided(base, metric, alpha, self._seen(seen, base.arm), classes)

    def _seen(self, seen: Sequence[AuditAnswers], arm: str) -> _Seen:
        plan, planned = None, self.one.planned_units
        if planned:
            first = self._pairs([one for one in seen if one.place < FIRST_PART * planned], arm)
            plan = PairPlan.of(first, n_units=len(self.material.drawn), planned=planned)
        return _Seen.of_pairs(self._pairs(seen, arm), plan)

    def _pairs(self, seen: Sequence[AuditAnswers], arm: str) -> PairCounts:
        marks = Counter(_pair(one.arms[self.one.control], one.arms[arm]) for one in seen)
        return PairCounts(gained=marks[-1], same=marks[0], lost=marks[1], pending=marks[None])

    def _unpaired(self, base: ArmComparison, metric: RunMetric, alpha: float) -> ArmComparison:
        values = _counted(self.material.values.get(metric.name, ()))
        n_warm = max(LEAST_TAUGHT, sum(one.warmup for one in values))
        if len(values) <= n_warm:
            return base
        if any(one.label_weight is None for one in values):
            unfit = _unfit_split(values, f"units with a value of {metric.name}")
            if unfit is not None:
                return replace(base, verdict="withheld", why=unfit)
        cap, counted = _cap(self.one, metric, values[:n_warm]), values[n_warm:]
        names = [arm.name for arm in self.one.arms]
        units = _units(values, names, n_warm, cap, self.one.planned_units)
        predicted = guesses(units)
        a = names.index(base.arm)
        b = names.index(self.one.control)
        n = sum(one.arm in (base.arm, self.one.control) for one in counted)
        whole = latest_comparison(compare_arms(units, predicted, a, b), n)
        mine, others = ([min(one.value, cap) for one in counted if one.arm == name] for name in (base.arm, names[b]))
        if whole is None or not mine or not others:
            return base
        control_mean, classes = sum(others) / len(others), dict[str, _Seen]()
        class_of = np.array([one.query_class for one in values])
        for name, n_counted in Counter(one.query_class for one in counted).items():
            part = latest_comparison(compare_arms(units, predicted, a, b, (class_of == name)[np.newaxis]), n_counted)
            if part is not None:
                classes[name] = _Seen(part.n, part.effect, part.error, part.between)
        weight = sum(one.n for one in classes.values())
        base = replace(
            base,
            plain=sum(mine) / len(mine) - control_mean,
            control_mean=control_mean,
            stratified=sum(one.n * one.effect for one in classes.values()) / weight if weight else None,
            n_cut=sum(one.value > cap for one in counted),
            is_weighted=any(one.label_weight not in (None, 1.0) for one in values),
        )
        decided = self._decided(base, metric, alpha, _Seen(n, whole.effect, whole.error, whole.between), classes)
        unexplained = self.material.unexplained.get(metric.name)
        return decided if unexplained is None else replace(decided, verdict="withheld", why=unexplained, n_missing=None)

    def _decided(
        self, base: ArmComparison, metric: RunMetric, alpha: float, whole: _Seen, classes: Mapping[str, _Seen]
    ) -> ArmComparison:
        def verdict_at(times: float) -> Verdict:
            return judge_interval(whole.between(alpha * FOR_WHOLE, times=times), metric, base.margin)

        effects, reported = list[ClassEffect](), list(classes.items())[:MOST_CLASSES] if len(classes) > 1 else []
        for name, one in reported:
            if one.n >= KNOWN_AUDITS:
                between = one.between(alpha * (1 - FOR_WHOLE) / MOST_CLASSES, times=1.0)
                verdict = judge_interval(between, metric, base.margin)
                effects.append(ClassEffect(name, one.n, one.effect, between, verdict))
        verdict = verdict_at(1.0)
        n_requests = self.material.n_requests
        n_missing = None
        if verdict == "inconclusive" and _is_telling(whole, metric, base.margin):
            times = _times_to(lambda times: verdict_at(times) != "inconclusive", n_requests)
            n_missing = None if times is None else ceil((times - 1) * n_requests)
        return replace(
            base,
            n=whole.n,
            effect=whole.effect,
            between=whole.between(alpha * FOR_WHOLE, times=1.0),
            verdict=verdict,
            why="",
            n_missing=n_missing,
            classes=tuple(effects),
        )


def _is_telling(seen: _Seen, metric: RunMetric, margin: float | None) -> bool:
    """Return whether it can be told from chance on which side of the turning point an effect lies."""
    gain = seen.effect if metric.higher_is_better else -seen.effect
    return abs(gain + (margin or 0.0)) > TELLING * seen.error


def judge_interval(between: Interval, metric: RunMetric, margin: float | None) -> Verdict:
    """Return what an interval of arm minus control proves.

    better    the arm is better
    no worse  its loss is below the margin, where one is set
    worse     its loss is above the margin, or above 0 where none is set
    """
    low, high = (between.low, between.high) if metric.higher_is_better else (-between.high, -between.low)
    if low > 0:
        return "better"
    if margin is not None and low > -margin:
        return "no worse"
    return "worse" if high < -(margin or 0.0) else "inconclusive"


def _whole(comparisons: Sequence[ArmComparison]) -> tuple[Verdict, int | None]:
    deciding = guarded(comparisons)
    verdicts = {one.verdict for one in deciding}
    if "withheld" in verdicts:
        return "withheld", None
    if "worse" in verdicts:
        return "worse", None
    if any(one.harmed for one in deciding):
        return "mixed", None
    if "inconclusive" not in verdicts:
        return ("better" if comparisons[0].verdict == "better" else "no worse"), None
    waiting = [one.n_missing for one in deciding if one.verdict == "inconclusive"]
    known = [n for n in waiting if n is not None]
    return "inconclusive", max(known) if len(known) == len(waiting) else None


def _pair(control: ArmEvidence, arm: ArmEvidence) -> int | None:
    """Return +1 where the arm loses the control's right answer, -1 where it gains one, 0 for no change, else None."""
    if not control.seen or not arm.seen:
        return None
    if control.answer == arm.answer:
        return 0
    if control.right is None or arm.right is None:
        return None
    return int(control.right) - int(arm.right)


def _counted(values: Sequence[MetricValue]) -> list[MetricValue]:
    first = next((at for at, one in enumerate(values) if not one.warmup), len(values))
    return [*values[:first], *(one for one in values[first:] if not one.warmup)]


def _cap(one: RunningExperiment, metric: RunMetric, warm: Sequence[MetricValue]) -> float:
    given = {TOKENS: one.max_tokens, LATENCY: one.max_latency_s}.get(metric.name)
    if metric.high is not None or given is not None:
        return metric.high if metric.high is not None else float(given or 0.0)
    return CAP_TIMES * max(*(value.value for value in warm), 1e-9)


def _units(values: Sequence[MetricValue], names: Sequence[str], n_warm: int, cap: float, planned: int) -> UnitSeries:
    classes = list(dict.fromkeys(one.query_class for one in values[:n_warm]))[:MOST_CLASSES]
    known = np.array([one.known for one in values], dtype=np.float64).reshape(len(values), -1)
    places = [one.place for one in values if one.place is not None]
    mean, spread = known[:n_warm].mean(axis=0), known[:n_warm].std(axis=0)
    scaled = np.clip((known - mean) / np.where(spread > 0, spread, 1.0), -4, 4) * (spread > 0)
    earlier = np.clip(_earlier_means(values, n_warm, cap), -4, 4)
    dummies = np.array([[one.query_class == name for name in classes] for one in values], dtype=np.float64)
    return UnitSeries(
        value=np.array([[min(one.value, cap) for one in values]]),
        arm=np.array([[names.index(one.arm) for one in values]]),
        propensity=np.array([[one.odds[one.arm] for one in values]]),
        weight=np.array(
            [
                [
                    (1.0 if one.label_weight is None else one.label_weight)
                    * min(share for share in one.odds.values() if share > 0)
                    for one in values
                ]
            ]
        ),
        x=np.concatenate([np.ones((len(values), 1)), scaled, earlier, dummies], axis=1)[np.newaxis],
        n_arms=len(names),
        warmup=n_warm,
        low=0.0,
        high=cap,
        planned=planned,
        place=np.array([places]) if len(places) == len(values) else None,
    )


def _earlier_means(values: Sequence[MetricValue], n_warm: int, cap: float) -> Floats:
    """By how much earlier values of each unit's groups lie above those of all, in spreads of the warm-up; (n, groups).

    A group is drawn towards the overall mean while it has few values; an unknown one is there.
    """
    means = np.zeros((len(values), max((len(one.groups) for one in values), default=0)))
    seen: dict[tuple[int, str], tuple[int, float]] = {}
    total = 0.0
    for at, one in enumerate(values):
        value = min(one.value, cap)
        for column, group in enumerate(one.groups):
            if group:
                n, of_group = seen.get((column, group), (0, 0.0))
                means[at, column] = (of_group - n * total / max(1, at)) / (n + GROUP_PRIOR)
                seen[column, group] = n + 1, of_group + value
        total += value
    spread = float(np.std([min(one.value, cap) for one in values[:n_warm]]))
    return means / spread if spread > 0 else np.zeros_like(means)


def _times_to(conclusive: Callable[[float], bool], n_requests: int) -> float | None:
    most = MOST_REQUESTS / max(1, n_requests)
    low, high = 1.0, 2.0
    while not conclusive(high):
        low, high = high, 2 * high
        if low > most:
            return None
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if conclusive(middle) else (middle, high)
    return high
