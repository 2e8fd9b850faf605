"""`suffice feedback`: labels from files or a judge model, and feedback without a request; `suffice export`.

All rows are checked before any is written, so a file with an error writes nothing. After an interruption, rows that
were written are recognised by their `feedback_id` and count once.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import click

from suffice.cli import shell
from suffice.control.evidence.judging import JudgingResult, judge_labels
from suffice.edge.judge import JudgeModel
from suffice.edge.math import open_scorer
from suffice.errors import BadRequest, ConfigError, TraceError
from suffice.files import write_whole
from suffice.gateway.feedback_form import FeedbackMapping, body, plan, read_feedback, seal_feedback
from suffice.replay.report.text import dump_json
from suffice.replay.traces.formats import read_rows
from suffice.review import imported_feedback
from suffice.review.imported_feedback import read_export
from suffice.rollout.assign import sender_key
from suffice.sanitize import format_csv
from suffice.settings import Judge, Settings
from suffice.store.database.location import log_location
from suffice.store.database.views import open_reader, read_episodes
from suffice.store.people.feedback import (
    FeedbackRecord,
    UnmatchedFeedback,
    find_feedback,
    read_all_feedback,
    read_unmatched,
    would_join,
)
from suffice.store.rows.events import FeedbackEvent
from suffice.types import Feedback
from suffice.wiring.audit import note_export
from suffice.wiring.files import load_deployment, question_texts
from suffice.wiring.keys import deployment_salt, secret
from suffice.wiring.startup import open_log
from suffice.wiring.worker import open_decisions

Form: TypeAlias = Literal["suffice", "label-studio", "langfuse"]
BATCH_ROWS: Final = 1_000
COLUMNS: Final = (  # columns of exported feedback
    *("feedback_id", "episode_id", "response_id", "route", "joined", "source", "correct", "gold", "answer", "rating"),
    *("thumbs", "comment", "reason", "event", "propensity", "door"),
)

# A row's number with its body for /v1/feedback, or with the error in it.
Body: TypeAlias = "tuple[int, dict[str, Any] | BadRequest]"


@dataclass(slots=True, kw_only=True)
class ImportResult:
    source: str
    dry_run: bool
    n_rows: int = 0
    n_ignored: int = 0  # annotations without a verdict
    n_new: int = 0
    n_known: int = 0  # already in the log under the same id
    n_conflicts: int = 0  # of these, rows that differ from the log
    n_joined: int = 0  # of all rows: their request is in the log
    unused: tuple[str, ...] = ()
    by: FeedbackMapping | None = field(default=None, repr=False)


IMPORT_OPTIONS = shell.stacked(
    shell.CONFIG,
    shell.option("--dry-run", is_flag=True, help="Read and check everything, and write nothing."),
    shell.JSON_OBJECT,
)


@click.group(cls=shell.CommandGroup)
def feedback() -> None:
    """Import labels and other feedback, or list feedback without a request."""


@feedback.command("import")
@click.argument("file", type=shell.FILE)
@shell.option(
    "--form",
    type=click.Choice(["suffice", "label-studio", "langfuse"]),
    default="suffice",
    help="Whose columns or annotations they are.",
)
@shell.option("--map", "mapped", multiple=True, metavar="FIELD=COLUMN", help="The column of a field; repeatable.")
@shell.option("--set", "fixed", multiple=True, metavar="FIELD=VALUE", help="The same for every row; repeatable.")
@IMPORT_OPTIONS
def import_file(file: Path, form: Form, mapped: tuple[str, ...], fixed: tuple[str, ...], **given: Any) -> None:
    """Read labels, ratings and other feedback from FILE (.csv, .jsonl, .parquet; .json of Label Studio or Langfuse).

    Columns are fields by their names, or by --map. All rows are checked before any is written; an error names the row
    and the column. May be repeated and run beside a serving gateway: a row counts once.
    """

    def bodies(settings: Settings, result: ImportResult) -> Iterator[Body]:
        if form == "suffice":
            return _table(file, mapped, fixed, settings, result)
        if mapped or fixed:
            why = f"--map and --set belong to the form suffice, got {form}; its own settings say what is what"
            raise ConfigError(why)
        if form == "label-studio":
            return read_annotations(_read_json(file), result)
        rules = settings.feedback.langfuse.scores
        rows = _scores(file) if file.suffix.lower() == ".json" else read_rows(file)
        return ((number, imported_feedback.read_score(cells, rules, settings.metrics)) for number, cells in rows)

    import_feedback(str(file), bodies, **given)


def import_feedback(
    source: str, bodies: Callable[[Settings, ImportResult], Iterator[Body]], *, path: Path, dry_run: bool, as_json: bool
) -> None:
    """Check all feedback of a source, write it, and report. Raises ConfigError, TraceError, StoreError."""
    result = ImportResult(source=source, dry_run=dry_run)
    settings = load_deployment(path)
    rows = _checked(bodies(settings, result), settings, result)
    if dry_run:
        _compare(rows, settings, result)
    else:
        asyncio.run(_write(rows, settings, result))
    plain = asdict(result)
    del plain["by"]
    shell.print_reply(shell.CommandReply(plain, _result_lines(result)), as_json=as_json)


def _table(
    file: Path, mapped: tuple[str, ...], fixed: tuple[str, ...], settings: Settings, result: ImportResult
) -> Iterator[Body]:
    columns = dict[str, None]()
    for _, cells in read_rows(file):  # in JSON lines a column may first occur late
        columns |= dict.fromkeys(cells)
    result.by = by = plan(columns, mapped, fixed, settings.metrics)
    result.unused = by.unused
    for number, cells in read_rows(file):
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
    result, scores = _read_json(file), list[Any]()
    for page in result if isinstance(result, list) else [result]:
        data = page.get("data") if isinstance(page, dict) else None
        scores += data if isinstance(data, list) else [page]
    yield from enumerate(scores, 1)


def read_annotations(tasks: Any, result: ImportResult) -> Iterator[Body]:
    """Yield the annotations in a Label Studio export. Raises BadRequest."""
    export = read_export(tasks)
    result.n_ignored = export.n_ignored
    yield from enumerate(export.rows, 1)


def _checked(bodies: Iterable[Body], settings: Settings, result: ImportResult) -> list[Feedback]:
    salt = deployment_salt(settings)
    sender = sender_key("import", salt=salt)
    results: list[Feedback] = []
    for number, row in bodies:
        try:
            if isinstance(row, BadRequest):
                raise row
            results.append(seal_feedback(read_feedback(row, settings.metrics), sender=sender, door="import", salt=salt))
        except BadRequest as error:
            column = result.by.column_of(error.param) if result.by is not None else error.param
            raise TraceError(str(error), file=result.source, row=number, column=column) from None
    result.n_rows = len(results)
    return results


def _compare(rows: list[Feedback], settings: Settings, result: ImportResult) -> None:
    first: dict[str, Feedback] = {}
    with open_reader(log_location(settings.store)) as connection:
        for row in rows:
            before, known = first.setdefault(row.feedback_id, row), find_feedback(connection, row)
            result.n_known += before is not row or known != "no"
            result.n_conflicts += known == "otherwise" or (known == "no" and before != row)
            result.n_joined += would_join(connection, row.episode_id, row.response_id)
    result.n_new = len(rows) - result.n_known


async def _write(rows: list[Feedback], settings: Settings, result: ImportResult) -> None:
    left = iter(rows)
    with closing(open_log(settings, create=False)) as log:
        while batch := list(islice(left, BATCH_ROWS)):
            for receipt in await asyncio.gather(*(log.append_durable(FeedbackEvent(row)) for row in batch)):
                result.n_known += receipt.duplicate
                result.n_conflicts += receipt.conflict
                result.n_new += not receipt.duplicate
                result.n_joined += receipt.joined


def _result_lines(result: ImportResult) -> Iterator[str]:
    would = "would be " if result.dry_run else ""
    yield f"{result.source}: {result.n_rows:,} rows, {result.n_new:,} {would}new, {result.n_known:,} known before"
    if result.n_conflicts:
        yield f"  {result.n_conflicts:,} of these contradict earlier rows with their ids: give them new ids"
    waiting = result.n_rows - result.n_joined
    yield f"  {result.n_joined:,} belong to requests in the log, {waiting:,} wait for theirs"
    if result.n_ignored:
        yield f"  {result.n_ignored:,} annotations were skipped or are empty"
    if result.unused:
        yield f"  columns that are no field: {', '.join(result.unused)}"


DAY_S: Final = 86_400.0
MOST_LISTED: Final = 20


@feedback.command()
@shell.option("--days", type=float, help="Dead letters are older than so many days. [default: the settings']")
@shell.option("--out", type=shell.FILE, metavar="FILE", help="Write all of it as CSV.")
@shell.report(shell.JSON_LINES)
def parked(settings: Settings, days: float | None, out: Path | None) -> shell.CommandReply:
    """List feedback without a request in the log: pending, or a dead letter by now.

    It is kept, and joins when its request arrives. If that never happens, the id is wrong or belongs to another log.
    """
    limit_s = DAY_S * (settings.feedback.park_days if days is None else days)
    now_s = time.time()
    rows = [_plain(one, now_s, limit_s) for one in read_unmatched(log_location(settings.store))]
    if out is not None:
        write_whole(out, format_csv(("feedback_id", "episode_id", "response_id", "source", "age_days", "dead"), rows))
    n_dead = sum(row["dead"] for row in rows)
    older = f"{n_dead:,} are dead letters, older than {limit_s / DAY_S:g} days"
    lines = [f"{len(rows) - n_dead:,} wait for their request; {older}"]
    for row in rows[:MOST_LISTED]:
        named = f"episode {row['episode_id']}" if row["episode_id"] else f"response {row['response_id']}"
        dead = "  dead letter" if row["dead"] else ""
        lines.append(f"  {row['feedback_id']}  {named}  {row['source']}  {row['age_days']:.1f} days{dead}")
    if len(rows) > MOST_LISTED:
        lines.append(f"  … and {len(rows) - MOST_LISTED:,} more; --json or --out shows all")
    return shell.CommandReply(rows, lines if out is None else [*lines, f"written to {out}"])


def _plain(one: UnmatchedFeedback, now_s: float, limit_s: float) -> dict[str, Any]:
    age_s = max(0.0, now_s - one.at_s)  # a clock that was set back gives no negative age
    named = {name: getattr(one, name) for name in ("feedback_id", "episode_id", "response_id", "source")}
    return {**named, "age_days": round(age_s / DAY_S, 3), "dead": age_s > limit_s}


@feedback.command()
@shell.option("--route", "name", required=True, help="Name of a route with a [judge] table in the settings.")
@shell.option(
    "--questions",
    type=shell.FILE,
    metavar="FILE",
    help="JSON lines with `question` or `messages`: the log holds none. [default: the table's]",
)
@shell.option("--most", type=click.IntRange(2, 1_000_000), default=200, metavar="N", help="Answers to grade, at most.")
@shell.report(shell.JSON_OBJECT)
def judge(settings: Settings, name: str, questions: Path | None, most: int) -> shell.CommandReply:
    """Grade full runs whose stop would have answered otherwise, and label them if the judge is good enough.

    Runs that people labelled are graded first, to measure the judge's errors. No label is written while these errors
    use up the route's EM budget, or while no run has labels of both a person and the judge.
    """
    table = shell.find_settings(settings, name, option="--route").judge
    if table is None:
        raise ConfigError(f"routes.{name}.judge: is missing; name the url and the model of a judge")
    if questions is None and not table.questions:
        raise ConfigError(f"routes.{name}.judge.questions: names no file, and --questions neither")
    result = asyncio.run(_judge(settings, name, table, questions or Path(table.questions), most))
    share = f"at most {result.disagreement:.1%} of all"
    differing = f"{result.n_differing:,} in which the stop would have answered otherwise ({share})"
    lines = [f"{result.n_full:,} full runs, {differing}"]
    if result.n_unknown:
        lines.append(f"{result.n_unknown:,} of these have no question in the file")
    lines.append(
        f"{result.n_graded:,} runs graded, {result.n_ungraded:,} without a grade, {result.n_labelled:,} labelled"
    )
    return shell.CommandReply(result, [*lines, f"The judge: {result.reason}."])


async def _judge(settings: Settings, name: str, table: Judge, questions: Path, most: int) -> JudgingResult:
    route, texts = settings.routes[name], question_texts(questions, settings)
    key = secret(f"routes.{name}.judge.api_key_env", table.api_key_env)
    episodes = list(read_episodes(log_location(settings.store), name))
    model = JudgeModel(table.url, table.model, api_key=key, timeout_s=table.timeout_s, max_tokens=table.max_tokens)
    with closing(open_log(settings, create=False)) as log, open_scorer(route.scorer) as scorer:
        async with model:
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


@click.group(cls=shell.CommandGroup)
def export() -> None:
    """Export runs and feedback for other programs."""


@export.command("feedback")
@click.argument("file", type=shell.FILE)
@shell.option("--route", help="Only what belongs to this route.")
@shell.report(shell.JSON_OBJECT)
def export_feedback(settings: Settings, file: Path, route: str | None) -> shell.CommandReply:
    """Write all feedback of the log to FILE, as .csv or .jsonl, oldest first.

    In CSV a cell that a spreadsheet would take for a formula is prefixed with a quote, which `suffice feedback import`
    removes.
    """
    if file.suffix not in (".csv", ".jsonl"):
        raise ConfigError(f"{file}: unknown format; use a name that ends in .csv or .jsonl")
    rows = [
        _plain_feedback(one)
        for one in read_all_feedback(log_location(settings.store))
        if route is None or one.route == route
    ]
    if file.suffix == ".csv":
        metrics = sorted({f"metrics.{name}" for row in rows for name in row["metrics"]})
        flat = ({**row, **{f"metrics.{name}": value for name, value in row["metrics"].items()}} for row in rows)
        text = format_csv((*COLUMNS, *metrics), flat)
    else:
        plain = ({name: value for name, value in row.items() if value not in (None, {})} for row in rows)
        text = "".join(dump_json(row) + "\n" for row in plain)
    write_whole(file, text)
    with open_decisions(settings, create=False) as writer:
        note_export(writer, what="feedback", where=str(file), n_rows=len(rows), author=None, reason="")
    return shell.CommandReply({"file": str(file), "n_rows": len(rows)}, f"{file}: {len(rows):,} rows")


def _plain_feedback(one: FeedbackRecord) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(one.feedback, name, None) for name in COLUMNS}
    return {**row, "route": one.route, "joined": one.joined, "metrics": dict(one.feedback.metrics)}
