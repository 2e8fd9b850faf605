"""`suffice export label-studio` and `suffice feedback label-studio`: export runs, import annotations."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click

from suffice.cli.labels.feedback import IMPORT_OPTIONS, Body, ImportResult, import_feedback, read_annotations
from suffice.cli.shell import CONFIG, FILE, JSON_OBJECT, Command, find_settings, option
from suffice.errors import ConfigError
from suffice.files import write_whole
from suffice.settings import Settings
from suffice.store.database.location import log_location
from suffice.store.database.views import label_requests, open_reader, read_episodes
from suffice.wiring.audit import note_export
from suffice.wiring.files import load_deployment, question_texts
from suffice.wiring.keys import secret
from suffice.wiring.worker import open_decisions
from suffice_label_studio.server import connect_label_studio
from suffice_label_studio.tasks import LABEL_CONFIG, ToJudge, Which, parse_task_episodes, task, to_judge


@click.command("label-studio", cls=Command)
@CONFIG
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
def export_tasks(
    path: Path,
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
    """Write runs to judge as tasks of Label Studio, with both answers in a blinded order.

    To a file, or to a project, where existing tasks are skipped. The annotations come back with a webhook,
    `suffice feedback label-studio` or `suffice feedback import --form label-studio`.
    """
    if (out is None) == (url is None) or (url is not None and project is None):
        raise ConfigError("where to? Give --out FILE, or --url and --project")
    settings = load_deployment(path)
    runs = list(islice(_runs(settings, route, which, questions), most))
    if label_config is not None:
        write_whole(label_config, LABEL_CONFIG)
    n_added = len(runs)
    if out is not None:
        write_whole(out, json.dumps([task(run) for run in runs], ensure_ascii=False, indent=1) + "\n")
    else:
        n_added = asyncio.run(_send(runs, url or "", project or 0, api_key_env))
    where = str(out) if out is not None else f"{url} project {project}"
    with open_decisions(settings, create=False) as writer:
        note_export(writer, what=f"runs of {route} to judge", where=where, n_rows=n_added, author=None, reason="")
    n_bare = sum(run.question is None for run in runs)
    if as_json:
        counts = {"n_runs": len(runs), "n_added": n_added, "n_without_question": n_bare}
        click.echo(json.dumps({"route": route, "which": which, **counts, "to": where}))
        return
    click.echo(f"{where}: {n_added:,} tasks added of {len(runs):,} runs to judge")
    if n_bare:
        click.echo(f"  {n_bare:,} show no question; --questions FILE brings them")


def _runs(settings: Settings, route: str, which: Which, questions: Path | None) -> Iterator[ToJudge]:
    find_settings(settings, route, option="--route")
    texts = {} if questions is None else question_texts(questions, settings)
    with open_reader(log_location(settings.store)) as connection:
        wanted = label_requests(connection, route)
        yield from to_judge(read_episodes(connection, route), wanted, which=which, questions=texts)


async def _send(runs: list[ToJudge], url: str, project: int, api_key_env: str) -> int:
    async with connect_label_studio(url, api_key=secret("--api-key-env", api_key_env) or "") as server:
        there = parse_task_episodes(await server.export(project, all_tasks=True))
        return await server.import_tasks(project, [task(run) for run in runs if run.episode_id not in there])


@click.command("label-studio", cls=Command)
@option("--url", required=True, help="Address of the server.")
@option("--project", type=int, required=True, help="Number of the project.")
@option("--api-key-env", default="LABEL_STUDIO_API_KEY", help="Environment variable with its access token.")
@IMPORT_OPTIONS
def pull(url: str, project: int, api_key_env: str, **given: Any) -> None:
    """Read the annotations of a Label Studio project that `suffice export label-studio` has filled."""

    async def fetch() -> Any:
        async with connect_label_studio(url, api_key=secret("--api-key-env", api_key_env) or "") as server:
            return await server.export(project)

    def bodies(_: Settings, result: ImportResult) -> Iterator[Body]:
        return read_annotations(asyncio.run(fetch()), result)

    import_feedback(f"{url} project {project}", bodies, **given)
