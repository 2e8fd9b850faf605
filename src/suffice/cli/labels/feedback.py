"""`suffice feedback`: labels from files, a labelling tool or a judge model, and feedback whose request never came.

Everything is read and checked before anything is written, so a file with a mistake writes nothing. What was written
before an interruption is known by its `feedback_id` the next time and counts once.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import click

from suffice.cells import format_csv
from suffice.cli.shell import (
    CONFIG_FILE,
    FILE,
    JSON_LINES,
    JSON_OBJECT,
    Command,
    CommandGroup,
    find_settings,
    option,
    print_json,
)
from suffice.control.people.judging import JudgingResult, judge_labels
from suffice.edge import label_studio as tool
from suffice.edge.judge import JudgeModel
from suffice.edge.yardstick import yardstick
from suffice.errors import BadRequest, ConfigError, TraceError
from suffice.files import write_whole
from suffice.gateway.feedback_form import FeedbackMapping, body, plan, read_feedback, seal_feedback
from suffice.replay.traces.tables import read_rows
from suffice.review import langfuse
from suffice.review.label_studio import read_export
from suffice.rollout.assign import sender_key
from suffice.settings import Judge, Route, Settings
from suffice.store.database.sqlite import database_path
from suffice.store.database.views import open_reader, read_episodes
from suffice.store.people.feedback import UnmatchedFeedback, find_feedback, would_join
from suffice.store.people.feedback import read_unmatched as read_parked
from suffice.store.rows.records import FeedbackEvent
from suffice.types import Feedback
from suffice.wiring.files import load_deployment, question_texts
from suffice.wiring.keys import deployment_salt, secret
from suffice.wiring.startup import open_log

Form: TypeAlias = Literal["suffice", "label-studio", "langfuse"]
BATCH_ROWS: Final = 1_000

# A row's number, and what it says as /v1/feedback takes it, or why it says nothing.
Body: TypeAlias = "tuple[int, dict[str, Any] | BadRequest]"


@dataclass(slots=True, kw_only=True)
class ImportResult:
    source: str
    dry_run: bool
    n_rows: int = 0
    n_ignored: int = 0  # annotations without a word
    n_new: int = 0
    n_known: int = 0  # counted before, under the same id
    n_conflicts: int = 0  # of these, rows that say something else than the log has under their id
    n_joined: int = 0  # of all rows: their request is in the log
    unused: tuple[str, ...] = ()
    by: FeedbackMapping | None = field(default=None, repr=False)


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for add in (
        JSON_OBJECT,
        option("--dry-run", is_flag=True, help="Read and check everything, and write nothing."),
        CONFIG_FILE,
    ):
        command = add(command)
    return command


@click.command("import", cls=Command)
@click.argument("file", type=FILE)
@option(
    "--form",
    type=click.Choice(["suffice", "label-studio", "langfuse"]),
    default="suffice",
    help="Whose columns or annotations they are.",
)
@option("--map", "mapped", multiple=True, metavar="FIELD=COLUMN", help="The column of a field; repeatable.")
@option("--set", "fixed", multiple=True, metavar="FIELD=VALUE", help="The same for every row; repeatable.")
@_options
def import_file(
    file: Path,
    form: Form,
    mapped: tuple[str, ...],
    fixed: tuple[str, ...],
    config: Path,
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Read labels, ratings and other feedback from FILE (.csv, .jsonl, .parquet; .json of Label Studio or Langfuse).

    Columns are fields by their names, or by --map. All rows are checked before any is written; a mistake names the row
    and the column. May be repeated and run beside a serving gateway: a row counts once.
    """

    def bodies(settings: Settings, result: ImportResult) -> Iterator[Body]:
        return _bodies(file, form, mapped, fixed, settings, result)

    _run(str(file), config, bodies, dry_run=dry_run, as_json=as_json)


@click.command("label-studio", cls=Command)
@option("--url", required=True, help="Address of the server.")
@option("--project", type=int, required=True, help="Number of the project.")
@option("--api-key-env", default="LABEL_STUDIO_API_KEY", help="Environment variable with its access token.")
@_options
def pull(url: str, project: int, api_key_env: str, config: Path, *, dry_run: bool, as_json: bool) -> None:
    """Read the annotations of a Label Studio project, as `suffice export label-studio` has made it."""

    def bodies(_: Settings, result: ImportResult) -> Iterator[Body]:
        tasks = asyncio.run(_exported(url, project, api_key_env))
        return _annotations(tasks, result)

    _run(f"{url} project {project}", config, bodies, dry_run=dry_run, as_json=as_json)


def _run(
    source: str,
    config: Path,
    bodies: Callable[[Settings, ImportResult], Iterator[Body]],
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    result = ImportResult(source=source, dry_run=dry_run)
    settings = load_deployment(config)
    rows = _checked(bodies(settings, result), settings, result)
    if dry_run:
        _look(rows, settings, result)
    else:
        asyncio.run(_write(rows, settings, result))
    _show(result, as_json=as_json)


# --------------------------------------------------------------------------- reading


def _bodies(
    file: Path, form: Form, mapped: tuple[str, ...], fixed: tuple[str, ...], settings: Settings, result: ImportResult
) -> Iterator[Body]:
    if form != "suffice" and (mapped or fixed):
        raise ConfigError(f"--map and --set belong to the form suffice, got {form}; its own settings say what is what")
    if form == "label-studio":
        return _annotations(_read_json(file), result)
    rules = settings.feedback.langfuse.scores
    if form == "langfuse":
        rows = _scores(file) if file.suffix.lower() == ".json" else _rows(file)
        return ((number, langfuse.read_score(cells, rules, settings.metrics)) for number, cells in rows)
    return _table(file, mapped, fixed, settings, result)


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    return read_rows(file)


def _table(
    file: Path, mapped: tuple[str, ...], fixed: tuple[str, ...], settings: Settings, result: ImportResult
) -> Iterator[Body]:
    columns = dict[str, None]()
    for _, cells in _rows(file):  # JSON lines may name a column late
        columns |= dict.fromkeys(cells)
    result.by = by = plan(columns, mapped, fixed, settings.metrics)
    result.unused = by.unused
    for number, cells in _rows(file):
        try:
            yield number, body(cells, by, settings.metrics)
        except BadRequest as error:
            yield number, error


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise TraceError(f"is no JSON: {error}", file=str(file)) from None


def _scores(file: Path) -> Iterator[tuple[int, Any]]:
    result = _read_json(file)
    pages = result if isinstance(result, list) else [result]
    results = [
        score
        for page in pages
        for score in (page["data"] if isinstance(page, dict) and isinstance(page.get("data"), list) else [page])
    ]
    yield from enumerate(results, 1)


def _annotations(tasks: Any, result: ImportResult) -> Iterator[Body]:
    export = read_export(tasks)
    result.n_ignored = export.n_ignored
    yield from enumerate(export.rows, 1)


async def _exported(url: str, project: int, api_key_env: str) -> Any:
    async with tool.connect_label_studio(url, api_key=secret("--api-key-env", api_key_env) or "") as server:
        return await server.export(project)


def _checked(bodies: Iterable[Body], settings: Settings, result: ImportResult) -> list[Feedback]:
    """All rows as feedback. Raises TraceError at the first that cannot be."""
    salt = deployment_salt(settings)
    sender = sender_key("import", salt=salt)
    results: list[Feedback] = []
    for number, row in bodies:
        try:
            if isinstance(row, BadRequest):
                raise row
            outcome = read_feedback(row, settings.metrics)
        except BadRequest as error:
            column = result.by.column_of(error.param) if result.by is not None else error.param
            raise TraceError(str(error), file=result.source, row=number, column=column) from None
        results.append(seal_feedback(outcome, sender=sender, door="import", salt=salt))
    result.n_rows = len(results)
    return results


# --------------------------------------------------------------------------- writing


def _look(rows: list[Feedback], settings: Settings, result: ImportResult) -> None:
    path = database_path(settings.store.url)
    first: dict[str, Feedback] = {}
    with open_reader(path) if path.is_file() else nullcontext() as connection:
        for row in rows:
            before = first.setdefault(row.feedback_id, row)
            sentence = "no" if connection is None else find_feedback(connection, row)
            result.n_known += before is not row or sentence != "no"
            result.n_conflicts += sentence == "otherwise" or (sentence == "no" and before != row)
            result.n_joined += connection is not None and would_join(connection, row.episode_id, row.response_id)
    result.n_new = len(rows) - result.n_known


async def _write(rows: list[Feedback], settings: Settings, result: ImportResult) -> None:
    log, left = open_log(settings, create=False), iter(rows)
    try:
        while batch := list(islice(left, BATCH_ROWS)):
            for receipt in await asyncio.gather(*(log.append_durable(FeedbackEvent(row)) for row in batch)):
                result.n_known += receipt.duplicate
                result.n_conflicts += receipt.conflict
                result.n_new += not receipt.duplicate
                result.n_joined += receipt.joined
    finally:
        log.close()


def _show(result: ImportResult, *, as_json: bool) -> None:
    if as_json:
        entries: Mapping[str, Any] = {name: value for name, value in asdict(result).items() if name != "by"}
        click.echo(json.dumps(entries))
        return
    would = "would be " if result.dry_run else ""
    click.echo(f"{result.source}: {result.n_rows:,} rows, {result.n_new:,} {would}new, {result.n_known:,} known before")
    if result.n_conflicts:
        click.echo(f"  {result.n_conflicts:,} of these say something else than before: give them ids of their own")
    waiting = result.n_rows - result.n_joined
    click.echo(f"  {result.n_joined:,} belong to requests in the log, {waiting:,} wait for theirs")
    if result.n_ignored:
        click.echo(f"  {result.n_ignored:,} annotations were skipped or say nothing")
    if result.unused:
        click.echo(f"  columns that are no field: {', '.join(result.unused)}")


DAY_S: Final = 86_400.0
SHOWN: Final = 20


@click.command(cls=Command)
@CONFIG_FILE
@option("--days", type=float, help="Dead letters are older than so many days. [default: the settings']")
@option("--out", type=FILE, metavar="FILE", help="Write all of it as CSV.")
@JSON_LINES
def parked(config: Path, days: float | None, out: Path | None, *, as_json: bool) -> None:
    """List feedback that belongs to no request of the log: what waits, and what is a dead letter by now.

    It is kept: whenever its request comes, it joins. An id that never comes is a wrong one, or one of another log.
    """
    settings: Settings = load_deployment(config)
    limit_s = DAY_S * (settings.feedback.park_days if days is None else days)
    now_s = time.time()
    rows = [_told(one, now_s, limit_s) for one in read_parked(database_path(settings.store.url))]
    if out is not None:
        _parked_write(out, rows)
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    _parked_show(rows, limit_s, out)


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


def _parked_write(out: Path, rows: list[dict[str, Any]]) -> None:
    write_whole(out, format_csv(("feedback_id", "episode_id", "response_id", "source", "age_days", "dead"), rows))


def _parked_show(rows: list[dict[str, Any]], limit_s: float, out: Path | None) -> None:
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


@click.group(cls=CommandGroup)
def feedback() -> None:
    """Import labels and other feedback, or list feedback without a request."""


feedback.add_command(import_file)
feedback.add_command(pull)
feedback.add_command(parked)


@feedback.command()
@option("--route", required=True, help="Name of a route with a [judge] table in the settings.")
@CONFIG_FILE
@option(
    "--questions",
    type=FILE,
    metavar="FILE",
    help="JSON lines with `question` or `messages`: the log holds none. [default: the table's]",
)
@option("--most", type=click.IntRange(2, 1_000_000), default=200, metavar="N", help="Answers to grade, at most.")
@JSON_OBJECT
def judge(route: str, config: Path, questions: Path | None, most: int, *, as_json: bool) -> None:
    """Grade full runs whose stop would have answered otherwise, and label them if the judge is good enough.

    Runs that people labelled are graded first: they say how often the judge is wrong. As long as that leaves nothing
    of the route's EM budget, or no run has both words, no label is written.
    """
    settings = load_deployment(config)
    result = asyncio.run(_judge(settings, route, _questions_file(settings, route, questions), most))
    _feedback_show(result, as_json=as_json)


def _tables(settings: Settings, name: str) -> tuple[Route, Judge]:
    route = find_settings(settings, name, option="--route")
    if route.judge is None:
        raise ConfigError(f"routes.{name}.judge: is missing; name the url and the model of a judge")
    return route, route.judge


def _questions_file(settings: Settings, name: str, given: Path | None) -> Path:
    named = _tables(settings, name)[1].questions
    if given is None and not named:
        raise ConfigError(f"routes.{name}.judge.questions: names no file, and --questions neither")
    return given or Path(named)


async def _judge(settings: Settings, name: str, questions: Path, most: int) -> JudgingResult:
    route, table = _tables(settings, name)
    path = database_path(settings.store.url)
    texts = question_texts(questions, settings)
    key = secret(f"routes.{name}.judge.api_key_env", table.api_key_env)
    episodes = list(read_episodes(path, name))
    log = open_log(settings, create=False)
    model = JudgeModel(table.url, table.model, api_key=key, timeout_s=table.timeout_s, max_tokens=table.max_tokens)
    try:
        async with model:
            with yardstick(route.scorer) as scorer:
                return await judge_labels(
                    episodes,
                    model,
                    lambda given: log.append_durable(FeedbackEvent(given)),
                    questions=texts,
                    match=scorer.match,
                    max_em_drop=route.max_em_drop,
                    confidence=(1 + route.confidence) / 2,
                    most_calls=most,
                )
    finally:
        log.close()


def _feedback_show(result: JudgingResult, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(result))
        return
    click.echo(
        f"{result.n_full:,} full runs, {result.n_differing:,} in which the stop would have answered otherwise"
        f" (at most {result.disagreement:.1%} of all)"
    )
    if result.n_unknown:
        click.echo(f"{result.n_unknown:,} of these have no question in the file")
    click.echo(
        f"{result.n_graded:,} runs graded, {result.n_ungraded:,} without a grade, {result.n_labelled:,} labelled"
    )
    click.echo(f"The judge: {result.reason}.")
