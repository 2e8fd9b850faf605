"""`suffice worker`: the control loop as a process of its own, one run by hand, or its history."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from suffice.cli.shell import CONFIG, JSON_LINES, fail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from suffice.control.jobs.base import JobReport, Worker
    from suffice.settings import Settings


@click.command()
@CONFIG
@click.option("--once", metavar="JOB", help="Run one job now, and end, such as certify, audit or retain.")
@click.option("--history", is_flag=True, help="Show what was done lately, and end.")
@JSON_LINES
def worker(path: str, once: str | None, history: bool, as_json: bool) -> None:
    """Certify, watch and brake the routes of a log, until told to end."""
    import logging

    from suffice import wiring
    from suffice.errors import SufficeError

    logging.basicConfig(level="WARNING", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = wiring.load_deployment(path)
        if history:
            _show_history(settings, as_json=as_json)
            return
        with wiring.open_worker(settings, create=False) as here:
            failed = _once(here, once, as_json=as_json) if once is not None else _on(here, settings, as_json=as_json)
    except SufficeError as error:
        fail("worker", error)
    raise SystemExit(1 if failed else 0)


def _once(here: Worker, job: str, *, as_json: bool) -> bool:
    from suffice.errors import ConfigError

    names = [one.name for one in here.jobs]
    if job not in names:
        raise ConfigError(f"--once: unknown job {job!r}; known: {', '.join(names)}")
    reports = here.once(job)
    if reports is None:
        click.echo(f"suffice worker: another worker has the job {job}; it is alive", err=True)
        return True
    _show(reports, as_json=as_json)
    return any(not report.ok for report in reports)


def _on(here: Worker, settings: Settings, *, as_json: bool) -> bool:
    import signal
    import threading

    told = threading.Event()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # of nohup
            signal.signal(number, lambda *_: told.set())
    while not told.is_set():
        _show(here.round(), as_json=as_json)
        told.wait(settings.control.period_s)
    return False


def _show(reports: Sequence[JobReport], *, as_json: bool) -> None:
    for report in reports:
        if as_json:
            import msgspec

            click.echo(msgspec.json.encode(report).decode())
        else:
            click.echo(f"{report.route or 'all routes'}: {report.said or 'nothing to do'}")


def _show_history(settings: Settings, *, as_json: bool) -> None:
    from datetime import UTC, datetime

    import msgspec

    from suffice.store.database.sqlite import database_path
    from suffice.store.routes.windows import job_history

    for run in job_history(database_path(settings.store.url)):
        if as_json:
            click.echo(msgspec.json.encode(run).decode())
            continue
        began = datetime.fromtimestamp(run.began_at_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        failed = "" if run.ok else "FAILED: "
        click.echo(f"{began}  {run.job} {run.route or 'all routes'}  {run.duration_s:.2f} s  {failed}{run.said}")
