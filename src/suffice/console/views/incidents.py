"""Incidents and overrides: what waits for a person's decision, what can be decided, what is held until when."""

from __future__ import annotations

from dataclasses import dataclass

from suffice.console.auth import Principal
from suffice.console.exchange import ConsoleRequest
from suffice.console.view_context import ViewContext
from suffice.review.decide import in_words
from suffice.review.incident import DECISIONS, Case
from suffice.review.override import Override
from suffice.store.people.deciding import fitting, read_now
from suffice.store.people.holds import read_holds
from suffice.types import Publication


@dataclass(frozen=True, slots=True, kw_only=True)
class Back:
    publication: Publication
    why_not: str  # "": it can


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCase:
    case: Case
    now: str  # what holds on the route, in words
    back: tuple[Back, ...]
    can: tuple[str, ...]  # decisions that can be made


@dataclass(frozen=True, slots=True, kw_only=True)
class Incidents:
    open: tuple[OpenCase, ...]
    closed: tuple[Case, ...]  # the latest first
    overrides: tuple[Override, ...]  # that hold now
    routes: tuple[str, ...]  # on which an incident can be opened


def incidents(look: ViewContext, _asked: ConsoleRequest, _visitor: Principal) -> Incidents:
    """All incidents and overrides. Raises StoreError."""
    holds = read_holds(look.connection)
    cases = [case for held in holds.routes.values() for case in held.cases]
    overrides = [one for held in holds.routes.values() for one in held.overrides if look.now_s < one.expires_at_s]
    done = sorted((one for one in cases if not one.is_open), key=lambda one: -one.incident.opened_at_s)
    return Incidents(
        open=tuple(
            _open(look, case)
            for case in sorted(cases, key=lambda one: one.incident.opened_at_s)
            if case.is_open and case.incident.route in look.settings.routes
        ),
        closed=tuple(done[:50]),
        overrides=tuple(sorted(overrides, key=lambda one: one.expires_at_s)),
        routes=tuple(name for name, route in look.settings.routes.items() if route.mode != "off"),
    )


def _open(look: ViewContext, case: Case) -> OpenCase:
    name = case.incident.route
    now = read_now(look.connection, name, look.settings.routes[name])
    back = tuple(
        Back(publication=made, why_not=why or "") for made, why in fitting(look.connection, now, now_s=look.now_s)[:20]
    )
    can = tuple(one for one in DECISIONS if one != "roll_back" or any(not each.why_not for each in back))
    return OpenCase(case=case, now=in_words(now, now_s=look.now_s), back=back, can=can)
