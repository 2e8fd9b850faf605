"""Builds the console that is mounted beside the gateway."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import cache, partial
from typing import TypeAlias

from suffice.asgi import BrowserPolicy
from suffice.console.app import ConsoleApp
from suffice.console.auth import ConsoleAuth, Person
from suffice.console.context import ConsoleContext, ConsoleServices, LiveRequests, ReloadNow, ViewCache
from suffice.console.oidc import Identity, OidcLogin, person_from
from suffice.control.compare.experiments import read_experiment as experiment_result
from suffice.control.compare.power import read_power
from suffice.errors import ConfigError, StoreError
from suffice.gateway.kill import remove_ordered, set_switch
from suffice.review.items import ReviewItem
from suffice.settings import Settings
from suffice.store.database.decisions import Decisions
from suffice.store.database.location import LogLocation
from suffice.store.routes.deployments import is_killed, read_kill_order, stamp_after
from suffice.store.routes.rollouts import propose_learned, take_back
from suffice.store.rows.events import KillSwitchState
from suffice.telemetry import LOG
from suffice.wiring.audit import note_export
from suffice.wiring.evidence import read_assessment, read_verdict_effect
from suffice.wiring.files import condition, question_texts, questions_file
from suffice.wiring.keys import deployment_salt, kill_file, secret
from suffice.wiring.people import People, change_access
from suffice.wiring.routes import check_experiment, setup_of
from suffice.wiring.startup import send_test

Obey: TypeAlias = Callable[[KillSwitchState], object]  # by the gateway in this process


@contextlib.contextmanager
def console(
    settings: Settings,
    path: LogLocation,
    *,
    decisions: Callable[[], Decisions],
    notify: Callable[[], None] = lambda: None,
    reload: ReloadNow | None = None,
    holder: Callable[[str], Person | None] = lambda _: None,
    live: LiveRequests | None = None,
    obey: Obey = lambda _: None,
) -> Iterator[ConsoleApp]:
    """Yield the console on a log.

    reload  None: the settings cannot be reloaded here
    holder  of a client's key that may act here, by that key
    live    requests that run now, of the gateway in this process
    """
    people = People.of(settings)
    with ExitStack() as stack:
        stack.enter_context(people.follow())
        context = ConsoleContext(
            settings=settings,
            path=path,
            auth=ConsoleAuth(
                people=people,
                holder=holder,
                known=lambda text: _person_of(context, text),
                browsers=_browsers(settings),
                random_bytes=secrets.token_bytes,
                session_s=settings.console.session_s,
                now=time.time,
                monotonic_s=time.monotonic,
            ),
            services=services_of(
                settings,
                path,
                writer=_opened_once(stack, decisions),
                notify=notify,
                reload=reload,
                live=live,
                obey=obey,
            ),
            oidc=_oidc(settings),
            now=time.time,
            monotonic_s=time.monotonic,
        )
        with contextlib.closing(context):
            yield ConsoleApp(context)


def reconfigure(site: ConsoleApp, settings: Settings) -> None:
    """Let a console go on with other settings; sessions stay."""
    context, services = site.context, site.context.services
    context.settings, context.cache = settings, ViewCache()
    context.services = services_of(
        settings,
        context.path,
        writer=services.decisions,
        notify=services.notify,
        reload=services.reload,
        live=services.live,
    )
    context.oidc = _oidc(settings)
    context.auth.configure(browsers=_browsers(settings), session_s=settings.console.session_s)


def _oidc(settings: Settings) -> OidcLogin | None:
    named = settings.console.oidc
    if named is None:
        return None
    client_secret = secret("console.oidc.client_secret_env", named.client_secret_env)
    return OidcLogin(named, client_secret, now=time.time, monotonic_s=time.monotonic)


def _person_of(context: ConsoleContext, text: str) -> Person | None:
    """The person of a session that an identity provider began, by the roles that the settings give now."""
    identity, oidc = Identity.decode(text), context.oidc
    return None if identity is None or oidc is None else person_from(identity, oidc.settings.roles)


def _browsers(settings: Settings) -> BrowserPolicy:
    return BrowserPolicy(hosts=(settings.console.host or settings.server.host, *settings.server.names))


def services_of(
    settings: Settings,
    path: LogLocation,
    *,
    writer: Callable[[], Decisions],
    notify: Callable[[], None] = lambda: None,
    reload: ReloadNow | None = None,
    live: LiveRequests | None = None,
    obey: Obey = lambda _: None,
) -> ConsoleServices:
    return ConsoleServices(
        decisions=writer,
        notify=notify,
        reload=reload,
        live=live,
        killed=partial(_is_killed, settings, path),
        switch=partial(_switch, settings, writer, obey),
        warnings=lambda: condition(settings, checks=False),
        setup_of=partial(setup_of, settings),
        effect_of=partial(_describe_effect, settings),
        check_experiment=check_experiment,
        rehearsing=lambda dry: services_of(settings, path, writer=lambda: dry, notify=lambda: None, reload=reload),
        change_access=lambda change: change_access(People.of(settings), writer(), change),
        send_test=partial(send_test, settings.alerts),
        propose=lambda name, address, reason, who: propose_learned(
            writer(),
            name,
            settings.routes[name],
            address,
            author=who,
            reason=reason,
            rollout=f"{name}-{secrets.token_hex(4)}",
            secret=deployment_salt(settings),
        ),
        take_back=lambda name, reason, who: take_back(
            writer(), name, settings.routes[name], author=who, reason=reason, secret=deployment_salt(settings)
        ),
        note_export=lambda name, n_rows, who: note_export(
            writer(), what=name, where="the console", n_rows=n_rows, author=who, reason="asked for in the console"
        ),
        question_of=_texts(settings),
        analyse=lambda run: experiment_result(path, run, settings),
        power_of=lambda one: read_power(path, one, settings),
        assess=lambda _, run: read_assessment(settings, run).standing,
    )


def _is_killed(settings: Settings, path: LogLocation) -> bool:
    with suppress(StoreError):  # the page says that the log cannot be read
        return is_killed(path, kill_file(settings))
    return False


def _switch(
    settings: Settings, writer: Callable[[], Decisions], obey: Obey, on: bool, reason: str, author: str
) -> None:
    """Obey the order here, write the switch's file, then give the order to all replicas. Raise OSError."""
    file, log = kill_file(settings), writer()
    stamp = stamp_after(read_kill_order(log.path), time.time_ns())
    order = KillSwitchState(on=on, reason=f"{reason} ({author})", stamp=stamp, ordered=True)
    try:
        if not log.rehearses:
            obey(order)
        if on and not log.rehearses:
            set_switch(file, reason, author, order=stamp)
        elif not log.rehearses:
            remove_ordered(file, stamp)
    finally:
        log.write_new(order)


def _describe_effect(settings: Settings, item: str) -> str:
    effect = read_verdict_effect(settings, item)
    return effect.sentence if effect is not None else "This run was never queued for review."


def _texts(settings: Settings) -> Callable[[ReviewItem], str | None]:

    @cache
    def texts_of(route: str) -> Mapping[str, str]:
        try:
            file = questions_file(settings, route)
            return {} if file is None else question_texts(file, settings)
        except (ConfigError, OSError) as error:
            LOG.warning("console: questions of route %s cannot be read: %s", route, error)
            return {}

    return lambda item: texts_of(item.route).get(item.question_key)


def _opened_once(stack: ExitStack, make: Callable[[], Decisions]) -> Callable[[], Decisions]:
    opened, lock = list[Decisions](), threading.Lock()

    def writer() -> Decisions:
        with lock:
            if not opened:
                opened.append(stack.enter_context(make()))
            return opened[0]

    return writer
