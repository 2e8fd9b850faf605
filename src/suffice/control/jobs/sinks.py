"""Where notices go: the process's own log, a webhook, e-mail. What came of it is a sentence without secrets."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Protocol

import msgspec

from suffice.edge.mail import MailServer, send_mail
from suffice.edge.webhook import post_json
from suffice.store.people.notices import Notice
from suffice.telemetry import LOG

TIMEOUT_S: Final = 10.0


class Sink(Protocol):
    """Takes notices."""

    name: str

    def tell(self, notice: Notice, *, at_s: float, link: str | None) -> str | None:
        """Tell it; None: it was taken, else why not. at_s: Unix time of the event."""
        ...


@dataclass(slots=True)
class LogSink:
    """The process's own log."""

    name: str = "log"

    def tell(self, notice: Notice, *, at_s: float, link: str | None) -> str | None:  # noqa: ARG002 - lines have a time
        """Always taken."""
        LOG.warning("alert: %s%s", notice_headline(notice), f" {link}" if link else "")
        return None


@dataclass(slots=True)
class WebhookSink:
    """A webhook that takes what Slack takes: `text`, and beside it the fields for programs."""

    url: str = field(repr=False)
    name: str = "webhook"

    def tell(self, notice: Notice, *, at_s: float, link: str | None) -> str | None:
        """One POST."""
        text = notice_headline(notice)
        for sign, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):  # else Slack makes links of it
            text = text.replace(sign, written)
        body = {
            "text": f"{text}\n{link}" if link else text,
            "mrkdwn": False,
            "kind": notice.kind,
            "route": notice.route,
            "sentence": notice.sentence,
            "over": notice.over,
            "at": format_notice_time(at_s),
            "link": link,
        }
        return post_json(self.url, msgspec.json.encode(body), timeout_s=TIMEOUT_S)


@dataclass(slots=True, kw_only=True)
class MailSink:
    """E-mail, as plain text."""

    server: MailServer
    sender: str
    to: tuple[str, ...]
    name: str = "email"

    def tell(self, notice: Notice, *, at_s: float, link: str | None) -> str | None:
        """One message to all."""
        about = f" on {notice.route}" if notice.route else ""
        text = f"{notice_headline(notice)}\n\n{format_notice_time(at_s)}\n{link or ''}"
        subject = f"Suffice: {'over: ' if notice.over else ''}{notice.kind.replace('_', ' ')}{about}"
        return send_mail(self.server, sender=self.sender, to=self.to, subject=subject, text=text, timeout_s=TIMEOUT_S)


def notice_headline(notice: Notice) -> str:
    """The notice in one line."""
    about = f"route {notice.route}: " if notice.route else ""
    return f"{'over: ' if notice.over else ''}{notice.kind.replace('_', ' ')}: {about}{notice.sentence}"


def format_notice_time(at_s: float) -> str:
    """A time as notices write it."""
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
