"""Prints what `suffice status` shows, once or whenever it changes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click
import msgspec

from suffice.cli.inspect import route_report
from suffice.cli.inspect.route_status import read_statuses
from suffice.cli.inspect.route_summary import summary_lines
from suffice.cli.shell import (
    fail,
    given_data_dir,
    load_optional_settings,
    loud,
    print_facts,
    print_json,
    terminal_width,
    warn,
    wrapped,
)
from suffice.errors import ConfigError, StoreError, SufficeError
from suffice.formatting import format_time
from suffice.report.sentences import summarize
from suffice.report.snapshot import RouteSnapshot, describe_overrides
from suffice.sanitize import printable
from suffice.settings import Settings, Store
from suffice.store.database.location import LogLocation, log_location
from suffice.store.database.presence import read_presences
from suffice.store.database.views import open_reader
from suffice.store.people.audit_view import describe_level
from suffice.store.routes.deployments import read_fleet
from suffice.store.routes.rollups import read_to
from suffice.wiring.files import condition, data_folder, no_settings, require_log
from suffice.wiring.keys import good_file, presence_files

if TYPE_CHECKING:  # the gateway would take most of the start-up time of `suffice status`
    from suffice.gateway.last_good import GoodRoute

# Prefixes of lines that are highlighted.
LOUD = ("UNCERTIFIED", "NONE", "PAUSED", "NOT RUNNING", "ALERT", "WAITS")
# Of `--json`, beside those of the report.
STATUS_KEYS = (
    *("mode", "policy_version", "n_without_outcome", "scorer", "confidence", "max_em_drop", "evidence", "refused"),
    *("certifies", "control", "forecast", "spending", "proposal", "budget", "worse_arms", "promise", "promise_state"),
    *("pairs", "held", "policy", "needs_probe", "lag", "since_s"),
)
WATCH_S = 2.0  # between two looks


def show_statuses(config: Path | None, db: Path | None, route: str | None, *, as_json: bool, shows_all: bool) -> None:
    """Print the status of every route, or of one; if the log is unreadable, print the last known deployment."""
    settings = None
    first: tuple[str, ...] = ()
    try:
        settings, database = _sources(config, db)
        if settings is not None and db is None:
            require_log(settings, config or "suffice.toml")
            first = condition(settings)
        _warn_of_rows(database)
        statuses, fleet = read_statuses(database, settings, route), read_fleet(database)
    except (SufficeError, OSError) as error:
        why = [str(error), *map(printable, first)]
        if settings is not None and db is None and isinstance(error, StoreError | OSError):
            why += _last_good(settings, route)
        fail("\n".join(why))
    for sentence in first:
        click.echo(loud(wrapped(printable(sentence), later="  ", width=_width()), err=as_json), err=as_json)
    configured = () if settings is None else tuple(settings.routes)
    given = {"config": config, "db": db, "data-dir": given_data_dir()}
    named = "".join(f" --{name} {quote(str(file))}" for name, file in given.items() if file)
    is_served = settings is None or db is not None or bool(read_presences(presence_files(settings)))
    print_statuses(statuses, as_json=as_json, shows_all=shows_all, options=named, is_served=is_served)
    silent = [
        name for name in configured if route in (None, name) and name not in {one.report.route for one in statuses}
    ]
    if not as_json and (silent or not statuses):
        of = f" on {', '.join(silent)}" if statuses else ""
        click.echo(wrapped(f"{database}: no requests yet{of}", width=_width()))
        if not statuses:
            click.echo("  next: send one, or see what the model server can do\n      suffice doctor" + named)
    if fleet:
        click.echo(wrapped(fleet, width=_width()), err=as_json)


def _width() -> int:
    """At a terminal, its own; elsewhere lines are whole, for grep."""
    return terminal_width() if sys.stdout.isatty() else 10_000


def print_statuses(
    statuses: Sequence[RouteSnapshot],
    *,
    as_json: bool,
    shows_all: bool = True,
    options: str = "",
    is_served: bool = True,
) -> None:
    """Print JSON, everything that is known, or three lines a route; `options` of the command are needed by others."""
    if not as_json and not shows_all:
        summaries = [summarize(one, options=options, is_served=is_served) for one in statuses]
        for line, is_loud in summary_lines(summaries, now_s=time.time(), width=_width()):
            click.echo(loud(line) if is_loud else line)
        return
    for one in statuses:
        if not as_json:
            sections = route_report.status_sections(one)
            width = max(22, *(len(what) for section in sections for what, _ in section))
            print_facts(f"route {one.report.route or '(no route matched)'}", sections, loud=LOUD, width=width)
            click.echo()
            continue
        plain = msgspec.to_builtins({name: getattr(one, name) for name in STATUS_KEYS})
        report = msgspec.to_builtins(one.report)
        report.pop("audits_at_s")
        plain["evidence"] |= {"n_missing": one.evidence.n_missing, "wait_s": one.evidence.wait_s}
        summary = summarize(one, options=options, is_served=is_served)
        texts = {"now": summary.now, "effect": summary.effect, "next": summary.next_step, "command": summary.command}
        print_json({**report, "governed_share": one.report.governed_share, **plain, "summary": texts})


def _sources(config: Path | None, db: Path | None) -> tuple[Settings | None, LogLocation]:
    settings = load_optional_settings(config) if config is not None or db is None else None
    if db is not None:
        return settings, db
    if settings is not None:
        return settings, log_location(settings.store)
    log = data_folder(os.environ) / Store().url.rpartition("/")[2]  # of suffice serve --upstream
    if not log.is_file():
        raise ConfigError(f"{no_settings(os.environ)}, or a log with --db")
    return None, log


def _warn_of_rows(database: LogLocation) -> None:
    with open_reader(database) as connection:
        lag = read_to(connection).lag
    if lag:
        warn(f"{lag}; start suffice worker, or sum them up with suffice worker --once rollup")


def _last_good(settings: Settings, route: str | None) -> list[str]:
    from suffice.wiring.last_good import last_good

    try:
        good = last_good(settings)
    except (ConfigError, OSError) as error:
        return [f"and the last-good file cannot be used: {error}"]
    if good is None:
        return []
    now_s, until_s = time.time(), good.at_s + settings.store.last_good_s
    serves = f"may be served until {format_time(until_s)}" if now_s < until_s else "is too old to be served"
    full = "" if now_s < until_s else ": all runs in full"
    named = {name: one for name, one in good.routes.items() if route in (None, name)}
    width = max(map(len, named), default=0)
    return [
        f"{good_file(settings)} records what was active at {format_time(good.at_s)}, and {serves}{full}",
        *(f"  {name:<{width}}  {_describe_good(one, now_s)}" for name, one in named.items()),
    ]


def _describe_good(one: GoodRoute, now_s: float) -> str:
    held, made = one.held, one.held.publication
    sentences = [] if one.refused is None else [f"behaves as observe: {one.refused}"]
    if held.pause is not None:
        sentences.append(f"PAUSED by {held.pause.author}: {held.pause.reason}")
    elif made is not None and held.level:
        proved = "certified" if made.certified else "budgeted"
        level = describe_level(made) if held.level == made.level else f"level {held.level} of {made.n_levels - 1}"
        sentences.append(f"{proved}, {level}, publication {made.number}")
    elif one.standing is not None:
        sentences.append(f"the policy that a rollout activated: {one.standing.get('policy')}")
    else:
        sentences.append("no level is active")
    return printable("; ".join((*sentences, *describe_overrides(one.overrides, now_s))))


class _Screen(StringIO):
    """Text for a terminal, with its colours."""

    def isatty(self) -> bool:
        return True


def watch_statuses(config: Path | None, db: Path | None, route: str | None, *, as_json: bool, shows_all: bool) -> None:
    """Show the status again whenever it changes: in place at a terminal, one below the other elsewhere."""
    from contextlib import redirect_stdout

    before, is_terminal = "", sys.stdout.isatty()
    while True:
        text = _Screen() if is_terminal else StringIO()
        with redirect_stdout(text):
            show_statuses(config, db, route, as_json=as_json, shows_all=shows_all)
        if text.getvalue() != before:
            before = text.getvalue()
            if is_terminal:
                click.clear()
            elif not as_json:
                click.echo(f"--- {format_time(time.time())}")
            click.echo(before, nl=False)
        time.sleep(WATCH_S)
