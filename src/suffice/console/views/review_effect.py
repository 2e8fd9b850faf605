"""What a reviewer's verdicts of the last hour have done to the bound on the EM drop of a route."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Final

from suffice.assurance.estimate import em_drop_of
from suffice.console.context import ViewContext
from suffice.console.views.episodes import Correctness
from suffice.sanitize import plural
from suffice.store.database.views import EpisodeWithLabels, find_runs, last_place
from suffice.store.people.deciding import read_reviews
from suffice.store.routes.rollups import RouteScorer, measure_governed_run, tally_now

SESSION_S: Final = 3_600.0
MOST_VERDICTS: Final = 100
_BY_REVIEW: Final = "review:"  # prefix of the ids of labels that come of verdicts


def bound_moved(view: ViewContext, item: str) -> str:
    """Say how far the route's bound on the EM drop is from what it would be without these verdicts.

    The bound is the upper end of the EM drop as every page has it; both come from the same tally.
    """
    places = read_reviews(view.connection, view.visit.context.cache.reviews).queue.places
    route, name = places[item].item.route, view.visit.principal.name
    mine = [
        one.item.episode_id
        for one in places.values()
        if one.item.route == route
        and (verdict := one.verdict_of(name)) is not None
        and view.now_s - verdict.given_at_s < SESSION_S
    ][-MOST_VERDICTS:]
    scorer, log = RouteScorer("", Correctness(view).match(route)), view.connection
    now = tally_now(log, route, scorer)
    if now is None or not mine:
        return ""
    before = copy.deepcopy(now)
    for _, run in find_runs(log, mine, until_seq=last_place(log)).values():
        request = run.episode.request
        if request.ungoverned is None:
            after, without = (measure_governed_run(one, scorer.match) for one in (run, _without_review(run)))
            before.relabel(after, without)
    bounds = [em_drop_of(one) for one in (before, now)]
    highs = [100 * one.high for one in bounds if one is not None and one.high is not None]
    if len(highs) < 2:
        return f"No bound on the EM drop of {route} yet: it takes audits."
    words = f"Your {plural(len(mine), 'verdict')} of the last hour"
    if round(highs[0], 2) == round(highs[1], 2):
        return f"{words} left the bound on the EM drop of {route} at {highs[1]:.2f} points."
    return f"{words} moved the bound on the EM drop of {route} from {highs[0]:.2f} to {highs[1]:.2f} points."


def _without_review(run: EpisodeWithLabels) -> EpisodeWithLabels:
    return replace(run, labels=tuple(one for one in run.labels if not one.feedback.feedback_id.startswith(_BY_REVIEW)))
