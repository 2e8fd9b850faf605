"""`suffice serve`, `reload` and `worker`, and a non-blocking log handler."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from suffice.cli.shell import (
    AUTHOR,
    CONFIG,
    INSECURE_OPEN,
    JSON_LINES,
    UNCONFIRMED,
    WAIT,
    Command,
    CommandReply,
    author_name,
    fail,
    option,
    print_line,
    print_reply,
    wait_for_gateways,
    warn,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from suffice.control.health import WorkerHealth
    from suffice.control.jobs.base import JobReport, Worker
    from suffice.settings import Settings


MOST_LINES: Final = 10_000  # waiting to be written; newer ones are dropped and counted
PAUSE_S: Final = 0.02  # lines logged within this time are written together
STDERR: Final = 2
LOG_S: Final = 1.0  # between two attempts to open a log that is not there yet
SAY_S: Final = 60.0  # between two lines that say so
IDENTIFY_S: Final = 5.0  # for a server to list its models
FLUSH_S: Final = 2.0  # at exit: time limit for writing the waiting lines


class BackgroundHandler(logging.handlers.QueueHandler):
    """Write lines in a thread, so that no request waits for the reader of standard error."""

    queue: queue.SimpleQueue[str]

    def __init__(self) -> None:
        super().__init__(queue.SimpleQueue())
        self._n_queued = self._n_written = self._n_dropped = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def prepare(self, record: logging.LogRecord) -> str:
        return self.format(record)

    def enqueue(self, record: Any) -> None:
        if self.queue.qsize() >= MOST_LINES:
            self._n_dropped += 1
            return
        self._n_queued += 1
        self.queue.put(record)

    def flush(self) -> None:
        end_s = time.monotonic() + FLUSH_S
        while self._n_written < self._n_queued and time.monotonic() < end_s:
            time.sleep(PAUSE_S)

    def _write(self) -> None:
        while True:
            lines = [self.queue.get()]
            time.sleep(PAUSE_S)
            lines += [self.queue.get() for _ in range(self.queue.qsize())]
            n_lines = len(lines)
            if self._n_dropped:
                n, self._n_dropped = self._n_dropped, 0
                lines.append(f"{n} lines of the log were left out: they came faster than they could be written")
            left = "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
            with contextlib.suppress(OSError):  # standard error is closed, or its reader has exited
                while left:
                    left = left[os.write(STDERR, left) :]  # a Python stream could block at exit
            self._n_written += n_lines


UNSHOWN = "the console has an admin now; suffice admin reset-secret prints their secret, which no log holds"
FIRST = """To log in to the console, open this link and press Log in:

    {link}

It fills in the admin's secret, which is shown this once and kept as a hash only:

    {secret}

If it gets lost, suffice admin reset-secret prints a new one.
"""


@click.command(cls=Command)
@CONFIG
@option("--upstream", metavar="URL", help="Observe this model server, without a settings file.")
@option("--api-key-env", default="", metavar="NAME", help="With --upstream: environment variable with its key.")
@option("--host", help="Address to listen on; overrides the settings.")
@option("--port", type=int, help="Port to listen on; 0 picks a free one.")
@option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="Log level on standard error; debug may quote what clients sent.",
)
@option("--no-access-log", is_flag=True, help="Leave out the line for each request.")
@INSECURE_OPEN
@click.pass_context
def serve(
    context: click.Context,
    path: Path,
    upstream: str | None,
    api_key_env: str,
    host: str | None,
    port: int | None,
    log_level: str,
    no_access_log: bool,
    insecure_open: bool,
    *,
    browse: bool = False,
) -> None:
    """Serve the OpenAI-compatible gateway until it is stopped.

    With --upstream it needs no settings file: it observes, adds no call and no token, and keeps its log in the data
    directory.
    """
    from suffice.server import run_server
    from suffice.telemetry import ACCESS, configure_logging, skip_unused_facts
    from suffice.wiring.files import load_settings
    from suffice.wiring.people import people_file

    if no_access_log:
        ACCESS.setLevel("WARNING")
    try:
        if upstream is None:
            settings = load_settings(path)
        else:
            _refuse_two_sources(context, path)
            settings = _observing(upstream, api_key_env)
        configure_logging(log_level, settings.telemetry.log_format, BackgroundHandler())
        skip_unused_facts()
        # Do not create a replacement for people whose folder is missing for now.
        makes_admin = settings.console.enabled and people_file(settings).parent.is_dir()

        def listening(url: str, console_url: str) -> None:
            page = f"{console_url}/console"
            if makes_admin:
                page = _show_first_secret(settings, page) or page
            pages = f", with the console on {console_url}/console" if settings.console.enabled else ""
            # At every log level: people open that address, and programs wait for it.
            click.echo(f"suffice is listening on {url}/v1{pages}", err=True)
            if browse and settings.console.enabled:
                _open_browser(page)

        run_server(
            settings,
            listening=listening,
            host=host,
            port=port,
            insecure_open=insecure_open,
            read=None if upstream is not None else lambda: load_settings(path),
        )
    except OSError as error:
        fail(error.strerror or error)


def _refuse_two_sources(context: click.Context, path: Path) -> None:
    from click.core import ParameterSource

    if context.get_parameter_source("path") != ParameterSource.DEFAULT:
        raise click.UsageError("--upstream serves without a settings file; leave out it or --config")
    if path.exists():
        raise click.UsageError(f"{path} has the settings; leave out --upstream, or name another folder by --data-dir")


def _observing(url: str, api_key_env: str) -> Settings:
    """Settings that observe a server; it is asked for its models, which tell the kind of server, and for nothing else.

    One that does not answer yet is treated as any server that speaks OpenAI's protocol.
    """
    import asyncio

    from suffice.doctor.session import ServerSession
    from suffice.errors import UpstreamError
    from suffice.settings import Driver, Upstream
    from suffice.telemetry import only_errors
    from suffice.upstream.client import UpstreamClient
    from suffice.wiring.files import UPSTREAM, parse_starter, starter_settings, upstream_table
    from suffice.wiring.keys import api_key

    async def identify(server: Upstream) -> tuple[Driver | None, str]:
        async with UpstreamClient(UPSTREAM, server, api_key(UPSTREAM, server)) as client:
            session = ServerSession(client, model="", timeout_s=IDENTIFY_S)
            try:
                models = await session.models()
            except UpstreamError as error:
                return None, f"does not answer yet ({error.for_operator()})"
            return await session.engine(), f"model {', '.join(models[:3]) or 'unknown: it lists none'}"

    settings = parse_starter(starter_settings(upstream_table(url, None), api_key_env=api_key_env), os.environ)
    with only_errors():
        driver, what = asyncio.run(identify(settings.upstreams[UPSTREAM]))
    click.echo(f"{url}: {what}, driver {driver or 'openai'}; observed only, at no further call or token", err=True)
    click.echo(f"To keep these settings in a file: suffice init --upstream {url} --requests 0", err=True)
    return parse_starter(starter_settings(upstream_table(url, driver), api_key_env=api_key_env), os.environ)


def _open_browser(page: str) -> None:
    """Open a page where a browser with windows can be expected."""
    import webbrowser

    if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(page)


def _show_first_secret(settings: Settings, page: str) -> str | None:
    """Make the first admin; at a terminal, print the secret with a link that logs in. Return the link.

    None: there are people.
    """
    from suffice.errors import SufficeError
    from suffice.telemetry import LOG
    from suffice.wiring.people import ADMIN, People, access_changed
    from suffice.wiring.worker import open_decisions

    try:
        secret = People.of(settings).first()
        if secret is None:
            return None
        # What stands behind "#" stays in the browser. A wildcard address is none to open.
        link = f"{page.replace('://0.0.0.0', '://127.0.0.1').replace('://[::]', '://[::1]')}/login#secret={secret}"
        # A log is kept and shipped, and whoever reads it must not become the admin.
        click.echo(FIRST.format(secret=secret, link=link) if sys.stderr.isatty() else UNSHOWN, err=True)
        with open_decisions(settings) as writer:
            writer.write(None, [access_changed(People.of(settings), ADMIN, "added")])
    except SufficeError as error:
        LOG.warning("the new admin could not be written down: %s", error)
        return None
    return link


@click.command(cls=Command)
@CONFIG
@option("--preview", is_flag=True, help="Say what would change, and change nothing.")
@option("--reason", help="Why; it stays in the log. A preview needs none.")
@AUTHOR
@WAIT
def reload(path: Path, preview: bool, reason: str | None, author: str | None, wait_s: float) -> None:
    """Let the gateways on this computer apply the changes in their settings file.

    Each applies all that can change while it runs, or nothing, and says which settings need a restart. A preview
    compares the file with the settings that the log recorded last.
    """
    from suffice.store.database.presence import read_presences
    from suffice.wiring.files import load_deployment
    from suffice.wiring.keys import presence_files
    from suffice.wiring.routes import check_routes

    if not (preview or reason):
        raise click.UsageError("Missing option '--reason'.")
    settings = load_deployment(path)
    check_routes(settings)
    if preview:
        _print_preview(settings)
        return
    switches, hangup = presence_files(settings), getattr(signal, "SIGHUP", None)
    if hangup is None:
        fail("this system has no SIGHUP; use POST /v1/admin/reload or the console")
    before = {one.pid: one.n_reloads for one in read_presences(switches) if one.process == "serve"}
    if not before:
        fail("no gateway is running on this deployment; one that starts reads the file", 1)
    _leave_reason(switches, author_name(author), reason or "")
    for pid in before:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, hangup)
    there, late, _ = wait_for_gateways(switches, lambda one: one.n_reloads == before.get(one.pid), wait_s=wait_s)
    for one in there:
        if one.pid in before and one not in late:
            print_line(f"{one.name}: {one.reloaded}")
    for one in late:
        warn(f"{one.name} has not confirmed within {wait_s:g} s")
    if late:
        raise SystemExit(UNCONFIRMED)


def _leave_reason(switches: Sequence[Path], author: str, reason: str) -> None:
    from suffice.store.database.presence import ReloadOrder, order_reload

    try:
        order_reload(switches, ReloadOrder(author=author, reason=reason))
    except OSError as error:
        warn(f'the log will say "by signal": the reason cannot be written ({error.strerror})')


def _print_preview(settings: Settings) -> None:
    from suffice.settings.reloading import planned_changes
    from suffice.store.database.location import log_location
    from suffice.store.database.views import newest_event
    from suffice.store.rows.events import ConfigChange
    from suffice.wiring.audit import loggable_settings

    recorded = newest_event(log_location(settings.store), ConfigChange)
    if recorded is None:
        fail("no settings are recorded in the log yet; a gateway that starts reads the file", 1)
    for one in planned_changes(recorded.settings, loggable_settings(settings)):
        print_line(one.sentence)
    print_line(f"compared with what the log recorded last, by {recorded.author}: {recorded.reason}")


@click.command(cls=Command)
@CONFIG
@option("--once", metavar="JOB", help="Run one job now, and end, such as certify, audit or retain.")
@option("--history", is_flag=True, help="Show what was done lately, and end.")
@option(
    "--health-port", type=click.IntRange(1, 65_535), metavar="PORT", help="Answer /healthz, /readyz and /metrics here."
)
@option("--health-host", metavar="ADDRESS", default="127.0.0.1", help="Of that port; else 127.0.0.1.")
@JSON_LINES
def worker(
    path: Path, once: str | None, history: bool, health_port: int | None, health_host: str, as_json: bool
) -> None:
    """Run the control loop, which certifies and watches the routes of a log, until it is stopped.

    It waits for the log, so that gateways, worker and database may start in any order.
    """
    from suffice.control.health import WorkerHealth, serve_health
    from suffice.control.worker_process import run_in_thread
    from suffice.telemetry import configure_logging
    from suffice.wiring.files import load_settings, require_log
    from suffice.wiring.worker import open_worker

    settings = load_settings(path)
    if history or once is not None:
        require_log(settings, path)
    configure_logging("warning", settings.telemetry.log_format)
    if history:
        _show_history(settings, as_json=as_json)
        return
    if once is not None:
        with open_worker(settings, create=False) as here:
            failed = _once(here, once, as_json=as_json)
        raise SystemExit(1 if failed else 0)
    reloads = threading.Event()
    event = _handle_signals(reloads)
    health = WorkerHealth()
    with serve_health(health, health_host, health_port) if health_port else contextlib.nullcontext():
        while _wait_for_log(settings, path, event, health):
            with contextlib.ExitStack() as stack:
                health.worker = here = stack.enter_context(open_worker(settings, create=False, part="watch"))
                stack.callback(setattr, health, "worker", None)
                # The other jobs have a process of their own: no look waits behind them.
                stack.enter_context(run_in_thread(settings, "chores", prints="json" if as_json else "text"))
                here.bound_looks(settings.control.lease_s / 2, _start_again)
                _work(here, event, reloads, as_json=as_json)
            if reloads.is_set():
                reloads.clear()
                settings = _reloaded(path, settings)


def _once(here: Worker, job: str, *, as_json: bool) -> bool:
    from suffice.errors import ConfigError

    names = [one.name for one in here.jobs]
    if job not in names:
        raise ConfigError(f"--once: unknown job {job!r}; known: {', '.join(names)}")
    reports = here.once(job)
    if reports is None:
        warn(f"another worker has the job {job}; it is alive")
        return True
    print_reports(reports, as_json=as_json)
    return any(not report.ok for report in reports)


def _handle_signals(reloads: threading.Event) -> threading.Event:
    """Return an event that SIGINT and SIGTERM set; SIGHUP sets `reloads`, and from a closed terminal both."""
    from suffice.files import has_terminal

    event, had_terminal = threading.Event(), has_terminal()

    def hang_up(*_: object) -> None:
        reloads.set()
        if had_terminal and not has_terminal():
            event.set()

    for name, handler in (("SIGINT", None), ("SIGTERM", None), ("SIGHUP", hang_up)):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # of nohup
            signal.signal(number, handler or (lambda *_: event.set()))
    return event


def _wait_for_log(
    settings: Settings,
    path: Path,
    event: threading.Event,
    health: WorkerHealth,
    monotonic_s: Callable[[], float] = time.monotonic,
) -> bool:
    """Wait until the log can be opened, and say once a minute why it cannot; False: the event came before."""
    from suffice.errors import StoreError
    from suffice.wiring.files import require_log
    from suffice.wiring.worker import open_decisions

    why, warned_s = "", 0.0
    while not event.is_set():
        try:
            require_log(settings, path)
            with open_decisions(settings, create=False):
                return True
        except StoreError as error:
            health.waits = str(error)  # before it is said: who reads the line may probe at once
            if str(error) != why or monotonic_s() - warned_s >= SAY_S:
                why, warned_s = str(error), monotonic_s()
                warn(f"{why}; waiting for it")
        event.wait(LOG_S)
    return False


def _work(here: Worker, event: threading.Event, reloads: threading.Event, *, as_json: bool) -> None:
    while not event.is_set() and not reloads.is_set():
        print_reports(here.round_if_due(), as_json=as_json)
        event.wait(here.pause_s())


def _start_again() -> None:
    """Replace this process by the same command: a look hangs in it."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - itself


def _reloaded(path: Path, before: Settings) -> Settings:
    """Read the settings again, with what a reload may change; a broken file changes nothing."""
    from suffice.errors import SufficeError
    from suffice.settings.reloading import merge_settings
    from suffice.wiring.files import load_deployment
    from suffice.wiring.routes import check_routes

    try:
        result = merge_settings(before, load_deployment(path))
        check_routes(result.settings)
    except SufficeError as error:
        warn(f"nothing was reloaded: {error}")
        return before
    warn(f"reload: {result.sentence}")
    return result.settings


def print_reports(reports: Sequence[JobReport], *, as_json: bool) -> None:
    lines = [f"{one.route or 'all routes'}: {one.summary or 'nothing to do'}" for one in reports]
    print_reply(CommandReply(list(reports), lines), as_json=as_json)


def _show_history(settings: Settings, *, as_json: bool) -> None:
    from suffice.formatting import format_iso
    from suffice.store.database.location import log_location
    from suffice.store.database.views import job_history

    runs, lines = list(job_history(log_location(settings.store))), list[str]()
    for run in runs:
        began, failed = format_iso(run.began_at_s, " "), "" if run.ok else "FAILED: "
        about = f"{run.job} {run.route or 'all routes'}"
        lines.append(f"{began}  {about}  {run.duration_s:.2f} s  {failed}{run.summary}")
    print_reply(CommandReply(runs, lines), as_json=as_json)
