"""What stands around every page: the five places with their tabs, the bar of the scope, and links that keep it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode

from suffice.console.auth import Principal, may
from suffice.console.context import ScopeChoices, View, ViewContext
from suffice.console.scope import COMPARISONS, CUSTOM, PRESET_NAMES, SCOPE_FIELDS, ViewScope, format_bound, parse_scope
from suffice.errors import BadRequest
from suffice.store.routes import rollups

HOME: Final = "/console"
BELOW: Final = "Settings"  # the place that stands apart, below the others
HIDDEN: Final = "Find"  # the place of what is opened by a key
CHOICES_S: Final = 30.0  # for which what the bar offers is kept
NO_CHOICES: Final = ScopeChoices(routes=(), classes=(), versions=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    name: str
    href: str
    is_here: bool
    key: str  # that opens it; "": none
    tabs: tuple[tuple[str, str, bool], ...]  # name, address, whether it is shown


def may_see(view: View, principal: Principal) -> bool:
    role = principal.role
    return role is not None and may(role, view.needs) and (principal.tenants is None or view.by_tenant)


def navigation(views: Iterable[View], principal: Principal, here: View | None, link: Link) -> tuple[Place, ...]:
    """The places of which the principal may see a view; each leads to the first."""
    by_place = dict[str, list[View]]()
    for view in views:
        if may_see(view, principal) and "{" not in view.path and view.place != HIDDEN:
            by_place.setdefault(view.place or view.title, []).append(view)
    place = "" if here is None else here.place or here.title
    return tuple(
        Place(
            name=name,
            href=link(f"{HOME}{within[0].path}"),
            is_here=name == place,
            key="" if name == BELOW else str(number),
            tabs=tuple((one.tab, link(f"{HOME}{one.path}"), one is here) for one in within if one.tab),
        )
        for number, (name, within) in enumerate(by_place.items(), start=1)
    )


Link = Callable[..., str]


def linker(scope: Mapping[str, str]) -> Link:
    """Return a function that adds to an address the scope, with changes; a change to None leaves a field out."""

    def link(path: str, changes: Mapping[str, object] | None = None) -> str:
        fields = {**scope, **(changes or {})}
        query = urlencode({name: str(value) for name, value in fields.items() if value not in (None, "")})
        return f"{path}?{query}" if query else path

    return link


def scope_of(query: Mapping[str, str], now_s: float) -> ViewScope:
    """The scope of a query, or the usual one where the query asks for what is not offered."""
    try:
        return parse_scope(query, now_s)
    except BadRequest:
        return parse_scope({}, now_s)


def read_choices(view: ViewContext) -> ScopeChoices:
    cache, route, routes = view.visit.context.cache.choices, view.scope.route, tuple(view.settings.routes)
    if view.tenants is not None:  # classes of questions may be another tenant's
        return ScopeChoices(routes=routes, classes=(), versions=())
    known = cache.get(route)
    if known is None or known[0] < view.monotonic_s():
        groups = rollups.read_groups(view.connection, route)
        listed = tuple(dict.fromkeys([*routes, *groups.routes]))
        choices = ScopeChoices(routes=listed, classes=groups.classes, versions=groups.versions)
        known = view.monotonic_s() + CHOICES_S, choices
        if len(cache) > len(routes) + 8:
            cache.clear()
        cache[route] = known
    return known[1]


def shell_values(
    views: Iterable[View],
    view: View | None,
    principal: Principal,
    query: Mapping[str, str],
    *,
    now_s: float,
    choices: ScopeChoices = NO_CHOICES,
) -> dict[str, object]:
    """What `base.html` needs, on pages and where a page failed."""
    scope = scope_of(query, now_s)
    link = linker(scope.fields)
    return {
        "link": link,
        "scope": scope,
        "choices": choices,
        "follows": () if view is None else view.follows,
        "presets": PRESET_NAMES,
        "comparisons": {name: words for name, (words, _) in COMPARISONS.items()},
        "custom": CUSTOM,
        "first_bound": format_bound(scope.range.since_hour) if scope.range.since_hour else "",
        "last_bound": format_bound(scope.range.until_hour, last=True),
        "hidden": {name: value for name, value in query.items() if name not in (*SCOPE_FIELDS, "before", "name")},
        "places": navigation(views, principal, view, link) if principal.person is not None else (),
    }
