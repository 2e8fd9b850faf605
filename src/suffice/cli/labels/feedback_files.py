"""`suffice feedback import` and `suffice feedback label-studio`: labels from files, and from a labelling tool.

Everything is read and checked first; only then is anything written, so a file with a mistake writes nothing. What was
written before an interruption is known by its `feedback_id` the next time and counts once. Knows options and how a
result looks; refuses to know what feedback may say (`gateway.feedback_form`). Heavy imports stand inside the functions.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import click

from suffice.cli.shell import CONFIG_FILE, JSON_OBJECT, fail

if TYPE_CHECKING:
    from suffice.errors import BadRequest
    from suffice.gateway.feedback_cells import FeedbackMapping
    from suffice.settings import Settings
    from suffice.types import Feedback

Form: TypeAlias = Literal["suffice", "label-studio", "langfuse"]
BATCH_ROWS: Final = 1_000

# A row's number, and what it says as /v1/feedback takes it, or why it says nothing.
Body: TypeAlias = "tuple[int, dict[str, Any] | BadRequest]"


@dataclass(slots=True, kw_only=True)
class ImportResult:
    """What came of one file or project."""

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
    """The options that both commands share."""
    for option in (
        JSON_OBJECT,
        click.option("--dry-run", is_flag=True, help="Read and check everything, and write nothing."),
        CONFIG_FILE,
    ):
        command = option(command)
    return command


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--form",
    type=click.Choice(["suffice", "label-studio", "langfuse"]),
    default="suffice",
    show_default=True,
    help="Whose columns or annotations they are.",
)
@click.option("--map", "mapped", multiple=True, metavar="FIELD=COLUMN", help="The column of a field; repeatable.")
@click.option("--set", "fixed", multiple=True, metavar="FIELD=VALUE", help="The same for every row; repeatable.")
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

    _run("feedback import", str(file), config, bodies, dry_run=dry_run, as_json=as_json)


@click.command("label-studio")
@click.option("--url", required=True, help="Address of the server.")
@click.option("--project", required=True, type=int, help="Number of the project.")
@click.option(
    "--api-key-env",
    default="LABEL_STUDIO_API_KEY",
    show_default=True,
    help="Environment variable with its access token.",
)
@_options
def pull(url: str, project: int, api_key_env: str, config: Path, *, dry_run: bool, as_json: bool) -> None:
    """Read the annotations of a Label Studio project, as `suffice export label-studio` has made it."""

    def bodies(_: Settings, result: ImportResult) -> Iterator[Body]:
        tasks = asyncio.run(_exported(url, project, api_key_env))
        return _annotations(tasks, result)

    _run("feedback label-studio", f"{url} project {project}", config, bodies, dry_run=dry_run, as_json=as_json)


def _run(
    name: str,
    source: str,
    config: Path,
    bodies: Callable[[Settings, ImportResult], Iterator[Body]],
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    from suffice.errors import SufficeError
    from suffice.wiring import load_deployment

    result = ImportResult(source=source, dry_run=dry_run)
    try:
        settings = load_deployment(config)
        rows = _checked(bodies(settings, result), settings, result)
        if dry_run:
            _look(rows, settings, result)
        else:
            asyncio.run(_write(rows, settings, result))
    except (SufficeError, OSError) as error:
        fail(name, error)
    _show(result, as_json=as_json)


# --------------------------------------------------------------------------- reading


def _bodies(
    file: Path, form: Form, mapped: tuple[str, ...], fixed: tuple[str, ...], settings: Settings, result: ImportResult
) -> Iterator[Body]:
    from suffice.errors import ConfigError
    from suffice.review import langfuse

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
    from suffice.replay.traces.tables import read_rows

    return read_rows(file)


def _table(
    file: Path, mapped: tuple[str, ...], fixed: tuple[str, ...], settings: Settings, result: ImportResult
) -> Iterator[Body]:
    from suffice.errors import BadRequest
    from suffice.gateway.feedback_cells import body, plan

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
    from suffice.errors import TraceError

    try:
        return json.loads(file.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise TraceError(f"is no JSON: {error}", file=str(file)) from None


def _scores(file: Path) -> Iterator[tuple[int, Any]]:
    """The scores of a page of the API, of several pages in a list, or of a plain list."""
    said = _read_json(file)
    pages = said if isinstance(said, list) else [said]
    found = [
        score
        for page in pages
        for score in (page["data"] if isinstance(page, dict) and isinstance(page.get("data"), list) else [page])
    ]
    yield from enumerate(found, 1)


def _annotations(tasks: Any, result: ImportResult) -> Iterator[Body]:
    from suffice.review.label_studio import read_export

    told = read_export(tasks)
    result.n_ignored = told.n_ignored
    yield from enumerate(told.rows, 1)


async def _exported(url: str, project: int, api_key_env: str) -> Any:
    from suffice.edge import label_studio as tool
    from suffice.wiring import secret

    async with tool.connect_label_studio(url, api_key=secret("--api-key-env", api_key_env) or "") as server:
        return await server.export(project)


def _checked(bodies: Iterable[Body], settings: Settings, result: ImportResult) -> list[Feedback]:
    """All rows as feedback. Raises TraceError at the first that cannot be."""
    from suffice.errors import BadRequest, TraceError
    from suffice.gateway.feedback_form import read_feedback, seal_feedback
    from suffice.rollout.assign import sender_key
    from suffice.wiring import deployment_salt

    salt = deployment_salt(settings)
    sender = sender_key("import", salt=salt)
    found: list[Feedback] = []
    for number, row in bodies:
        try:
            if isinstance(row, BadRequest):
                raise row
            said = read_feedback(row, settings.metrics)
        except BadRequest as error:
            column = result.by.column_of(error.param) if result.by is not None else error.param
            raise TraceError(str(error), file=result.source, row=number, column=column) from None
        found.append(seal_feedback(said, sender=sender, door="import", salt=salt))
    result.n_rows = len(found)
    return found


# --------------------------------------------------------------------------- writing


def _look(rows: list[Feedback], settings: Settings, result: ImportResult) -> None:
    """What writing would come to."""
    from suffice.store.database.sqlite import database_path
    from suffice.store.database.views import open_reader
    from suffice.store.people.feedback import find_feedback, would_join

    path = database_path(settings.store.url)
    first: dict[str, Feedback] = {}
    with open_reader(path) if path.is_file() else nullcontext() as connection:
        for row in rows:
            before = first.setdefault(row.feedback_id, row)
            found = "no" if connection is None else find_feedback(connection, row)
            result.n_known += before is not row or found != "no"
            result.n_conflicts += found == "otherwise" or (found == "no" and before != row)
            result.n_joined += connection is not None and would_join(connection, row.episode_id, row.response_id)
    result.n_new = len(rows) - result.n_known


async def _write(rows: list[Feedback], settings: Settings, result: ImportResult) -> None:
    from suffice.store.rows.records import FeedbackEvent
    from suffice.wiring import open_log

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
        told: Mapping[str, Any] = {name: value for name, value in asdict(result).items() if name != "by"}
        click.echo(json.dumps(told))
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
