"""`suffice feedback parked`: feedback whose request never came.

Knows options and how a list looks; refuses to know rows (`store.parked`). Heavy imports stand inside the functions.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Final

import click

from suffice.cells import format_csv
from suffice.cli.shell import CONFIG_FILE, JSON_LINES, fail
from suffice.errors import SufficeError
from suffice.files import write_whole
from suffice.settings import Settings
from suffice.store.database.sqlite import database_path
from suffice.store.people.feedback import UnmatchedFeedback
from suffice.store.people.feedback import read_unmatched as read_parked
from suffice.wiring import load_deployment

DAY_S: Final = 86_400.0
SHOWN: Final = 20


@click.command()
@CONFIG_FILE
@click.option("--days", type=float, help="Dead letters are older than so many days. [default: the settings']")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write all of it as CSV.")
@JSON_LINES
def parked(config: Path, days: float | None, out: Path | None, *, as_json: bool) -> None:
    """List feedback that belongs to no request of the log: what waits, and what is a dead letter by now.

    It is kept: whenever its request comes, it joins. An id that never comes is a wrong one, or one of another log.
    """
    try:
        settings: Settings = load_deployment(config)
        limit_s = DAY_S * (settings.feedback.park_days if days is None else days)
        now_s = time.time()
        rows = [_told(one, now_s, limit_s) for one in read_parked(database_path(settings.store.url))]
        if out is not None:
            _write(out, rows)
    except (SufficeError, OSError) as error:
        fail("feedback parked", error)
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    _show(rows, limit_s, out)


def _told(one: UnmatchedFeedback, now_s: float, limit_s: float) -> dict[str, Any]:
    age_s = max(0.0, now_s - one.at_s)  # a clock that was set back makes nobody younger than new
    return {
        "feedback_id": one.feedback_id,
        "episode_id": one.episode_id,
        "response_id": one.response_id,
        "source": one.source,
        "age_days": round(age_s / DAY_S, 3),
        "dead": age_s > limit_s,
    }


def _write(out: Path, rows: list[dict[str, Any]]) -> None:
    write_whole(out, format_csv(("feedback_id", "episode_id", "response_id", "source", "age_days", "dead"), rows))


def _show(rows: list[dict[str, Any]], limit_s: float, out: Path | None) -> None:
    n_dead = sum(row["dead"] for row in rows)
    older = f"{n_dead:,} are dead letters, older than {limit_s / DAY_S:g} days"
    click.echo(f"{len(rows) - n_dead:,} wait for their request; {older}")
    for row in rows[:SHOWN]:
        named = f"episode {row['episode_id']}" if row["episode_id"] else f"response {row['response_id']}"
        dead = "  dead letter" if row["dead"] else ""
        click.echo(f"  {row['feedback_id']}  {named}  {row['source']}  {row['age_days']:.1f} days{dead}")
    if len(rows) > SHOWN:
        click.echo(f"  … and {len(rows) - SHOWN:,} more; --json or --out shows all")
    if out is not None:
        click.echo(f"written to {out}")
