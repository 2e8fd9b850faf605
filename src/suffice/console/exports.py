"""CSV files of everything that a page's filter matches, sent as they are read."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Final

from suffice.console.context import ConsoleEndpoint, ConsoleVisit, Handler, ViewContext
from suffice.console.exchange import ConsoleResponse
from suffice.console.views.changes import change_lines
from suffice.console.views.episodes import RunSearch, parse_filter
from suffice.console.views.report import ReportLine, report_lines
from suffice.formatting import format_moment
from suffice.sanitize import format_cell

CSV: Final = "text/csv; charset=utf-8"
BOM: Final = b"\xef\xbb\xbf"
CHUNK_ROWS: Final = 5_000  # of the log that are looked at in one read
# Columns of each export: heading, and the field of the record.
_EPISODE_COLUMNS: Final = {
    "episode": "episode_id",
    "at (UTC)": "at_s",
    "route": "route",
    "class": "query_class",
    "kind": "kind",
    "end": "end_reason",
    "stopped": "stopped",
    "audit": "audit",
    "steps": "n_steps",
    "stop step": "stop_step",
    "answer": "answer",
    "answer at the stop": "would_answer",
    "differs": "differs",
    "right": "correct",
    "tokens": "tokens",
    "tokens saved": "saved_tokens",
    "seconds": "duration_s",
}
_REPORT_COLUMNS: Final = {name.removeprefix("n_").replace("_", " "): name for name in ReportLine.__struct_fields__}
_CHANGE_COLUMNS: Final = {"place": "seq", "at (UTC)": "at_s"} | {
    name: name for name in ("kind", "route", "before", "after", "reason", "author")
}


def format_csv_rows(columns: Mapping[str, str], records: Iterable[object], *, headed: bool = False) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    if headed:
        writer.writerow(columns)
    for record in records:
        values = {field: getattr(record, field) for field in columns.values()}
        writer.writerow(format_csv_cell(format_moment(v) if k == "at_s" else v) for k, v in values.items())
    return text.getvalue().encode("utf-8", "replace")


def format_csv_cell(value: object) -> str:
    """Format a value as a CSV cell: numbers as they are, text that cannot act as a formula.

    >>> [format_csv_cell(x) for x in (None, -1.5, "=1+1", " @SUM(A1)", "fine", True)]
    ['', '-1.5', "'=1+1", "' @SUM(A1)", 'fine', 'yes']
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    return format_cell(value.replace("\x00", "") if isinstance(value, str) else value)


_Lines = Callable[[ViewContext], Iterator[tuple[int, object | None]]]  # of a filter: place in the log, and its record


def _export(name: str, columns: Mapping[str, str], lines: _Lines) -> Handler:
    def read(view: ViewContext) -> tuple[list[object], int | None]:
        """Return what matches in the next rows, and the place to go on from; None: the log's first row was read."""
        rows = list(islice(lines(view), CHUNK_ROWS))
        return [record for _, record in rows if record is not None], rows[-1][0] if len(rows) == CHUNK_ROWS else None

    async def rows(visit: ConsoleVisit) -> AsyncIterator[bytes]:
        context, n, place, began = visit.context, 0, None, False
        try:
            while place is not None or not began:
                began = True
                query = visit.request.query if place is None else {**visit.request.query, "before": str(place)}
                part = replace(visit, request=replace(visit.request, query=query))
                records, place = await context.read(part, read)
                n += len(records)
                yield format_csv_rows(columns, records)
        finally:  # also when the client leaves: what was sent is sent
            await context.in_thread(lambda: context.services.note_export(name, n, visit.principal.name))

    async def run(visit: ConsoleVisit) -> ConsoleResponse:
        # Raises for a filter that is none, and for a log that cannot record the export.
        await visit.context.read(visit, lambda view: next(lines(view), None))
        await visit.context.in_thread(visit.context.services.decisions)
        return ConsoleResponse(
            kind=CSV,
            body=BOM + format_csv_rows(columns, (), headed=True),
            headers=(("content-disposition", f'attachment; filename="{name}"'),),
            stream=rows(visit),
        )

    return run


def _run_lines(view: ViewContext) -> Iterator[tuple[int, object | None]]:
    return RunSearch(view).entries(parse_filter(view))


_RUNS: Final = _export("episodes.csv", _EPISODE_COLUMNS, _run_lines)
_CHANGES: Final = _export("changes.csv", _CHANGE_COLUMNS, change_lines)
_REPORT: Final = _export("report.csv", _REPORT_COLUMNS, lambda view: enumerate(report_lines(view)))
_MONTH: Final = {"month": "as 2026-10"}
EXPORTS: Final = (
    ConsoleEndpoint(
        "POST", "/console/report.csv", "viewer", _REPORT, "a month by route, as a table", CSV, fields=_MONTH
    ),
    ConsoleEndpoint("POST", "/console/episodes.csv", "admin", _RUNS, "all runs that match, as a table", CSV, True),
    ConsoleEndpoint("POST", "/console/changes.csv", "admin", _CHANGES, "all changes that match, as a table", CSV, True),
)
