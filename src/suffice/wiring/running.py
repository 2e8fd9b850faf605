"""Everything that runs, opened and closed: the gateway, the library in a process, the worker."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from suffice.assurance.extractable import WINDOW_RUNS
from suffice.console.app import MOUNTS, ConsoleApp
from suffice.control.advance import Advance
from suffice.control.arms import Tune
from suffice.control.critical import Critical
from suffice.control.jobs import Job, Worker
from suffice.control.loops import Certify
from suffice.control.matching import matching
from suffice.control.monitor import Monitor
from suffice.control.proposing import Retrain
from suffice.control.reviewing import Review
from suffice.control.rollup import Rollup
from suffice.errors import ConfigError
from suffice.gateway import desk, kill
from suffice.gateway.app import App
from suffice.gateway.context import Gateway
from suffice.gateway.follow import Follower, following
from suffice.gateway.kill import KillSwitch
from suffice.gateway.operating import LOOK_S
from suffice.gateway.timer import watched
from suffice.settings import Settings
from suffice.store.decisions import Decisions
from suffice.store.log import EventLog
from suffice.store.sqlite import SqliteLog, database_path
from suffice.store.views import read_recent, route_counts
from suffice.telemetry import LOG, Metrics
from suffice.upstream.client import UpstreamClient
from suffice.wiring.alerts import sinks_of
from suffice.wiring.audit import audit_webhook, config_change, upkeep
from suffice.wiring.console import console
from suffice.wiring.keys import api_key, client_keys, deployment_salt, feedback_keys, kill_file, new_id, secret
from suffice.wiring.routes import Evidence, build_route, check, evidence_warnings, read_evidence

if TYPE_CHECKING:
    from suffice.edge.embedder import HttpEmbedder

LEARNT_RUNS = 2_000  # of the log's latest runs: what they teach is known again after a restart
HANDLERS_END_S = 5.0  # at the end: how long a handler that was cut off has to write its outcome


def embedders(settings: Settings) -> dict[str, HttpEmbedder]:
    """The embedders of routes that have one, not opened yet. Raises ConfigError."""
    given = {name: route.embeddings for name, route in settings.routes.items() if route.mode != "off"}
    if not any(given.values()):
        return {}
    from suffice.edge.embedder import HttpEmbedder  # a general HTTP client, slow to import, and rarely needed

    return {
        name: HttpEmbedder(
            one.url, model=one.model, timeout_s=one.timeout_s, pause_s=one.pause_s,
            api_key=secret(f"routes.{name}.embeddings.api_key_env", one.api_key_env),
        )
        for name, one in given.items() if one is not None
    }  # fmt: skip


async def _handlers_end(gw: Gateway) -> None:
    """Wait a little for handlers that still write their outcome: the log closes behind them."""
    end_s = time.monotonic() + HANDLERS_END_S
    while gw.n_live and time.monotonic() < end_s:  # noqa: ASYNC110 - once in a life; polling is plainest
        await asyncio.sleep(0.01)


def _recovered(settings: Settings, log: EventLog) -> Evidence:
    """What an opened log knows, once the requests of dead processes have their outcome."""
    if not isinstance(log, SqliteLog):
        return Evidence()
    log.recover()
    evidence = read_evidence(settings)
    for warning in evidence_warnings(settings, evidence):
        LOG.warning(warning)
    return evidence


def _running(
    settings: Settings, log: EventLog, evidence: Evidence, clients: Mapping[str, UpstreamClient],
    vectors: Mapping[str, HttpEmbedder],
) -> Gateway:
    """All that handlers need, with what the log's history teaches."""
    gw = Gateway(
        settings=settings, routes=tuple(
            build_route(name, r, evidence, settings.upstreams.get(r.upstream)) for name, r in settings.routes.items()
        ),
        upstreams=clients, embedders=vectors, log=log, metrics=Metrics(),
        api_keys=client_keys(settings) if clients else (),
        feedback_keys=feedback_keys(settings) if clients else (),
        salt=deployment_salt(settings), new_id=new_id, wall_s=time.time, monotonic_s=time.monotonic,
        langfuse_secret=_langfuse_secret(settings) if clients else None,
    )  # fmt: skip
    if isinstance(log, SqliteLog):
        counts = route_counts(database_path(settings.store.url))
        gw.n_requests = {c.route: c.n_requests for c in counts if c.route}
        for episode in read_recent(database_path(settings.store.url), LEARNT_RUNS):
            gw.learn(episode.request, episode.outcome)
    file = kill_file(settings)
    gw.kill = KillSwitch(file, environment=os.environ.get(kill.VARIABLE, ""), told=log.append)
    gw.extracted = {name: deque(seen, maxlen=WINDOW_RUNS) for name, seen in evidence.extracted.items()}
    return gw


def _langfuse_secret(settings: Settings) -> str | None:
    return secret("feedback.langfuse.secret_env", settings.feedback.langfuse.secret_env)


def open_log(settings: Settings) -> SqliteLog:
    """The settings' log, open for events; the caller closes it. Raises ConfigError and StoreError."""
    return SqliteLog.open(settings.store, now=time.time, redact=settings.retention.redact)


def _note_settings(settings: Settings, log: EventLog, process: str) -> None:
    """Write down with which settings a process starts, where they are others than those before."""
    if isinstance(log, SqliteLog):
        changed = config_change(settings, log.path, process=process)
        if changed is not None:
            log.append(changed)


def library(settings: Settings, vectors: Mapping[str, HttpEmbedder]) -> Gateway:
    """What a loop in this process is governed with: routes and the log, without sockets and without clients.

    vectors  of `embedders`; the caller opens and closes them

    The caller closes `log`. Raises ConfigError and StoreError.
    """
    for warning in check(settings):
        LOG.warning(warning)
    log = open_log(settings)
    try:
        _note_settings(settings, log, "library")
        gw = _running(settings, log, _recovered(settings, log), {}, vectors)
        follower = Follower(gw, log.path)

        def refresh() -> None:
            follower.refresh()
            gw.look_at_kill()

        gw.refresh = refresh
        gw.refresh()
    except BaseException:
        log.close()
        raise
    gw.new_id = lambda: f"ep_{int(time.time() * 1e3):011x}{os.urandom(8).hex()}"  # asked from many threads
    return gw


def decisions(settings: Settings) -> Decisions:
    """The settings' log, open for a person's decisions; the caller closes it. Raises ConfigError and StoreError."""
    return Decisions.open(
        database_path(settings.store.url), now=time.time, monotonic_s=time.monotonic, redact=settings.retention.redact
    )


@contextmanager
def worker(settings: Settings, *, learning: bool = True) -> Iterator[Worker]:
    """The jobs on the settings' log, while the block lasts. Raises ConfigError and StoreError.

    learning  with the control loop's own, which fit; False: only those that look after the log
    """
    with decisions(settings) as writer:
        author = f"worker {secrets.token_hex(3)}"
        certify = Certify(
            settings=settings, path=writer.path, author=author, matches=matching, monotonic_s=time.monotonic
        )
        monitor = Monitor(
            settings=settings, path=writer.path, author=author, matches=matching, monotonic_s=time.monotonic
        )
        retrain = Retrain(
            settings=settings, path=writer.path, author=author, matches=matching, monotonic_s=time.monotonic
        )
        tune = Tune(
            settings=settings, path=writer.path, author=author, matches=matching, monotonic_s=time.monotonic,
            now=time.time,
        )  # fmt: skip
        rollup = Rollup(
            settings=settings, path=writer.path, matches=matching, monotonic_s=time.monotonic, now=time.time
        )
        advance = Advance(
            settings=settings, path=writer.path, author=author, matches=matching, secret=deployment_salt(settings),
            now=time.time, monotonic_s=time.monotonic,
        )  # fmt: skip
        review = Review(
            settings=settings, path=writer.path, author=author, salt=deployment_salt(settings), now=time.time
        )
        critical = Critical(
            settings=settings, path=writer.path, author=author, matches=matching, monotonic_s=time.monotonic
        )
        try:
            learners: tuple[Job, ...] = (certify, monitor, retrain, tune) if learning else ()
            yield Worker(
                decisions=writer, author=author,
                jobs=(*learners, rollup, *upkeep(settings, writer, author), advance, review, critical),
                now=time.time,
                monotonic_s=time.monotonic, new_id=lambda: f"jr_{int(time.time() * 1e3):011x}{secrets.token_hex(4)}",
            )
        finally:
            certify.close()
            monitor.close()
            rollup.close()
            critical.close()


def _beside(settings: Settings, log: EventLog, gw: Gateway, stack: AsyncExitStack) -> dict[str, ConsoleApp]:
    """What answers beside the gateway: the console and the control API, where the settings want them."""
    if not settings.console.enabled or not isinstance(log, SqliteLog):
        return {}
    site = stack.enter_context(console(
        settings, log.path, decisions=lambda: decisions(settings), told=gw.told, closing=lambda: not gw.ready,
    ))  # fmt: skip
    return dict.fromkeys(MOUNTS, site)


@asynccontextmanager
async def gateway(settings: Settings, *, log: EventLog | None = None) -> AsyncIterator[App]:
    """Open the log and the upstreams, and give the ASGI application; close them all afterwards.

    Raises ConfigError and StoreError before anything is served.
    """
    for warning in check(settings):
        LOG.warning(warning)
    keys = {name: api_key(name, upstream) for name, upstream in settings.upstreams.items()}
    sinks_of(settings.alerts)  # as below
    audit_webhook(settings)  # said here and now, not by a worker that could only end
    vectors = embedders(settings)
    if not settings.upstreams:
        raise ConfigError("upstreams: none is configured; add [upstreams.NAME] with a url")
    opened = log or open_log(settings)
    try:
        _note_settings(settings, opened, "serve")
        evidence = _recovered(settings, opened)
        clients = {
            name: UpstreamClient(
                name, upstream, keys[name], evidence.upstreams.get(name),
                monotonic_s=time.monotonic, wall_s=time.time,
            )
            for name, upstream in settings.upstreams.items()
        }  # fmt: skip
        gw = _running(settings, opened, evidence, clients, vectors)
        async with AsyncExitStack() as stack:
            for client in clients.values():
                await stack.enter_async_context(client)
            for embedder in vectors.values():
                await stack.enter_async_context(embedder)
            stack.enter_context(watched(gw.look_at_load, gw.metrics, site="load", every_s=LOOK_S))
            stack.enter_context(watched(gw.look_at_kill, gw.metrics, site="kill", every_s=kill.LOOK_S))
            if isinstance(opened, SqliteLog):
                follower = Follower(gw, opened.path)
                await stack.enter_async_context(following(follower))
                gw.told = follower.tell
            gw.ready = True
            try:
                yield App(gw, _beside(settings, opened, gw, stack))
            finally:
                gw.ready = False
                await _handlers_end(gw)
                desk.close_all(gw)
    finally:
        if log is None:
            opened.close()
