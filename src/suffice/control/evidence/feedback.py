"""Feedback of one route read from the log: ratings, and effects on satisfaction.

Only runs count that could have been drawn either way, and in which a certified level asked for a stop. Turns of one
conversation count once, by the first rating. A key that may use the model is capped at a share of the runs, as in
`assurance.labels`. Ratings can only make a route safer, never bolder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from math import floor, log1p, pi
from typing import Final, NamedTuple

from suffice.assurance.labels import INFERENCE_KEY, JUDGE, MAX_SHARE
from suffice.assurance.sampling import weight_of
from suffice.assurance.satisfaction import (
    EVENTS,
    SATISFACTION,
    FeedbackValue,
    Measure,
    RunFeedback,
    SatisfactionTest,
    satisfaction_of,
)
from suffice.control.evidence.run_join import remember
from suffice.settings import Metric
from suffice.settings.checks import span_of
from suffice.signals.query import class_of
from suffice.store.database.views import StoredLabel
from suffice.types import Episode, Feedback

MOST_RUNS: Final = 50_000  # awaiting a rating
MOST_CLASSES: Final = 50  # with a test of their own, the first ones …
MOST_OF_ONE: Final = 10  # … of which one caller names so many, lest made-up ones take the place of others


class _RatableRun(NamedTuple):
    query_class: str
    audit: bool
    weight: float  # the number of runs that it stands for


class Ratings:
    """Ratings since each class's level was last lowered or the epoch began; without a `floor`, none are kept.

    floor  see `min_satisfaction` of the settings
    delta  probability of ever finding an effect where stopping has none: half for all runs together, the rest for the
           classes in the order in which they came, class k having 6/(pi k)^2 of it
    """

    def __init__(self, *, floor: float | None, delta: float) -> None:
        self._floor, self._delta = floor, delta
        self._n_runs, self._counted = 0, Counter[str]()  # by capped key: ratings that counted
        self._runs: dict[str, _RatableRun] = {}
        self.by_class: dict[str, SatisfactionTest] = {}
        self._n_named = Counter[str]()  # classes with a test, by who named them first; "": callers without a key
        self.test = self._new_test(1 / 2)

    def _new_test(self, share: float) -> SatisfactionTest | None:
        return (
            None if self._floor is None else SatisfactionTest(min_satisfaction=self._floor, delta=share * self._delta)
        )

    def restart(self, classes: Collection[str] | None = None) -> None:
        """Begin anew for some classes, and for all runs together; None: for every class."""
        moved = set(self.by_class if classes is None else classes)
        self._runs = {name: run for name, run in self._runs.items() if run.query_class not in moved}
        self.test = self._new_test(1 / 2)
        for number, name in enumerate(list(self.by_class), 1):
            if name in moved:
                self._begin_class(name, number)

    def _begin_class(self, name: str, number: int) -> None:
        test = self._new_test(3 / (pi * number) ** 2)
        if test is not None:
            self.by_class[name] = test

    @property
    def is_conclusive(self) -> bool:
        tests = [*self.by_class.values(), *(() if self.test is None else (self.test,))]
        return any(test.step_down_reason is not None or test.may_rise for test in tests)

    @property
    def asks(self) -> str | None:
        return None if self.test is None else self.test.step_down_reason

    def ended(self, episode: Episode) -> None:
        request, outcome = episode.request, episode.outcome
        proved = request.certified or request.promise == "budgeted"
        drawn = request.mode == "enforce" and proved and 0 < request.propensity < 1 and request.delivery == 1
        if self.test is None or not drawn or outcome.stop_step is None:
            return
        self._n_runs += 1
        name, most = class_of(request.query), MOST_OF_ONE if request.sender else MOST_CLASSES
        if name not in self.by_class and len(self.by_class) < MOST_CLASSES and self._n_named[request.sender] < most:
            self._begin_class(name, len(self.by_class) + 1)
            self._n_named[request.sender] += 1
        run = _RatableRun(name, request.audit, weight_of(request, outcome))
        remember(self._runs, request.episode_id, run, MOST_RUNS)

    def note_label(self, episode_id: str, given: Feedback) -> None:
        """Note a rating of a run; only the first one counts."""
        satisfaction = satisfaction_of(given)
        if self.test is None or satisfaction is None or episode_id not in self._runs:
            return
        if given.door == INFERENCE_KEY:
            if self._counted[given.sender] >= max(1, floor(MAX_SHARE * self._n_runs)):
                return
            self._counted[given.sender] += 1
        run = self._runs.pop(episode_id)
        self.test.add(satisfaction, audit=run.audit, weight=run.weight)
        if run.query_class in self.by_class:
            self.by_class[run.query_class].add(satisfaction, audit=run.audit, weight=run.weight)


def measures(declared: Mapping[str, Metric]) -> tuple[Measure, ...]:
    """All numeric measures of an answer; a category is one measure for each of its values."""
    result = [Measure(name=SATISFACTION)]
    result += [Measure(name=name, better="lower", level="conversation", silent=0.0) for name in EVENTS.values()]
    for name, metric in declared.items():
        span = span_of(metric)
        better = metric.direction
        level = metric.level
        if span is None:
            result += [Measure(name=f"{name}={word}", better=better, level=level) for word in metric.values]
        else:
            result.append(Measure(name=name, low=span[0], high=span[1], better=better, level=level))
    return tuple(result)


def feedback_of(
    episode: Episode, labels: Iterable[StoredLabel], declared: Mapping[str, Metric], *, uncertified: bool
) -> RunFeedback:
    """One governed run with its feedback. uncertified: the route's policy acts without a certificate."""
    request, outcome = episode.request, episode.outcome
    acts = request.mode == "enforce" and (request.certified or uncertified)
    return RunFeedback(
        query_class=class_of(request.query),
        version=request.policy_version,
        full=request.mode == "observe" or request.audit,
        stopped=outcome.stopped,
        # Selected by what is known before the draw takes effect: how the run ended depends on it.
        drawn=acts and 0 < request.propensity < 1 and outcome.stop_step is not None and request.delivery == 1,
        audit=request.audit,
        conversation=request.conversation or request.episode_id,
        propensity=request.propensity,
        feedback=tuple(value for label in labels if (value := _value(label, declared)) is not None),
        weight=weight_of(request, outcome),
        later=(
            log1p(0 if outcome.usage is None else outcome.usage.completion_tokens),
            float(request.audit and outcome.would_answer == outcome.answer),
        ),
    )


def _value(label: StoredLabel, declared: Mapping[str, Metric]) -> FeedbackValue | None:
    given = label.feedback
    values = tuple(_values(given, declared)) if given.source != JUDGE else ()
    if not values:
        return None
    return FeedbackValue(
        seq=label.seq,
        source=f"{given.sender} {given.user}",
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
            continue  # no longer declared: it stays in the log
        if metric.type == "category":
            yield from ((f"{name}={word}", float(word == value)) for word in metric.values)
        elif not isinstance(value, str):
            yield name, float(value)
