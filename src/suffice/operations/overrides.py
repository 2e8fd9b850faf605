"""What people do to keep a route safe: pauses, overrides and incidents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, get_args

from suffice.errors import BadRequest
from suffice.formatting import format_time
from suffice.operations.fields import REASON, ROUTE, FormInput, one_of
from suffice.operations.operation import OperationContext, OperationResult, operation, raise_if_refused
from suffice.review.decide import IncidentForm, OverrideForm
from suffice.review.holds import DECISIONS, Case, DecisionKind, OverrideKind
from suffice.store.database.location import LogLocation
from suffice.store.people import deciding
from suffice.store.routes.deployments import read_holds

INCIDENTS: Final = "/console/incidents"
_WRONG_FIELDS: Final = {  # as of `raise_if_refused`
    "budget:": "max_em_drop",
    "pin: got level": "level",
    "cap: got level": "level",
    "expires in": "days",
    "accept: got": "days",
    "publication": "publication",
    "roll back: name": "publication",
    "tighten: name": "level",
}


def find_incident(database: LogLocation, name: str) -> tuple[str, Case]:
    """Return an incident with its route. Raises BadRequest for an unknown one."""
    routes = read_holds(database).routes
    for route, holds in routes.items():
        case = holds.case(name)
        if case is not None:
            return route, case
    known = ", ".join(case.incident.incident for holds in routes.values() for case in holds.open_cases) or "none"
    raise BadRequest(
        f"unknown incident {name[:80]!r}; open ones: {known}", param="incident", status=404, code="not_found"
    )


def _find_incident(by: OperationContext, name: str) -> None:
    find_incident(by.writer.path, name)


@operation(
    "/routes/pause",
    "let every request of a route run in full",
    {"route": ROUTE},
    title="Pause a route",
    commands=("pause",),
)
def pause_route(by: OperationContext, route: str) -> OperationResult:
    """Pause early stopping on ROUTE: every request runs in full until somebody resumes it.

    Waits until every running gateway has confirmed, and exits with 3 when one has not, or none is running.
    """
    raise_if_refused(deciding.start_pause(by.writer, route, **by.signed), f"route {route} ")
    return OperationResult(f"Route {route} is paused.")


@operation("/routes/resume", "end a pause of a route", {"route": ROUTE}, title="Resume a route", commands=("resume",))
def resume_route(by: OperationContext, route: str) -> OperationResult:
    """Resume early stopping on ROUTE: its certified level acts again.

    Waits until every running gateway has confirmed, and exits with 3 when one has not, or none is running.
    """
    raise_if_refused(deciding.end_pause(by.writer, route, **by.signed), f"route {route} ")
    return OperationResult(f"Route {route} is resumed.")


@operation(
    "/overrides/set",
    "make a route safer until a date",
    {
        "route": ROUTE,
        "kind": one_of(
            "pin a level, cap it, only observe, or a smaller EM budget", get_args(OverrideKind), required=True
        ),
        "level": FormInput("the level; 0 never stops", "number", of=("pin", "cap"), least=0),
        "publication": FormInput("an earlier publication of the route", "number", of=("pin",), least=1),
        "max_em_drop": FormInput("a smaller EM budget, a fraction", "number", of=("budget",), metavar="E"),
        "class": FormInput(
            "a class of questions; empty: all", of=("cap", "observe"), argument="query_class", metavar="NAME"
        ),
        "days": FormInput("until it ends by itself: at most 30", "number", default="30", fills_in=True, metavar="D"),
    },
    title="Override a route: level, budget or observe",
    commands=("override set", "policy pin"),
    goes_to=INCIDENTS,
)
def override_route(by: OperationContext, route: str, publication: int | None = None, **form: Any) -> OperationResult:
    """Override ROUTE until a date: `pin` a level, `cap` it, only `observe`, or set a smaller EM `budget`.

    An override only makes a route safer, unless the pinned level is certified there now. Running gateways apply it
    within a second, and drop it at its date, with or without a worker.
    """
    wanted, rules = OverrideForm(**by.signed, **form), by.settings.routes[route]
    result = raise_if_refused(
        deciding.set_override(
            by.writer, route, rules, wanted, now_s=by.now_s, publication=publication, setup=by.services.setup_of(route)
        ),
        fields=_WRONG_FIELDS,
    )
    until = format_time(result.expires_at_s)
    return OperationResult(f"Route {route}, override {result.number}: {result.after}, until {until}.", result)


@operation(
    "/overrides/end",
    "end an override",
    {"route": ROUTE, "number": FormInput("of the override", "number", required=True, least=0)},
    title="End an override",
    commands=("override end",),
    goes_to=INCIDENTS,
)
def end_route_override(by: OperationContext, route: str, number: int | None) -> OperationResult:
    """End override NUMBER of ROUTE before its date."""
    rules, number = by.settings.routes[route], number or 0
    result = raise_if_refused(
        deciding.end_override(by.writer, route, rules, number, by.reason, by.author, now_s=by.now_s)
    )
    return OperationResult(f"Override {number} of {route} has ended. Now: {result.after.rstrip('.')}.", result)


@operation(
    "/incidents/open",
    "open an incident",
    {
        "route": ROUTE,
        "pauses": FormInput("true: let everything run in full until somebody decides", "flag", option="--pause"),
        "evidence": FormInput("a sentence of evidence", "area", many=True),
        "reason": replace(REASON, hint="what is wrong, in a sentence; it stays in the log"),
    },
    title="Open an incident",
    commands=("incident open",),
    goes_to=INCIDENTS,
)
def open_route_incident(
    by: OperationContext, route: str, *, pauses: bool, evidence: tuple[str, ...] = ()
) -> OperationResult:
    """Open an incident on ROUTE by hand."""
    rules = by.settings.routes[route]
    result = raise_if_refused(
        deciding.open_incident(
            by.writer, route, rules, by.reason, by.author, now_s=by.now_s, evidence=evidence, pauses=pauses
        )
    )
    rests = "; everything runs in full until it is decided" if result.pause is not None else ""
    return OperationResult(f"Incident {result.incident} is open{rests}.", result)


@operation(
    "/incidents/decide",
    "decide an incident",
    {
        "incident": FormInput("its name", required=True, find=_find_incident, argument="name"),
        "decision": one_of(", ".join(DECISIONS), DECISIONS, required=True),
        "level": FormInput("no level above this one", "number", of=("tighten",), least=0),
        "max_em_drop": FormInput("a smaller EM budget, a fraction", "number", of=("tighten",), metavar="E"),
        "publication": FormInput("to this publication", "number", of=("roll_back",), least=1),
        "days": FormInput(
            "until it ends by itself",
            "number",
            default="30",
            fills_in=True,
            of=("tighten", "roll_back", "accept"),
            metavar="D",
        ),
    },
    title="Decide an incident",
    commands=("incident decide",),
    goes_to=INCIDENTS,
)
def decide_route_incident(
    by: OperationContext, name: str, decision: DecisionKind, publication: int | None = None, **form: Any
) -> OperationResult:
    """Decide incident NAME and carry out the decision."""
    route, _ = find_incident(by.writer.path, name)
    if route not in by.settings.routes:
        raise BadRequest(
            f"incident: {name!r} is of a route that the settings no longer have",
            param="incident",
            status=404,
            code="not_found",
        )
    wanted, rules = IncidentForm(incident=name, decision=decision, **by.signed, **form), by.settings.routes[route]
    decided = deciding.decide_incident(
        by.writer, rules, route, wanted, now_s=by.now_s, publication=publication, setup=by.services.setup_of(route)
    )
    where = f"{name} " if isinstance(decided, str) and decided.startswith("is ") else ""
    result = raise_if_refused(decided, where, fields=_WRONG_FIELDS).decision
    word = decision.replace("_", " ")
    before = result.before.rstrip(".")
    after = result.after.rstrip(".")
    return OperationResult(f"{name}: {word}. Before: {before}. Now: {after}.", result)


OVERRIDES: Final = (
    pause_route,
    resume_route,
    override_route,
    end_route_override,
    open_route_incident,
    decide_route_incident,
)
