"""The table of all endpoints of the console and its API, and their handlers: pages, JSON, forms, files, the login."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final
from urllib.parse import quote, urlencode

import msgspec

from suffice.console import openapi, render
from suffice.console.actions import ACTIONS, EXPORTS
from suffice.console.auth import NOBODY, ROLES, Principal, Roster, may
from suffice.console.context import (
    WINDOWS,
    Action,
    ActionResult,
    ConsoleContext,
    ConsoleEndpoint,
    View,
    ViewContext,
    parse_window,
)
from suffice.console.exchange import HTML, JSON, SSE, Answer, ConsoleRequest, to
from suffice.console.openapi import VERSION
from suffice.console.views.alerts import AlertReader, AlertsPage, Incidents, incidents
from suffice.console.views.episodes import ENDS, SAID, Changes, EpisodePage, Episodes, changes, episode, episodes
from suffice.console.views.overview import Overview, overview
from suffice.console.views.policies import (
    Analyse,
    Evidence,
    Experiments,
    ExperimentView,
    PoliciesView,
    RolloutAssessment,
    experiments,
    policies,
    view_assessment,
    view_experiment,
)
from suffice.console.views.review import FileOf, Reader, ReviewPage
from suffice.console.views.routes import RoutePage, Routes, route, routes
from suffice.console.views.settings import SettingsPage, settings_page
from suffice.errors import BadRequest
from suffice.store.database.views import newest_of
from suffice.store.routes import rollups
from suffice.store.routes.in_force import read_decided

HOME: Final = "/console"
FOREVER: Final = (("cache-control", "public, max-age=31536000, immutable"),)
_BACK: Final = re.compile(r"/console(?:[/?][A-Za-z0-9._~:/?=&%+*-]{0,500})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class NavEntry:
    name: str
    href: str
    is_here: bool


def _always() -> tuple[ConsoleEndpoint, ...]:
    return (
        ConsoleEndpoint("GET", "/console/static/{version}/{name}", "nobody", _static, "a file", "*/*"),
        ConsoleEndpoint("GET", "/console/login", "nobody", _login_page, "the login", HTML),
        ConsoleEndpoint("POST", "/console/login", "nobody", _login, "log in", HTML),
        ConsoleEndpoint("POST", "/console/logout", "reviewer", _logout, "log out", HTML),
        ConsoleEndpoint(
            "GET",
            "/console/review/changed",
            "reviewer",
            _changed,
            "what a verdict changed",
            HTML,
            asks={"item": "its episode"},
        ),
        ConsoleEndpoint("GET", "/console/live", "reviewer", _live, "the first page live", SSE),
        ConsoleEndpoint("GET", "/api/openapi.json", "reviewer", _no_table, "this description"),
    )


def endpoints_of(
    views: tuple[View, ...], actions: tuple[Action, ...] = (), more: tuple[ConsoleEndpoint, ...] = ()
) -> tuple[ConsoleEndpoint, ...]:
    return (
        *_always(),
        *(one for view in views for one in _endpoints_of_view(view, views)),
        *(one for action in actions for one in _endpoints_of_action(action)),
        *more,
    )


def _endpoints_of_view(view: View, views: tuple[View, ...]) -> tuple[ConsoleEndpoint, ConsoleEndpoint]:
    async def show(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> Answer:
        if not render.can_render():
            return Answer(status=501, body=render.no_pages())
        result = await desk.read(lambda look: view.read(look, asked, visitor))
        values = _values(desk, asked, visitor, view.title, places(views, visitor, view.place or view.title)) | {
            "it": result
        }
        if not asked.is_partial:
            values["first"] = await desk.off_loop(desk.first)
        # A part of a page that somebody asks for by itself is a page of its own.
        own = view.template or f"{view.path[1:]}.html"
        template = "part.html" if own.startswith("_") and not asked.is_partial else own
        return Answer(body=await desk.off_loop(lambda: render.page(template, values | {"part": own})))

    async def tell(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> Answer:
        result = await desk.read(lambda look: msgspec.json.encode(view.read(look, asked, visitor)))
        return Answer(kind=JSON, body=result)

    page, api = f"{HOME}{view.path}", f"/api{view.api_path if view.api_path is not None else view.path}"
    return (
        ConsoleEndpoint("GET", page, view.needs, show, view.title, HTML, asks=view.asks),
        ConsoleEndpoint("GET", api, view.needs, tell, view.title, record=view.record, asks=view.asks),
    )


def _endpoints_of_action(action: Action) -> tuple[ConsoleEndpoint, ConsoleEndpoint]:
    async def done(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> ActionResult:
        result = await desk.off_loop(lambda: action.do(desk, asked, visitor))
        desk.told()
        return result

    async def from_form(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> Answer:
        result = await done(desk, asked, visitor)
        if result.said:
            desk.tell(visitor, result.said)
        return to(result.goes_to or back_of(asked))

    async def from_program(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> Answer:
        result = await done(desk, asked, visitor)
        return Answer(kind=JSON, body=msgspec.json.encode({"done": True, "said": result.said}))

    needs, summary, asks = action.needs, action.summary, action.asks
    return (
        ConsoleEndpoint("POST", f"{HOME}{action.path}", needs, from_form, summary, HTML, asks=asks),
        ConsoleEndpoint("POST", f"/api{action.path}", needs, from_program, summary, asks=asks),
    )


def places(views: tuple[View, ...], visitor: Principal, here: str) -> tuple[NavEntry, ...]:
    """The navigation for somebody: the first view of each place that their role may see."""
    first = dict[str, View]()
    for view in views:
        first.setdefault(view.place or view.title, view)
    role = visitor.role
    return tuple(
        NavEntry(name=place, href=f"{HOME}{view.path}", is_here=place == here)
        for place, view in first.items()
        if role is not None and may(role, view.needs)
    )


def _values(
    desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal, title: str, navigation: tuple[NavEntry, ...]
) -> dict[str, Any]:
    query = asked.query
    return {
        "title": title,
        "first": (),
        "places": navigation,
        "visitor": visitor,
        "told": desk.told_to(visitor),
        "now_s": desk.now(),
        "here": asked.path,
        "query": query,
        "csrf": visitor.token,
        "windows": tuple(WINDOWS),
        "version": VERSION,
        "is_admin": visitor.role == ROLES[-1],
        "here_whole": _here(asked),
    }


def _here(asked: ConsoleRequest) -> str:
    return asked.path + (f"?{urlencode(asked.query)}" if asked.query else "")


def back_of(asked: ConsoleRequest) -> str:
    place = asked.form.get("back", "")
    return place if _BACK.fullmatch(place) and "//" not in place else HOME


# ---- coming and going ------------------------------------------------------------------------------


def to_login(asked: ConsoleRequest) -> Answer:
    if asked.is_partial:
        return Answer(status=401, headers=(("hx-redirect", "/console/login"),))
    wanted = _here(asked) if asked.method in ("GET", "HEAD") and _BACK.fullmatch(_here(asked)) else HOME
    return to("/console/login" if wanted == HOME else f"/console/login?back={quote(wanted, safe='')}")


async def _login_page(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> Answer:
    if visitor.person is not None:
        return to(HOME)
    return _login_form(desk, asked, back=asked.query.get("back", HOME), problem="", status=200)


async def _login(desk: ConsoleContext, asked: ConsoleRequest, _visitor: Principal) -> Answer:
    come_in = desk.doors.login(asked)
    if come_in is None:
        return _login_form(desk, asked, back=back_of(asked), problem="That secret opens nothing here.", status=401)
    return to(back_of(asked)).with_headers(*come_in.headers)


def _login_form(desk: ConsoleContext, asked: ConsoleRequest, *, back: str, problem: str, status: int) -> Answer:
    if not render.can_render():
        return Answer(status=501, body=render.no_pages())
    if desk.doors.roster() is None:
        values = _values(desk, asked, NOBODY, "Log in", ()) | {"back": "", "problem": "", "is_open": False}
        return Answer(status=200, body=render.page("login.html", values))
    token, cookie = desk.doors.login_page(asked)
    values = _values(desk, asked, NOBODY, "Log in", ()) | {"back": back, "problem": problem, "is_open": True}
    return Answer(status=status, body=render.page("login.html", values | {"csrf": token}), headers=(cookie,))


async def _logout(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> Answer:
    return to("/console/login").with_headers(desk.doors.logout(visitor, asked))


def sorry(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal, status: int, message: str) -> Answer:
    if not render.can_render():
        return Answer(status=status if status < 500 else 501, body=render.no_pages())
    values = _values(desk, asked, visitor, "That did not work", ()) | {"status": status, "message": message}
    return Answer(status=status, body=render.page("sorry.html", values))


# ---- files, the description, the first page live ---------------------------------------------------


async def _static(_desk: ConsoleContext, asked: ConsoleRequest, _visitor: Principal) -> Answer:
    try:
        body, kind = render.static(asked.fields["name"])
    except (KeyError, OSError):
        raise BadRequest("no such file", status=404, code="not_found") from None
    return Answer(kind=kind, body=body, headers=FOREVER)


async def _no_table(_desk: ConsoleContext, _asked: ConsoleRequest, _visitor: Principal) -> Answer:
    raise BadRequest("the description is made with the whole table", status=404, code="not_found")


def with_description(doors: tuple[ConsoleEndpoint, ...]) -> tuple[ConsoleEndpoint, ...]:
    """The table with the door that describes it.

    The description is made when somebody first asks, off the loop: it takes longer than all else at a gateway's start.
    """
    body = cache(lambda: msgspec.json.encode(openapi.document(doors)))

    async def describe(desk: ConsoleContext, _asked: ConsoleRequest, _visitor: Principal) -> Answer:
        return Answer(kind=JSON, body=await desk.off_loop(body))

    return tuple(replace(one, run=describe) if one.path == "/api/openapi.json" else one for one in doors)


async def _changed(desk: ConsoleContext, asked: ConsoleRequest, _visitor: Principal) -> Answer:
    result = await desk.off_loop(lambda: desk.effect_of(asked.query.get("item", "")))
    return Answer(body=html.escape(result).encode())


async def _live(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> Answer:
    window = parse_window(asked.query, desk.now()).name
    if desk.live.is_full:
        raise BadRequest("too many pages watch already; load the page again later", status=503, code="too_many")
    session = visitor.session
    if session is None:
        raise BadRequest("only a page may watch", status=403, code="no_session")
    return Answer(
        kind=SSE,
        stream=desk.live.watch(window, lambda: desk.doors.holds(session)),
        headers=(("x-accel-buffering", "no"),),
    )


async def mark_of(desk: ConsoleContext, window: str) -> object:
    def look_at(look: ViewContext) -> object:
        read_to = rollups.read_to(look.connection)
        return window, read_to.seq, read_decided(look.connection).seq, newest_of(look.connection, ("alert_sent",))

    return await desk.read(look_at)


async def live_part(desk: ConsoleContext, window: str, alerts: AlertReader) -> bytes:
    asked = ConsoleRequest(method="GET", path=HOME, headers={}, query={"days": window}, form={}, address="")

    def part(look: ViewContext) -> bytes:
        result = overview(alerts)(look, asked, NOBODY)
        return render.page("_overview.html", {"it": result, "now_s": look.now_s, "windows": tuple(WINDOWS)})

    return await desk.read(part)


DAYS: Final = {"days": f"of the totals: {', '.join(WINDOWS)}"}
RUNS: Final = {
    "route": "only this one",
    "end": f"how it ended: {', '.join(one for one in ENDS if one)}",
    "said": f"what was said of it: {', '.join(one for one in SAID if one)}",
    "class": "of questions",
    "before": "place in the log to go on from, `older` of the page before",
    "limit": "runs in one answer, at most 500",
}
CHANGES: Final = {"kind": "of change", "route": "only this one", "before": "place in the log"}
ROUTES, EPISODES, POLICIES, EXPERIMENTS = "Routes & classes", "Episodes", "Policies & rollouts", "Experiments"


def endpoint_table(
    roster: Callable[[], Roster | None], from_file: FileOf, analyse: Analyse, evidence: Evidence, reader: AlertReader
) -> tuple[ConsoleEndpoint, ...]:
    """Every endpoint there is: a path that is not here does not exist.

    roster     the people as they are now: admins see who may come in
    from_file  texts of questions that the log does not keep
    analyse    what a run of an experiment shows now
    evidence   what the evidence says of a rollout now
    told       reads who was told of which alert
    """
    views = (  # in the order of the navigation
        View("", "Overview", overview(reader), Overview, DAYS, template="overview.html", api_path="/overview"),
        View("/routes", ROUTES, routes, Routes, DAYS),
        View("/route", "Route", route, RoutePage, {"name": "of the route", **DAYS}, ROUTES),
        View("/episodes", EPISODES, episodes, Episodes, RUNS),
        View("/episodes/{id}", "Episode", episode, EpisodePage, {}, EPISODES, "episode.html"),
        View("/policies", POLICIES, policies, PoliciesView),
        View("/experiments", EXPERIMENTS, experiments, Experiments),
        # Parts of pages that take a while to find out: the pages ask for them once they are there.
        View(
            "/policies/weighed",
            "What the evidence says of a rollout",
            view_assessment(evidence),
            RolloutAssessment,
            {"route": "of the rollout"},
            POLICIES,
            "_weighed.html",
        ),
        View(
            "/experiments/shown",
            "What an experiment shows",
            view_experiment(analyse),
            ExperimentView,
            {"name": "of the experiment"},
            EXPERIMENTS,
            "_experiment.html",
        ),
        View("/review", "Review", Reader(from_file).page, ReviewPage),
        View("/alerts", "Alerts", reader.page, AlertsPage),
        View("/incidents", "Incidents", incidents, Incidents),
        View("/changes", "Audit log", changes, Changes, CHANGES),
        View("/settings", "Settings", settings_page(roster), SettingsPage, needs="admin"),
    )
    return with_description(endpoints_of(views, ACTIONS, EXPORTS))
