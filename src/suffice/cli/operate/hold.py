"""`suffice pause`, `resume`, `override` and `incident`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
import msgspec

from suffice.cli.shell import (
    AUTHOR,
    CONFIG,
    JSON,
    REASON,
    WAIT,
    Command,
    CommandGroup,
    confirm,
    find_settings,
    log_of,
    nothing_written,
    option,
    print_json,
    print_line,
    refused,
    say,
    who,
)
from suffice.errors import ConfigError
from suffice.formatting import format_time
from suffice.review.decide import IncidentForm, OverrideForm, in_words
from suffice.review.holds import Case, DecisionKind, Override, OverrideKind, RouteHolds, describe_override
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import newest_of, open_reader
from suffice.store.people.deciding import (
    decide_incident,
    end_override,
    end_pause,
    fitting,
    open_incident,
    read_now,
    set_override,
    start_pause,
)
from suffice.store.people.holds import read_holds
from suffice.wiring.keys import presence_files
from suffice.wiring.routes import setup_of


@click.command(cls=Command)
@click.argument("route")
@CONFIG
@REASON
@AUTHOR
@WAIT
def pause(route: str, path: str, reason: str, author: str | None, wait_s: float) -> None:
    """Pause early stopping on ROUTE: every request runs in full until somebody resumes it.

    Waits until every running gateway has confirmed, and exits with 3 when one has not, or none is running.
    """

    def decide(writer: Decisions) -> str | None:
        return start_pause(writer, route, reason=reason, author=who(author))

    _decide("pause", route, path, decide, wait_s=wait_s, again="`suffice kill` needs no database.")


@click.command(cls=Command)
@click.argument("route")
@CONFIG
@REASON
@AUTHOR
@WAIT
def resume(route: str, path: str, reason: str, author: str | None, wait_s: float) -> None:
    """Resume early stopping on ROUTE: what is certified there acts again.

    Waits until every running gateway has confirmed, and exits with 3 when one has not, or none is running.
    """

    def decide(writer: Decisions) -> str | None:
        return end_pause(writer, route, reason=reason, author=who(author))

    _decide("resume", route, path, decide, wait_s=wait_s)


def _decide(
    command: str, route: str, path: str, decide: Callable[[Decisions], str | None], *, wait_s: float, again: str = ""
) -> None:
    with nothing_written(again), log_of(path, waits=True) as (settings, writer):
        find_settings(settings, route)
        problem = decide(writer)
        if problem is None:
            with open_reader(writer.path) as connection:
                seq = newest_of(connection, ("enforcement_paused", "enforcement_resumed"))
    if problem is not None:
        refused(f"route {route} {problem}")
    click.echo(f"route {route}: {command}d")
    confirm(command, presence_files(settings), lambda one: one.decided >= seq, wait_s=wait_s)


@click.group(cls=CommandGroup)
def override() -> None:
    """Limit early stopping on a route or a class of questions until a date."""


@override.command("set")
@click.argument("route")
@click.argument("kind", type=click.Choice(["pin", "cap", "observe", "budget"]))
@option("--level", type=click.IntRange(0), metavar="N", help="pin, cap: the level; 0 never stops.")
@option("--publication", type=click.IntRange(1), metavar="N", help="pin: an earlier publication of the route.")
@option("--max-em-drop", type=float, metavar="E", help="budget: a smaller EM budget, a fraction.")
@option("--class", "query_class", metavar="NAME", help="cap, observe: a class of questions  [default: all]")
@option("--days", type=float, required=True, metavar="D", help="Until it ends by itself: at most 30.")
@REASON
@AUTHOR
@CONFIG
@JSON
def set_(
    route: str,
    kind: OverrideKind,
    level: int | None,
    publication: int | None,
    max_em_drop: float | None,
    query_class: str | None,
    days: float,
    reason: str,
    author: str | None,
    path: str,
    *,
    as_json: bool,
) -> None:
    """Override ROUTE until a date: `pin` a level, `cap` it, only `observe`, or keep a smaller EM `budget`.

    An override can only make a route safer, unless what it pins is certified there now. Running gateways follow
    within a second, and stop following when the date has come, whether or not a worker runs.
    """
    again = "Set it again once the log can be written."
    with nothing_written(again), log_of(path) as (config, writer):
        settings = find_settings(config, route)
        wanted = OverrideForm(
            kind=kind,
            reason=reason,
            author=who(author),
            days=days,
            query_class=query_class,
            level=level,
            max_em_drop=max_em_drop,
        )
        result = set_override(
            writer,
            route,
            settings,
            wanted,
            now_s=time.time(),
            publication=publication,
            setup=setup_of(config, route),
        )
    if isinstance(result, str):
        refused(result)
    say(result, as_json=as_json, text=f"route {route}: override {result.number}: {result.after}; {_until(result)}")


@override.command("list")
@click.argument("route", required=False)
@option("--all", "all_of_them", is_flag=True, help="Those that have ended, too.")
@CONFIG
@JSON
def list_overrides(route: str | None, path: str, *, all_of_them: bool, as_json: bool) -> None:
    """List overrides: what they hold, who set them, why and until when."""
    with log_of(path) as (settings, writer):
        names = list(settings.routes) if route is None else [route]
        for name in names:
            find_settings(settings, name)
        holds = read_holds(writer.path)
    now_s, n = time.time(), 0
    for name in names:
        held = holds.of(name)
        rows = [(one, "holds" if now_s < one.expires_at_s else "is over") for one in held.overrides]
        rows += [(one, f"ended by {end.author}: {end.reason}") for one, end in held.ended]
        for one, state in sorted(rows, key=lambda row: row[0].number):
            if state != "holds" and not all_of_them:
                continue
            n += 1
            if as_json:
                print_json({"state": state, **msgspec.to_builtins(one)})
                continue
            click.echo(f"route {name}: override {one.number}: {describe_override(one)}")
            print_line(f"  {state}; {_until(one)}; by {one.author}: {one.reason}")
    if not n and not as_json:
        click.echo("nothing is held")


@override.command("end")
@click.argument("route")
@click.argument("number", type=int)
@REASON
@AUTHOR
@CONFIG
@JSON
def end(route: str, number: int, reason: str, author: str | None, path: str, *, as_json: bool) -> None:
    """End override NUMBER of ROUTE before its date."""
    with nothing_written("It still holds."), log_of(path) as (settings, writer):
        result = end_override(
            writer, route, find_settings(settings, route), number, reason, who(author), now_s=time.time()
        )
    if isinstance(result, str):
        refused(result)
    say(result, as_json=as_json, text=f"route {route}: override {number} has ended; now: {result.after}")


def _until(one: Override) -> str:
    return f"until {format_time(one.expires_at_s)}"


@click.group(cls=CommandGroup)
def incident() -> None:
    """List, show and decide incidents, or open one by hand."""


@incident.command("list")
@option("--route", help="Only this route.")
@option("--all", "all_of_them", is_flag=True, help="Those that are decided, too.")
@CONFIG
@JSON
def list_incidents(route: str | None, path: str, *, all_of_them: bool, as_json: bool) -> None:
    """List incidents, oldest first."""
    with log_of(path) as (settings, writer):
        if route is not None:
            find_settings(settings, route)
        holds = read_holds(writer.path)
    results = [
        case
        for name, held in sorted(holds.routes.items())
        if route in (None, name)
        for case in (held.cases if all_of_them else held.open_cases)
    ]
    for case in sorted(results, key=lambda case: case.incident.opened_at_s):
        if as_json:
            print_json(_plain(case))
        else:
            click.echo(f"{case.incident.incident}  {format_time(case.incident.opened_at_s)}  {_state(case)}")
            click.echo(f"  {case.incident.summary}")
    if not results and not as_json:
        click.echo("no incident waits for a decision")


@incident.command("show")
@click.argument("name")
@CONFIG
@JSON
def show_incident(name: str, path: str, *, as_json: bool) -> None:
    """Show incident NAME: its evidence, the decision, and which publications can be rolled back to."""
    with log_of(path) as (config, writer), open_reader(writer.path) as connection:
        route, case = _found(writer.path, name)
        settings = find_settings(config, route)
        now = read_now(connection, route, settings)
        able = fitting(connection, now, now_s=time.time())
        holds = in_words(now, now_s=time.time())
    if as_json:
        plain = {"now": holds, "roll_back_to": [one.number for one, why in able if why is None], **_plain(case)}
        print_json(plain)
        return
    one = case.incident
    print_line(f"{one.incident}: {one.summary}")
    click.echo(f"  opened   {format_time(one.opened_at_s)} by {one.author}, cause {one.cause}")
    for sentence in one.evidence:
        print_line(f"  evidence {sentence}")
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
@option("--level", type=click.IntRange(0), metavar="N", help="tighten: no level above this one.")
@option("--max-em-drop", type=float, metavar="E", help="tighten: a smaller EM budget, a fraction.")
@option("--publication", type=click.IntRange(1), metavar="N", help="roll_back: to this publication.")
@option("--days", type=float, default=30.0, metavar="D", help="tighten, roll_back, accept: until it ends by itself.")
@REASON
@AUTHOR
@CONFIG
@JSON
def decide_(
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
    """Decide incident NAME and carry out the decision."""
    again = "Everything is as it was: decide again once the log can be written."
    with nothing_written(again), log_of(path) as (config, writer):
        route, _ = _found(writer.path, name)
        settings = find_settings(config, route)
        asked = IncidentForm(
            incident=name,
            decision=decision,
            reason=reason,
            author=who(author),
            days=days,
            level=level,
            max_em_drop=max_em_drop,
        )
        result = decide_incident(
            writer,
            settings,
            route,
            asked,
            now_s=time.time(),
            publication=publication,
            setup=setup_of(config, route),
        )
    if isinstance(result, str):
        refused(f"{name} {result}" if result.startswith("is ") else result)
    made = result.decision
    say(made, as_json=as_json, text=f"{name}: {decision}\n  before {made.before}\n  after  {made.after}")


@incident.command("open")
@click.argument("route")
@option("--pause", "pauses", is_flag=True, help="Let everything run in full until somebody decides.")
@option("--evidence", multiple=True, metavar="TEXT", help="What it stands on; may be given more than once.")
@REASON
@AUTHOR
@CONFIG
@JSON
def open_(
    route: str, evidence: tuple[str, ...], reason: str, author: str | None, path: str, *, pauses: bool, as_json: bool
) -> None:
    """Open an incident on ROUTE by hand."""
    with nothing_written("Open it again once the log can be written."), log_of(path) as (settings, log):
        result = open_incident(
            log,
            route,
            find_settings(settings, route),
            reason,
            who(author),
            now_s=time.time(),
            evidence=evidence,
            pauses=pauses,
        )
    if isinstance(result, str):
        refused(result)
    rests = "; everything runs in full until it is decided" if result.pause is not None else ""
    say(result, as_json=as_json, text=f"{result.incident}: opened{rests}")


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
