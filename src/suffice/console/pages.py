"""What answers behind each door: pages, the same as JSON, changes, files, the login, and the first page live."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final
from urllib.parse import quote, urlencode

import msgspec

from suffice.console import openapi, render
from suffice.console.auth import NOBODY, Principal
from suffice.console.context import ConsoleContext
from suffice.console.exchange import HTML, JSON, SSE, Answer, ConsoleRequest, to
from suffice.console.openapi import VERSION
from suffice.console.people import ROLES, may
from suffice.console.table import Action, ActionResult, ConsoleEndpoint, View
from suffice.console.view_context import WINDOWS, ViewContext, parse_window
from suffice.console.views.alerts import AlertReader
from suffice.console.views.overview import overview
from suffice.errors import BadRequest
from suffice.store.database.views import newest_of
from suffice.store.routes import rollups
from suffice.store.routes.in_force import read_decided

HOME: Final = "/console"
FOREVER: Final = (("cache-control", "public, max-age=31536000, immutable"),)
_BACK: Final = re.compile(r"/console(?:[/?][A-Za-z0-9._~:/?=&%+*-]{0,500})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class NavEntry:
    """One entry of the navigation."""

    name: str
    href: str
    is_here: bool


def doors_of(
    views: tuple[View, ...], deeds: tuple[Action, ...], more: tuple[ConsoleEndpoint, ...] = ()
) -> tuple[ConsoleEndpoint, ...]:
    """The whole table."""
    return (
        *_always(),
        *(door for view in views for door in _of_view(view, views)),
        *(door for deed in deeds for door in _of_deed(deed)),
        *more,
    )


def _always() -> tuple[ConsoleEndpoint, ...]:
    """What there is whatever is shown: files, coming and going, the first page live, the API's description."""
    return (
        ConsoleEndpoint(
            method="GET",
            path="/console/static/{version}/{name}",
            needs="nobody",
            run=_static,
            summary="a file",
            gives="*/*",
        ),
        ConsoleEndpoint(
            method="GET", path="/console/login", needs="nobody", run=_login_page, summary="the login", gives=HTML
        ),
        ConsoleEndpoint(
            method="POST",
            path="/console/login",
            needs="nobody",
            run=_login,
            summary="log in",
            gives=HTML,
        ),
        ConsoleEndpoint(
            method="POST", path="/console/logout", needs="reviewer", run=_logout, summary="log out", gives=HTML
        ),
        ConsoleEndpoint(
            method="GET",
            path="/console/review/changed",
            needs="reviewer",
            run=_changed,
            gives=HTML,
            summary="what a verdict changed",
            asks={"item": "its episode"},
        ),
        ConsoleEndpoint(
            method="GET", path="/console/live", needs="reviewer", run=_live, summary="the first page live", gives=SSE
        ),
        ConsoleEndpoint(
            method="GET", path="/api/openapi.json", needs="reviewer", run=_no_table, summary="this description"
        ),
    )


def _of_view(view: View, views: tuple[View, ...]) -> tuple[ConsoleEndpoint, ConsoleEndpoint]:
    async def show(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> Answer:
        if not render.can_render():
            return Answer(status=501, body=render.no_pages())
        found = await desk.read(lambda look: view.read(look, asked, visitor))
        values = _values(desk, asked, visitor, view.title, places(views, visitor, view.place)) | {"it": found}
        if not asked.is_partial:
            values["first"] = await desk.off_loop(desk.first)
        # A part of a page that somebody asks for by itself is a page of its own.
        alone = view.template.startswith("_") and not asked.is_partial
        template = "part.html" if alone else view.template
        return Answer(body=await desk.off_loop(lambda: render.page(template, values | {"part": view.template})))

    async def tell(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> Answer:
        found = await desk.read(lambda look: msgspec.json.encode(view.read(look, asked, visitor)))
        return Answer(kind=JSON, body=found)

    page, api = f"{HOME}{view.path}", f"/api{view.api_path if view.api_path is not None else view.path}"
    return (
        ConsoleEndpoint(
            method="GET", path=page, needs=view.needs, run=show, summary=view.title, asks=view.asks, gives=HTML
        ),
        ConsoleEndpoint(
            method="GET",
            path=api,
            needs=view.needs,
            run=tell,
            summary=view.title,
            asks=view.asks,
            record=view.record,
        ),
    )


def _of_deed(deed: Action) -> tuple[ConsoleEndpoint, ConsoleEndpoint]:
    async def done(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> ActionResult:
        found = await desk.off_loop(lambda: deed.do(desk, asked, visitor))
        desk.told()
        return found

    async def from_form(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> Answer:
        found = await done(desk, asked, visitor)
        if found.said:
            desk.tell(visitor, found.said)
        return to(found.goes_to or back_of(asked))

    async def from_program(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> Answer:
        found = await done(desk, asked, visitor)
        return Answer(kind=JSON, body=msgspec.json.encode({"done": True, "said": found.said}))

    return (
        ConsoleEndpoint(
            method="POST",
            path=f"{HOME}{deed.path}",
            needs=deed.needs,
            run=from_form,
            summary=deed.summary,
            asks=deed.asks,
            gives=HTML,
        ),
        ConsoleEndpoint(
            method="POST",
            path=f"/api{deed.path}",
            needs=deed.needs,
            run=from_program,
            summary=deed.summary,
            asks=deed.asks,
        ),
    )


def places(views: tuple[View, ...], visitor: Principal, here: str) -> tuple[NavEntry, ...]:
    """The navigation for somebody."""
    role = visitor.role
    return tuple(
        NavEntry(name=view.place, href=f"{HOME}{view.path}", is_here=view.place == here)
        for view in views
        if view.place
        and "{" not in view.path
        and role is not None
        and may(role, view.needs)
        and view.title
        and next(one for one in views if one.place == view.place) is view
    )


def _values(
    desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal, title: str, navigation: tuple[NavEntry, ...]
) -> dict[str, Any]:
    """What every template may use. Any: templates take records of every kind."""
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
    """The page's own address, to come back to."""
    return asked.path + (f"?{urlencode(asked.query)}" if asked.query else "")


def back_of(asked: ConsoleRequest) -> str:
    """Where a form wants its reader to go on, as long as that is one of our pages."""
    place = asked.form.get("back", "")
    return place if _BACK.fullmatch(place) and "//" not in place else HOME


# ---- coming and going ------------------------------------------------------------------------------


def to_login(asked: ConsoleRequest) -> Answer:
    """Who has not come in is led to the login, and from there to where they wanted to go."""
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
    """A page that says what went wrong, and where to go on."""
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
    """A part of the review page that takes a while to find out, so the page does not wait for it."""
    said = await desk.off_loop(lambda: desk.effect_of(asked.query.get("item", "")))
    return Answer(body=html.escape(said).encode())


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
    """What changes when the first page does."""

    def look_at(look: ViewContext) -> object:
        read_to = rollups.read_to(look.connection)
        return window, read_to.seq, read_decided(look.connection).seq, newest_of(look.connection, ("alert_sent",))

    return await desk.read(look_at)


async def live_part(desk: ConsoleContext, window: str, alerts: AlertReader) -> bytes:
    """The part of the first page that changes, for everybody alike."""
    asked = ConsoleRequest(method="GET", path=HOME, headers={}, query={"days": window}, form={}, address="")

    def part(look: ViewContext) -> bytes:
        found = overview(alerts)(look, asked, NOBODY)
        return render.page("_overview.html", {"it": found, "now_s": look.now_s, "windows": tuple(WINDOWS)})

    return await desk.read(part)
