"""`suffice export`: tasks for Label Studio, and feedback, written for other programs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click

from suffice.cells import format_csv
from suffice.cli.shell import CONFIG_FILE, FILE, JSON_OBJECT, Command, CommandGroup, find_settings, option
from suffice.control.people.judging import Which, to_judge
from suffice.edge import label_studio as tool
from suffice.errors import ConfigError
from suffice.files import write_whole
from suffice.replay.report.text import dump_json
from suffice.review.label_studio import LABEL_CONFIG, ToJudge, parse_task_episodes, task
from suffice.settings import Settings
from suffice.store.database.sqlite import database_path
from suffice.store.database.views import open_reader, read_episodes
from suffice.store.people.feedback import read_all_feedback
from suffice.store.routes.windows import label_requests
from suffice.wiring.audit import note_export
from suffice.wiring.files import load_deployment, question_texts
from suffice.wiring.keys import secret
from suffice.wiring.worker import open_decisions

COLUMNS: Final = (
    "feedback_id",
    "episode_id",
    "response_id",
    "route",
    "joined",
    "source",
    "correct",
    "gold",
    "answer",
    "rating",
    "thumbs",
    "comment",
    "reason",
    "event",
    "propensity",
    "door",
)


@click.command("label-studio", cls=Command)
@CONFIG_FILE
@option("--route", required=True, help="Whose runs.")
@option(
    "--which",
    type=click.Choice(["wanted", "differing"]),
    default="wanted",
    help="Labels that are asked for, or all full runs whose stop would have answered otherwise.",
)
@option("--questions", type=FILE, metavar="FILE", help="JSON lines with `question` or `messages`: the log holds none.")
@option("--most", type=click.IntRange(1, 100_000), default=1_000, metavar="N", help="Tasks.")
@option("--out", type=FILE, metavar="FILE", help="Write the tasks as JSON.")
@option("--url", help="Or add them to a project of this server.")
@option("--project", type=int, help="Number of that project.")
@option("--api-key-env", default="LABEL_STUDIO_API_KEY", help="Environment variable with the server's access token.")
@option("--label-config", type=FILE, metavar="FILE", help="Write the labeling interface that the project needs.")
@JSON_OBJECT
def label_studio(
    config: Path,
    route: str,
    which: Which,
    questions: Path | None,
    most: int,
    out: Path | None,
    url: str | None,
    project: int | None,
    api_key_env: str,
    label_config: Path | None,
    *,
    as_json: bool,
) -> None:
    """Write runs that somebody should judge as tasks of Label Studio, with both answers in an order that tells nothing.

    To a file, or to a project, where runs that are tasks already are left out. The annotations come back with
    `suffice feedback import --form label-studio`, `suffice feedback label-studio` or a webhook.
    """
    if (out is None) == (url is None) or (url is not None and project is None):
        raise ConfigError("where to? Give --out FILE, or --url and --project")
    settings = load_deployment(config)
    runs = list(islice(_runs(settings, route, which, questions), most))
    if label_config is not None:
        write_whole(label_config, LABEL_CONFIG)
    n_added = len(runs)
    if out is not None:
        write_whole(out, json.dumps([task(run) for run in runs], ensure_ascii=False, indent=1) + "\n")
    else:
        n_added = asyncio.run(_sent(runs, url or "", project or 0, api_key_env))
    where = str(out) if out is not None else f"{url} project {project}"
    with open_decisions(settings, create=False) as writer:
        note_export(writer, what=f"runs of {route} to judge", where=where, n_rows=n_added, author=None, reason="")
    n_bare = sum(run.question is None for run in runs)
    entries = {
        "route": route,
        "which": which,
        "n_runs": len(runs),
        "n_added": n_added,
        "n_without_question": n_bare,
        "to": where,
    }
    if as_json:
        click.echo(json.dumps(entries))
        return
    click.echo(f"{entries['to']}: {n_added:,} tasks added of {len(runs):,} runs to judge")
    if n_bare:
        click.echo(f"  {n_bare:,} show no question; --questions FILE brings them")


def _runs(settings: Settings, route: str, which: Which, questions: Path | None) -> Iterator[ToJudge]:
    find_settings(settings, route, option="--route")
    texts = {} if questions is None else question_texts(questions, settings)
    with open_reader(database_path(settings.store.url)) as connection:
        wanted = label_requests(connection, route)
        yield from to_judge(read_episodes(connection, route), wanted, which=which, questions=texts)


async def _sent(runs: list[ToJudge], url: str, project: int, api_key_env: str) -> int:
    async with tool.connect_label_studio(url, api_key=secret("--api-key-env", api_key_env) or "") as server:
        there = parse_task_episodes(await server.export(project, all_tasks=True))
        return await server.import_tasks(project, [task(run) for run in runs if run.episode_id not in there])


@click.command("feedback", cls=Command)
@click.argument("file", type=FILE)
@CONFIG_FILE
@option("--route", help="Only what belongs to this route.")
@JSON_OBJECT
def feedback_table(file: Path, config: Path, route: str | None, *, as_json: bool) -> None:
    """Write all feedback of the log to FILE, as .csv or .jsonl, oldest first.

    In CSV a cell that a spreadsheet would take for a formula gets a quote in front; `suffice feedback import` takes it
    away again.
    """
    if file.suffix not in (".csv", ".jsonl"):
        raise ConfigError(f"{file}: what shall it be? Names that end in .csv and .jsonl say so")
    settings = load_deployment(config)
    rows = list(_said(database_path(settings.store.url), route))
    names = [f"metrics.{name}" for name in sorted({name for row in rows for name in row["metrics"]})]
    write_whole(file, _csv(rows, names) if file.suffix == ".csv" else _lines(rows))
    with open_decisions(settings, create=False) as writer:
        note_export(writer, what="feedback", where=str(file), n_rows=len(rows), author=None, reason="")
    click.echo(json.dumps({"file": str(file), "n_rows": len(rows)}) if as_json else f"{file}: {len(rows):,} rows")


def _said(path: Path, route: str | None) -> Iterator[dict[str, Any]]:
    for one in read_all_feedback(path):
        if route is None or one.route == route:
            entries = {name: getattr(one.feedback, name) for name in COLUMNS if name not in ("route", "joined")}
            yield entries | {"route": one.route, "joined": one.joined, "metrics": dict(one.feedback.metrics)}


def _csv(rows: list[dict[str, Any]], metrics: list[str]) -> str:
    flat = ({**row, **{f"metrics.{name}": value for name, value in row["metrics"].items()}} for row in rows)
    return format_csv((*COLUMNS, *metrics), flat)


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(dump_json({k: v for k, v in row.items() if v not in (None, {})}) + "\n" for row in rows)


@click.group(cls=CommandGroup)
def export() -> None:
    """Export runs and feedback for other programs."""


export.add_command(label_studio)
export.add_command(feedback_table)
