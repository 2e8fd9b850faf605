"""Opens the log for decisions, and builds the worker with its jobs and alert sinks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final

from suffice.control.jobs.base import Worker
from suffice.control.jobs.certify import Certify, Critical
from suffice.control.jobs.monitor import Monitor
from suffice.control.jobs.notify import Notify
from suffice.control.jobs.proposals import Advance, ExperimentWatch, ProposeBudget, Retrain, SamplingJob
from suffice.control.jobs.review import ReviewJob
from suffice.control.jobs.upkeep import ExportHeads, Retain, Rollup
from suffice.settings import Settings
from suffice.store.database.decisions import Decisions
from suffice.store.database.location import log_location
from suffice.wiring.archiving import ArchiveJob
from suffice.wiring.keys import create_id, deployment_salt, secret
from suffice.wiring.startup import refuse_lost_log, sinks_of, warn_of_lost_secret

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
def open_worker(settings: Settings, *, learning: bool = True, create: bool = True) -> Iterator[Worker]:
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
        jobs = (
            *(kind(**common) for kind in (*(LEARNING_JOBS if learning else ()), *OTHER_JOBS)),
            ExportHeads(webhook=webhook, **common),
            Retain(writer=writer, new_id=partial(create_id, "er"), **common),
            ArchiveJob(writer=writer, **common),
            Notify(sinks=sinks_of(settings.alerts), **common),
        )
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
