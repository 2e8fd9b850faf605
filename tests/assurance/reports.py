"""A report of episodes in memory, and a verdict on ratings, in one call each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from suffice.assurance.estimate import RouteReport, report_of
from suffice.assurance.runs import LabelledEpisode, Match, Tally, measure_run
from suffice.assurance.sampling import UnloggedRequests
from suffice.assurance.satisfaction import SatisfactionTest


def estimate_route(
    episodes: Iterable[LabelledEpisode],
    *,
    route: str,
    match: Match,
    confidence: float = 0.95,
    unkept: Iterable[UnloggedRequests] = (),
) -> RouteReport:
    tally = Tally()
    for item in episodes:
        request = item.episode.request
        tally.n_begun += 1
        tally.add(request, item.episode.outcome, None if request.ungoverned is not None else measure_run(item, match))
    for cell in unkept:
        tally.add_unkept(cell)
    return report_of(tally, route=route, confidence=confidence)


class RatedRun(NamedTuple):
    """An audit, or a stopped run that could have been drawn as one, with its rating."""

    satisfaction: float
    audit: bool
    weight: float = 1.0


def judge_satisfaction(ratings: Iterable[RatedRun], *, min_satisfaction: float, delta: float) -> SatisfactionTest:
    """The test after the ratings of one route, in order of arrival, up to the one that steps down."""
    test = SatisfactionTest(min_satisfaction=min_satisfaction, delta=delta)
    for rated in ratings:
        test.add(rated.satisfaction, audit=rated.audit, weight=rated.weight)
        if test.step_down_reason is not None:
            break
    return test
