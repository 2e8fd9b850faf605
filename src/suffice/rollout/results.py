"""The input and output records of an experiment's analysis, its metrics, and a summary in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from math import ceil
from typing import Final, Literal, TypeAlias

from suffice.assurance.bounds import Interval

Verdict: TypeAlias = Literal[
    "better",
    "no worse",  # its loss is within the margin
    "worse",
    "mixed",  # of an arm: not worse overall, and worse in a query class
    "inconclusive",
    "withheld",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitAssignment:
    arm: str
    odds: Mapping[str, float]  # of every arm, when it was assigned
    query_class: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricValue(UnitAssignment):
    value: float
    known: tuple[float, ...] = ()  # covariates of the question, before the first token; equally many for all
    groups: tuple[str, ...] = ()  # its caller, conversation and question, whose earlier values predict it; "": unknown
    place: int | None = None  # of its unit among all units, from 0; None: every unit has a value
    warmup: bool = False  # a unit of the warm-up
    label_weight: float | None = None  # in proportion to 1 / P(such a unit has a value), (0, 1]; None: not estimated


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmEvidence:
    answer: str | None
    right: bool | None  # None: unknown
    seen: bool = True  # False: a checkpoint is missing or the run was aborted, so the answer is unknown
    tokens: float = 0.0  # that the arm would have generated; 0: not counted


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditAnswers:
    query_class: str
    arms: Mapping[str, ArmEvidence]
    place: int = 0  # units that were assigned before it ended


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentData:
    n_requests: int
    drawn: Sequence[UnitAssignment]
    values: Mapping[str, Sequence[MetricValue]]  # by metric
    audits: Sequence[AuditAnswers] = ()
    paired: frozenset[str] = frozenset()  # arms whose answers audits show
    unexplained: Mapping[str, str] = field(default_factory=dict)  # metric: how much more often an arm is labelled


@dataclass(frozen=True, slots=True)
class ClassEffect:
    query_class: str
    n: int
    effect: float
    between: Interval
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmComparison:
    arm: str
    metric: str
    paired: bool  # from audits that show both arms
    confidence: float  # of this interval alone
    margin: float | None  # acceptable loss; None: not set
    n: int = 0  # units, or audits
    effect: float | None = None  # arm minus control, in the metric's unit
    between: Interval | None = None
    verdict: Verdict = "inconclusive"
    why: str = ""  # why it is withheld or not measured
    control_mean: float | None = None
    plain: float | None = None  # difference of the two means, which the mix of classes may bias
    stratified: float | None = None  # mean of the classes' effects, each weighted by its part of all
    n_pending: int = 0  # audits without a label whose answers differ
    n_cut: int = 0  # values above the cap, counted as the cap
    is_weighted: bool = False  # by the inverse probability of a value
    n_missing: int | None = None  # further requests until it is conclusive, at the same rates; None: unknown
    classes: tuple[ClassEffect, ...] = ()

    @property
    def misleading(self) -> bool:
        """The plain difference has the opposite sign, or is outside the interval."""
        if self.plain is None or self.effect is None or self.between is None:
            return False
        return not self.between.low <= self.plain <= self.between.high

    @property
    def harmed(self) -> tuple[str, ...]:
        return tuple(one.query_class for one in self.classes if one.verdict == "worse")


@dataclass(frozen=True, slots=True)
class ArmResult:
    arm: str
    verdict: Verdict
    comparisons: tuple[ArmComparison, ...]  # the primary metric first
    n_missing: int | None  # further requests; None: nothing is missing, or unknown
    per_point: float | None = None  # satisfaction points lost per EM point lost
    per_point_between: Interval | None = None

    def of(self, metric: str) -> ArmComparison:
        return {one.metric: one for one in self.comparisons}[metric]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentResult:
    experiment: str
    run: int
    control: str
    primary: str
    confidence: float
    n_requests: int
    n_units: int
    n_by_arm: Mapping[str, int]
    planned_units: int  # at which intervals are tightest
    withheld: str | None  # why no result is given; None: the split fits the odds
    ended: bool = False  # no more requests come
    arms: tuple[ArmResult, ...] = ()


@dataclass(frozen=True, slots=True)
class RunMetric:
    name: str
    sentence: str  # a sentence around {n}, the size of a difference, and {way}
    more: str  # the word for {way} of an arm with a higher value
    less: str
    margin: str  # the unit of a margin, after its number
    _: KW_ONLY
    higher_is_better: bool = True
    high: float | None = None  # largest value, the smallest is 0; None: learned from the warm-up
    times: float = 1.0  # factor from a value to the number displayed
    digits: int = 1
    title: str = ""  # at the start of a sentence; "": its name

    @property
    def same(self) -> str:
        return f"{self.title or self.name} is the same"

    def size(self, value: float) -> str:
        return f"{abs(value) * self.times:,.{self.digits}f}"

    def way(self, value: float) -> str:
        return self.more if value > 0 else self.less


EM: Final = "em"
SATISFACTION: Final = "satisfaction"
LATENCY: Final = "latency"
TOKENS: Final = "tokens"

METRICS: Final[Mapping[str, RunMetric]] = {
    one.name: one
    for one in (
        RunMetric(EM, "EM is {n} points {way}", "higher", "lower", "points", high=1.0, times=100, digits=2, title="EM"),
        RunMetric(SATISFACTION, "satisfaction is {n} points {way}", "higher", "lower", "points", high=1.0, times=100),
        RunMetric(LATENCY, "answers take {n} s {way}", "longer", "shorter", "s", higher_is_better=False, digits=2),
        RunMetric(TOKENS, "a request uses {n} {way} tokens", "more", "fewer", "tokens", higher_is_better=False),
    )
}


def metric_of(name: str) -> RunMetric:
    """Return a built-in metric, or a declared one, scaled from 0 (worst) to 1 (best)."""
    sentence = f"{name} is {{n}} points of its range {{way}}"
    return METRICS.get(name) or RunMetric(name, sentence, "better", "worse", "points of its range", high=1.0, times=100)


HOLDS: Final = "All intervals hold together, however often one looks; they speak of the requests so far."
UNFAIR: Final = (
    "Something loses units of one arm or moves them to the other, so the arms are no fair comparison; find it, and"
    " start the experiment again."
)


def summarize_arm(result: ExperimentResult, arm: ArmResult) -> tuple[str, ...]:
    if arm.verdict == "withheld":
        why = next(one.why for one in arm.comparisons if one.verdict == "withheld")
        return f"No result is given for {arm.arm!r}: {why}.", UNFAIR
    others = [
        _one(one)
        for one in arm.comparisons[1:]
        if one.effect is not None or one.margin is not None or one.verdict == "withheld"
    ]
    sentences = (_headline(result, arm), f"Besides, {'; '.join(others)}." if others else "", _last(result, arm))
    return tuple(sentence for sentence in sentences if sentence)


def guarded(comparisons: Sequence[ArmComparison]) -> list[ArmComparison]:
    """Return the comparisons that decide: the primary metric's, and those with a margin."""
    return [one for at, one in enumerate(comparisons) if not at or one.margin is not None]


def _headline(result: ExperimentResult, arm: ArmResult) -> str:
    primary = arm.comparisons[0]
    difference = _difference(primary)
    basis = f"on {primary.n:,} {'full runs that show both' if primary.paired else 'units'}"
    text = f"{difference} ({result.confidence:.0%} sure, {basis})" if difference else _unmeasured(primary)
    return f"{arm.arm!r} against {result.control!r} is {_in_words(arm)}{text}."


def _in_words(arm: ArmResult) -> str:
    deciding = guarded(arm.comparisons)
    if arm.verdict == "better":
        return f"better{', and nothing with a margin loses more than you allow' if len(deciding) > 1 else ''}: "
    if arm.verdict == "no worse":
        return "not worse than you allow: "
    if arm.verdict == "worse":
        return f"worse in {' and '.join(one.metric for one in deciding if one.verdict == 'worse')}: "
    if arm.verdict == "mixed":
        bad = [f"{one.metric} for {_list(one.harmed)}" for one in deciding if one.harmed]
        return f"mixed, for it is worse in {' and '.join(bad)}: on the whole, "
    return "inconclusive: "


def _difference(one: ArmComparison) -> str:
    """Return a difference with its interval; "": it was not measured."""
    if one.effect is None or one.between is None:
        return ""
    metric = metric_of(one.metric)
    part = f" ({abs(one.effect) / one.control_mean:.0%})" if metric.high is None and one.control_mean else ""
    return f"{_describe_effect(metric, one.effect)}{part}, {_between(metric, one.between)}"


def _unmeasured(one: ArmComparison) -> str:
    return f"{one.metric} was not measured yet"


def _one(one: ArmComparison) -> str:
    if one.verdict == "withheld":
        estimate = _difference(one)
        weighted = f"; if such runs are rated by chance alone, {estimate}" if estimate else ""
        return f"{one.metric} is withheld, because {one.why}{weighted}"
    text, metric = _difference(one), metric_of(one.metric)
    if not text:
        return _unmeasured(one)
    if one.paired:
        text += f", on {one.n:,} full runs that show both"
    if one.margin is None:
        return text if one.verdict in ("better", "worse") else f"{text}, so which way it goes is open"
    allowed = f"the {metric.size(one.margin)} {metric.margin} that you allow"
    if one.verdict in ("better", "no worse"):
        return f"{text}, within {allowed}"
    return (
        f"{text}, more than {allowed}" if one.verdict == "worse" else f"{text}, so whether it keeps {allowed} is open"
    )


def _last(result: ExperimentResult, arm: ArmResult) -> str:
    parts, named = list[str](), guarded(arm.comparisons) if arm.verdict == "mixed" else []
    for one in arm.comparisons:
        if one.harmed and one.verdict != "worse" and one not in named:
            parts.append(f"it is worse in {one.metric} for {_list(one.harmed)}, whatever the whole says")
        if one.misleading and one.plain is not None:
            metric = metric_of(one.metric)
            weighed = (
                "" if one.stratified is None else f", and weighed by class {_describe_effect(metric, one.stratified)}"
            )
            parts.append(
                f"the two plain means of {one.metric} say that {_describe_effect(metric, one.plain)}, and mislead:"
                f" the arms had different mixes of questions{' and of raters' if one.is_weighted else ''}{weighed}"
            )
    if arm.per_point_between is not None and arm.per_point is not None:
        low, high = arm.per_point_between.low, arm.per_point_between.high
        way = "won" if (arm.of(EM).effect or 0.0) > 0 else "lost"
        parts.append(
            f"each EM point {way} goes with {arm.per_point:.2f} points of satisfaction {way}, between {low:.2f} and"
            f" {high:.2f}"
        )
    if arm.verdict == "inconclusive":
        parts.append(_missing(result, arm))
    text = "; ".join(part for part in parts if part)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _missing(result: ExperimentResult, arm: ArmResult) -> str:
    if arm.n_missing is not None:
        if result.ended:
            return f"about {arm.n_missing:,} more requests like these would have decided it"
        return f"about {arm.n_missing:,} more requests would decide it, if they continue like those so far"
    if any(one.effect is None for one in guarded(arm.comparisons)):
        return "" if result.ended else "how many more requests it takes can be said once there is something to measure"
    n_units = max(1, result.n_units)
    n_left = ceil((result.planned_units - n_units) * result.n_requests / n_units)
    if n_left > 0 and result.ended:
        return f"what was seen may be chance; it ended about {n_left:,} requests before its plan was complete"
    if n_left > 0:
        return f"what was seen may still be chance; about {n_left:,} more requests complete the plan"
    open_ones = [one for one in guarded(arm.comparisons) if one.verdict == "inconclusive" and one.n_missing is None]
    return f"the plan is complete: {'; '.join(_open(one) for one in open_ones)}"


def _open(one: ArmComparison) -> str:
    metric, within = metric_of(one.metric), one.between or Interval(0.0, 0.0)
    if one.margin is not None:
        allowed = f"the {metric.size(one.margin)} {metric.margin} that you allow"
        return f"{one.metric} is too near to {allowed} to name a number of requests that would decide it"
    most = f"{metric.size(max(abs(within.low), abs(within.high)))} {metric.margin}"
    return f"{one.metric} differs by less than {most}, if at all, and no realistic number of requests would prove more"


def _describe_effect(metric: RunMetric, value: float) -> str:
    size = metric.size(value)
    if not any(digit in size for digit in "123456789"):
        return metric.same
    return metric.sentence.format(n=size, way=metric.way(value))


def _between(metric: RunMetric, between: Interval) -> str:
    low, high = sorted((between.low, between.high), key=abs)
    if metric.way(low) == metric.way(high):
        return f"between {metric.size(low)} and {metric.size(high)}"
    return f"between {metric.size(between.low)} {metric.less} and {metric.size(between.high)} {metric.more}"


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(f"class {name or 'none'}" for name in names)
