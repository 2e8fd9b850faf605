"""Starts a gateway with its log or, if that cannot be opened, with its last-good file until it can.

A missing log is not created while its last-good file shows that something was active: an empty log would hide the loss.
"""

from __future__ import annotations

import contextlib
import ipaddress
import math
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from yarl import URL

from suffice.console.render import can_render
from suffice.control.jobs.notify import LogSink, MailSink, Sink, WebhookSink, link_of, send_notice
from suffice.edge.notification import MailServer
from suffice.errors import ConfigError, StoreError
from suffice.extras import how_to_install
from suffice.files import tighten
from suffice.gateway.clients import days_of_month
from suffice.gateway.context import GatewayState
from suffice.gateway.last_good import LastGood
from suffice.rollout.assign import FIRST_REQUESTS
from suffice.scoring.base import asks_judge
from suffice.settings import AlertKind, Alerts, Settings
from suffice.store.database.location import local_path, log_location
from suffice.store.database.log import EventLog
from suffice.store.database.views import (
    has_requests,
    last_place,
    n_requests_of,
    newest_events,
    open_reader,
    read_recent,
)
from suffice.store.database.writer import LateLog, LogWriter
from suffice.store.people.alerts import MOST_TEXT, Notice, plain
from suffice.store.people.keys import valid_keys
from suffice.store.rows.events import KeyIssue, KeyUsage, LogOutage
from suffice.store.rows.watching import WatchLapse
from suffice.telemetry import LOG
from suffice.types import Episode
from suffice.upstream.drivers import url_key
from suffice.wiring.audit import config_change
from suffice.wiring.keys import api_key, deployment_salt, good_file, has_secret, key_ring, salt_file, secret
from suffice.wiring.last_good import refuse_lost_log, valid_last_good
from suffice.wiring.people import people_file
from suffice.wiring.routes import StartupEvidence, check_routes, evidence_warnings, read_evidence, route_notes

LEARNT_RUNS: Final = 2_000  # latest runs of the log that are learned again after a restart
RETRY_S: Final = (1.0, 30.0)  # before another attempt to open the log, doubling
LAST_TRY_S: Final = 7.0  # the longest wait at the end for an attempt, which itself waits for other processes
IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Process = Literal["serve", "library"]  # a gateway, or a caller's own loop


@dataclass(frozen=True, slots=True, kw_only=True)
class LogKnowledge:
    evidence: StartupEvidence = field(default_factory=StartupEvidence)
    n_requests: Mapping[str, int] = field(default_factory=dict)  # by route, up to FIRST_REQUESTS
    recent: tuple[Episode, ...] = ()  # the latest runs
    keys: tuple[KeyIssue, ...] = ()  # of clients, that were issued
    used: tuple[KeyUsage, ...] = ()  # this month, by keys with a budget …
    used_to: int = 0  # … up to this place at least


@dataclass(slots=True, kw_only=True)
class StartState:
    log: EventLog
    known: LogKnowledge
    secret: str  # the deployment's; if that cannot be read, one of this process
    good: LastGood | None = None  # to be served, or to take a version from
    problem: str | None = None  # why the log is not open; None: it is
    since_s: float = 0.0  # Unix time

    @property
    def late(self) -> LateLog:
        """The log that waits for its file; only if there is a problem."""
        assert isinstance(self.log, LateLog)
        return self.log

    @property
    def age_s(self) -> float:
        return 0.0 if self.good is None else max(0.0, self.since_s - self.good.at_s)


def warn_of_lost_secret(settings: Settings) -> None:
    """Warn if there is a log with requests, and its secret is gone: a new one is about to be made.

    Before any request, as after `suffice admin add`, nothing was signed or drawn with one.
    """
    path = log_location(settings.store)
    if has_secret(settings):
        return
    with contextlib.suppress(StoreError), open_reader(path) as connection:
        if has_requests(connection):
            LOG.warning(
                "store %s: its secret is missing on this machine (%s, or SUFFICE_SALT), and a new one is made. What the"
                " old one signed is refused: feedback tokens, the last-good file, versions on trial; a retry may be"
                " drawn anew. Restore the file or set the variable, and restart",
                path,
                salt_file(settings),
            )


def open_log(settings: Settings, *, create: bool = True) -> LogWriter:
    """Open the settings' log for events; the caller closes it. Raises ConfigError and StoreError."""
    refuse_lost_log(settings)
    return LogWriter(settings.store, now=time.time, redact=settings.retention.redact, create=create)


def recovered(settings: Settings, log: EventLog, process: Process) -> LogKnowledge:
    """Write outcomes for the requests of dead processes, and read the log's knowledge. Raises StoreError."""
    if not isinstance(log, LogWriter):
        return LogKnowledge()
    changed = config_change(settings, log.path, process=process)
    if changed is not None:
        log.append(changed)
    log.recover()
    evidence, path = read_evidence(settings), log_location(settings.store)
    for warning in evidence_warnings(settings, evidence):
        LOG.warning(warning)
    for note in route_notes(settings, evidence) if process == "serve" else ():
        LOG.info(note)
    has_budgets = settings.server.require_keys or any(key.has_budget for key in settings.keys.values())
    spent_on = days_of_month(time.time()) if has_budgets else ()
    used_to = last_place(path)
    return LogKnowledge(
        used_to=used_to,
        evidence=evidence,
        n_requests=n_requests_of(path, settings.routes, most=FIRST_REQUESTS),
        recent=tuple(map(_without_later_steps, read_recent(path, LEARNT_RUNS))),
        keys=valid_keys(path),
        used=tuple(usage for day in spent_on for usage in newest_events(path, KeyUsage, -1, prefix=day)),
    )


def _without_later_steps(run: Episode) -> Episode:
    """What a gateway learns from: steps, which are most of a run, count up to where it was stopped."""
    outcome = run.outcome
    n_steps = (outcome.stop_step or 0) if outcome.stopped else 0
    return Episode(request=run.request, outcome=replace(outcome, steps=outcome.steps[:n_steps]))


def open_known_log(settings: Settings, given: EventLog | None = None, *, process: Process = "serve") -> StartState:
    """Open the log and read its knowledge; without a log, warn and start from the last-good file.

    Raises ConfigError, and StoreError if the folder does not exist and there is no last-good file.
    """
    for file in (good_file(settings), salt_file(settings), people_file(settings)):
        if (problem := tighten(file)) is not None:
            LOG.warning(problem)
    warn_of_lost_secret(settings)
    if given is not None:
        return StartState(log=given, known=recovered(settings, given, process), secret=deployment_salt(settings))
    try:
        log, known = open_checked_log(settings, process)
    except StoreError as error:
        if _lacks_folder(settings):
            raise
        return _start_without_log(settings, str(error), process)
    secret = deployment_salt(settings)
    return StartState(log=log, known=known, secret=secret, good=valid_last_good(settings, secret, most_s=math.inf))


def open_checked_log(settings: Settings, process: Process = "serve") -> tuple[LogWriter, LogKnowledge]:
    log = open_log(settings)
    try:
        return log, recovered(settings, log, process)
    except BaseException:
        log.close()
        raise


def _start_without_log(settings: Settings, problem: str, process: Process) -> StartState:
    secret = _secret(settings)
    good = valid_last_good(settings, secret, most_s=settings.store.last_good_s)
    known = LogKnowledge()
    if good is not None:
        here = {name: url_key(one.url) for name, one in settings.upstreams.items()}
        entries = {name: one for name, one in good.findings.items() if here.get(name) == one.url_key}
        known = LogKnowledge(
            evidence=StartupEvidence(upstreams=entries),
            n_requests={name: one.n_requests for name, one in good.routes.items()},
        )
    serves = "the last-good file is served" if good is not None else "everything runs in full"
    if process == "library":  # its caller sees the warning
        LOG.warning("%s: %s until it can be opened; the loop continues, and its rows are queued", problem, serves)
    else:
        LOG.error("%s: %s until it can be opened", problem, serves)
        _send_alert(settings, f"a gateway started without its log ({problem}): {serves}")
    late = LateLog(problem, most_rows=settings.store.queue_rows)
    return StartState(log=late, known=known, secret=secret, good=good, problem=problem, since_s=time.time())


def _secret(settings: Settings) -> str:
    with contextlib.suppress(OSError, ConfigError):
        return deployment_salt(settings)
    LOG.error("the deployment's secret cannot be read; until a restart a temporary one draws audits and signs tokens")
    return secrets.token_hex(16)


MOST_NAMED: Final = 5  # routes in one alert


def alert_of_lapses(settings: Settings, ended: Sequence[WatchLapse]) -> None:
    """Send an alert of leases that ended; for when no worker's job `notify` runs to do it."""
    names = ", ".join(one.route for one in ended[:MOST_NAMED])
    more = f" and {len(ended) - MOST_NAMED:,} more" if len(ended) > MOST_NAMED else ""
    text = f"no worker looks at {names}{more}, and what is certified there runs in full: {ended[0].reason}"
    _send_alert(settings, text, kind="unwatched")


def _send_alert(settings: Settings, text: str, *, kind: AlertKind = "log_missed") -> None:
    """Send an alert from here: the job that sends alerts reads the log."""
    notice = Notice(kind=kind, route="", sentence=plain(text, MOST_TEXT), same=kind, path="")
    if kind not in settings.alerts.kinds:
        return

    def send(sink: Sink) -> None:
        if problem := send_notice(sink, notice, at_s=time.time(), link=None):
            LOG.error("alerts: could not notify %s: %s", sink.name, problem)

    for sink in sinks_of(settings.alerts):
        threading.Thread(target=send, args=(sink,), name=f"suffice-tell-{sink.name}", daemon=True).start()


def attach(begun: StartState, gw: GatewayState, log: LogWriter) -> None:
    n_dropped, n_rows = begun.late.n_dropped, begun.late.attach(log)
    begun.late.append(
        LogOutage(
            gateway=secrets.token_hex(6),
            since_s=begun.since_s,
            until_s=time.time(),
            reason=begun.problem or "",
            after="the last-good file" if gw.deployment.serves == "last good" else "everything in full",
            n_rows=n_rows,
            n_dropped=n_dropped,
        )
    )
    LOG.warning("store %s: is open; wrote %d queued rows, dropped %d", log.path, n_rows, n_dropped)


class LogRetry:
    """Retries to open the log in a thread; once it is open, `on_opened` gets it, with what it knows."""

    def __init__(
        self,
        settings: Settings,
        gw: GatewayState,
        begun: StartState,
        on_opened: Callable[[LogWriter, LogKnowledge], None],
        *,
        process: Process,
        lock: threading.Lock,
    ) -> None:
        """Start the thread; `lock` is held while `on_opened` runs."""
        self._settings = settings
        self._gw = gw
        self._begun = begun
        self._on_opened = on_opened
        self._process, self._lock = process, lock
        self._closing, self._is_closed = threading.Event(), False
        self._thread = threading.Thread(target=self._work, name="suffice-open", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Try once more if rows of a caller's loop are waiting, then stop; what still waits is lost, with a warning."""
        self._closing.set()
        self._thread.join(LAST_TRY_S)
        late = self._begun.late
        with self._lock:
            self._is_closed = True
        if late.n_waiting:
            LOG.warning("%s; %d queued rows are lost", late.problem, late.n_waiting)

    def _work(self) -> None:
        pause_s, most_s = RETRY_S
        while True:
            ends = self._closing.wait(pause_s)
            if ends and (self._process == "serve" or not self._begun.late.n_waiting):
                return
            if self._opened() or ends:
                return
            pause_s = min(2 * pause_s, most_s)

    def _opened(self) -> bool:
        try:
            log, known = open_checked_log(self._settings, self._process)
        except StoreError as error:
            self._begun.late.problem = self._gw.deployment.log_problem = str(error)
            return False
        except Exception as error:  # noqa: BLE001 - requests are served; the next attempt follows
            LOG.error("the log could not be opened (%s)", type(error).__name__)
            return False
        with self._lock:
            if self._is_closed:
                log.close()
            else:
                self._on_opened(log, known)
        return True


if TYPE_CHECKING:
    from suffice.edge.embedder import HttpEmbedder


def sinks_of(alerts: Alerts) -> tuple[Sink, ...]:
    results = list[Sink]()
    url = secret("alerts.webhook_url_env", alerts.webhook_url_env)
    if url is not None:
        results.append(WebhookSink(url))
    if alerts.email_to:
        user = secret("alerts.smtp_user_env", alerts.smtp_user_env)
        password = secret("alerts.smtp_password_env", alerts.smtp_password_env)
        login = None if user is None or password is None else (user, password)
        server = MailServer(host=alerts.smtp_host, port=alerts.smtp_port, login=login, tls=alerts.mail_tls)
        results.append(MailSink(server=server, sender=alerts.email_from, to=alerts.email_to))
    return (LogSink(), *results) if results else ()


def send_test(alerts: Alerts, sentence: str) -> dict[str, str | None]:
    """Send a test to every sink; return by sink why it was not accepted, None: it was. Raises ConfigError."""
    sinks = sinks_of(alerts)
    if not sinks:
        raise ConfigError("no alert sink is configured; set webhook_url_env, or email_to, under [alerts]")
    notice = Notice(kind="test", route="", sentence=sentence, same="", path="/alerts")
    link = link_of(alerts, notice)
    return {sink.name: send_notice(sink, notice, at_s=time.time(), link=link) for sink in sinks}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    upstream_keys: Mapping[str, str | None]  # by upstream
    langfuse_secret: str | None
    embedders: Mapping[str, HttpEmbedder]  # by route; not open yet
    warnings: tuple[str, ...]
    host: str
    port: int | None
    insecure_open: bool


def preflight(
    settings: Settings, *, host: str = "127.0.0.1", port: int | None = None, insecure_open: bool = False
) -> Preflight:
    """Check everything that a gateway needs, before it opens a socket or the log. Raises ConfigError and StoreError.

    port  that it will listen on; None: any free one
    """
    if not settings.upstreams:
        raise ConfigError("upstreams: none is configured; add [upstreams.NAME] with a url")
    result = Preflight(
        upstream_keys={name: api_key(name, upstream) for name, upstream in settings.upstreams.items()},
        langfuse_secret=secret("feedback.langfuse.secret_env", settings.feedback.langfuse.secret_env),
        embedders=embedders(settings),
        warnings=(*check_routes(settings), *_missing_packages(settings)),
        host=host,
        port=port,
        insecure_open=insecure_open,
    )
    _refuse_own_address(settings, host, port)
    sinks_of(settings.alerts)  # fails here, and not later in a worker; likewise below
    secret("audit.webhook_env", settings.audit.webhook_env)
    if settings.console.oidc is not None:
        secret("console.oidc.client_secret_env", settings.console.oidc.client_secret_env)
    if has_secret(settings):
        deployment_salt(settings)
    _check_folder(settings)
    keys = key_ring(settings, salt="")  # the names of the keys' holders need no salt yet
    if not (keys.asks_for_keys or insecure_open or _is_loopback(host)):
        raise ConfigError(
            f"server.host: {host!r} serves other machines, and neither server.api_keys_env nor [keys.NAME] nor"
            " server.require_keys asks for keys; write one of them, listen on 127.0.0.1, or pass --insecure-open"
        )
    return result


def embedders(settings: Settings) -> dict[str, HttpEmbedder]:
    given = {name: route.embeddings for name, route in settings.routes.items() if route.mode != "off"}
    if not any(given.values()):
        return {}
    from suffice.edge.embedder import HttpEmbedder

    return {
        name: HttpEmbedder(
            one.url,
            model=one.model,
            timeout_s=one.timeout_s,
            pause_s=one.pause_s,
            api_key=secret(f"routes.{name}.embeddings.api_key_env", one.api_key_env),
        )
        for name, one in given.items()
        if one is not None
    }


def _missing_packages(settings: Settings) -> list[str]:
    missing = []
    routes = settings.routes.values()
    if settings.control.enabled and any(route.is_learned for route in routes) and find_spec("sklearn") is None:
        missing.append(f"control: nothing is certified here: a fit needs scikit-learn: {how_to_install('train')}")
    if any(asks_judge(route.scorer) for route in routes) and find_spec("math_verify") is None:
        missing.append(f"scorer math: no label can be compared: it needs math-verify: {how_to_install('math')}")
    if settings.console.oidc is not None and find_spec("joserfc") is None:
        missing.append(f"console.oidc: nobody can log in there: it needs joserfc: {how_to_install('oidc')}")
    if settings.console.enabled and not can_render():
        missing.append(f"console: has no pages, only the API: they need Jinja2: {how_to_install('console')}")
    return missing


def _check_folder(settings: Settings) -> None:
    """A log that cannot be opened does not prevent a start, but a missing folder is a mistake in the settings."""
    if _lacks_folder(settings):
        path = local_path(settings.store)
        raise StoreError(f"store {path}: the folder {path.parent} does not exist; create it first")


def _lacks_folder(settings: Settings) -> bool:
    return not local_path(settings.store).parent.is_dir() and not good_file(settings).exists()


def _refuse_own_address(settings: Settings, host: str, port: int | None) -> None:
    for name, upstream in settings.upstreams.items():
        address = URL(upstream.url)
        if address.port == port and _leads_here(address.host or "", _addresses(host)):
            raise ConfigError(
                f"upstreams.{name}.url: got {upstream.url!r}, where this gateway itself listens; need the address of"
                " the model server"
            )


def _leads_here(host: str, own: Sequence[IpAddress]) -> bool:
    listens_on_all = any(one.is_unspecified for one in own)
    return any(one in own or one.is_unspecified or (listens_on_all and one.is_loopback) for one in _addresses(host))


def _is_loopback(host: str) -> bool:
    addresses = _addresses(host)
    return bool(addresses) and all(one.is_loopback for one in addresses)


def _addresses(host: str) -> list[IpAddress]:
    """Return the addresses of a host, "": all of this machine's; none if it is unknown."""
    try:
        entries = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return [ipaddress.ip_address(str(entry[4][0])) for entry in entries]
    except (OSError, ValueError):
        return []
