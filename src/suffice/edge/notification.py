"""Delivers notifications by webhook or e-mail, without redirects, retries, or secrets in errors and logs."""

from __future__ import annotations

import contextlib
import http.client
import smtplib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Final
from urllib.parse import urlsplit

from suffice.settings import MailTls

MOST_REPLY_BYTES: Final = 4_096  # of a reply are read and discarded
TLS_PORT: Final = 465  # implicit TLS; on other ports STARTTLS


def post_json(url: str, body: bytes, *, timeout_s: float) -> str | None:
    """Return None after a 2xx, else the failure. Connecting, sending and reading take at most `timeout_s` each."""
    none = "the webhook's address is none; it needs http://host[:port]/path or https://host[:port]/path"
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return none
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname, parts.port, timeout=timeout_s)
    except ValueError:  # a port or an IPv6 address that is none
        return none
    target = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
    try:
        with contextlib.closing(connection):
            connection.request("POST", target, body, {"content-type": "application/json"})
            reply = connection.getresponse()
            reply.read(MOST_REPLY_BYTES)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"the webhook could not be reached ({type(error).__name__})"
    return None if 200 <= reply.status < 300 else f"the webhook answered {reply.status}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MailServer:
    host: str
    port: int
    login: tuple[str, str] | None = field(default=None, repr=False)  # user and password; None: no login
    tls: MailTls = "required"  # always, with a login


def send_mail(
    server: MailServer, *, sender: str, to: Sequence[str], subject: str, text: str, timeout_s: float
) -> str | None:
    """Return None if the server accepts every address, else the failure. Each step takes at most `timeout_s`."""
    message = EmailMessage()
    try:
        message["From"] = sender
        message["To"] = ", ".join(to)
        message["Subject"] = subject
    except ValueError:
        return "a line break stands in the sender, an address or the subject: nothing was sent"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text)
    try:
        with _connect(server, timeout_s) as smtp:
            hidden = isinstance(smtp.sock, ssl.SSLSocket)
            if not hidden and (server.login is not None or server.tls == "required"):
                return "the mail server offers no encryption, so nothing was sent to it"
            if server.login is not None:
                smtp.login(*server.login)
            refused = smtp.send_message(message)
    except smtplib.SMTPResponseException as error:
        return f"the mail server answered {error.smtp_code}"
    except (OSError, smtplib.SMTPException, ValueError) as error:
        return f"the mail server could not be used ({type(error).__name__})"
    return f"the mail server refused {len(refused)} of {len(to)} addresses" if refused else None


def _connect(server: MailServer, timeout_s: float) -> smtplib.SMTP:
    encrypts = server.login is not None or server.tls != "off"
    if encrypts and server.port == TLS_PORT:
        return smtplib.SMTP_SSL(server.host, server.port, timeout=timeout_s, context=ssl.create_default_context())
    smtp = smtplib.SMTP(server.host, server.port, timeout=timeout_s)
    try:
        smtp.ehlo()
        if encrypts and smtp.has_extn("starttls"):
            smtp.starttls(context=ssl.create_default_context())
    except (OSError, smtplib.SMTPException):
        smtp.close()
        raise
    return smtp
