"""`suffice pause`, `resume`, `override` and `incident`."""

from __future__ import annotations

import time
from typing import Any

import click
import msgspec

from suffice.cli import shell
from suffice.cli.operations import command_of
from suffice.formatting import format_time
from suffice.operations import overrides
from suffice.review.decide import describe_state
from suffice.review.holds import Case, Override, describe_override
from suffice.settings import Settings
from suffice.store.database.location import log_location
from suffice.store.database.views import open_reader
from suffice.store.people import deciding
from suffice.store.routes.deployments import read_holds
from suffice.wiring.routes import setup_of

_PAUSES = "enforcement_paused", "enforcement_resumed"
pause = command_of(
    overrides.pause_route, retry_hint="`suffice kill` needs no database.", waits_for=_PAUSES, prints_json=False
)
resume = command_of(overrides.resume_route, retry_hint="", waits_for=_PAUSES, prints_json=False)


@click.group(cls=shell.CommandGroup)
def override() -> None:
    """Limit early stopping on a route or a class of questions until a date."""


override.add_command(
    command_of(overrides.override_route, needs=("days",), retry_hint="Set it again once the log can be written.")
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


override.add_command(command_of(overrides.end_route_override, retry_hint="It still holds."))


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
    route, case = overrides.find_incident(path, name)
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


incident.add_command(
    command_of(
        overrides.decide_route_incident,
        retry_hint="Everything is as it was: decide again once the log can be written.",
    )
)
incident.add_command(command_of(overrides.open_route_incident, retry_hint="Open it again once the log can be written."))


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
