"""`suffice incident`: what waits for a person's decision, what it stands on, and the decision."""

from __future__ import annotations

import time
from typing import Any

import click
import msgspec

from suffice.cli.deciding import (
    AUTHOR,
    CONFIG,
    JSON,
    REASON,
    failing_with,
    find_settings,
    format_time,
    log_of,
    refused,
    say,
    settings_setup,
    who,
)
from suffice.cli.shell import CommandGroup, print_line
from suffice.errors import ConfigError
from suffice.review.decide import IncidentForm, in_words
from suffice.review.holds import RouteHolds
from suffice.review.incident import Case, DecisionKind
from suffice.store.database.views import open_reader
from suffice.store.people.deciding import decide_incident, fitting, open_incident, read_now
from suffice.store.people.holds import read_holds


@click.group(cls=CommandGroup)
def incident() -> None:
    """What waits for a person's decision: list, show, decide, or open one by hand."""


@incident.command("list")
@click.option("--route", help="Only this route.")
@click.option("--all", "all_of_them", is_flag=True, help="Those that are decided, too.")
@CONFIG
@JSON
def list_(route: str | None, path: str, *, all_of_them: bool, as_json: bool) -> None:
    """Show incidents, oldest first."""
    with failing_with("incident list"), log_of(path) as (told, writer):
        if route is not None:
            find_settings(told, route)
        holds = read_holds(writer.path)
    found = [
        case
        for name, held in sorted(holds.routes.items())
        if route in (None, name)
        for case in (held.cases if all_of_them else held.open_cases)
    ]
    for case in sorted(found, key=lambda case: case.incident.opened_at_s):
        if as_json:
            click.echo(msgspec.json.encode(_plain(case)).decode())
        else:
            click.echo(f"{case.incident.incident}  {format_time(case.incident.opened_at_s)}  {_state(case)}")
            click.echo(f"  {case.incident.summary}")
    if not found and not as_json:
        click.echo("no incident waits for a decision")


@incident.command("show")
@click.argument("name")
@CONFIG
@JSON
def show(name: str, path: str, *, as_json: bool) -> None:
    """Show incident NAME: what it stands on, what was decided, and what can be rolled back to."""
    with failing_with("incident show"), log_of(path) as (told, writer), open_reader(writer.path) as connection:
        route, case = _found(writer.path, name)
        settings = find_settings(told, route)
        now = read_now(connection, route, settings)
        able = fitting(connection, now, now_s=time.time())
        holds = in_words(now, now_s=time.time())
    if as_json:
        plain = {"now": holds, "roll_back_to": [one.number for one, why in able if why is None], **_plain(case)}
        click.echo(msgspec.json.encode(plain).decode())
        return
    one = case.incident
    print_line(f"{one.incident}: {one.summary}")
    click.echo(f"  opened   {format_time(one.opened_at_s)} by {one.author}, cause {one.cause}")
    for said in one.evidence:
        print_line(f"  evidence {said}")
    click.echo(f"  now      {holds}")
    print_line(f"  state    {_state(case)}")
    if case.decision is not None:
        click.echo(f"  before   {case.decision.before}")
        click.echo(f"  after    {case.decision.after}")
    if not case.is_open:
        return
    for made, why in able:
        latest = now.publication is not None and made.number == now.publication.number
        able_to = "is the latest" if latest else "can be rolled back to"
        click.echo(f"  publication {made.number}, level {made.level}: {able_to if why is None else f'cannot: {why}'}")
    click.echo(f"  decide   suffice incident decide {name} resume|tighten|roll_back|accept --reason …")


@incident.command("decide")
@click.argument("name")
@click.argument("decision", type=click.Choice(["resume", "tighten", "roll_back", "accept"]))
@click.option("--level", type=click.IntRange(0), metavar="N", help="tighten: no level above this one.")
@click.option("--max-em-drop", type=float, metavar="E", help="tighten: a smaller EM budget, a fraction.")
@click.option("--publication", type=click.IntRange(1), metavar="N", help="roll_back: to this publication.")
@click.option(
    "--days",
    type=float,
    default=30.0,
    show_default=True,
    metavar="D",
    help="tighten, roll_back, accept: until it ends by itself.",
)
@REASON
@AUTHOR
@CONFIG
@JSON
def decide(
    name: str,
    decision: DecisionKind,
    level: int | None,
    max_em_drop: float | None,
    publication: int | None,
    days: float,
    reason: str,
    author: str | None,
    path: str,
    *,
    as_json: bool,
) -> None:
    """Decide incident NAME, and carry the decision out."""
    again = "Everything is as it was: decide again once the log can be written."
    with failing_with("incident decide", again=again), log_of(path) as (told, writer):
        route, _ = _found(writer.path, name)
        settings = find_settings(told, route)
        asked = IncidentForm(
            incident=name,
            decision=decision,
            reason=reason,
            author=who(author),
            days=days,
            level=level,
            max_em_drop=max_em_drop,
        )
        found = decide_incident(
            writer,
            settings,
            route,
            asked,
            now_s=time.time(),
            publication=publication,
            setup=settings_setup(told, route),
        )
    if isinstance(found, str):
        refused("incident decide", f"{name} {found}" if found.startswith("is ") else found)
    made = found.decision
    say(made, as_json=as_json, text=f"{name}: {decision}\n  before {made.before}\n  after  {made.after}")


@incident.command("open")
@click.argument("route")
@click.option("--pause", "pauses", is_flag=True, help="Let everything run in full until somebody decides.")
@click.option("--evidence", multiple=True, metavar="TEXT", help="What it stands on; may be given more than once.")
@REASON
@AUTHOR
@CONFIG
@JSON
def open_(
    route: str, evidence: tuple[str, ...], reason: str, author: str | None, path: str, *, pauses: bool, as_json: bool
) -> None:
    """Open an incident on ROUTE by hand."""
    with failing_with("incident open", again="Open it again once the log can be written."), log_of(path) as (told, log):
        found = open_incident(
            log,
            route,
            find_settings(told, route),
            reason,
            who(author),
            now_s=time.time(),
            evidence=evidence,
            pauses=pauses,
        )
    if isinstance(found, str):
        refused("incident open", found)
    rests = "; everything runs in full until it is decided" if found.pause is not None else ""
    say(found, as_json=as_json, text=f"{found.incident}: opened{rests}")


def _found(database: Any, name: str) -> tuple[str, Case]:
    """An incident by its name, with its route. Any: a path. Raises ConfigError."""
    for route, held in read_holds(database).routes.items():
        case = held.case(name)
        if case is not None:
            return route, case
    raise ConfigError(f"unknown incident {name!r}; open ones: {_open(read_holds(database).routes) or 'none'}")


def _open(routes: Any) -> str:
    held: list[RouteHolds] = list(routes.values())
    return ", ".join(case.incident.incident for one in held for case in one.open_cases)


def _state(case: Case) -> str:
    if case.decision is not None:
        done = case.decision
        return f"{done.decision} by {done.author} on {format_time(done.decided_at_s)}: {done.reason}"
    if case.resumed is not None:
        return f"resumed by {case.resumed.author}: {case.resumed.reason}"
    rests = " (everything runs in full)" if case.incident.pause is not None else ""
    return f"waits for a decision{rests}"


def _plain(case: Case) -> dict[str, Any]:
    return {
        **msgspec.to_builtins(case.incident),
        "is_open": case.is_open,
        "decision": msgspec.to_builtins(case.decision),
        "resumed": msgspec.to_builtins(case.resumed),
    }
