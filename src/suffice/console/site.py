"""The table of all endpoints of the console and its API, and their handlers: pages, JSON, forms, files, login."""

from __future__ import annotations

import html
import re
from functools import cache
from typing import Any, Final
from urllib.parse import quote, urlencode

import msgspec

from suffice.console import openapi, render
from suffice.console.actions import ACTIONS, EXPORTS, ActionForm
from suffice.console.auth import NOBODY, ROLES, Principal, may
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
from suffice.console.exchange import HTML, JSON, SSE, ConsoleRequest, ConsoleResponse, json_response, redirect
from suffice.console.views.alerts import AlertsPage, Incidents, alerts, incidents
from suffice.console.views.episodes import (
    ENDS,
    LABEL_FILTERS,
    Changes,
    EpisodePage,
    Episodes,
    changes,
    episode,
    episodes,
)
from suffice.console.views.overview import Overview, overview
from suffice.console.views.policies import (
    Experiments,
    ExperimentView,
    PoliciesView,
    RolloutAssessment,
    experiments,
    policies,
    view_assessment,
    view_experiment,
)
from suffice.console.views.review import ReviewPage, review_page
from suffice.console.views.routes import RoutePage, Routes, route, routes
from suffice.console.views.settings import SettingsPage, settings_page
from suffice.errors import BadRequest
from suffice.store.database.views import newest_of
from suffice.store.routes import rollups
from suffice.store.routes.deployments import read_decided

HOME: Final = "/console"
FOREVER: Final = (("cache-control", "public, max-age=31536000, immutable"),)
_BACK: Final = re.compile(r"/console(?:[/?][A-Za-z0-9._~:/?=&%+*-]{0,500})?")


# ---- pages and actions -----------------------------------------------------------------------------


def endpoints_of_view(view: View, views: tuple[View, ...]) -> tuple[ConsoleEndpoint, ConsoleEndpoint]:
    async def page(context: ConsoleContext, request: ConsoleRequest, principal: Principal) -> ConsoleResponse:
        if not render.can_render():
            return ConsoleResponse(status=501, body=render.missing_package_page())
        record = await context.read(request, principal, view.read)
        values = _values(context, request, principal, view.title)
        values |= {"it": record, "places": navigation(views, principal, view.place or view.title)}
        if not request.is_partial:
            values["first"] = await context.in_thread(context.services.warnings)
        # A part of a page that is requested alone is rendered as a page of its own.
        own = view.template or f"{view.path[1:]}.html"
        template = "part.html" if own.startswith("_") and not request.is_partial else own
        return ConsoleResponse(body=await context.in_thread(lambda: render.page(template, values | {"part": own})))

    async def api(context: ConsoleContext, request: ConsoleRequest, principal: Principal) -> ConsoleResponse:
        return await context.read(request, principal, lambda look: json_response(view.read(look)))

    path = f"/api{view.path if view.api_path is None else view.api_path}"
    return (
        ConsoleEndpoint("GET", f"{HOME}{view.path}", view.needs, page, view.title, HTML, fields=view.fields),
        ConsoleEndpoint("GET", path, view.needs, api, view.title, record=view.record, fields=view.fields),
    )


def endpoints_of_action(action: Action) -> tuple[ConsoleEndpoint, ConsoleEndpoint]:
    async def run(context: ConsoleContext, request: ConsoleRequest, principal: Principal) -> ActionResult:
        result = await context.in_thread(lambda: action.run(ActionForm(context, request, principal)))
        context.services.notify()
        return result

    async def page(context: ConsoleContext, request: ConsoleRequest, principal: Principal) -> ConsoleResponse:
        result = await run(context, request, principal)
        if result.message:
            context.leave_message(principal, result.message)
        return redirect(result.goes_to or _back_of(request))

    async def api(context: ConsoleContext, request: ConsoleRequest, principal: Principal) -> ConsoleResponse:
        result = await run(context, request, principal)
        return json_response({"done": True, "said": result.message})

    needs, summary, fields = action.needs, action.summary, action.fields
    return (
        ConsoleEndpoint("POST", f"{HOME}{action.path}", needs, page, summary, HTML, fields=fields),
        ConsoleEndpoint("POST", f"/api{action.path}", needs, api, summary, fields=fields),
    )


def navigation(views: tuple[View, ...], principal: Principal, here: str) -> tuple[dict[str, Any], ...]:
    """The first view of each place that the principal's role allows."""
    first = dict[str, View]()
    for view in views:
        first.setdefault(view.place or view.title, view)
    role = principal.role
    return tuple(
        {"name": place, "href": f"{HOME}{view.path}", "is_here": place == here}
        for place, view in first.items()
        if role is not None and may(role, view.needs)
    )


def _values(context: ConsoleContext, request: ConsoleRequest, principal: Principal, title: str) -> dict[str, Any]:
    return {
        "title": title,
        "first": (),
        "places": (),
        "visitor": principal,
        "told": context.take_message(principal),
        "now_s": context.now(),
        "here": request.path,
        "query": request.query,
        "csrf": principal.token,
        "windows": tuple(WINDOWS),
        "version": openapi.VERSION,
        "is_admin": principal.role == ROLES[-1],
        "here_whole": _address(request),
    }


def _address(request: ConsoleRequest) -> str:
    return request.path + (f"?{urlencode(request.query)}" if request.query else "")


def _back_of(request: ConsoleRequest) -> str:
    place = request.form.get("back", "")
    return place if _BACK.fullmatch(place) and "//" not in place else HOME


# ---- login and errors ------------------------------------------------------------------------------


def redirect_to_login(request: ConsoleRequest) -> ConsoleResponse:
    if request.is_partial:
        return ConsoleResponse(status=401, headers=(("hx-redirect", "/console/login"),))
    here = _address(request)
    is_page = request.method in ("GET", "HEAD") and _BACK.fullmatch(here) and here != HOME
    return redirect(f"/console/login?back={quote(here, safe='')}" if is_page else "/console/login")


async def _login_page(context: ConsoleContext, request: ConsoleRequest, principal: Principal) -> ConsoleResponse:
    if principal.person is not None:
        return redirect(HOME)
    return _login_form(context, request, back=request.query.get("back", HOME), problem="", status=200)


async def _login(context: ConsoleContext, request: ConsoleRequest, _principal: Principal) -> ConsoleResponse:
    cookies = context.auth.login(request)
    if cookies is None:
        problem = "This secret is not valid."
        return _login_form(context, request, back=_back_of(request), problem=problem, status=401)
    return redirect(_back_of(request)).with_headers(*cookies)


def _login_form(
    context: ConsoleContext, request: ConsoleRequest, *, back: str, problem: str, status: int
) -> ConsoleResponse:
    if not render.can_render():
        return ConsoleResponse(status=501, body=render.missing_package_page())
    values = _values(context, request, NOBODY, "Log in")
    if context.auth.roster() is None:
        return ConsoleResponse(body=render.page("login.html", values | {"back": "", "problem": "", "is_open": False}))
    token, cookie = context.auth.login_page(request)
    values |= {"back": back, "problem": problem, "is_open": True, "csrf": token}
    return ConsoleResponse(status=status, body=render.page("login.html", values), headers=(cookie,))


async def _logout(context: ConsoleContext, request: ConsoleRequest, principal: Principal) -> ConsoleResponse:
    return redirect("/console/login").with_headers(context.auth.logout(principal, request))


def error_page(
    context: ConsoleContext, request: ConsoleRequest, principal: Principal, status: int, message: str
) -> ConsoleResponse:
    if not render.can_render():
        return ConsoleResponse(status=status if status < 500 else 501, body=render.missing_package_page())
    values = _values(context, request, principal, "Request failed") | {"status": status, "message": message}
    return ConsoleResponse(status=status, body=render.page("sorry.html", values))


# ---- files, the description, the first page live ---------------------------------------------------


async def _static(_context: ConsoleContext, request: ConsoleRequest, _principal: Principal) -> ConsoleResponse:
    try:
        body, kind = render.static(request.fields["name"])
    except (KeyError, OSError):
        raise BadRequest("no such file", status=404, code="not_found") from None
    return ConsoleResponse(kind=kind, body=body, headers=FOREVER)


@cache
def _description() -> bytes:
    return msgspec.json.encode(openapi.document(ENDPOINTS))


async def _describe(context: ConsoleContext, _request: ConsoleRequest, _principal: Principal) -> ConsoleResponse:
    """Generated on first use and in a thread: it takes longer than the rest of a gateway's start."""
    return ConsoleResponse(kind=JSON, body=await context.in_thread(_description))


async def _changed(context: ConsoleContext, request: ConsoleRequest, _principal: Principal) -> ConsoleResponse:
    effect = await context.in_thread(lambda: context.services.effect_of(request.query.get("item", "")))
    return ConsoleResponse(body=html.escape(effect).encode())


async def _live(context: ConsoleContext, request: ConsoleRequest, principal: Principal) -> ConsoleResponse:
    window, session = parse_window(request.query, context.now()).name, principal.session
    if context.live.is_full:
        raise BadRequest("too many pages watch already; load the page again later", status=503, code="too_many")
    if session is None:
        raise BadRequest("only a page may watch", status=403, code="no_session")
    stream = context.live.watch(window, lambda: context.auth.is_valid(session))
    return ConsoleResponse(kind=SSE, stream=stream, headers=(("x-accel-buffering", "no"),))


async def mark_of(context: ConsoleContext, window: str) -> object:
    def mark(view: ViewContext) -> object:
        log = view.connection
        return window, rollups.read_to(log).seq, read_decided(log).seq, newest_of(log, ("alert_sent",))

    return await context.read(_first_page(window), NOBODY, mark)


async def live_part(context: ConsoleContext, window: str) -> bytes:
    def part(view: ViewContext) -> bytes:
        values = {"it": overview(view), "now_s": view.now_s, "windows": tuple(WINDOWS)}
        return render.page("_overview.html", values)

    return await context.read(_first_page(window), NOBODY, part)


def _first_page(window: str) -> ConsoleRequest:
    return ConsoleRequest(method="GET", path=HOME, query={"days": window})


# ---- the table -------------------------------------------------------------------------------------

DAYS: Final = {"days": f"of the totals: {', '.join(WINDOWS)}"}
RUNS: Final = {
    "route": "only this one",
    "end": f"how it ended: {', '.join(one for one in ENDS if one)}",
    "said": f"how it is labelled: {', '.join(one for one in LABEL_FILTERS if one)}",
    "class": "of questions",
    "before": "place in the log to go on from, `older` of the page before",
    "limit": "runs in one answer, at most 500",
}
CHANGES: Final = {"kind": "of change", "route": "only this one", "before": "place in the log"}
ROLLOUT, EXPERIMENT = {"route": "of the rollout"}, {"name": "of the experiment"}
ROUTES, EPISODES, POLICIES, EXPERIMENTS = "Routes & classes", "Episodes", "Policies & rollouts", "Experiments"
ASSESSMENT, RESULT = "What the evidence says of a rollout", "What an experiment shows"
VIEWS: Final = (  # in the order of the navigation
    View("", "Overview", overview, Overview, DAYS, template="overview.html", api_path="/overview"),
    View("/routes", ROUTES, routes, Routes, DAYS),
    View("/route", "Route", route, RoutePage, {"name": "of the route", **DAYS}, ROUTES),
    View("/episodes", EPISODES, episodes, Episodes, RUNS),
    View("/episodes/{id}", "Episode", episode, EpisodePage, {}, EPISODES, "episode.html"),
    View("/policies", POLICIES, policies, PoliciesView),
    View("/experiments", EXPERIMENTS, experiments, Experiments),
    # Parts that are slow to compute: the pages request them once displayed.
    View("/policies/weighed", ASSESSMENT, view_assessment, RolloutAssessment, ROLLOUT, POLICIES, "_weighed.html"),
    View("/experiments/shown", RESULT, view_experiment, ExperimentView, EXPERIMENT, EXPERIMENTS, "_experiment.html"),
    View("/review", "Review", review_page, ReviewPage),
    View("/alerts", "Alerts", alerts, AlertsPage),
    View("/incidents", "Incidents", incidents, Incidents),
    View("/changes", "Audit log", changes, Changes, CHANGES),
    View("/settings", "Settings", settings_page, SettingsPage, needs="admin"),
)
ITEM: Final = {"item": "its episode"}
ENDPOINTS: Final = (  # a path that is not here does not exist
    ConsoleEndpoint("GET", "/console/static/{version}/{name}", "nobody", _static, "a file", "*/*"),
    ConsoleEndpoint("GET", "/console/login", "nobody", _login_page, "the login", HTML),
    ConsoleEndpoint("POST", "/console/login", "nobody", _login, "log in", HTML),
    ConsoleEndpoint("POST", "/console/logout", "reviewer", _logout, "log out", HTML),
    ConsoleEndpoint(
        "GET", "/console/review/changed", "reviewer", _changed, "what a verdict changed", HTML, fields=ITEM
    ),
    ConsoleEndpoint("GET", "/console/live", "reviewer", _live, "the first page live", SSE),
    ConsoleEndpoint("GET", "/api/openapi.json", "reviewer", _describe, "this description"),
    *(one for view in VIEWS for one in endpoints_of_view(view, VIEWS)),
    *(one for action in ACTIONS for one in endpoints_of_action(action)),
    *EXPORTS,
)
