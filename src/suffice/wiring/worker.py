"""Opens the log for decisions, and builds the worker with its jobs and alert sinks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from suffice.control.jobs.base import Job, Worker
from suffice.control.jobs.certify import Certify, Critical
from suffice.control.jobs.monitor import Monitor
from suffice.control.jobs.notify import Notify
from suffice.control.jobs.proposals import Advance, Retrain, SamplingJob
from suffice.control.jobs.review import ReviewJob
from suffice.control.jobs.rollup import Rollup
from suffice.control.jobs.upkeep import ExportHeads, Retain
from suffice.errors import StoreError
from suffice.settings import Settings
from suffice.store.audit.chain import signing_key
from suffice.store.database.decisions import Decisions
from suffice.store.database.sqlite import database_path
from suffice.wiring.keys import deployment_salt, secret
from suffice.wiring.startup import missing_log_reason, sinks_of

LEARNING_JOBS: Final = (Certify, Monitor, Retrain)
OTHER_JOBS: Final = (Rollup, Advance, ReviewJob, Critical, SamplingJob)


def open_decisions(settings: Settings, *, create: bool = True) -> Decisions:
    """Open the settings' log for a person's decisions; the caller closes it. Raises ConfigError and StoreError."""
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
    with open_decisions(settings, create=create) as writer, ExitStack() as stack:
        author, salt = f"worker {secrets.token_hex(3)}", deployment_salt(settings)
        kinds = (*(LEARNING_JOBS if learning else ()), *OTHER_JOBS)
        jobs = [kind(settings=settings, path=writer.path, author=author, secret=salt) for kind in kinds]
        for job in jobs:
            stack.callback(job.close)
        yield Worker(
            decisions=writer,
            author=author,
            jobs=(*jobs, *upkeep(settings, writer, author)),
            now=time.time,
            monotonic_s=time.monotonic,
            new_id=lambda: f"jr_{int(time.time() * 1e3):011x}{secrets.token_hex(4)}",
        )


def upkeep(settings: Settings, writer: Decisions, author: str) -> tuple[Job, ...]:
    audit = ExportHeads(
        settings=settings.audit,
        path=writer.path,
        key=signing_key(deployment_salt(settings)),
        webhook=secret("audit.webhook_env", settings.audit.webhook_env),
        now=time.time,
        monotonic_s=time.monotonic,
    )
    retain = Retain(
        settings=settings,
        writer=writer,
        author=author,
        now=time.time,
        monotonic_s=time.monotonic,
        new_id=lambda: f"er_{int(time.time() * 1e3):011x}{secrets.token_hex(4)}",
    )
    return audit, retain, notifier(settings, writer.path)


def notifier(settings: Settings, path: Path) -> Notify:
    return Notify(
        settings=settings.alerts, path=path, sinks=sinks_of(settings.alerts), now=time.time, monotonic_s=time.monotonic
    )
