"""`suffice store`: check, create and upgrade the database of the log, and move a log into PostgreSQL."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from suffice.cli import shell
from suffice.errors import ConfigError
from suffice.settings import Settings
from suffice.store.database.copying import copy_log
from suffice.store.database.location import database_at, log_location
from suffice.store.database.views import last_place, open_reader
from suffice.wiring.files import load_settings

N_ROUND_TRIPS = 10


@click.group(cls=shell.CommandGroup)
def store() -> None:
    """The database of the log: one SQLite file, or a schema of a PostgreSQL server."""


@store.command("check")
@shell.report(shell.JSON_OBJECT)
def check_store(settings: Settings) -> shell.CommandReply:
    """Connect to the log's database as a gateway does, and say what it is and how quickly it answers.

    Exits with 2 when the log cannot be opened, with the reason.
    """
    database = database_at(log_location(settings.store))
    with open_reader(database) as log:
        took, last = list[float](), last_place(log)
        for _ in range(N_ROUND_TRIPS):
            began_s = time.perf_counter()
            log.execute("SELECT 1").fetchone()
            took.append(time.perf_counter() - began_s)
        clock_s = database.clock_s(log)
        ahead_s = None if clock_s is None else clock_s - time.time()
        engine = database.engine(log)
    reply: dict[str, Any] = {
        "log": str(database),
        "server": engine,
        "last_row": last,
        "bytes": database.size_bytes(),
        "round_trip_ms": round(sorted(took)[N_ROUND_TRIPS // 2] * 1e3, 2),
        "clock_ahead_s": None if ahead_s is None else round(ahead_s, 3),
    }
    lines = [f"{reply['log']}: {reply['server']}, {last:,} rows, {reply['bytes'] / 1e6:,.1f} MB"]
    lines.append(f"a query takes {reply['round_trip_ms']:.2f} ms")
    if ahead_s is not None:
        lines.append(f"the server's clock is {ahead_s:+.1f} s from this machine's; leases follow the server's")
    return shell.CommandReply(reply, lines)


@store.command()
@shell.CONFIG
def migrate(path: Path) -> None:
    """Create the log's tables, or bring them up to this version.

    Gateways and workers of the version before go on working, so run it before an upgrade of several. `suffice serve`
    does the same when it starts.
    """
    settings = load_settings(path)
    database = database_at(log_location(settings.store))
    n = database.migrate(now_s=time.time())
    click.echo(f"{database}: " + (f"{n} migrations ran" if n else "is of this version already"))


@store.command()
@shell.CONFIG
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def copy(path: Path, file: Path) -> None:
    """Copy the log of a SQLite FILE into the settings' PostgreSQL, and verify its chain there.

    Every row keeps its place and every link of the chain its digest, so exported heads go on to hold. Stop the
    gateways and workers of the file first; the schema must be empty. The file stays as it is.
    """
    settings: Settings = load_settings(path)
    target = database_at(log_location(settings.store))
    if not target.is_server:
        raise ConfigError("store.url: names a SQLite file; need postgresql://…, where the log goes")
    copied = copy_log(database_at(file), target, now_s=time.time())
    click.echo(f"{target}: {copied.n_events:,} rows and {copied.n_artefacts:,} artefacts")
    click.echo(
        f"the chain is intact; its head is place {copied.head.place:,}, {copied.head.link[:16]}…, as in the file"
    )
