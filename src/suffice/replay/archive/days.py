"""Closed days of the log as Parquet files, one row per request: written, and read as traces or as the log's runs.

No text of a person or a model is archived: answers become letters, equal for equal answers of one run, and every
verdict that needs the texts is made before (`correct`, `full_em`). So an erasure has nothing to reach here.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from suffice.assurance.runs import Match, current_label, is_right
from suffice.errors import ConfigError, TraceError
from suffice.learn.dataset import by_design, fate
from suffice.replay.archive.layout import MANIFESTS, Archive, Manifest, Part, is_archive, part_name
from suffice.replay.traces.columns import LAST, MAJORITY_VOTE
from suffice.replay.traces.formats import REPLAYABLE, open_parquet, pyarrow, trace_schema
from suffice.replay.traces.rows import STEP_COLUMNS
from suffice.settings import Route
from suffice.store.audit.chain import head
from suffice.store.audit.personal import Part as TextPart
from suffice.store.audit.personal import without
from suffice.store.database.archiving import (
    DAY_S,
    DayRange,
    StoredRun,
    archived_days,
    ends_at_s,
    first_request,
    range_of_day,
    read_range,
)
from suffice.store.database.views import EpisodeWithLabels, LogReader, StoredLabel, decoded
from suffice.store.rows.events import FeedbackEvent, decode_as, to_row
from suffice.types import Episode, Feedback, Outcome, Request, StepRecord

TEXTS: Final[tuple[TextPart, ...]] = ("answers", "comments", "questions", "metadata")
PART_ROWS: Final = 100_000  # in one file
GROUP_ROWS: Final = 10_000  # in one row group, which one worker reads
FLUSH_ROWS: Final = 2_000  # of one route that wait in memory
BATCH_ROWS: Final = 1_000  # read at once
_BODIES: Final = ("seq", "request", "outcome_seq", "outcome", "labels")
_OMITTED: Final = ("question", "gold", "token_source")  # columns of a trace that an archive does not have
_OF_REQUEST: Final = ("mode", "audit", "propensity", "policy_version", "certified")
_OF_OUTCOME: Final = ("stopped", "end_reason", "tokens_saved_estimate")
_STEP_FIELDS: Final = STEP_COLUMNS.keys() & {field.name for field in fields(StepRecord)}

Matches = Callable[[Route], AbstractContextManager[Match]]


def archive_schema(arrow: Any) -> Any:
    """The columns of a trace, then those of a request; `full_em` is null where no label tells."""
    trace = trace_schema(arrow)
    own = {
        REPLAYABLE: arrow.bool_(),  # it ran in full by design
        "fate": arrow.string(),  # as `learn.dataset.fate`
        "seq": arrow.int64(),  # place of the request in the log
        "received_at": arrow.timestamp("us", tz="UTC"),
        "mode": arrow.string(),
        "audit": arrow.bool_(),
        "propensity": arrow.float64(),
        "policy_version": arrow.string(),
        "certified": arrow.bool_(),
        "stopped": arrow.bool_(),
        "end_reason": arrow.string(),
        "prompt_tokens": arrow.int64(),
        "completion_tokens": arrow.int64(),
        "probe_tokens": arrow.int64(),
        "tokens_saved_estimate": arrow.int64(),
        "request": arrow.string(),  # the rest as JSON, as the log has it, without texts
        "outcome": arrow.string(),
        "outcome_seq": arrow.int64(),
        "labels": arrow.string(),
    }
    return arrow.schema([*(one for one in trace if one.name not in _OMITTED), *own.items()])


class ArchivedLabel(msgspec.Struct, frozen=True, kw_only=True):
    seq: int
    at_s: float
    feedback: Feedback


_LABELS: Final = msgspec.json.Decoder(list[ArchivedLabel])


# ---- rows


def archive_row(run: StoredRun, match: Match | None) -> dict[str, Any]:
    """Return a run as a row of `archive_schema`.

    match  None: the route is in no settings, so references tell nothing
    """
    request = decoded(run.seq, Request, without("request", run.request, TEXTS))
    original = decoded(run.outcome_seq, Outcome, run.outcome)
    body = without("outcome", run.outcome, TEXTS)
    outcome = decoded(run.outcome_seq, Outcome, body)
    label = current_label(run.labels)
    if label is not None and match is None:
        label = replace(label, gold=None)

    def right(answer: str | None) -> bool | None:
        return is_right(answer, original.answer, label, match or _is_same)

    steps, meta = _trace_steps(
        request, outcome, [right(step.answer) for step in original.steps], right(original.answer)
    )
    usage = outcome.usage
    return {
        "dataset": request.route,
        "setting": request.kind,
        "task": request.query.query_class if request.query else "",
        "model": outcome.model or request.model,
        "run": request.episode_id,
        "question_id": request.question_key or f"episode {request.episode_id}",
        "aggregation": MAJORITY_VOTE if request.kind == "samples" else LAST,
        "full_answer": outcome.answer,
        "full_em": right(original.answer),
        "full_tokens": sum(step["tokens"] + step["ctx_tokens"] for step in steps),
        "n_steps": len(steps),
        "meta": meta,
        "steps": steps,
        REPLAYABLE: fate(request, outcome) == "full" and by_design(request),
        "fate": fate(request, outcome),
        "seq": run.seq,
        "received_at": datetime.fromtimestamp(request.received_at_s, UTC),
        **{name: getattr(request, name) for name in _OF_REQUEST},
        **{name: getattr(outcome, name) for name in _OF_OUTCOME},
        "prompt_tokens": usage.prompt_tokens if usage else None,
        "completion_tokens": usage.completion_tokens if usage else None,
        "probe_tokens": outcome.overhead.probe_tokens,
        "request": to_row(request).body,
        "outcome": body,
        "outcome_seq": run.outcome_seq,
        "labels": _labels(run, right(original.answer)),
    }


def _is_same(answer: str | None, gold: str) -> bool:
    return answer == gold


def _trace_steps(
    request: Request, outcome: Outcome, right: list[bool | None], full_right: bool | None
) -> tuple[list[dict[str, Any]], str | None]:
    """The steps of a trace and its `meta`. As in a recording, a chain ends with a step for its rest and the answer."""
    steps = [_trace_step(step, one) for step, one in zip(outcome.steps, right, strict=True)]
    if request.kind != "reasoning" or not steps or outcome.usage is None or fate(request, outcome) != "full":
        return steps, None
    usage = outcome.usage
    left = usage.completion_tokens - sum(step.tokens for step in outcome.steps)
    if left > 0 or outcome.steps[-1].answer != outcome.answer:
        steps.append({"tokens": max(0, left), "ctx_tokens": 0, "answer": outcome.answer, "correct": full_right})
    tail = {"answer_tokens": max(0, usage.completion_tokens - usage.reasoning_tokens)}
    return steps, msgspec.json.encode(tail).decode()


def _trace_step(step: StepRecord, correct: bool | None) -> dict[str, Any]:
    same = {name: getattr(step, name) for name in _STEP_FIELDS}
    own = {"correct": correct, "stop_flag": step.reported_done, "action": step.caller_action}
    return same | own | {"logprobs": step.logprobs or None}


def _labels(run: StoredRun, right: bool | None) -> str:
    """The labels without their texts; the one that counts has its verdict, where only its reference told it."""
    current, labels = current_label(run.labels), list[ArchivedLabel]()
    for label in run.labels:
        body = without("feedback", to_row(FeedbackEvent(label.feedback)).body, TEXTS)
        feedback = decoded(label.seq, FeedbackEvent, body).feedback
        if label.feedback == current and feedback.correct is None:
            feedback = replace(feedback, correct=right)
        labels.append(ArchivedLabel(seq=label.seq, at_s=label.at_s, feedback=feedback))
    return msgspec.json.encode(labels).decode()


# ---- files


@dataclass(slots=True)
class RouteFiles:
    """The files of one route and day, in a local folder."""

    folder: Path
    route: str
    day: str
    files: list[Path] = field(default_factory=list)
    n_rows: list[int] = field(default_factory=list)  # of each file
    n_replayable: list[int] = field(default_factory=list)  # of each file
    _rows: list[dict[str, Any]] = field(default_factory=list)
    _tables: list[Any] = field(default_factory=list)  # of the next row group
    _writer: Any = None  # of pyarrow

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) >= FLUSH_ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._write_group()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _flush(self) -> None:
        arrow = pyarrow("pyarrow", self.folder)
        if self._rows:
            self._tables.append(arrow.Table.from_pylist(self._rows, schema=archive_schema(arrow)))
            self._rows = []
        if sum(table.num_rows for table in self._tables) >= GROUP_ROWS:
            self._write_group()

    def _write_group(self) -> None:
        if not self._tables:
            return
        arrow, parquet = pyarrow("pyarrow", self.folder), pyarrow("pyarrow.parquet", self.folder)
        if self._writer is None:
            path = self.folder / part_name(self.route, self.day, len(self.files))
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = parquet.ParquetWriter(path, archive_schema(arrow), compression="zstd")
            self.files.append(path)
            self.n_rows.append(0)
            self.n_replayable.append(0)
        whole = arrow.concat_tables(self._tables)
        self._writer.write_table(whole, row_group_size=whole.num_rows)
        self.n_rows[-1] += whole.num_rows
        self.n_replayable[-1] += sum(whole[REPLAYABLE].to_pylist())
        self._tables = []
        if self.n_rows[-1] >= PART_ROWS:
            self._writer.close()
            self._writer = None


@dataclass(frozen=True, slots=True)
class PendingDay:
    day: str
    rows: DayRange


@dataclass(frozen=True, slots=True, kw_only=True)
class DayWriter:
    archive: Archive
    routes: Mapping[str, Route]  # of the settings
    matches: Matches
    renew: Callable[[], None] = lambda: None  # called for each request

    def write(self, log: LogReader, pending: PendingDay, *, again: bool = False) -> Manifest:
        """Return the manifest of a day after writing it, unless the archive has the day already.

        again  write it even then, such as with labels that have come since

        Raise ConfigError if the archive has the day from another log, and StoreError.
        """
        rows, position = pending.rows, head(log, pending.rows.until_seq)
        before = self.archive.manifest(pending.day)
        if before is not None:
            if (before.since_seq, before.until_seq, before.chain) != (rows.since_seq, rows.until_seq, position):
                where = f"{self.archive.address} has {pending.day} already, from another log or other rows"
                raise ConfigError(f"{where}; name another archive")
            if not again:
                return before
        parts = self._write_parts(log, pending)
        manifest = Manifest(
            day=pending.day,
            since_seq=rows.since_seq,
            until_seq=rows.until_seq,
            n_requests=sum(part.n_rows for part in parts),
            chain=position,
            parts=tuple(parts),
        )
        self.archive.write(f"{MANIFESTS}/{manifest.day}.json", manifest.content)
        gone = {part.name for part in before.parts} - {part.name for part in parts} if before else set[str]()
        if gone:
            self.archive.delete(sorted(gone))
        return manifest

    def _write_parts(self, log: LogReader, pending: PendingDay) -> list[Part]:
        with tempfile.TemporaryDirectory(prefix="suffice-archive-") as folder, ExitStack() as stack:
            files, matches = dict[str, RouteFiles](), dict[str, Match | None]()
            for run in read_range(log, pending.rows):
                self.renew()
                name = decoded(run.seq, Request, run.request).route
                if name not in files:
                    files[name] = RouteFiles(Path(folder), name, pending.day)
                    route = self.routes.get(name)
                    matches[name] = None if route is None else stack.enter_context(self.matches(route))
                files[name].add(archive_row(run, matches[name]))
            return [part for _, one in sorted(files.items()) for part in self._upload(one)]

    def _upload(self, files: RouteFiles) -> Iterator[Part]:
        files.close()
        for path, n_rows, n_replayable in zip(files.files, files.n_rows, files.n_replayable, strict=True):
            name = path.relative_to(files.folder).as_posix()
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            self.archive.write(name, path)
            n_bytes = path.stat().st_size
            yield Part(name=name, n_rows=n_rows, n_replayable=n_replayable, n_bytes=n_bytes, sha256=digest)
            path.unlink()


# ---- days


def closed_days(
    log: LogReader, archive: str, *, now_s: float, after_s: float, again: bool = False
) -> Iterator[PendingDay | str]:
    """Yield the closed days that the archive lacks, oldest first, and last, in a sentence, what the next day waits for.

    A day is closed `after_s` seconds after its end, if every request of it has its outcome. With `again` also the days
    that the archive has, as far as the log has their requests.
    """
    archived = [one for one in archived_days(log) if one.archive == archive and not again]
    since = max((one.until_seq for one in archived), default=0)
    last = archived[-1].day if archived else ""
    while (first := first_request(log, since)) is not None:
        begins_s = first[1] // DAY_S * DAY_S
        if last:  # a clock that was set back, or lags behind another gateway's
            begins_s = max(begins_s, ends_at_s(last))
        day = datetime.fromtimestamp(begins_s, UTC).date().isoformat()
        closed_s = ends_at_s(day) + after_s
        if now_s < closed_s:
            yield f"{day} will be closed at {datetime.fromtimestamp(closed_s, UTC):%Y-%m-%d %H:%M} UTC"
            return
        rows = range_of_day(log, since, ends_at_s(day))
        if rows.n_open:
            yield f"{day}: {rows.n_open} requests have no outcome yet"
            return
        yield PendingDay(day, rows)
        since, last = rows.until_seq, day


# ---- reading


def expand_archives(sources: Iterable[str | Path], *, cache: Path) -> list[Path]:
    """Replace each archive among trace files by the files of its days. Raise TraceError, ConfigError and StoreError."""
    files = list[Path]()
    for source in sources:
        if not is_archive(source):
            files.append(Path(source))
            continue
        archive = Archive.open(source, cache=cache)
        own = [archive.fetch(part) for manifest in archive.manifests() for part in manifest.parts if part.n_replayable]
        if not own:
            raise TraceError("is an archive without full runs", file=str(source))
        files += own
    return files


def verify_day(archive: Archive, manifest: Manifest) -> int:
    """Check a day's files and rows against its manifest; return its rows. Raise TraceError."""
    n_rows = 0
    for part in manifest.parts:
        places = [run.episode.request.route for run in read_part(archive, part)]
        if len(places) != part.n_rows or set(places) != {part.route}:
            problem = f"has {len(places):,} requests of {sorted(set(places))}; its manifest says {part.n_rows:,}"
            raise TraceError(problem, file=archive.place(part.name))
        n_rows += len(places)
    return n_rows


def read_archived_runs(archive: Archive, route: str) -> Iterator[EpisodeWithLabels]:
    """Yield the runs of a route in the order of their requests, as `views.read_episodes` does from the log.

    Answers are letters; labels have verdicts instead of references. Raise TraceError.
    """
    for manifest in archive.manifests():
        for part in manifest.parts:
            if part.route == route:
                yield from read_part(archive, part)


def read_part(archive: Archive, part: Part) -> Iterator[EpisodeWithLabels]:
    path, number = archive.fetch(part), 0
    with open_parquet(path, pre_buffer=False) as file:
        missing = [name for name in _BODIES if name not in file.schema_arrow.names]
        if missing:
            raise TraceError("is missing", file=archive.place(part.name), column=missing[0])
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(_BODIES)):
            for row in batch.to_pylist():
                number += 1
                yield _run_of(row, archive.place(part.name), number)


def _run_of(row: dict[str, Any], file: str, number: int) -> EpisodeWithLabels:
    try:
        request, outcome = decode_as(Request, row["request"]), decode_as(Outcome, row["outcome"])
        labels = tuple(StoredLabel(one.seq, one.feedback, one.at_s) for one in _LABELS.decode(row["labels"]))
        seq = max(row["seq"], row["outcome_seq"])
    except (ValueError, TypeError) as error:
        raise TraceError(f"cannot be read: {error}", file=file, row=number) from None
    return EpisodeWithLabels(seq=seq, episode=Episode(request=request, outcome=outcome), labels=labels)
