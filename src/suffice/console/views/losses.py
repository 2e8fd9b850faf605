"""What differs between the audits that a stop would have lost and those that it would have kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import sqrt
from statistics import NormalDist, fmean, variance
from typing import Final

from suffice.assurance.bounds import wilson
from suffice.assurance.runs import UNKNOWN_ENDS, current_label, is_right
from suffice.console.context import UnknownNameError, ViewContext, ViewRecord, page_of
from suffice.console.views.episodes import Correctness, walk_runs
from suffice.signals.query import class_of
from suffice.store.database.run_search import place_at
from suffice.store.database.views import read_labels
from suffice.store.routes.rollups import HOUR_S
from suffice.types import Episode, Query

MOST_AUDITS: Final = 600
LEAST_EACH: Final = 5  # lost and kept ones, for a comparison
MOST_LISTED: Final = 10
MOST_VALUES: Final = 12  # of one property
CONFIDENCE: Final = 0.95
NO_QUERY: Final = Query()


class PropertyContrast(ViewRecord, frozen=True):
    """One property of the runs. A share where `is_share`, else a mean."""

    name: str
    is_share: bool
    lost: float
    kept: float
    difference: float  # lost - kept
    low: float
    high: float

    @property
    def differs(self) -> bool:
        return self.low > 0 or self.high < 0

    @property
    def strength(self) -> float:
        return abs(self.difference) / max(1e-12, (self.high - self.low) / 2)


class LossContrast(ViewRecord, frozen=True):
    route: str
    query_class: str | None
    n_lost: int
    n_kept: int
    since_s: float | None  # Unix time of the oldest audit that was read; None: none was
    n_compared: int  # properties; their intervals hold together at 95 %
    contrasts: tuple[PropertyContrast, ...]  # the clearest first
    examples: tuple[str, ...]  # ids of lost audits, latest first


def read_losses(view: ViewContext) -> LossContrast:
    """Compare the latest audits of a scope. Raises UnknownNameError without a route."""
    scope = view.scope
    if scope.route is None:
        raise UnknownNameError("route: name one")
    audits, _, _ = page_of(view, _audits(view, scope.route), MOST_AUDITS)
    lost = [episode for _, episode, is_lost in audits if is_lost]
    kept = [episode for _, episode, is_lost in audits if not is_lost]
    contrasts = compare(lost, kept)
    return LossContrast(
        route=scope.route,
        query_class=scope.query_class,
        n_lost=len(lost),
        n_kept=len(kept),
        since_s=min((at_s for at_s, _, _ in audits), default=None),
        n_compared=len(contrasts),
        contrasts=contrasts[:MOST_LISTED],
        examples=tuple(one.request.episode_id for one in lost[:5]),
    )


def _audits(view: ViewContext, route: str) -> Iterator[tuple[int, tuple[float, Episode, bool] | None]]:
    """The audits of the scope with a stop, latest first, with whether the stop would have lost."""
    scope, judge = view.scope, Correctness(view).match(route)
    first = place_at(view.connection, scope.range.since_hour * HOUR_S) if scope.range.since_hour else 0
    before = place_at(view.connection, scope.range.until_hour * HOUR_S) + 1
    for place, run in walk_runs(view, route, before=before, first=first):
        if run is None or not _fits(run[1], scope.query_class, scope.version):
            yield place, None
            continue
        at_s, episode, _ = run
        ended = episode.outcome
        differs = ended.would_answer != ended.answer
        labels = read_labels(view.connection, episode.request.episode_id, ended.response_id) if differs else ()
        label = current_label(labels)
        full = is_right(ended.answer, ended.answer, label, judge)
        early = is_right(ended.would_answer, ended.answer, label, judge)
        # Without a label a difference counts as lost, as in the certificate.
        yield place, (at_s, episode, differs and (full is None or (full and not early)))


def _fits(episode: Episode, query_class: str | None, version: str | None) -> bool:
    request, outcome = episode.request, episode.outcome
    if not request.audit or request.ungoverned is not None or outcome.stop_step is None or outcome.stopped:
        return False
    if outcome.end_reason in UNKNOWN_ENDS or (version is not None and request.policy_version != version):
        return False
    return query_class is None or class_of(request.query) == query_class


def compare(lost: Sequence[Episode], kept: Sequence[Episode]) -> tuple[PropertyContrast, ...]:
    """Return the properties with their differences, the clearest first; (): too few audits.

    Bonferroni over all properties: means by Welch's standard error, shares by Newcombe (1998), Statistics in Medicine
    17(8), method 10.
    """
    if min(len(lost), len(kept)) < LEAST_EACH:
        return ()
    numbers = [(name, *pair) for name in _NUMBERS if (pair := _known(name, lost, kept)) is not None]
    values = list(_values(lost, kept))
    n = len(numbers) + len(values)
    confidence = 1 - (1 - CONFIDENCE) / max(1, n)
    contrasts = [_of_means(name, first, second, confidence) for name, first, second in numbers]
    contrasts += [
        _of_shares(name, (in_lost, len(lost)), (in_kept, len(kept)), confidence) for name, in_lost, in_kept in values
    ]
    return tuple(sorted(contrasts, key=lambda one: (-one.strength, one.name)))


_NUMBERS: Final[Mapping[str, Callable[[Episode], float | None]]] = {
    "words of the question": lambda one: (one.request.query or NO_QUERY).n_words,
    "numbers in the question": lambda one: (one.request.query or NO_QUERY).n_numbers,
    "operators in the question": lambda one: (one.request.query or NO_QUERY).n_operators,
    "step of the stop": lambda one: one.outcome.stop_step,
    "steps of the full run": lambda one: len(one.outcome.steps) or None,
    "tokens of the full run": lambda one: None if one.outcome.usage is None else one.outcome.usage.completion_tokens,
}


def _known(name: str, lost: Sequence[Episode], kept: Sequence[Episode]) -> tuple[list[float], list[float]] | None:
    sides = [[float(value) for one in side if (value := _NUMBERS[name](one)) is not None] for side in (lost, kept)]
    if min(map(len, sides)) < LEAST_EACH or len({*sides[0], *sides[1]}) < 2:
        return None
    return sides[0], sides[1]


def _values(lost: Sequence[Episode], kept: Sequence[Episode]) -> Iterator[tuple[str, int, int]]:
    """Each value of the properties that are words, with its number of lost and of kept audits."""
    counts = [Counter(value for one in side for value in _words(one)) for side in (lost, kept)]
    by_property = dict[str, list[str]]()
    for name in counts[0] + counts[1]:
        by_property.setdefault(name.partition(" ")[0], []).append(name)
    for names in by_property.values():
        if len(names) > 1 or 0 < counts[0][names[0]] + counts[1][names[0]] < len(lost) + len(kept):
            for name in sorted(names, key=lambda one: -(counts[0][one] + counts[1][one]))[:MOST_VALUES]:
                yield name, counts[0][name], counts[1][name]


def _words(one: Episode) -> Iterator[str]:
    request, query = one.request, one.request.query or NO_QUERY
    named = {"class": class_of(query), "type": query.question_type, "script": query.script, "model": one.outcome.model}
    named |= {"version": request.policy_version, **{f"metadata.{name}": value for name, value in query.metadata}}
    for name, value in named.items():
        if value:
            yield f"{name} {value}"


def _of_means(name: str, lost: Sequence[float], kept: Sequence[float], confidence: float) -> PropertyContrast:
    radius = NormalDist().inv_cdf((1 + confidence) / 2) * sqrt(variance(lost) / len(lost) + variance(kept) / len(kept))
    return _contrast(name, (fmean(lost), fmean(kept)), (radius, radius), is_share=False)


def _of_shares(name: str, lost: tuple[int, int], kept: tuple[int, int], confidence: float) -> PropertyContrast:
    shares = lost[0] / lost[1], kept[0] / kept[1]
    first, second = wilson(*lost, confidence), wilson(*kept, confidence)
    below = sqrt((shares[0] - first.low) ** 2 + (second.high - shares[1]) ** 2)
    above = sqrt((first.high - shares[0]) ** 2 + (shares[1] - second.low) ** 2)
    return _contrast(name, shares, (below, above), is_share=True)


def _contrast(
    name: str, values: tuple[float, float], margins: tuple[float, float], *, is_share: bool
) -> PropertyContrast:
    """Of lost and kept runs; `margins` are how far the interval of the difference reaches below and above it."""
    lost, kept = values
    difference = lost - kept
    return PropertyContrast(
        name=name,
        is_share=is_share,
        lost=lost,
        kept=kept,
        difference=difference,
        low=difference - margins[0],
        high=difference + margins[1],
    )
