"""`suffice pause`, `resume`, `override` and `incident`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from suffice.cli import shell
from suffice.errors import ConfigError
from suffice.formatting import format_time
from suffice.review.decide import IncidentForm, OverrideForm, describe_state
from suffice.review.holds import Case, DecisionKind, Override, OverrideKind, describe_override
from suffice.settings import Settings
from suffice.store.database.location import LogLocation, log_location
from suffice.store.database.views import newest_of, open_reader
from suffice.store.people import deciding
from suffice.store.routes.deployments import read_holds
from suffice.wiring.keys import presence_files
from suffice.wiring.routes import setup_of

_PAUSE = shell.stacked(click.argument("route"), shell.CONFIG, shell.REASON, shell.AUTHOR, shell.WAIT)


@click.command(cls=shell.Command)
@_PAUSE
def pause(**given: Any) -> None:
    """Pause early stopping on ROUTE: every request runs in full until somebody resumes it.

    Waits until every running gateway has confirmed, and exits with 3 when one has not, or none is running.
    """
    _pause_or_resume("pause", deciding.start_pause, **given, retry_hint="`suffice kill` needs no database.")


@click.command(cls=shell.Command)
@_PAUSE
def resume(**given: Any) -> None:
    """Resume early stopping on ROUTE: its certified level acts again.

    Waits until every running gateway has confirmed, and exits with 3 when one has not, or none is running.
    """
    _pause_or_resume("resume", deciding.end_pause, **given)


def _pause_or_resume(
    command: str,
    decide: Callable[..., str | None],
    *,
    route: str,
    path: Path,
    reason: str,
    author: str | None,
    wait_s: float,
    retry_hint: str = "",
) -> None:
    with shell.deployment_log(path, route, waits=True, retry_hint=retry_hint) as (settings, writer):
        problem = decide(writer, route, reason=reason, author=shell.author_name(author))
        with open_reader(writer.path) as connection:
            seq = newest_of(connection, ("enforcement_paused", "enforcement_resumed"))
    if problem is not None:
        shell.fail(f"route {route} {problem}", 1)
    click.echo(f"route {route}: {command}d")
    shell.confirm(command, presence_files(settings), lambda one: one.decided >= seq, wait_s=wait_s)


@click.group(cls=shell.CommandGroup)
def override() -> None:
    """Limit early stopping on a route or a class of questions until a date."""


@override.command("set")
@click.argument("route")
@click.argument("kind", type=click.Choice(["pin", "cap", "observe", "budget"]))
@shell.option("--level", type=click.IntRange(0), metavar="N", help="pin, cap: the level; 0 never stops.")
@shell.option("--publication", type=click.IntRange(1), metavar="N", help="pin: an earlier publication of the route.")
@shell.option("--max-em-drop", type=float, metavar="E", help="budget: a smaller EM budget, a fraction.")
@shell.option("--class", "query_class", metavar="NAME", help="cap, observe: a class of questions  [default: all]")
@shell.option("--days", type=float, required=True, metavar="D", help="Until it ends by itself: at most 30.")
@shell.decision("Set it again once the log can be written.")
def set_(
    by: shell.PendingDecision, route: str, kind: OverrideKind, publication: int | None, **form: Any
) -> shell.CommandReply:
    """Override ROUTE until a date: `pin` a level, `cap` it, only `observe`, or set a smaller EM `budget`.

    An override only makes a route safer, unless the pinned level is certified there now. Running gateways apply it
    within a second, and drop it at its date, with or without a worker.
    """
    result = set_route_override(by, route, OverrideForm(kind=kind, **by.signed, **form), publication)
    return shell.CommandReply(result, f"route {route}: override {result.number}: {result.after}; {_until(result)}")


def set_route_override(by: shell.PendingDecision, route: str, form: OverrideForm, publication: int | None) -> Override:
    """Set an override; `publication`: an earlier one to pin, None: the active one."""
    rules, setup = by.rules(route), setup_of(by.settings, route)
    return shell.accepted(
        deciding.set_override(by.writer, route, rules, form, now_s=by.now_s, publication=publication, setup=setup)
    )


@override.command("list")
@click.argument("route", required=False)
@shell.option("--all", "all_of_them", is_flag=True, help="Those that have ended, too.")
@shell.report()
def list_overrides(settings: Settings, route: str | None, *, all_of_them: bool) -> shell.CommandReply:
    """List overrides: what they limit, who set them, why and until when."""
    names = shell.route_names(settings, route)
    holds, now_s = read_holds(log_location(settings.store)), time.time()
    rows = list[tuple[Override, str]]()
    for held in (holds.of(name) for name in names):
        live = [(one, "holds" if now_s < one.expires_at_s else "is over") for one in held.overrides]
        ended = [(one, f"ended by {end.author}: {end.reason}") for one, end in held.ended]
        rows += sorted((*live, *ended), key=lambda row: row[0].number)
    rows = [row for row in rows if all_of_them or row[1] == "holds"]
    lines = list[str]()
    for one, state in rows:
        lines.append(f"route {one.route}: override {one.number}: {describe_override(one)}")
        lines.append(f"  {state}; {_until(one)}; by {one.author}: {one.reason}")
    plain = [{"state": state, **msgspec.to_builtins(one)} for one, state in rows]
    return shell.CommandReply(plain, lines or "nothing is held")


@override.command("end")
@click.argument("route")
@click.argument("number", type=int)
@shell.decision("It still holds.")
def end(by: shell.PendingDecision, route: str, number: int) -> shell.CommandReply:
    """End override NUMBER of ROUTE before its date."""
    rules = by.rules(route)
    result = shell.accepted(
        deciding.end_override(by.writer, route, rules, number, by.reason, by.author, now_s=by.now_s)
    )
    return shell.CommandReply(result, f"route {route}: override {number} has ended; now: {result.after}")


def _until(one: Override) -> str:
    return f"until {format_time(one.expires_at_s)}"


@click.group(cls=shell.CommandGroup)
def incident() -> None:
    """List, show and decide incidents, or open one by hand."""


@incident.command("list")
@shell.ROUTE
@shell.option("--all", "all_of_them", is_flag=True, help="Those that are decided, too.")
@shell.report()
def list_incidents(settings: Settings, route: str | None, *, all_of_them: bool) -> shell.CommandReply:
    """List incidents, oldest first."""
    holds = read_holds(log_location(settings.store)).routes
    names = sorted(holds) if route is None else shell.route_names(settings, route)
    cases = [
        case
        for held in (holds[name] for name in names if name in holds)
        for case in (held.cases if all_of_them else held.open_cases)
    ]
    cases.sort(key=lambda case: case.incident.opened_at_s)
    lines = list[str]()
    for case in cases:
        one = case.incident
        lines += [f"{one.incident}  {format_time(one.opened_at_s)}  {_state(case)}", f"  {one.summary}"]
    return shell.CommandReply([_plain(case) for case in cases], lines or "no incident waits for a decision")


@incident.command("show")
@click.argument("name")
@shell.report()
def show_incident(settings: Settings, name: str) -> shell.CommandReply:
    """Show incident NAME: its evidence, the decision, and the publications that can be rolled back to."""
    path, now_s = log_location(settings.store), time.time()
    route, case = _find_incident(path, name)
    with open_reader(path) as connection:
        rules, setup = shell.find_settings(settings, route), setup_of(settings, route)
        now = deciding.read_snapshot(connection, route, rules, setup=setup)
        able = deciding.fitting(connection, now, now_s=now_s)
    holds, one = describe_state(now, now_s=now_s), case.incident
    lines = [
        f"{one.incident}: {one.summary}",
        f"  opened   {format_time(one.opened_at_s)} by {one.author}, cause {one.cause}",
        *(f"  evidence {sentence}" for sentence in one.evidence),
        f"  now      {holds}",
        f"  state    {_state(case)}",
    ]
    if case.decision is not None:
        lines += [f"  before   {case.decision.before}", f"  after    {case.decision.after}"]
    if case.is_open:
        for made, why in able:
            latest = now.publication is not None and made.number == now.publication.number
            able_to = "is the latest" if latest else "can be rolled back to"
            able_to = able_to if why is None else f"cannot: {why}"
            lines.append(f"  publication {made.number}, level {made.level}: {able_to}")
        lines.append(f"  decide   suffice incident decide {name} resume|tighten|roll_back|accept --reason …")
    plain = {"now": holds, "roll_back_to": [made.number for made, why in able if why is None], **_plain(case)}
    return shell.CommandReply(plain, lines)


@incident.command("decide")
@click.argument("name")
@click.argument("decision", type=click.Choice(["resume", "tighten", "roll_back", "accept"]))
@shell.option("--level", type=click.IntRange(0), metavar="N", help="tighten: no level above this one.")
@shell.option("--max-em-drop", type=float, metavar="E", help="tighten: a smaller EM budget, a fraction.")
@shell.option("--publication", type=click.IntRange(1), metavar="N", help="roll_back: to this publication.")
@shell.option(
    "--days", type=float, default=30.0, metavar="D", help="tighten, roll_back, accept: until it ends by itself."
)
@shell.decision("Everything is as it was: decide again once the log can be written.")
def decide_(
    by: shell.PendingDecision, name: str, decision: DecisionKind, publication: int | None, **form: Any
) -> shell.CommandReply:
    """Decide incident NAME and carry out the decision."""
    route, _ = _find_incident(by.writer.path, name)
    rules, setup = by.rules(route), setup_of(by.settings, route)
    decision_form = IncidentForm(incident=name, decision=decision, **by.signed, **form)
    result = deciding.decide_incident(
        by.writer, rules, route, decision_form, now_s=by.now_s, publication=publication, setup=setup
    )
    about = f"{name} " if isinstance(result, str) and result.startswith("is ") else ""
    made = shell.accepted(result, about).decision
    return shell.CommandReply(made, f"{name}: {decision}\n  before {made.before}\n  after  {made.after}")


@incident.command("open")
@click.argument("route")
@shell.option("--pause", "pauses", is_flag=True, help="Let everything run in full until somebody decides.")
@shell.option("--evidence", multiple=True, metavar="TEXT", help="A sentence of evidence; may be given more than once.")
@shell.decision("Open it again once the log can be written.")
def open_(by: shell.PendingDecision, route: str, evidence: tuple[str, ...], *, pauses: bool) -> shell.CommandReply:
    """Open an incident on ROUTE by hand."""
    rules = by.rules(route)
    result = shell.accepted(
        deciding.open_incident(
            by.writer, route, rules, by.reason, by.author, now_s=by.now_s, evidence=evidence, pauses=pauses
        )
    )
    rests = "; everything runs in full until it is decided" if result.pause is not None else ""
    return shell.CommandReply(result, f"{result.incident}: opened{rests}")


def _find_incident(database: LogLocation, name: str) -> tuple[str, Case]:
    routes = read_holds(database).routes
    for route, held in routes.items():
        case = held.case(name)
        if case is not None:
            return route, case
    known = ", ".join(case.incident.incident for held in routes.values() for case in held.open_cases) or "none"
    raise ConfigError(f"unknown incident {name!r}; open ones: {known}")


def _state(case: Case) -> str:
    if case.decision is not None:
        done = case.decision
        return f"{done.decision} by {done.author} on {format_time(done.decided_at_s)}: {done.reason}"
    if case.resumed is not None:
        return f"resumed by {case.resumed.author}: {case.resumed.reason}"
    rests = " (everything runs in full)" if case.incident.pause is not None else ""
    return f"waits for a decision{rests}"


def _plain(case: Case) -> dict[str, Any]:
    after = {"is_open": case.is_open, "decision": case.decision, "resumed": case.resumed}
    return {**msgspec.to_builtins(case.incident), **after}
