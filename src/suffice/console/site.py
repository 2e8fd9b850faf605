"""The console's table: everything that can be looked at and everything that can be done, with the role it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from suffice.console import exports
from suffice.console.actions import DEEDS
from suffice.console.pages import doors_of, with_description
from suffice.console.people import Roster
from suffice.console.table import ConsoleEndpoint, View
from suffice.console.view_context import WINDOWS
from suffice.console.views.alerts import AlertReader, AlertsPage
from suffice.console.views.changes import Changes, changes
from suffice.console.views.episodes import ENDS, SAID, EpisodePage, Episodes, episode, episodes
from suffice.console.views.experiments import Analyse, Experiments, ExperimentView, experiments, view_experiment
from suffice.console.views.incidents import Incidents, incidents
from suffice.console.views.overview import Overview, overview
from suffice.console.views.policies import Evidence, PoliciesView, RolloutAssessment, policies, view_assessment
from suffice.console.views.review import FileOf, Reader, ReviewPage
from suffice.console.views.routes import RoutePage, Routes, route, routes
from suffice.console.views.settings import SettingsPage, settings_page

DAYS: Final = {"days": f"of the totals: {', '.join(WINDOWS)}"}
RUNS: Final = {
    "route": "only this one",
    "end": f"how it ended: {', '.join(one for one in ENDS if one)}",
    "said": f"what was said of it: {', '.join(one for one in SAID if one)}",
    "class": "of questions",
    "before": "place in the log to go on from, `older` of the page before",
    "limit": "runs in one answer, at most 500",
}


# In the order of the navigation; a view without a place of its own stands below another one.
FIRST: Final = (
    View(
        path="/routes",
        read=routes,
        record=Routes,
        template="routes.html",
        title="Routes & classes",
        place="Routes & classes",
        asks=DAYS,
    ),
    View(
        path="/route",
        read=route,
        record=RoutePage,
        template="route.html",
        title="Route",
        place="Routes & classes",
        asks={"name": "of the route", **DAYS},
    ),
    View(
        path="/episodes",
        read=episodes,
        record=Episodes,
        template="episodes.html",
        title="Episodes",
        place="Episodes",
        asks=RUNS,
    ),
    View(
        path="/episodes/{id}",
        read=episode,
        record=EpisodePage,
        template="episode.html",
        title="Episode",
        place="Episodes",
    ),
    View(
        path="/policies",
        read=policies,
        record=PoliciesView,
        template="policies.html",
        title="Policies & rollouts",
        place="Policies & rollouts",
    ),
    View(
        path="/experiments",
        read=experiments,
        record=Experiments,
        template="experiments.html",
        title="Experiments",
        place="Experiments",
    ),
)
LAST: Final = (
    View(
        path="/incidents",
        read=incidents,
        record=Incidents,
        template="incidents.html",
        title="Incidents",
        place="Incidents",
    ),
    View(
        path="/changes",
        read=changes,
        record=Changes,
        template="changes.html",
        title="Audit log",
        place="Audit log",
        asks={"kind": "of change", "route": "only this one", "before": "place in the log"},
    ),
)


def endpoint_table(
    roster: Callable[[], Roster | None], from_file: FileOf, analyse: Analyse, evidence: Evidence, told: AlertReader
) -> tuple[ConsoleEndpoint, ...]:
    """Every door there is.

    roster     the people as they are now: admins see who may come in
    from_file  texts of questions that the log does not keep
    analyse    what a run of an experiment shows now
    evidence   what the evidence says of a rollout now
    told       reads who was told of which alert
    """
    first = View(
        path="",
        api_path="/overview",
        read=overview(told),
        record=Overview,
        template="overview.html",
        title="Overview",
        place="Overview",
        asks=DAYS,
    )
    review = View(
        path="/review",
        read=Reader(from_file).page,
        record=ReviewPage,
        template="review.html",
        title="Review",
        place="Review",
    )
    alerts = View(
        path="/alerts",
        read=told.page,
        record=AlertsPage,
        template="alerts.html",
        title="Alerts",
        place="Alerts",
    )
    settings = View(
        path="/settings",
        read=settings_page(roster),
        record=SettingsPage,
        template="settings.html",
        title="Settings",
        place="Settings",
        needs="admin",
    )
    views = (first, *FIRST, *_assessments(evidence, analyse), review, alerts, *LAST, settings)
    return with_description(doors_of(views, DEEDS, exports.DOORS))


def _assessments(evidence: Evidence, analyse: Analyse) -> tuple[View, ...]:
    return (
        View(
            path="/policies/weighed",
            read=view_assessment(evidence),
            record=RolloutAssessment,
            template="_weighed.html",
            title="What the evidence says of a rollout",
            place="Policies & rollouts",
            asks={"route": "of the rollout"},
        ),
        View(
            path="/experiments/shown",
            read=view_experiment(analyse),
            record=ExperimentView,
            template="_experiment.html",
            title="What an experiment shows",
            place="Experiments",
            asks={"name": "of the experiment"},
        ),
    )
