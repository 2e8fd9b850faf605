"""The jobs that maintain the log: `audit` exports the head of its hash chain, and `retain` erases rows past retention.

Only an earlier head kept elsewhere proves that the log was neither truncated nor rewritten. Steps that replay needs for
the running epoch of a certified route are erased when that epoch ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from suffice.control.jobs.base import JobReport, JobWriter, LogJob
from suffice.edge.notification import post_json
from suffice.errors import StoreError
from suffice.formatting import format_iso
from suffice.store.audit.chain import Head, append_line, head, line_of, read_heads, signing_key
from suffice.store.audit.personal import PARTS, Part
from suffice.store.database import erasing
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import LogReader, last_place, open_reader
from suffice.store.routes.deployments import read_decided
from suffice.telemetry import LOG


@dataclass(kw_only=True)
class ExportHeads(LogJob):
    name = "audit"
    webhook: str | None
    _in_file: Head | None = field(init=False, default=None)
    _sent: Head | None = field(init=False, default=None)  # to the webhook

    def forget(self) -> None:
        super().forget()
        self._in_file = self._sent = None

    def run(self, writer: JobWriter) -> Sequence[JobReport]:  # noqa: ARG002 - every job gets one; this one adds no row
        audit = self.settings.audit
        if not (audit.file or self.webhook) or not self.is_due() or not self.path.is_file():
            return ()
        self.rest(audit.every_s)
        with open_reader(self.path) as log:
            newest = head(log)
        if newest is None:
            return ()
        line = line_of(newest, at=format_iso(self.now()), key=signing_key(self.secret))
        reports = [] if not audit.file else self._to_file(Path(audit.file), newest, line)
        if self.webhook and newest != self._sent:
            problem = post_json(self.webhook, line, timeout_s=audit.timeout_s)
            if problem is None:
                self._sent = newest
                sentence = f"head at place {newest.place} exported to the webhook"
            else:
                LOG.error("audit: the head at place %d was not exported: %s", newest.place, problem)
                sentence = f"head at place {newest.place} not exported: {problem}"
            reports.append(JobReport(summary=sentence, ok=problem is None, read_to_seq=newest.seq))
        return reports

    def _to_file(self, file: Path, newest: Head, line: bytes) -> list[JobReport]:
        try:
            if self._in_file is None and file.exists():
                kept = read_heads(file, key=None)
                self._in_file = kept[-1].head if kept else None
            if newest == self._in_file:
                return []
            append_line(file, line)
        except StoreError as error:
            LOG.error("audit: %s", error)
            return [JobReport(summary=str(error), ok=False, read_to_seq=newest.seq)]
        self._in_file = newest
        return [JobReport(summary=f"head at place {newest.place} exported to {file}", read_to_seq=newest.seq)]


DAY_S: Final = 86_400.0


@dataclass(kw_only=True)
class Retain(LogJob):
    """Erases what is past its retention, in transactions that are safe to repeat."""

    name = "retain"
    writer: Decisions
    new_id: Callable[[], str]
    _done: dict[Part, int] = field(init=False, default_factory=dict)  # position up to which each part is erased
    _unpurged: bool = field(init=False, default=False)  # rows were erased, and the file still has to be rewritten

    def forget(self) -> None:
        super().forget()
        self._done.clear()

    def run(self, writer: JobWriter) -> Sequence[JobReport]:
        retention = self.settings.retention
        due = [(part, retention.days[part]) for part in PARTS if part in retention.days]
        if not due or not self.is_due() or not self.path.is_file():
            return ()
        self.rest(retention.every_s)
        reports = [self._retain(part, days, writer) for part, days in due]
        if self._unpurged:
            writer.renew()
            self._unpurged = not erasing.purge(self.path)
            if self._unpurged:
                sentence = "the write-ahead log may still hold erased text: another process was reading; will retry"
                reports.append(JobReport(summary=sentence, ok=False))
        return reports

    def _retain(self, part: Part, days: float, writer: JobWriter) -> JobReport:
        what = f"{part} older than {days:g} days"
        order = erasing.ErasureOrder(
            erasure_id=self.new_id(),
            what=what,
            parts=(part,),
            author=self.author,
            reason=f"retention.{part}_days is {days:g}",
        )
        n_rows = 0
        for until, rows in self._batches(part, what, self.now() - days * DAY_S):
            writer.renew()
            n_rows += erasing.erase_words(self.writer, order, rows, until_seq=until)
            self._done[part] = until
            self._unpurged = self._unpurged or bool(n_rows)
        sentence = f"{what}: erased in {n_rows:,} rows" if n_rows else ""
        return JobReport(summary=sentence, read_to_seq=self._done.get(part, 0))

    def _batches(self, part: Part, what: str, limit_s: float) -> Iterator[tuple[int, list[int]]]:
        with open_reader(self.path) as log:
            after = self._done.get(part) or erasing.erased_until(log, what)
            last = self._needed_from(log) - 1 if part == "steps" else last_place(log)
        while True:
            with open_reader(self.path) as log:
                after, rows = erasing.select_expired_rows(
                    log, limit_s, after_seq=after, until_seq=last, labels=part == "answers"
                )
            if not rows:
                return
            yield after, rows

    def _needed_from(self, log: LogReader) -> int:
        decided, first = read_decided(log), last_place(log) + 1
        for name, route in self.settings.routes.items():
            epoch = decided.of(name).epoch if route.certifies_itself else None
            if epoch is not None:
                kept = (seq for one in epoch.kept for seq in erasing.select_word_rows(log, one))
                first = min([first, epoch.since_seq + 1, *kept])
        return first
