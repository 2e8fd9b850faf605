"""`suffice override`: a person holds a route, or a class of its questions, back for a while."""

from __future__ import annotations

import time

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
from suffice.review.decide import OverrideForm
from suffice.review.override import Override, OverrideKind, describe_override
from suffice.store.people.deciding import end_override, set_override
from suffice.store.people.holds import read_holds


@click.group(cls=CommandGroup)
def override() -> None:
    """Hold a route or a class of questions at a level, below one, or in full, until a date."""


@override.command("set")
@click.argument("route")
@click.argument("kind", type=click.Choice(["pin", "cap", "observe", "budget"]))
@click.option("--level", type=click.IntRange(0), metavar="N", help="pin, cap: the level; 0 never stops.")
@click.option("--publication", type=click.IntRange(1), metavar="N", help="pin: an earlier publication of the route.")
@click.option("--max-em-drop", type=float, metavar="E", help="budget: a smaller EM budget, a fraction.")
@click.option("--class", "query_class", metavar="NAME", help="cap, observe: a class of questions  [default: all]")
@click.option("--days", type=float, required=True, metavar="D", help="Until it ends by itself: at most 30.")
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
    """Hold ROUTE until a date: `pin` it, `cap` it, let it `observe`, or keep a smaller `budget`.

    It can only make things safer, unless what it pins is certified there now. A running gateway follows within a
    second, and stops following when the date has come, whether or not a worker runs.
    """
    again = "Set it again once the log can be written."
    with failing_with("override set", again=again), log_of(path) as (told, writer):
        settings = find_settings(told, route)
        wanted = OverrideForm(
            kind=kind,
            reason=reason,
            author=who(author),
            days=days,
            query_class=query_class,
            level=level,
            max_em_drop=max_em_drop,
        )
        found = set_override(
            writer,
            route,
            settings,
            wanted,
            now_s=time.time(),
            publication=publication,
            setup=settings_setup(told, route),
        )
    if isinstance(found, str):
        refused("override set", found)
    say(found, as_json=as_json, text=f"route {route}: override {found.number}: {found.after}; {_until(found)}")


@override.command("list")
@click.argument("route", required=False)
@click.option("--all", "all_of_them", is_flag=True, help="Those that have ended, too.")
@CONFIG
@JSON
def list_(route: str | None, path: str, *, all_of_them: bool, as_json: bool) -> None:
    """Show what is held, by whom, why and until when."""
    with failing_with("override list"), log_of(path) as (told, writer):
        names = list(told.routes) if route is None else [route]
        for name in names:
            find_settings(told, name)
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
                click.echo(msgspec.json.encode({"state": state, **msgspec.to_builtins(one)}).decode())
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
    with failing_with("override end", again="It still holds."), log_of(path) as (told, writer):
        found = end_override(writer, route, find_settings(told, route), number, reason, who(author), now_s=time.time())
    if isinstance(found, str):
        refused("override end", found)
    say(found, as_json=as_json, text=f"route {route}: override {number} has ended; now: {found.after}")


def _until(one: Override) -> str:
    return f"until {format_time(one.expires_at_s)}"
