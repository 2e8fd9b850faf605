"""What the palette finds: pages, routes, runs by id, experiments, settings, and actions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Literal
from urllib.parse import urlencode

from suffice.console.action_pages import index_of
from suffice.console.auth import may
from suffice.console.context import View, ViewContext, ViewRecord
from suffice.console.shell import may_see
from suffice.console.views.episodes import is_own_run
from suffice.console.views.settings import sections
from suffice.operations.operation import OperationSpec
from suffice.store.database.views import find_keys
from suffice.types import Request

MOST_ENTRIES: Final = 30
MOST_RUNS: Final = 5
LEAST_ID: Final = 4  # characters from which an id is looked for by its beginning
_ON_ROUTE: Final = (
    ("Pause {}", "pause"),
    ("Roll back a policy of {}", "policies"),
    ("Compare two policies of {}", "policies"),
    ("Change max_em_drop of {}", "budget"),
    ("Where {} loses", "loses"),
)


class FindEntry(ViewRecord, frozen=True):
    kind: Literal["page", "route", "action", "run", "experiment", "setting"]
    title: str
    href: str


class FindPage(ViewRecord, frozen=True):
    text: str
    entries: tuple[FindEntry, ...]
    cut_short: bool  # more would fit


def find(view: ViewContext, views: Iterable[View], actions: tuple[OperationSpec, ...] = ()) -> FindPage:
    text = view.query.get("q", "").strip()[:200]
    words, known = (
        text.casefold().split(),
        (*_pages(view, views), *_on_routes(view), *_actions(view, actions), *_rest(view)),
    )
    matches = [*_runs(view, text), *(one for one in known if all(word in one.title.casefold() for word in words))]
    return FindPage(text=text, entries=tuple(matches[:MOST_ENTRIES]), cut_short=len(matches) > MOST_ENTRIES)


def _pages(view: ViewContext, views: Iterable[View]) -> Iterator[FindEntry]:
    for one in views:
        if (one.tab or not one.place) and "{" not in one.path and may_see(one, view.visit.principal):
            yield FindEntry(kind="page", title=one.tab or one.title, href=f"/console{one.path}")


def _on_routes(view: ViewContext) -> Iterator[FindEntry]:
    role = view.visit.principal.role
    if view.tenants is not None or role is None:
        return
    for name in view.settings.routes:
        yield FindEntry(kind="route", title=f"Route {name}", href=_route(name))
        for title, part in _ON_ROUTE if may(role, "operator") else ():
            yield FindEntry(kind="action", title=title.format(name), href=f"{_route(name)}#{part}")


def _actions(view: ViewContext, actions: tuple[OperationSpec, ...]) -> Iterator[FindEntry]:
    for _, links in index_of(view, actions).groups:
        yield from (FindEntry(kind="action", title=one.title, href=one.href) for one in links)


def _rest(view: ViewContext) -> Iterator[FindEntry]:
    role = view.visit.principal.role
    if view.tenants is not None or role is None:
        return
    for name in view.settings.experiments:
        yield FindEntry(kind="experiment", title=f"Experiment {name}", href="/console/experiments")
    if not may(role, "admin"):
        return
    yield FindEntry(kind="page", title="People and keys", href="/console/settings#people")
    yield FindEntry(kind="action", title="Invite a reviewer", href="/console/change/people/add")
    for section in sections(view.settings):
        for one in section.settings:
            title = f"{section.name}.{one.path}"
            yield FindEntry(kind="setting", title=title, href=f"/console/settings?{urlencode({'q': title})}")


def _route(name: str) -> str:
    return f"/console/route?{urlencode({'route': name})}"


def _runs(view: ViewContext, text: str) -> Iterator[FindEntry]:
    if len(text) < LEAST_ID or not text.isascii() or " " in text:
        return
    for key in find_keys(view.connection, Request, text, MOST_RUNS):
        if is_own_run(view, key):
            yield FindEntry(kind="run", title=f"Run {key}", href=f"/console/runs/{key}")
