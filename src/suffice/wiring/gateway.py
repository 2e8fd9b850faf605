"""Builds, opens and closes the gateway, and the library inside a caller's process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial

from suffice.assurance.guarantee import WINDOW_RUNS
from suffice.console.app import MOUNTS, ConsoleApp
from suffice.console.context import LiveRequests, ReloadNow
from suffice.episode.stream_relay import LiveRunView
from suffice.errors import ConfigError, StoreError
from suffice.extras import installed_version
from suffice.gateway import kill, lease, lifecycle, rounds_service
from suffice.gateway.app import App
from suffice.gateway.auth import KeyRing, Objects
from suffice.gateway.clients import Clients
from suffice.gateway.context import COUNTS_S, Deployment, GatewayState, LogSampler, run_periodically
from suffice.gateway.kill import KillSwitch
from suffice.gateway.kill_orders import watch_orders
from suffice.gateway.load_control import LOOK_S
from suffice.gateway.log_follower import Follower, follow_log
from suffice.gateway.operations import ask_of, describe_elsewhere
from suffice.gateway.tracing import open_tracer
from suffice.settings import Settings
from suffice.settings.reloading import Reload
from suffice.signals.folds.wording import Embedder
from suffice.store.database.location import LogLocation, database_at, log_location
from suffice.store.database.log import EventLog
from suffice.store.database.presence import Announcement, replica_name
from suffice.store.database.views import find_event
from suffice.store.database.writer import LateLog, LogWriter
from suffice.store.people.feedback import owners_of
from suffice.store.routes.deployments import is_large
from suffice.store.rows.events import KillSwitchState, StoredObject
from suffice.telemetry import LOG, Metrics
from suffice.types import Wish
from suffice.upstream.client import UpstreamClient
from suffice.wiring.console import Obey, console
from suffice.wiring.keys import SecretFiles, key_ring, kill_file, presence_files
from suffice.wiring.last_good import last_good_writer
from suffice.wiring.people import person_with
from suffice.wiring.reload import Reloader
from suffice.wiring.replicas import share_limits, watch_replicas
from suffice.wiring.routes import build_routes, check_routes
from suffice.wiring.startup import (
    LogKnowledge,
    LogRetry,
    Preflight,
    StartState,
    alert_of_lapses,
    attach,
    open_known_log,
    preflight,
)
from suffice.wiring.worker import open_decisions

MOST_CHECK_S = 600.0  # to read the log through after a start
SECRETS_S = 1.0  # between two looks at the files with upstreams' keys
RELOAD_S = 60.0  # for which a page waits for a reload
ASK_S = 5.0  # for the gateway to pass a wish on to a run
HANDLERS_END_S = 5.0  # for a cancelled handler to write its outcome


async def _await_handlers(gw: GatewayState) -> None:
    end_s = time.monotonic() + HANDLERS_END_S
    while gw.process.n_live and time.monotonic() < end_s:  # noqa: ASYNC110 - runs once, so polling is simplest
        await asyncio.sleep(0.01)


def _build_state(
    settings: Settings,
    begun: StartState,
    clients: dict[str, UpstreamClient],
    vectors: Mapping[str, Embedder],
    presence: Announcement,
    result: Preflight | None = None,
) -> GatewayState:
    log = begun.log
    metrics = Metrics()
    metrics.set("suffice_build_info", 1, installed_version())
    gw = GatewayState(
        settings=settings,
        upstreams=clients,
        embedders=vectors,
        log=log,
        metrics=metrics,
        salt=begun.secret,
        new_id=lifecycle.new_id,
        wall_s=time.time,
        monotonic_s=time.monotonic,
        clients=Clients(
            keys=key_ring(settings, begun.secret) if result is not None else KeyRing(),
            build_keys=partial(key_ring, settings, begun.secret) if result is not None else None,
            langfuse_secret=result.langfuse_secret if result is not None else None,
        ),
        deployment=Deployment(
            routes=build_routes(settings, begun.known.evidence),
            metrics=metrics,
            monotonic_s=time.monotonic,
            salt=begun.secret,
        ),
        sampling=LogSampler(settings=settings, salt=begun.secret),
    )
    gw.deployment.leases.rules = settings.control
    _read_log(settings, gw)
    _restore(gw, begun.known)
    begun.known = replace(begun.known, recent=())  # what was learned from them is in `gw`
    file = kill_file(settings)
    gw.deployment.kill = KillSwitch(
        file,
        environment=os.environ.get(kill.VARIABLE, ""),
        notify=log.append,
        presence=presence,
        gateway=replica_name(settings),
    )
    gw.deployment.log_problem = begun.problem
    if begun.problem is not None and begun.good is not None:
        known = begun.good.routes
        gw.deployment.routes = tuple(
            replace(route, refused=known[route.name].refused) if route.name in known else route
            for route in gw.deployment.routes
        )
    return gw


def _restore(gw: GatewayState, known: LogKnowledge) -> None:
    for name, n in known.n_requests.items():
        gw.statistics[name].n_requests += n
    gw.clients.follow_keys(known.keys)
    gw.clients.limits.restore(known.used)
    for episode in known.recent:
        gw.statistics[episode.request.route].learn(episode.request, episode.outcome)
    for name, seen in known.evidence.extracted.items():
        gw.statistics[name].extracted = deque(seen, maxlen=WINDOW_RUNS)


def _read_log(settings: Settings, gw: GatewayState) -> None:
    """Let the gateway look up in its log who created an object; if the log cannot be read, nobody owns the object."""
    path = log_location(settings.store)

    def find(object_id: str) -> StoredObject | None:
        with contextlib.suppress(StoreError):
            return find_event(path, StoredObject, object_id)
        return None

    gw.clients.objects, gw.clients.owners_of = Objects(find), partial(owners_of, path)


@contextmanager
def open_library(
    settings: Settings, vectors: Mapping[str, Embedder], *, lock: threading.Lock
) -> Iterator[GatewayState]:
    """Open the log and yield a gateway for a loop in this process, guarded by `lock`; write waiting rows and close it.

    Without a readable log it runs by the last-good file, or in full. Raises ConfigError, and StoreError if the log's
    folder is missing and there is no last-good file.
    """
    for warning in check_routes(settings):
        LOG.warning(warning)
    with ExitStack() as stack:
        begun = open_known_log(settings, process="library")
        stack.callback(begun.log.close)
        presence = Announcement(presence_files(settings), process="library", replica=replica_name(settings))
        stack.callback(presence.release)
        gw = _build_state(settings, begun, {}, vectors, presence)
        follower = Follower(gw, log_location(settings.store), good=begun.good)
        if begun.problem is not None:
            follower.serve_last_good(age_s=begun.age_s)

        def refresh() -> None:
            follower.refresh()
            gw.deployment.check_kill()
            lifecycle.write_lapses(gw)

        gw.deployment.refresh = refresh
        gw.deployment.refresh()

        def restore(log: LogWriter, known: LogKnowledge) -> None:
            attach(begun, gw, log)
            _restore_late(settings, gw, follower, known)

        if begun.problem is not None:
            stack.callback(LogRetry(settings, gw, begun, restore, process="library", lock=lock).close)
        yield gw


def _restore_late(settings: Settings, gw: GatewayState, follower: Follower, known: LogKnowledge) -> None:
    for statistics in gw.statistics.values():
        statistics.n_requests = 0  # requests served since are in the log's queue, and counted at the next start
    _restore(gw, known)
    fresh = build_routes(settings, known.evidence)
    gw.deployment.routes = tuple(
        replace(now, refused=own.refused) for now, own in zip(gw.deployment.routes, fresh, strict=True)
    )
    follower.rebase(fresh)
    gw.deployment.log_problem = None


def _reload_in_thread(gw: GatewayState) -> ReloadNow:
    """A reload for the console's threads, which wait for it."""
    loop = asyncio.get_running_loop()

    async def reload(author: str | None, reason: str) -> Reload:
        if gw.process.reload is None:
            raise ConfigError("this process cannot reload its settings")
        return await gw.process.reload(author, reason)

    return lambda author, reason: asyncio.run_coroutine_threadsafe(reload(author, reason), loop).result(RELOAD_S)


def _live_requests(gw: GatewayState) -> LiveRequests:
    """The running requests for the console's threads; what is asked of one is asked in the gateway's own thread."""
    loop = asyncio.get_running_loop()

    def runs() -> list[LiveRunView]:
        return [one.view() for one in list(gw.process.live_runs.values())]

    async def ask(name: str, wish: Wish, author: str) -> str | None:
        run = gw.process.live_runs.get(name)
        if run is None:
            return await asyncio.to_thread(describe_elsewhere, gw.settings, name, lambda _: True)
        return ask_of(gw, run, wish, sender=author)

    def ask_in_thread(name: str, wish: str, author: str) -> str | None:
        wanted: Wish = "answer_now" if wish == "answer_now" else "think_more"
        return asyncio.run_coroutine_threadsafe(ask(name, wanted, author), loop).result(ASK_S)

    return LiveRequests(runs=runs, ask=ask_in_thread)


def _obey_in_thread(gw: GatewayState) -> Obey:
    """Orders about the kill switch from the console's threads, obeyed before its file says so."""
    loop = asyncio.get_running_loop()

    async def obey(order: KillSwitchState) -> None:
        gw.deployment.kill.follow(order)
        gw.deployment.check_kill()

    return lambda order: asyncio.run_coroutine_threadsafe(obey(order), loop).result(ASK_S)


def _console_apps(settings: Settings, log: EventLog, gw: GatewayState, stack: AsyncExitStack) -> dict[str, ConsoleApp]:
    if not settings.console.enabled or not isinstance(log, LogWriter):
        return {}
    site = stack.enter_context(
        console(
            settings,
            log.path,
            decisions=lambda: open_decisions(settings, create=False),
            notify=gw.deployment.notify,
            reload=_reload_in_thread(gw),
            holder=lambda key: person_with(gw.clients.keys.holder(key)),
            live=_live_requests(gw),
            obey=_obey_in_thread(gw),
        )
    )
    return dict.fromkeys(MOUNTS, site)


@asynccontextmanager
async def build_gateway(
    settings: Settings,
    *,
    log: EventLog | None = None,
    result: Preflight | None = None,
    read: Callable[[], Settings] | None = None,
) -> AsyncIterator[App]:
    """Open the log and the upstreams, and yield the ASGI application; close them afterwards.

    read  reads the settings again, for a reload; None: they came from no file

    Without a readable log it serves by the last-good file, or in full. A `log` that is passed must be open. Raises
    ConfigError, and StoreError for a `log` that cannot be read, or as `open_library` does.
    """
    result = result or preflight(settings)
    for warning in result.warnings:
        LOG.warning(warning)
    async with AsyncExitStack() as stack:
        begun = open_known_log(settings, log)
        if log is None:
            stack.callback(begun.log.close)
        presence = Announcement(presence_files(settings), process="serve", replica=replica_name(settings))
        stack.callback(presence.release)
        via, examined = f"suffice-{secrets.token_hex(6)}", begun.known.evidence.upstreams
        clients = {
            name: UpstreamClient(name, upstream, result.upstream_keys[name], examined.get(name), via=via)
            for name, upstream in settings.upstreams.items()
        }
        gw = _build_state(settings, begun, clients, result.embedders, presence, result)
        gw.via = via
        for client in clients.values():
            await stack.enter_async_context(client)
        for embedder in result.embedders.values():
            await stack.enter_async_context(embedder)
        gw.metrics.filled_by(gw.deployment.export_gauges)
        clocks = {"monotonic_s": gw.monotonic_s, "wall_s": gw.wall_s}
        gw.process.tracer = stack.enter_context(open_tracer(settings.telemetry, os.environ, gw.metrics, **clocks))
        for site, work, every_s in (
            ("load", partial(gw.deployment.update_load, clients), LOOK_S),
            ("kill", gw.deployment.check_kill, kill.LOOK_S),
            ("lease", partial(_check_leases, gw), lease.CHECK_S),
            ("secrets", SecretFiles(gw.upstreams).refresh, SECRETS_S),
            ("counts", partial(lifecycle.write_counts, gw), COUNTS_S),
            ("decide", partial(rounds_service.close_old, gw), rounds_service.LOOK_S),
        ):
            stack.enter_context(run_periodically(work, gw.metrics, site=site, every_s=every_s))
        app = App(gw)
        follower = await _follow_log(settings, gw, begun, app, stack)
        if follower is not None:
            gw.process.reload = Reloader(app=app, follower=follower, stack=stack, checked=result, read=read).reload
        app.beside |= _console_apps(settings, begun.log, gw, stack)
        gw.process.ready = True
        try:
            yield app
        finally:
            gw.process.ready = False
            await _await_handlers(gw)
            rounds_service.close_old(gw, at_shutdown=True)
            lifecycle.write_counts(gw, all_of_them=True)


def _check_leases(gw: GatewayState) -> None:
    """Write which leases have ended, and alert people from here where there is no worker to do it."""
    ended = [row for row in lifecycle.write_lapses(gw) if row.lapsed]
    if ended and not gw.deployment.leases.has_run("notify"):
        alert_of_lapses(gw.settings, ended)


def _look_for_damage(path: LogLocation, gw: GatewayState) -> None:
    """Check a large log in a thread; a small one was checked when it was opened."""

    def look() -> None:
        damage = database_at(path).find_damage(within_s=MOST_CHECK_S)
        if damage:
            LOG.warning("store %s: LOG DAMAGED: %s; requests are still served; restore a backup", path, damage)
            if gw.deployment.kill.presence is not None:
                gw.deployment.kill.presence.update(damage=damage)

    if is_large(path):
        threading.Thread(target=look, name="suffice-check", daemon=True).start()


async def _follow_log(
    settings: Settings, gw: GatewayState, begun: StartState, app: App, stack: AsyncExitStack
) -> Follower | None:
    if not isinstance(begun.log, LogWriter | LateLog):
        return None
    path = log_location(settings.store)
    follower = Follower(gw, path, good_writer=last_good_writer(settings, begun.secret), good=begun.good)
    if begun.problem is not None:
        follower.serve_last_good(age_s=begun.age_s)
    else:
        _look_for_damage(path, gw)

    async def restore(log: LogWriter, known: LogKnowledge) -> None:
        attach(begun, gw, log)
        for name, result in known.evidence.upstreams.items():
            gw.upstreams[name].findings = result
        _restore_late(settings, gw, follower, known)
        follower.wake()
        _look_for_damage(path, gw)
        app.beside |= _console_apps(settings, log, gw, stack)
        await _join_replicas(gw, log, known, stack)

    await stack.enter_async_context(follow_log(follower, gw.metrics))
    stack.enter_context(watch_orders(gw, database_at(path)))
    if isinstance(begun.log, LogWriter):
        await _join_replicas(gw, begun.log, begun.known, stack)
    if begun.problem is not None:
        loop = asyncio.get_running_loop()

        def on_opened(log: LogWriter, known: LogKnowledge) -> None:
            asyncio.run_coroutine_threadsafe(restore(log, known), loop).result()

        retry = LogRetry(settings, gw, begun, on_opened, process="serve", lock=threading.Lock())
        stack.push_async_callback(asyncio.to_thread, retry.close)
    gw.deployment.notify = follower.wake
    return follower


async def _join_replicas(gw: GatewayState, log: LogWriter, known: LogKnowledge, stack: AsyncExitStack) -> None:
    await stack.enter_async_context(watch_replicas(gw, log))
    await stack.enter_async_context(share_limits(gw, log, known.used_to))
