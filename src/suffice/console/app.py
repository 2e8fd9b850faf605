"""The console and the control API as one ASGI application: route, authenticate, handle, respond.

Every failure is a response (OpenAI's error shape, or a page) and never affects the gateway's requests.
"""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from secrets import token_hex
from typing import Any, Final
from urllib.parse import quote, urlencode

import msgspec

from suffice.asgi import Receive, Scope, Send
from suffice.console import exchange, openapi, render
from suffice.console.action_pages import ActionIndex, endpoints_of_action, index_of
from suffice.console.actions import ACTIONS
from suffice.console.auth import NOBODY, ROLES, Principal, may
from suffice.console.context import ConsoleContext, ConsoleEndpoint, ConsoleVisit, View, ViewContext
from suffice.console.exchange import HTML, JSON, ConsoleRequest, ConsoleResponse, cookie, json_response, redirect
from suffice.console.exports import EXPORTS
from suffice.console.oidc import ATTEMPT_S, Attempt, OidcLogin, person_from, read_attempt, require_package
from suffice.console.scope import SCOPE_FIELDS, SCOPE_PARTS, ScopePart
from suffice.console.shell import BELOW, HIDDEN, HOME, NO_CHOICES, linker, read_choices, shell_values
from suffice.console.views.alerts import alerts, incidents
from suffice.console.views.changes import GROUPS, changes
from suffice.console.views.episodes import ENDS, LABEL_FILTERS, SORTS, episode, episodes, live_runs
from suffice.console.views.find import FindPage, find
from suffice.console.views.losses import read_losses
from suffice.console.views.overview import overview
from suffice.console.views.policies import experiments, policies, view_assessment, view_experiment
from suffice.console.views.report import month_report
from suffice.console.views.review import bound_moved, check_item, review_page
from suffice.console.views.routes import route, routes
from suffice.console.views.settings import settings_page
from suffice.errors import BadRequest, SufficeError
from suffice.store.database.views import newest_of
from suffice.store.routes import rollups
from suffice.store.routes.deployments import read_decided
from suffice.telemetry import LOG
from suffice.upstream.wire import error_body

# ---- The table of all endpoints of the console and its API, and their handlers: pages, JSON, forms, files, login

OIDC: Final = "suffice_oidc"  # cookie of a login that has begun
FOREVER: Final = (("cache-control", "public, max-age=31536000, immutable"),)
_BACK: Final = re.compile(r"/console(?:[/?][A-Za-z0-9._~:/?=&%+*-]{0,500})?")


# ---- pages and actions -----------------------------------------------------------------------------


def endpoints_of_view(view: View, views: tuple[View, ...]) -> tuple[ConsoleEndpoint, ConsoleEndpoint]:
    async def page(visit: ConsoleVisit) -> ConsoleResponse:
        if not render.can_render():
            return _without_package(501)
        context, is_partial = visit.context, visit.request.is_partial
        template = view.template or f"{view.path[1:]}.html"
        it, choices = await context.read(
            visit, lambda look: (view.read(look), read_choices(look) if view.follows and not is_partial else NO_CHOICES)
        )
        values = {
            "it": it,
            "first": () if is_partial else await context.in_thread(context.services.warnings),
            "part": template,
            "partial": is_partial,
            **shell_values(views, view, visit.principal, visit.request.query, now_s=context.now(), choices=choices),
        }
        # A part of a page that is requested alone is rendered as a page of its own.
        whole = "part.html" if template.startswith("_") and not is_partial else template
        return await context.in_thread(lambda: _page(visit, whole, view.title, values))

    async def api(visit: ConsoleVisit) -> ConsoleResponse:
        return await visit.context.read(visit, lambda look: json_response(view.read(look)))

    path = f"/api{view.path if view.api_path is None else view.api_path}"
    return (
        ConsoleEndpoint(
            "GET", f"{HOME}{view.path}", view.needs, page, view.title, HTML, view.by_tenant, fields=view.fields
        ),
        ConsoleEndpoint(
            "GET", path, view.needs, api, view.title, JSON, view.by_tenant, record=view.record, fields=view.fields
        ),
    )


def _page(visit: ConsoleVisit, template: str, title: str, values: dict[str, Any], status: int = 200) -> ConsoleResponse:
    context, request, principal = visit.context, visit.request, visit.principal
    common: dict[str, Any] = {
        "title": title,
        "first": (),
        **shell_values(VIEWS, None, principal, request.query, now_s=context.now()),
        "visitor": principal,
        "notice": context.take_message(principal),
        "now_s": context.now(),
        "here": request.path,
        "query": request.query,
        "csrf": principal.token,
        "version": openapi.VERSION,
        "killed": context.services.killed(),
        "live_s": context.settings.console.live_s,
        "is_admin": principal.role == ROLES[-1],
        "may_operate": principal.role is not None and may(principal.role, "operator"),
        "here_whole": _address(request),
    }
    return ConsoleResponse(status=status, body=render.page(template, common | values))


def _without_package(status: int) -> ConsoleResponse:
    return ConsoleResponse(status=status, body=render.missing_package_page())


def _address(request: ConsoleRequest) -> str:
    return request.path + (f"?{urlencode(request.query)}" if request.query else "")


def _back_of(request: ConsoleRequest) -> str:
    place = request.form.get("back", "")
    return place if _BACK.fullmatch(place) and "//" not in place else HOME


# ---- login and errors ------------------------------------------------------------------------------


def redirect_to_runs() -> ConsoleResponse:
    return redirect(f"{HOME}/runs")


def redirect_to_login(request: ConsoleRequest) -> ConsoleResponse:
    if request.is_partial:
        return ConsoleResponse(status=401, headers=(("hx-redirect", "/console/login"),))
    here = _address(request)
    is_page = request.method in ("GET", "HEAD") and _BACK.fullmatch(here) and here != HOME
    return redirect(f"/console/login?back={quote(here, safe='')}" if is_page else "/console/login")


async def _login_page(visit: ConsoleVisit) -> ConsoleResponse:
    if visit.principal.person is not None:
        return redirect(HOME)
    return _login_form(visit, back=visit.request.query.get("back", HOME), problem="", status=200)


async def _login(visit: ConsoleVisit) -> ConsoleResponse:
    cookies, back = visit.context.auth.login(visit.request), _back_of(visit.request)
    if cookies is None:
        return _login_form(visit, back=back, problem="This secret is not valid.", status=401)
    return redirect(back).with_headers(*cookies)


def _login_form(visit: ConsoleVisit, *, back: str, problem: str, status: int) -> ConsoleResponse:
    auth, visit = visit.context.auth, replace(visit, principal=NOBODY)
    if not render.can_render():
        return _without_package(501)
    if auth.roster() is None:
        return _page(visit, "login.html", "Log in", {"back": "", "problem": "", "is_open": False})
    token, login_cookie = auth.login_page(visit.request)
    has_oidc = visit.context.oidc is not None
    values = {"back": back, "problem": problem, "is_open": True, "csrf": token, "has_oidc": has_oidc}
    return _page(visit, "login.html", "Log in", values, status).with_headers(login_cookie)


async def _begin_oidc(visit: ConsoleVisit) -> ConsoleResponse:
    oidc, key, request = _oidc_of(visit), visit.context.auth.signing_key(), visit.request
    back = request.query.get("back", HOME)
    attempt = Attempt(
        state=token_hex(16),
        expires_s=int(visit.context.now() + ATTEMPT_S),
        back=back if _BACK.fullmatch(back) and "//" not in back else HOME,
    )
    place = await oidc.address(attempt, key, redirect_uri=_callback_of(request))
    # Lax, because the provider sends the browser back: a Strict cookie would stay behind.
    begun = cookie(OIDC, attempt.cookie(key), age_s=ATTEMPT_S, secure=request.behind_tls, same_site="Lax")
    return ConsoleResponse(status=303, headers=(("location", place), begun))


async def _finish_oidc(visit: ConsoleVisit) -> ConsoleResponse:
    oidc, auth, request = _oidc_of(visit), visit.context.auth, visit.request
    key, over = auth.signing_key(), cookie(OIDC, "", age_s=0, secure=request.behind_tls, same_site="Lax")
    attempt = read_attempt(request.cookies.get(OIDC, ""), key, now_s=visit.context.now())
    try:
        identity = await oidc.finish(attempt, request.query, key, redirect_uri=_callback_of(request))
        if person_from(identity, oidc.settings.roles) is None:
            message = f"{identity.name} has none of the roles that [console.oidc.roles] names; ask an admin for one"
            raise BadRequest(message, status=403, code="role")
    except BadRequest as error:
        return error_page(replace(visit, principal=NOBODY), error.status, str(error)).with_headers(over)
    LOG.info("console: %s logged in at the identity provider", identity.name)
    session, back = auth.begin_session(f"~{identity.encode()}", request), HOME if attempt is None else attempt.back
    # Not a redirect: browsers send no Strict cookie with one that another site has begun.
    page = _page(replace(visit, principal=NOBODY), "signed_in.html", "Logged in", {"back": back})
    return page.with_headers(session, over)


def _oidc_of(visit: ConsoleVisit) -> OidcLogin:
    if visit.context.oidc is None:
        raise BadRequest("the settings name no identity provider, [console.oidc]", status=404, code="not_found")
    if not render.can_render():
        raise BadRequest("a login needs the console's pages", status=501, code="oidc")
    require_package()
    return visit.context.oidc


def _callback_of(request: ConsoleRequest) -> str:
    """The address to which the provider sends the browser back; the host's name was checked before."""
    scheme = "https" if request.behind_tls else "http"
    return f"{scheme}://{request.headers.get('host', '')}/console/oidc/callback"


async def _moved(visit: ConsoleVisit) -> ConsoleResponse:
    """An address of before, whose links are in old notices, bookmarks and programs."""
    request, mount = visit.request, HOME if visit.request.path.startswith(HOME) else "/api"
    before, after = next(one for one in RENAMED.items() if request.path.startswith(mount + one[0]))
    place = request.path.replace(before, after, 1)
    return redirect(f"{place}?{urlencode(request.query)}" if request.query else place, status=308)


async def _logout(visit: ConsoleVisit) -> ConsoleResponse:
    header = await asyncio.to_thread(visit.context.auth.logout, visit.principal, visit.request)
    return redirect("/console/login").with_headers(header)


def error_page(visit: ConsoleVisit, status: int, message: str) -> ConsoleResponse:
    if not render.can_render():
        return _without_package(status if status < 500 else 501)
    return _page(visit, "error.html", "Request failed", {"status": status, "message": message}, status)


# ---- files, the description, the first page live ---------------------------------------------------


async def _static(visit: ConsoleVisit) -> ConsoleResponse:
    try:
        body, kind = render.static(visit.request.fields["name"])
    except (KeyError, OSError):
        raise BadRequest("no such file", status=404, code="not_found") from None
    return ConsoleResponse(kind=kind, body=body, headers=FOREVER)


@cache
def _description() -> bytes:
    return msgspec.json.encode(openapi.document(ENDPOINTS))


async def _describe(visit: ConsoleVisit) -> ConsoleResponse:
    """Generated on first use and in a thread: it takes longer than the rest of a gateway's start."""
    return ConsoleResponse(kind=JSON, body=await visit.context.in_thread(_description))


async def _changed(visit: ConsoleVisit) -> ConsoleResponse:
    context, item = visit.context, visit.request.query.get("item", "")

    def moved(view: ViewContext) -> str:
        check_item(view.connection, item, view.tenants)
        return bound_moved(view, item) if view.tenants is None else ""

    sentence = await context.read(visit, moved)
    effect = await context.in_thread(lambda: context.services.effect_of(item))
    body = f"{html.escape(sentence)} <span class=muted>{html.escape(effect)}</span>"
    return ConsoleResponse(body=body.strip().encode())


async def _live(visit: ConsoleVisit) -> ConsoleResponse:
    return await visit.context.read(visit, _live_part)


def _live_part(view: ViewContext) -> ConsoleResponse:
    """The first page if it has changed since the page with this mark; to a page without one, its mark alone."""
    log, known, fields = view.connection, view.query.get("mark"), view.scope.fields
    address = urlencode(fields)
    mark = f"{rollups.read_to(log).seq}-{read_decided(log).seq}-{newest_of(log, ('alert_sent',))}"
    live, headers = view.visit.context.cache.live, (("x-mark", mark),)
    if known in (None, mark):
        return ConsoleResponse(headers=headers)
    if live.get(address, ("", b""))[0] != mark:
        values = {"it": overview(view), "now_s": view.now_s, "link": linker(fields), "scope": view.scope}
        if len(live) > MOST_LIVE:
            live.clear()
        live[address] = mark, render.page("_overview.html", values)
    return ConsoleResponse(body=live[address][1], headers=headers)


def _list_actions(view: ViewContext) -> ActionIndex:
    return index_of(view, ACTIONS)


def _find(view: ViewContext) -> FindPage:
    return find(view, VIEWS, ACTIONS)


# ---- the table -------------------------------------------------------------------------------------

MOST_LIVE: Final = 100  # scopes for which the first page is kept
RUNS: Final = {
    "end": f"how it ended: {', '.join(one for one in ENDS if one)}",
    "label": f"how it is labelled: {', '.join(one for one in LABEL_FILTERS if one)}",
    "q": "text of metadata, class, model, tenant, answer or id; or how an id begins",
    "sort": f"of the latest 500 that match: {', '.join(one for one in SORTS if one)}",
    "before": "place in the log to go on from, `older` of the page before",
    "limit": "runs in one answer, at most 500",
    **SCOPE_FIELDS,
}
CHANGES: Final = {
    "group": f"of kinds: {', '.join(GROUPS)}",
    "kind": "of change",
    "who": "part of the author's name",
    "before": "place in the log to go on from, `older` of the page before",
    **SCOPE_FIELDS,
}
ROLLOUT, EXPERIMENT = {"route": "of the rollout"}, {"name": "of the experiment"}
ROUTE: Final[tuple[ScopePart, ...]] = ("route",)
OF_RUN: Final[tuple[ScopePart, ...]] = ("route", "class", "range")
MONTH: Final = {"month": "as 2026-10"}
FIND: Final = {"q": "words, or the beginning of an id"}
LOSSES: Final = "What differs between lost and kept audits"
ASSESSMENT, RESULT = "What the evidence says of a rollout", "What an experiment shows"
VIEWS: Final[tuple[View, ...]] = (  # the first view of a place is what the navigation leads to
    View("", "Home", overview, SCOPE_FIELDS, "", "overview.html", "/overview", tab="Home", follows=SCOPE_PARTS),
    View("/routes", "Routes", routes, SCOPE_FIELDS, tab="Routes", follows=SCOPE_PARTS),
    View("/route", "Route", route, {**SCOPE_FIELDS, "route": "its name"}, "Routes", follows=SCOPE_PARTS),
    View("/report", "Report of a month", month_report, MONTH, "Home", tab="Report of a month"),
    View("/policies", "Policies and rollouts", policies, place="Routes", tab="Policies"),
    View(
        "/runs",
        "Runs",
        episodes,
        RUNS,
        "",
        "episodes.html",
        "/episodes",
        by_tenant=True,
        follows=OF_RUN,
        tab="All runs",
    ),
    View("/runs/live", "Running now", live_runs, {}, "Runs", "live.html", tab="Running now"),
    View("/runs/{id}", "Run", episode, {}, "Runs", "episode.html", "/episodes/{id}", by_tenant=True),
    View("/changes", "Changes", changes, CHANGES, tab="Audit log", by_tenant=True, follows=ROUTE),
    View("/alerts", "Alerts", alerts, place="Changes", tab="Alerts"),
    View("/incidents", "Incidents", incidents, place="Changes", tab="Incidents"),
    View("/experiments", "Experiments", experiments, place="Changes", tab="Experiments"),
    # Parts that are slow to compute: the pages request them once displayed.
    View("/route/losses", LOSSES, read_losses, SCOPE_FIELDS, "Routes", "_losses.html", follows=SCOPE_PARTS),
    View("/policies/assessment", ASSESSMENT, view_assessment, ROLLOUT, "Routes", "_assessment.html"),
    View("/experiments/result", RESULT, view_experiment, EXPERIMENT, "Changes", "_experiment.html"),
    View("/review", "Review", review_page, needs="reviewer", by_tenant=True),
    View("/change", "Make a change", _list_actions, {}, "Changes", tab="Make a change"),
    View("/settings", BELOW, settings_page, needs="admin"),
    View("/find", "Find", _find, FIND, HIDDEN, "_find.html", by_tenant=True),
)
ITEM: Final = {"item": "its episode"}
ENDPOINTS: Final = (  # a path that is not here does not exist
    ConsoleEndpoint("GET", "/console/static/{version}/{name}", "nobody", _static, "a file", "*/*"),
    ConsoleEndpoint("GET", "/console/login", "nobody", _login_page, "the login", HTML),
    ConsoleEndpoint("POST", "/console/login", "nobody", _login, "log in", HTML),
    ConsoleEndpoint("GET", "/console/oidc/login", "nobody", _begin_oidc, "log in at the identity provider", HTML),
    ConsoleEndpoint("GET", "/console/oidc/callback", "nobody", _finish_oidc, "come back from it", HTML),
    ConsoleEndpoint("POST", "/console/logout", "viewer", _logout, "log out", HTML, by_tenant=True),
    ConsoleEndpoint(
        "GET", "/console/review/changed", "reviewer", _changed, "what a verdict changed", HTML, True, fields=ITEM
    ),
    ConsoleEndpoint("GET", "/console/live", "viewer", _live, "the first page live", HTML, fields=SCOPE_FIELDS),
    ConsoleEndpoint("GET", "/api/openapi.json", "viewer", _describe, "this description", by_tenant=True),
    *(one for view in VIEWS for one in endpoints_of_view(view, VIEWS)),
    *(one for action in ACTIONS for one in endpoints_of_action(action, _page, _back_of)),
    *EXPORTS,
)
RENAMED: Final = {
    "/episodes": "/runs",
    "/policies/weighed": "/policies/assessment",
    "/experiments/shown": "/experiments/result",
}
MOVED: Final = tuple(  # each target checks who may see it
    ConsoleEndpoint("GET", path, "viewer", _moved, "an address of before", "*/*", True)
    for path in (
        *("/console/episodes", "/console/episodes/{id}"),
        *(f"{mount}{path}" for mount in ("/console", "/api") for path in RENAMED if path != "/episodes"),
    )
)

MOUNTS: Final = ("/console", "/api")  # paths that this application serves
_FAILED: Final = "server_error"
_KINDS: Final[Mapping[int, str]] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ConsoleApp:
    def __init__(self, context: ConsoleContext, endpoints: Iterable[ConsoleEndpoint] = (*ENDPOINTS, *MOVED)) -> None:
        self.context = context
        self.endpoints = tuple(endpoints)
        paths: dict[str, dict[str, ConsoleEndpoint]] = {}
        for endpoint in self.endpoints:
            paths.setdefault(endpoint.path, {})[endpoint.method] = endpoint
        self._paths = {
            re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[A-Za-z0-9._:-]{1,200})", re.escape(path))): by_method
            for path, by_method in sorted(paths.items(), key=lambda one: "{" in one[0])  # a name before an id
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._answer(scope, receive)
        await answer.send(send, head_only=scope["method"] == "HEAD")

    async def _answer(self, scope: Scope, receive: Receive) -> ConsoleResponse:
        visit = ConsoleVisit(self.context, ConsoleRequest(method=scope["method"], path=scope["path"]))
        auth = self.context.auth
        try:
            visit = replace(visit, request=exchange.read_head(scope))
            by_method, fields = self._find(visit.request.path)
            endpoint = by_method.get("GET" if visit.request.method == "HEAD" else visit.request.method)
            # Unauthenticated clients do not learn which paths exist.
            needs = "viewer" if endpoint is None else endpoint.needs
            visit = replace(visit, principal=auth.admit(visit.request, needs))
            if endpoint is None:
                raise _no_such_path(visit.request, by_method)
            if endpoint.path == HOME and visit.principal.tenants is not None:
                return redirect_to_runs()
            _check_tenants(visit.principal, endpoint)
            visit = replace(visit, request=replace(visit.request, fields=fields))
            if endpoint.method == "POST":  # no body is read before authorisation
                visit = replace(visit, request=await exchange.read_form(visit.request, receive))
                if endpoint.needs != "nobody":  # a change without a login carries a token of its own
                    auth.check_change(visit.request, visit.principal)
            return await endpoint.run(visit)
        except BadRequest as error:
            refusal = error
        except SufficeError as error:
            LOG.warning("console: %s", error)
            refusal = BadRequest(str(error), status=503, code=_FAILED)
        except Exception as error:  # noqa: BLE001 - a failing page must not affect the gateway
            LOG.error("console: %s failed (%s)", visit.request.path[:200], type(error).__name__)
            LOG.debug("the same, with its traceback", exc_info=True)
            refusal = BadRequest("this page failed; the log of the process says where", status=500, code=_FAILED)
        return _refusal(visit, refusal)

    def _find(self, path: str) -> tuple[Mapping[str, ConsoleEndpoint], Mapping[str, str]]:
        for pattern, by_method in self._paths.items():
            if matched := pattern.fullmatch(path):
                return by_method, matched.groupdict()
        return {}, {}


def _check_tenants(principal: Principal, endpoint: ConsoleEndpoint) -> None:
    """Refuse what shows all tenants to those who see only some. Raises BadRequest."""
    if principal.tenants is not None and not endpoint.by_tenant and endpoint.needs != "nobody":
        own = ", ".join(principal.tenants) or "none"
        raise BadRequest(f"this shows all tenants; {principal.name} sees: {own}", status=403, code="tenant")


def _refusal(visit: ConsoleVisit, error: BadRequest) -> ConsoleResponse:
    status, headers = error.status, [("retry-after", "12")] if error.status == 429 else []
    if visit.request.is_api:
        kind = _FAILED if error.code == _FAILED else _KINDS.get(status, "invalid_request_error")
        headers += [("www-authenticate", "Bearer")] if status == 401 else []
        body = error_body(str(error), kind, error.param, error.code)
        return ConsoleResponse(status=status, kind=JSON, body=body, headers=tuple(headers))
    if status == 401 and error.code == "not_logged_in":
        return redirect_to_login(visit.request)
    return error_page(visit, status, str(error)).with_headers(*headers)


def _no_such_path(request: ConsoleRequest, by_method: Mapping[str, ConsoleEndpoint]) -> BadRequest:
    if by_method:
        message = f"this path answers {', '.join(sorted(by_method))} only"
        return BadRequest(message, status=405, code="method_not_allowed")
    return BadRequest(f"no such path: {request.path[:200]}", status=404, code="not_found")
