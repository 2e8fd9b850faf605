"""What an experiment shows, in two or three sentences for the person who decides, and never more than was shown.

    Result, one arm ──▶ headline: the primary metric ──▶ the other metrics ──▶ what is missing or harmed

Knows results and words; refuses to know how a result came about.
"""

from __future__ import annotations

from typing import Final

from suffice.assurance.bounds import Interval
from suffice.rollout.metrics import EM, RunMetric, metric_of
from suffice.rollout.results import ArmComparison, ArmResult, ExperimentResult

HOLDS: Final = "All intervals hold together, however often one looks; they speak of the requests so far."


UNFAIR: Final = (
    "Something loses units of one arm or moves them to the other, so the arms are no fair comparison; find it, and"
    " start the experiment again."
)


def summarize_arm(result: ExperimentResult, arm: ArmResult) -> tuple[str, ...]:
    """Two or three sentences on one arm."""
    if arm.verdict == "withheld":
        why = next(one.why for one in arm.comparisons if one.verdict == "withheld")
        return (
            f"Nothing is said of {arm.arm!r}: {why}.",
            UNFAIR,
        )
    others = [
        one
        for one in arm.comparisons[1:]
        if one.effect is not None or one.margin is not None or one.verdict == "withheld"
    ]
    told = [_headline(result, arm), _others(others)]
    last = _last(arm)
    return tuple(sentence for sentence in (*told, last) if sentence)


def _headline(result: ExperimentResult, arm: ArmResult) -> str:
    primary = arm.comparisons[0]
    against = f"{arm.arm!r} against {result.control!r}"
    shown = f"{primary.metric} was not measured yet"
    if primary.effect is not None and primary.between is not None:
        metric = metric_of(primary.metric)
        shown = (
            f"{_said(metric, primary.effect)}{_part(primary)}, {_between(metric, primary.between)}"
            f" ({result.confidence:.0%} sure, {_stands_on(primary)})"
        )
    if arm.verdict == "better":
        rest = ", and nothing with a margin loses more than you allow" if _guarded(arm) else ""
        return f"{against} is better{rest}: {shown}."
    if arm.verdict == "no worse":
        return f"{against} is not worse than you allow: {shown}."
    if arm.verdict == "worse":
        bad = [one.metric for one in arm.comparisons if one.verdict == "worse" and _counts(one, arm)]
        return f"{against} is worse in {' and '.join(bad)}: {shown}."
    if arm.verdict == "mixed":
        bad = [f"{one.metric} for {_list(one.harmed)}" for one in arm.comparisons if one.harmed and _counts(one, arm)]
        return f"{against} is mixed, for it is worse in {' and '.join(bad)}: on the whole, {shown}."
    return f"{against} is inconclusive: {shown}."


def _others(others: list[ArmComparison]) -> str:
    """The other metrics, each with its interval and what that means."""
    parts = [_one(one) for one in others]
    return f"Besides, {'; '.join(parts)}." if parts else ""


def _one(one: ArmComparison) -> str:
    metric = metric_of(one.metric)
    if one.verdict == "withheld":
        return f"{one.metric} is withheld, because {one.why}"
    if one.effect is None or one.between is None:
        return f"{one.metric} was not measured yet"
    shown = f"{_said(metric, one.effect)}{_part(one)}, {_between(metric, one.between)}"
    if one.paired:
        shown += f", on {one.n:,} full runs that show both"
    if one.margin is None:
        return shown if one.verdict in ("better", "worse") else f"{shown}, so which way it goes is open"
    allowed = f"{metric.size(one.margin)} {metric.margin}"
    if one.verdict in ("better", "no worse"):
        return f"{shown}, within the {allowed} that you allow"
    if one.verdict == "worse":
        return f"{shown}, more than the {allowed} that you allow"
    return f"{shown}, so whether it keeps the {allowed} that you allow is open"


def _last(arm: ArmResult) -> str:
    """What a reader must not overlook."""
    parts = list[str]()
    for one in arm.comparisons:
        if one.harmed and one.verdict != "worse" and not (arm.verdict == "mixed" and _counts(one, arm)):
            parts.append(f"it is worse in {one.metric} for {_list(one.harmed)}, whatever the whole says")
        if one.misleading and one.plain is not None and one.effect is not None:
            parts.append(
                f"the two plain means of {one.metric} say that {_said(metric_of(one.metric), one.plain)}, and mislead:"
                " the arms had different mixes of questions" + _weighed(one)
            )
    if arm.per_point_between is not None and arm.per_point is not None:
        low, high, way = arm.per_point_between.low, arm.per_point_between.high, _way(arm.of(EM))
        parts.append(
            f"each EM point {way} goes with {arm.per_point:.2f} points of satisfaction {way}, between {low:.2f} and"
            f" {high:.2f}"
        )
    if arm.verdict == "inconclusive":
        parts.append(_missing(arm))
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _missing(arm: ArmResult) -> str:
    if arm.n_missing is not None:
        return f"about {arm.n_missing:,} more requests would tell, if they go on like those so far"
    if any(one.effect is None and _counts(one, arm) for one in arm.comparisons):
        return "how many more requests it takes can be said once there is something to measure"
    return "how many more requests it takes cannot be said: what was seen is too near to where it would turn"


def _weighed(one: ArmComparison) -> str:
    if one.stratified is None:
        return ""
    return f", and weighed by class {_said(metric_of(one.metric), one.stratified)}"


def _way(one: ArmComparison) -> str:
    return "won" if (one.effect or 0.0) > 0 else "lost"


def _said(metric: RunMetric, value: float) -> str:
    size = metric.size(value)
    if not any(digit in size for digit in "123456789"):
        return metric.same
    return metric.said.format(n=size, way=metric.way(value))


def _between(metric: RunMetric, between: Interval) -> str:
    low, high = sorted((between.low, between.high), key=abs)
    if metric.way(low) == metric.way(high):
        return f"between {metric.size(low)} and {metric.size(high)}"
    return f"between {metric.size(between.low)} {metric.less} and {metric.size(between.high)} {metric.more}"


def _part(one: ArmComparison) -> str:
    """How large a part of the control's mean the difference is, where that says something."""
    if metric_of(one.metric).high is not None or not one.control_mean or one.effect is None:
        return ""
    return f" ({abs(one.effect) / one.control_mean:.0%})"


def _stands_on(one: ArmComparison) -> str:
    return f"on {one.n:,} full runs that show both" if one.paired else f"on {one.n:,} units"


def _guarded(arm: ArmResult) -> bool:
    return any(one.margin is not None for one in arm.comparisons[1:])


def _counts(one: ArmComparison, arm: ArmResult) -> bool:
    return one.margin is not None or one is arm.comparisons[0]


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(f"class {name or 'none'}" for name in names)
