"""The job `audit`: exports the chain's head on a schedule, to a file and to a webhook.

What stands in the log vouches for what stands before it; that nothing was cut off, and that the whole was not written
anew, is known only by who kept an earlier head elsewhere. A head that has not moved is not exported again. A webhook
that fails is tried at the next round, and holds up nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from suffice.control.jobs.base import JobReport, JobWriter
from suffice.edge.webhook import post_json
from suffice.errors import StoreError
from suffice.settings import AuditLog
from suffice.store.audit.chain import Head, head
from suffice.store.audit.heads import append_line, line_of, read_heads
from suffice.store.database.views import open_reader
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
        """Another worker may have exported since: the file says what."""
        self._in_file = self._told = None
        self._rests_until_s = float("-inf")

    def run(self, desk: JobWriter) -> Sequence[JobReport]:  # noqa: ARG002 - every job gets one; this one adds no row
        """Export what is due. Raises StoreError."""
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
