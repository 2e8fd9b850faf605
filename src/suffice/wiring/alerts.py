"""Who is told of alerts: sinks by the settings, their secrets from the environment; and what they were told."""

from __future__ import annotations

import time
from pathlib import Path

from suffice.control.jobs.notify import LogSink, MailSink, Notify, Sink, WebhookSink
from suffice.edge.mail import MailServer
from suffice.settings import Alerts, Settings
from suffice.wiring.keys import secret


def sinks_of(alerts: Alerts) -> tuple[Sink, ...]:
    """Everybody who is told; (): nobody is configured. Raises ConfigError where a secret is missing."""
    found = list[Sink]()
    url = secret("alerts.webhook_url_env", alerts.webhook_url_env)
    if url is not None:
        found.append(WebhookSink(url))
    if alerts.email_to:
        user = secret("alerts.smtp_user_env", alerts.smtp_user_env)
        password = secret("alerts.smtp_password_env", alerts.smtp_password_env)
        login = None if user is None or password is None else (user, password)
        server = MailServer(host=alerts.smtp_host, port=alerts.smtp_port, login=login, tls=alerts.mail_tls)
        found.append(MailSink(server=server, sender=alerts.email_from, to=alerts.email_to))
    return (LogSink(), *found) if found else ()


def notifier(settings: Settings, path: Path) -> Notify:
    """The job `notify`. Raises ConfigError where a secret is missing."""
    return Notify(
        settings=settings.alerts,
        path=path,
        sinks=sinks_of(settings.alerts),
        now=time.time,
        monotonic_s=time.monotonic,
    )
