"""Opens the log for decisions, and builds the worker with its jobs and alert sinks; writes days into the archive."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from suffice.control.jobs.base import JobReport, JobWriter, LogJob, Worker, is_watcher
from suffice.control.jobs.certify import Certify, Critical
from suffice.control.jobs.monitor import Monitor
from suffice.control.jobs.notify import Notify
from suffice.control.jobs.proposals import Advance, ExperimentWatch, ProposeBudget, Retrain, SamplingJob
from suffice.control.jobs.review import ReviewJob
from suffice.control.jobs.upkeep import ExportHeads, PublishSalts, Retain, Rollup
from suffice.control.worker_process import Part
from suffice.edge.math import open_match
from suffice.errors import ConfigError, StoreError
from suffice.replay.archive.days import DayWriter, closed_days
from suffice.replay.archive.layout import Archive, Manifest
from suffice.settings import Settings
from suffice.store.database.archiving import DAY_S
from suffice.store.database.decisions import Decisions
from suffice.store.database.location import log_location
from suffice.store.database.views import open_reader
from suffice.store.rows.events import DayArchive
from suffice.telemetry import LOG
from suffice.wiring.keys import create_id, deployment_salt, secret
from suffice.wiring.last_good import refuse_lost_log
from suffice.wiring.startup import sinks_of, warn_of_lost_secret

# ── the archive, for the command `suffice archive` and the job `archive` ────────────────────────────

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


# ── the worker ───────────────────────────────────────────────────────────────────────────────────

LEARNING_JOBS: Final = (Certify, Monitor, Retrain)
OTHER_JOBS: Final = (Rollup, Advance, ReviewJob, Critical, SamplingJob, ProposeBudget, ExperimentWatch)


def open_decisions(settings: Settings, *, create: bool = True) -> Decisions:
    """Open the settings' log for a person's decisions; the caller closes it. Raises ConfigError and StoreError."""
    refuse_lost_log(settings)
    return Decisions(
        log_location(settings.store),
        now=time.time,
        monotonic_s=time.monotonic,
        redact=settings.retention.redact,
        create=create,
    )


@contextmanager
def open_worker(
    settings: Settings, *, learning: bool = True, create: bool = True, part: Part | None = None
) -> Iterator[Worker]:
    """Open a worker with its jobs; `part`: those that watch, or all others."""
    warn_of_lost_secret(settings)
    with open_decisions(settings, create=create) as writer, ExitStack() as stack:
        author = f"worker {secrets.token_hex(3)}"
        common: dict[str, Any] = {
            "settings": settings,
            "path": writer.path,
            "author": author,
            "secret": deployment_salt(settings),
        }
        webhook = secret("audit.webhook_env", settings.audit.webhook_env)
        jobs: tuple[Any, ...] = (
            *(kind(**common) for kind in (*(LEARNING_JOBS if learning else ()), *OTHER_JOBS)),
            ExportHeads(webhook=webhook, **common),
            PublishSalts(**common),
            Retain(writer=writer, new_id=partial(create_id, "er"), **common),
            ArchiveJob(writer=writer, **common),
            Notify(sinks=sinks_of(settings.alerts), **common),
        )
        watching = tuple(job for job in jobs if is_watcher(job))  # no look waits behind another job
        if part is not None:
            jobs = watching if part == "watch" else tuple(job for job in jobs if job not in watching)
        for job in jobs:
            stack.callback(job.close)
        yield Worker(
            decisions=writer,
            author=author,
            jobs=jobs,
            now=time.time,
            monotonic_s=time.monotonic,
            new_id=partial(create_id, "jr"),
        )
