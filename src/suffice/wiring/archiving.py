"""Writes closed days of the log into the archive, for the command `suffice archive` and the job `archive`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from suffice.control.jobs.base import JobReport, JobWriter, LogJob
from suffice.edge.math import open_match
from suffice.errors import ConfigError, StoreError
from suffice.replay.archive.days import DayWriter, closed_days
from suffice.replay.archive.layout import Archive, Manifest
from suffice.settings import Settings
from suffice.store.database.archiving import DAY_S
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import open_reader
from suffice.store.rows.events import DayArchive
from suffice.telemetry import LOG

LEASE: Final = "archive days"  # held while days are written: one process at a time
LOOKS_S: Final = 600.0  # between two looks for a day that has closed
FAILED_S: Final = 3_600.0  # … after a failure


def cache_folder() -> Path:
    return Path.home() / ".cache" / "suffice" / "archive"


def write_closed_days(
    settings: Settings,
    opened: Archive,
    decisions: Decisions,
    *,
    author: str,
    now_s: float,
    again: bool = False,
    renew: Callable[[], None] = lambda: None,
) -> Generator[Manifest | str, None, None]:
    """Write the days that are closed; yield each one's manifest, and last, in a sentence, what the next day waits for.

    renew  called for each request

    Raise ConfigError, StoreError, and LeaseLost if another process has taken over.
    """
    writer = DayWriter(archive=opened, routes=settings.routes, matches=open_match, renew=renew)
    after_s = settings.archive.after_days * DAY_S
    with decisions.holding(LEASE) as lease, open_reader(decisions.path) as log:
        if lease is None:
            raise StoreError(f"{opened.address}: another process writes days into it; try again later")
        for day in closed_days(log, opened.address, now_s=now_s, after_s=after_s, again=again):
            if isinstance(day, str):
                yield day
                return
            manifest = writer.write(log, day, again=again)
            event = DayArchive(
                day=day.day,
                archive=opened.address,
                since_seq=manifest.since_seq,
                until_seq=manifest.until_seq,
                n_requests=manifest.n_requests,
                digest=manifest.digest,
                author=author,
            )
            decisions.write(lease, [event])
            yield manifest


@dataclass(kw_only=True)
class ArchiveJob(LogJob):
    """Writes each day once it is closed, one in a round. What a round left unfinished is written again."""

    name = "archive"
    writer: Decisions

    def run(self, writer: JobWriter) -> Sequence[JobReport]:
        rules = self.settings.archive
        if not (rules.address and rules.daily) or not self.is_due() or not self.path.exists():
            return ()
        try:
            opened = Archive.open(rules.address, cache=cache_folder(), create=True)
            days = write_closed_days(
                self.settings, opened, self.writer, author=self.author, now_s=self.now(), renew=writer.renew
            )
            written = next(days, "")
            days.close()
        except (ConfigError, StoreError) as error:
            self.rest(FAILED_S)
            LOG.error("archive: %s", error)
            return [JobReport(summary=str(error), ok=False)]
        if isinstance(written, str):
            self.rest(LOOKS_S)
            return ()
        sentence = f"{written.day}: {written.n_requests:,} requests written to {opened.address}"
        return [JobReport(summary=sentence, read_to_seq=written.until_seq)]
