"""What each job has looked at: one row for each job and route, beside the log.

A gateway reads these rows: what is certified acts only while the job that watches it completes looks. The rows are a
cache that says nothing about the past, so they are not chained; a job writes them under its lease.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Final

from suffice.errors import StoreError
from suffice.formatting import format_time
from suffice.store.database.views import LogReader

WATCHER: Final = "certify"  # the job whose looks keep certificates alive


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A look that has ended, completed or not."""

    route: str  # "": the job as a whole
    part: str = ""  # of the look, such as the agent's plan, which has a row of its own; "": the look itself
    seq: int = 0  # place in the log up to which it read
    n: int = 0  # requests of the route that it has counted
    problem: str = ""  # class of the error, and our own message; "": it was completed


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What is known of one job's looks at one route: a row of the table."""

    job: str
    route: str  # "": the job as a whole
    beat: int  # completed looks
    seq: int  # place in the log up to which the last one read
    n: int  # requests of the route that it had counted
    looked_at_s: float  # Unix time of its end, by the worker's clock; 0: none was completed
    n_failures: int  # since the last completed one
    failing_since_s: float | None  # Unix time of the first of them; None: it does not fail
    problem: str  # of the latest; "": none

    @property
    def sentence(self) -> str:
        since = "" if self.failing_since_s is None else f" since {format_time(self.failing_since_s)}"
        times = "once" if self.n_failures == 1 else f"{self.n_failures:,} times"
        return f"{self.what} has failed {times}{since}: {self.problem}"

    @property
    def what(self) -> str:
        return f"{self.job} of route {self.route}" if self.route else self.job


_NAMES: Final = tuple(one.name for one in fields(Watch))
_COLUMNS: Final = ", ".join(_NAMES)


def write_looks(log: LogReader, job: str, looks: Iterable[Look], *, at_s: float) -> None:
    """Write looks within a transaction under the job's lease."""
    for one in looks:
        name = one.part or job
        if one.problem:
            log.execute("write_failed_look", (name, one.route, at_s, one.problem))
        else:
            log.execute("write_completed_look", (name, one.route, one.seq, one.n, at_s))


def read_watches(log: LogReader) -> dict[tuple[str, str], Watch]:
    """Return all rows by job and route. Raise StoreError."""
    query = f"SELECT {_COLUMNS} FROM watches ORDER BY job, route"  # noqa: S608 - a constant
    try:
        rows = log.execute(query).fetchall()
    except log.Error as error:
        raise StoreError(f"store: what jobs have looked at cannot be read: {error}") from error
    return {(row[0], row[1]): Watch(**dict(zip(_NAMES, row, strict=True))) for row in rows}


def failures_of(watches: Mapping[tuple[str, str], Watch], route: str) -> tuple[str, ...]:
    """Return what fails now on a route, and which jobs do as a whole, in sentences."""
    return tuple(one.sentence for one in failing(watches) if one.route in ("", route))


def describe_look(watch: Watch | None, last_seq: int) -> str:
    """Describe the latest completed look of the job that watches; "": there was none."""
    if watch is None or not watch.beat:
        return ""
    behind = max(0, last_seq - watch.seq)
    return f"completed at {format_time(watch.looked_at_s)}" + (f"; {behind:,} rows came since" if behind else "")


def failing(watches: Mapping[tuple[str, str], Watch]) -> list[Watch]:
    """Return what fails now, the longest first."""
    rows = [one for one in watches.values() if one.n_failures]
    return sorted(rows, key=lambda one: one.failing_since_s or 0.0)
