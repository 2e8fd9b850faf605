"""Who is told of alerts: sinks by the settings, their secrets from the environment; and what they were told."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from suffice.control.jobs.notify import LogSink, MailSink, Notify, Sink, WebhookSink
from suffice.edge.mail import MailServer
from suffice.settings import Alerts, Settings
from suffice.store.database.views import decoded, open_reader
from suffice.store.people.alerts import Notice, alerts_of
from suffice.store.rows.events import EVENTS
from suffice.store.rows.records import AlertDelivery
from suffice.wiring.keys import secret

_SENT: Final = "SELECT seq, at_s, body FROM events WHERE kind = 'alert_sent' ORDER BY seq DESC LIMIT ?"
_OF: Final = "SELECT kind, body FROM events WHERE seq = ?"


@dataclass(frozen=True, slots=True, kw_only=True)
class SentNotice:
    """A notice that a sink took."""

    at_s: float  # Unix time at which it was told
    about_s: float  # … at which the log took the event
    sink: str
    notice: Notice


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


def sent(path: Path, n: int) -> list[SentNotice]:
    """The latest notices that were told, oldest first. Raises StoreError."""
    found = list[SentNotice]()
    with open_reader(path) as connection:
        for seq, at_s, body in connection.execute(_SENT, (n,)).fetchall():
            telling = decoded(seq, AlertDelivery, body)
            place = telling.over or telling.read_to_seq
            row = connection.execute(_OF, (place,)).fetchone() if telling.of else None
            notice = None if row is None else alerts_of(decoded(place, EVENTS[row[0]], row[1]))
            if notice is not None:
                notice = replace(notice, over=bool(telling.over))
                found.append(SentNotice(at_s=at_s, about_s=telling.about_s, sink=telling.sink, notice=notice))
    return found[::-1]
