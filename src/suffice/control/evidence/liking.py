"""From the log to what people say of answers: runs and their feedback, as `assurance.satisfaction_effect` reads them.

Knows records of the log and declared metrics; refuses to know how numbers are made of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from suffice.assurance.judge import JUDGE
from suffice.assurance.label_precedence import INFERENCE_KEY
from suffice.assurance.sampling import weight_of
from suffice.assurance.satisfaction import satisfaction_of
from suffice.assurance.satisfaction_effect import EVENTS, SATISFACTION, FeedbackValue, Heard, Measure
from suffice.control.evidence.audits import GivenLabel
from suffice.settings import Metric
from suffice.settings.checks import span_of
from suffice.signals.query import class_of
from suffice.types import Episode, Feedback


def measures(declared: Mapping[str, Metric]) -> tuple[Measure, ...]:
    """Everything that can be said of an answer as a number. A category is one measure for each of its words."""
    found = [Measure(name=SATISFACTION)]
    found += [Measure(name=name, better="lower", level="conversation", silent=0.0) for name in EVENTS.values()]
    for name, metric in declared.items():
        span = span_of(metric)
        if span is None:
            found += [
                Measure(name=f"{name}={word}", better=metric.direction, level=metric.level) for word in metric.values
            ]
        else:
            low, high = span
            found.append(Measure(name=name, low=low, high=high, better=metric.direction, level=metric.level))
    return tuple(found)


def heard(
    episode: Episode, labels: Iterable[GivenLabel], declared: Mapping[str, Metric], *, uncertified: bool
) -> Heard:
    """One governed run with what was said of it.

    uncertified  the route's policy acts without a certificate
    """
    request, outcome = episode.request, episode.outcome
    acts = request.mode == "enforce" and (request.certified or uncertified)
    return Heard(
        query_class=class_of(request.query),
        version=request.policy_version,
        full=request.mode == "observe" or request.audit,
        stopped=outcome.stopped,
        # What picks them lies before the draw shows: how the run ended lies behind it.
        drawn=acts and 0 < request.propensity < 1 and outcome.stop_step is not None and request.delivery == 1,
        audit=request.audit,
        conversation=request.conversation or request.episode_id,
        words=tuple(word for said in labels if (word := _word(said, declared)) is not None),
        stands_for=weight_of(request, outcome),
    )


def _word(said: GivenLabel, declared: Mapping[str, Metric]) -> FeedbackValue | None:
    """What one piece of feedback says in numbers; None: nothing, or it is a model's word."""
    given = said.feedback
    values = tuple(_values(given, declared)) if given.source != JUDGE else ()
    if not values:
        return None
    return FeedbackValue(
        seq=said.seq,
        voice=f"{given.sender} {given.user}",
        values=values,
        capped=given.door == INFERENCE_KEY,
        weight=1.0 if given.propensity is None or given.event is not None else 1 / given.propensity,
        user=given.user,
    )


def _values(given: Feedback, declared: Mapping[str, Metric]) -> Iterable[tuple[str, float]]:
    satisfaction = satisfaction_of(given)
    if satisfaction is not None:
        yield SATISFACTION, satisfaction
    if given.event is not None:
        yield EVENTS[given.event], 1.0
    for name, value in given.metrics:
        metric = declared.get(name)
        if metric is None:
            continue  # declared no longer: it stays in the log
        if metric.type == "category":
            yield from ((f"{name}={word}", float(word == value)) for word in metric.values)
        elif not isinstance(value, str):
            yield name, float(value)
