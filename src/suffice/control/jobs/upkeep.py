"""The jobs that look after the log itself: `audit` exports the chain's head, `retain` erases what is old enough.

Rows of the log vouch for those before them. Only somebody who kept an earlier head elsewhere can tell that nothing was
cut off and that the whole was not written anew. A head that has not moved is not exported again.

Words of people go on their day, whatever else they are good for. Steps of runs that the running epoch of a route that
certifies itself may read again stay until that epoch has ended: a worker that starts again could not come to the same
decisions without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from suffice.control.jobs.base import JobReport, JobWriter
from suffice.edge.webhook import post_json
from suffice.errors import StoreError
from suffice.settings import AuditLog, Settings
from suffice.store.audit.chain import Head, head
from suffice.store.audit.heads import append_line, line_of, read_heads
from suffice.store.audit.personal import PARTS, Part
from suffice.store.database.decisions import Decisions
from suffice.store.database.erasing import (
    ErasureOrder,
    ErasureTally,
    erase_words,
    erased_until,
    purge,
    select_expired_rows,
    select_label_rows,
    select_word_rows,
)
from suffice.store.database.views import LogReader, open_reader
from suffice.store.routes.in_force import read_decided
from suffice.store.routes.windows import last_place
from suffice.telemetry import LOG


@dataclass(slots=True, kw_only=True)
class ExportHeads:
    """Exports the head of the log's chain.

    key      of signatures
    webhook  its address; None: there is none
    """

    settings: AuditLog
    path: Path
    key: bytes
    webhook: str | None
    now: Callable[[], float]
    monotonic_s: Callable[[], float]
    name: str = "audit"
    _rests_until_s: float = field(default=float("-inf"))  # monotonic
    _in_file: Head | None = None
    _told: Head | None = None  # the webhook

    def forget(self) -> None:
        self._in_file = self._told = None
        self._rests_until_s = float("-inf")

    def run(self, desk: JobWriter) -> Sequence[JobReport]:  # noqa: ARG002 - every job gets one; this one adds no row
        now_s = self.monotonic_s()
        if now_s < self._rests_until_s or not (self.settings.file or self.webhook) or not self.path.is_file():
            return ()
        self._rests_until_s = now_s + self.settings.every_s
        with open_reader(self.path) as connection:
            found = head(connection)
        if found is None:
            return ()
        line = line_of(found, at=self._at(), key=self.key)
        return [*self._to_file(found, line), *self._to_webhook(found, line)]

    def _at(self) -> str:
        return datetime.fromtimestamp(self.now(), UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

    def _to_file(self, found: Head, line: bytes) -> Sequence[JobReport]:
        if not self.settings.file:
            return ()
        file = Path(self.settings.file)
        try:
            if self._in_file is None and file.exists():
                kept = read_heads(file, key=None)
                self._in_file = kept[-1].head if kept else None
            if found == self._in_file:
                return ()
            append_line(file, line)
        except StoreError as error:
            LOG.error("audit: %s", error)
            return [JobReport(said=str(error), ok=False, read_to_seq=found.seq)]
        self._in_file = found
        return [JobReport(said=f"head at place {found.place} exported to {file}", read_to_seq=found.seq)]

    def _to_webhook(self, found: Head, line: bytes) -> Sequence[JobReport]:
        if not self.webhook or found == self._told:
            return ()
        problem = post_json(self.webhook, line, timeout_s=self.settings.timeout_s)
        if problem is not None:
            LOG.error("audit: the head at place %d was not exported: %s", found.place, problem)
            said = f"head at place {found.place} not exported: {problem}"
            return [JobReport(said=said, ok=False, read_to_seq=found.seq)]
        self._told = found
        return [JobReport(said=f"head at place {found.place} exported to the webhook", read_to_seq=found.seq)]


DAY_S: Final = 86_400.0


@dataclass(slots=True, kw_only=True)
class Retain:
    """Erases what is older than the settings allow.

    writer  on the log; every batch is a transaction of its own, and doing one again does nothing
    """

    settings: Settings
    writer: Decisions
    path: Path
    author: str
    now: Callable[[], float]
    monotonic_s: Callable[[], float]
    new_id: Callable[[], str]
    name: str = "retain"
    _rests_until_s: float = field(default=float("-inf"))  # monotonic
    _done: dict[Part, int] = field(default_factory=dict)  # place in the log up to which each part is erased
    _unpurged: bool = False  # rows were erased, and the file still has to be written anew

    def forget(self) -> None:
        self._done.clear()
        self._rests_until_s = float("-inf")

    def run(self, desk: JobWriter) -> Sequence[JobReport]:
        now_s, retention = self.monotonic_s(), self.settings.retention
        due = [(part, retention.days[part]) for part in PARTS if part in retention.days]
        if not due or now_s < self._rests_until_s or not self.path.is_file():
            return ()
        self._rests_until_s = now_s + retention.every_s
        reports = [self._retain(part, days, desk) for part, days in due]
        if self._unpurged:
            desk.renew()
            self._unpurged = not purge(self.path)
            if self._unpurged:
                said = "what was erased may still stand in the write-ahead log: somebody was reading; tried again later"
                reports.append(JobReport(said=said, ok=False))
        return reports

    def _retain(self, part: Part, days: float, desk: JobWriter) -> JobReport:
        what = f"{part} older than {days:g} days"
        order = ErasureOrder(
            erasure_id=self.new_id(),
            what=what,
            parts=(part,),
            author=self.author,
            reason=f"retention.{part}_days is {days:g}",
        )
        tally = ErasureTally()
        for until, rows in self._batches(part, what, self.now() - days * DAY_S):
            desk.renew()
            erase_words(self.writer, order, rows, tally, until_seq=until)
            self._done[part] = until
            self._unpurged = self._unpurged or bool(tally.n_rows)
        said = f"{what}: erased in {tally.n_rows:,} rows" if tally.n_rows else ""
        return JobReport(said=said, read_to_seq=self._done.get(part, 0))

    def _batches(self, part: Part, what: str, limit_s: float) -> Iterator[tuple[int, list[int]]]:
        """Rows that are old enough, a batch at a time, and the place up to which that is all of them."""
        with open_reader(self.path) as connection:
            after = self._done.get(part) or erased_until(connection, what)
            last = self._needed_from(connection) - 1 if part == "steps" else last_place(connection)
        while True:
            with open_reader(self.path) as connection:
                found = select_expired_rows(connection, limit_s, after_seq=after, until_seq=last)
                # What is right goes with what was answered: a reference without its answers would judge them wrong.
                ended = [row.key for row in found if row.kind == "outcome"] if part == "answers" else []
                labels = {seq for key in ended for seq in select_label_rows(connection, key)}
            if not found:
                return
            after = found[-1].seq
            yield after, [*sorted(labels - {row.seq for row in found}), *(row.seq for row in found)]

    def _needed_from(self, connection: LogReader) -> int:
        """The first place in the log whose steps a running epoch may still read."""
        decided, first = read_decided(connection), last_place(connection) + 1
        for name, route in self.settings.routes.items():
            epoch = decided.of(name).epoch if route.certifies_itself else None
            if epoch is not None:
                kept = (seq for one in epoch.kept for seq in select_word_rows(connection, one))
                first = min([first, epoch.since_seq + 1, *kept])
        return first
