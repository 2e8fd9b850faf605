"""Opens the log for decisions, and the worker with its jobs."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from suffice.control.evidence.scorers import matching
from suffice.control.jobs.advance import Advance
from suffice.control.jobs.arms import Tune
from suffice.control.jobs.base import Job, Worker
from suffice.control.jobs.critical import Critical
from suffice.control.jobs.loops import Certify
from suffice.control.jobs.monitor import Monitor
from suffice.control.jobs.proposing import Retrain
from suffice.control.jobs.reviewing import ReviewJob
from suffice.control.jobs.rollup import Rollup
from suffice.control.jobs.sampling import SamplingJob
from suffice.errors import StoreError
from suffice.settings import Settings
from suffice.store.database.decisions import Decisions
from suffice.store.database.sqlite import database_path
from suffice.wiring.audit import upkeep
from suffice.wiring.keys import deployment_salt
from suffice.wiring.startup import missing_log_reason


def open_decisions(settings: Settings, *, create: bool = True) -> Decisions:
    """The settings' log, open for a person's decisions; the caller closes it. Raises ConfigError and StoreError.

    create  make a log where there is none
    """
    gone = missing_log_reason(settings)
    if gone is not None:
        raise StoreError(gone)
    return Decisions.open(
        database_path(settings.store.url),
        now=time.time,
        monotonic_s=time.monotonic,
        redact=settings.retention.redact,
        create=create,
    )


@contextmanager
def open_worker(settings: Settings, *, learning: bool = True, create: bool = True) -> Iterator[Worker]:
    """The jobs on the settings' log, while the block lasts. Raises ConfigError and StoreError.

    learning  with the control loop's own, which fit; False: only those that look after the log
    create    make a log where there is none
    """
    with open_decisions(settings, create=create) as writer, ExitStack() as stack:
        author, salt = f"worker {secrets.token_hex(3)}", deployment_salt(settings)
        learners = _learners(settings, writer.path, author, salt, stack) if learning else ()
        keepers = _keepers(settings, writer.path, author, salt, stack)
        yield Worker(
            decisions=writer,
            author=author,
            jobs=(*learners, *keepers, *upkeep(settings, writer, author)),
            now=time.time,
            monotonic_s=time.monotonic,
            new_id=lambda: f"jr_{int(time.time() * 1e3):011x}{secrets.token_hex(4)}",
        )


def _learners(settings: Settings, path: Path, author: str, salt: str, stack: ExitStack) -> tuple[Job, ...]:
    certify = Certify(settings=settings, path=path, author=author, matches=matching, monotonic_s=time.monotonic)
    monitor = Monitor(settings=settings, path=path, author=author, matches=matching, monotonic_s=time.monotonic)
    retrain = Retrain(
        settings=settings,
        path=path,
        author=author,
        matches=matching,
        secret=salt,
        now=time.time,
        monotonic_s=time.monotonic,
    )
    tune = Tune(
        settings=settings, path=path, author=author, matches=matching, monotonic_s=time.monotonic, now=time.time
    )
    for one in (certify, monitor, retrain, tune):
        stack.enter_context(closing(one))
    return certify, monitor, retrain, tune


def _keepers(settings: Settings, path: Path, author: str, salt: str, stack: ExitStack) -> tuple[Job, ...]:
    rollup = Rollup(settings=settings, path=path, matches=matching, monotonic_s=time.monotonic, now=time.time)
    advance = Advance(
        settings=settings,
        path=path,
        author=author,
        matches=matching,
        secret=salt,
        now=time.time,
        monotonic_s=time.monotonic,
    )
    review = ReviewJob(settings=settings, path=path, author=author, salt=salt, now=time.time)
    critical = Critical(settings=settings, path=path, author=author, matches=matching, monotonic_s=time.monotonic)
    sample = SamplingJob(settings=settings, path=path, author=author, matches=matching, monotonic_s=time.monotonic)
    for one in (rollup, advance, critical, sample):
        stack.enter_context(closing(one))
    return rollup, advance, review, critical, sample
