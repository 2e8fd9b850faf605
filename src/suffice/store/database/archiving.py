"""Days of the log for the archive: where they end, their runs, and the removal of the rows of archived runs.

A day is a stretch of rows, not of times: it ends before the first request of a later day, so every request belongs to
exactly one day, whatever the clocks of several gateways say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from suffice.store.database import views
from suffice.store.database.decisions import Decisions
from suffice.store.rows.events import DayArchive

DAY_S: Final = 86_400
BATCH_ROWS: Final = 2_000  # removed in one transaction; other writers wait that long


@dataclass(frozen=True, slots=True)
class DayRange:
    """The requests of a day: rows after `since_seq`, up to `until_seq`."""

    since_seq: int
    until_seq: int
    n_open: int  # requests without an outcome


@dataclass(frozen=True, slots=True)
class StoredRun:
    seq: int  # of its request
    at_s: float  # Unix time at which the log took the request; informative
    request: str  # body of the row
    outcome_seq: int
    outcome: str
    labels: tuple[views.StoredLabel, ...]


def ends_at_s(day: str) -> float:
    """Return the Unix time at which a day ends."""
    return datetime.fromisoformat(f"{day}T00:00+00:00").timestamp() + DAY_S


def first_request(log: views.LogReader, since_seq: int) -> tuple[int, float] | None:
    """Return place and Unix time of the first request after a place."""
    return next(iter(views.query_rows(log, "next_request", (since_seq, 0.0))), None)


def range_of_day(log: views.LogReader, since_seq: int, ends_at_s: float) -> DayRange:
    """Return the requests after a place, up to the first that came at or after `ends_at_s`."""
    later = views.query_rows(log, "next_request", (since_seq, ends_at_s))
    until = views.query_number(log, "last_request", (since_seq, later[0][0] if later else views.LAST_SEQ))
    return DayRange(since_seq, until, views.query_number(log, "n_open_requests", (since_seq, until)))


def read_range(log: views.LogReader, day: DayRange) -> Iterator[StoredRun]:
    """Yield the runs of a day in the order of their requests."""
    for seq, at_s, request, key, ended, outcome, response in views.read_pages(
        log, "runs_of_range", {"until": day.until_seq}, after=day.since_seq
    ):
        yield StoredRun(seq, float(at_s), request, ended, outcome, views.read_labels(log, key, response))


def archived_days(log: views.LogReader) -> list[DayArchive]:
    """Return the days that were archived, oldest first; of a day that was written again, the last one."""
    days = {day.day: day for day in views.select(log, DayArchive, "true ORDER BY seq")}
    return [days[day] for day in sorted(days)]


def remove_runs(writer: Decisions, until_seq: int) -> Iterator[int]:
    """Remove requests up to a place with their outcomes, batch by batch; yield how many."""
    while True:
        with writer.transaction(erases=True) as log:
            runs = views.query_rows(log, "removable_requests", (until_seq, BATCH_ROWS))
            log.executemany("DELETE FROM events WHERE kind = 'outcome' AND key = ?", [(key,) for _, key in runs])
            log.executemany("DELETE FROM events WHERE seq = ?", [(seq,) for seq, _ in runs])
        if not runs:
            return
        yield len(runs)
