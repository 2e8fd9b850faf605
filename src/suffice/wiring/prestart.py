"""Finds whatever would keep a gateway from starting, before a socket or the log is opened; builds alert sinks."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from suffice.console.render import can_render
from suffice.control.jobs.notify import LogSink, MailSink, Notify, Sink, WebhookSink
from suffice.edge.notification import MailServer
from suffice.errors import ConfigError, StoreError
from suffice.extras import how_to_install
from suffice.settings import Alerts, Settings
from suffice.store.database.sqlite import database_path
from suffice.wiring.keys import api_key, deployment_salt, good_file, has_secret, key_ring, secret
from suffice.wiring.routes import check_routes

if TYPE_CHECKING:
    from suffice.edge.embedder import HttpEmbedder


def sinks_of(alerts: Alerts) -> tuple[Sink, ...]:
    """Everybody who is told; (): nobody is configured. Raises ConfigError where a secret is missing."""
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


def notifier(settings: Settings, path: Path) -> Notify:
    """The job `notify`. Raises ConfigError where a secret is missing."""
    return Notify(
        settings=settings.alerts,
        path=path,
        sinks=sinks_of(settings.alerts),
        now=time.time,
        monotonic_s=time.monotonic,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    upstream_keys: Mapping[str, str | None]  # by upstream
    langfuse_secret: str | None
    embedders: Mapping[str, HttpEmbedder]  # by route; not open yet
    warnings: tuple[str, ...]


def preflight(settings: Settings, *, host: str = "127.0.0.1", insecure_open: bool = False) -> Preflight:
    """Find everything that would keep a gateway from starting. Raises ConfigError, and StoreError for its folder."""
    if not settings.upstreams:
        raise ConfigError("upstreams: none is configured; add [upstreams.NAME] with a url")
    result = Preflight(
        upstream_keys={name: api_key(name, upstream) for name, upstream in settings.upstreams.items()},
        langfuse_secret=secret("feedback.langfuse.secret_env", settings.feedback.langfuse.secret_env),
        embedders=embedders(settings),
        warnings=(*check_routes(settings), *_missing_packages(settings)),
    )
    sinks_of(settings.alerts)  # here and now, not by a worker that could only end; as below
    secret("audit.webhook_env", settings.audit.webhook_env)
    if has_secret(settings):
        deployment_salt(settings)
    _check_folder(settings)
    keys = key_ring(settings, salt="")  # what the gateway names their holders by is not known yet
    if not (keys.asks_for_keys or insecure_open or _is_loopback(host)):
        raise ConfigError(
            f"server.host: {host!r} serves other machines, and neither server.api_keys_env nor [keys.NAME] asks for"
            " keys; write one of them, listen on 127.0.0.1, or pass --insecure-open"
        )
    return result


def embedders(settings: Settings) -> dict[str, HttpEmbedder]:
    """The embedders of routes that have one, not opened yet. Raises ConfigError."""
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
    certifies = settings.control.enabled and any(route.certifies_itself for route in settings.routes.values())
    if certifies and find_spec("sklearn") is None:
        missing.append(f"control: nothing is certified here: a fit needs scikit-learn: {how_to_install('train')}")
    if settings.console.enabled and not can_render():
        missing.append(f"console: has no pages, only the API: they need Jinja2: {how_to_install('console')}")
    return missing


def _check_folder(settings: Settings) -> None:
    """A log that cannot be opened holds nobody up, but a folder that never was is a mistake in the settings."""
    path = database_path(settings.store.url)
    if not path.parent.is_dir() and not good_file(settings).exists():
        raise StoreError(f"store {path}: the folder {path.parent} does not exist; create it first")


def _is_loopback(host: str) -> bool:
    try:
        result = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return all(ipaddress.ip_address(str(entry[4][0])).is_loopback for entry in result)
    except (OSError, ValueError):
        return False
