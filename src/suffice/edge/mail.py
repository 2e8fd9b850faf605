"""Hands one plain e-mail to a mail server. Nothing of a password is in any error.

Knows SMTP of the standard library; refuses to know what is told and why.
"""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Final

from suffice.settings import MailTls

TLS_PORT: Final = 465  # where a connection begins with TLS; elsewhere it is asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class MailServer:
    """Which server takes mail, and from whom."""

    host: str
    port: int
    login: tuple[str, str] | None = field(default=None, repr=False)  # user and password; None: it asks for none
    tls: MailTls = "required"  # with a login it is, whatever this says


def send_mail(
    server: MailServer, *, sender: str, to: Sequence[str], subject: str, text: str, timeout_s: float
) -> str | None:
    """Send one message; None: the server took it for everybody, else why not, in a sentence without secrets.

    Blocks for at most about `timeout_s` for each step of the conversation.
    """
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, ", ".join(to), subject
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text)
    try:
        with _connection(server, timeout_s) as smtp:
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


def _connection(server: MailServer, timeout_s: float) -> smtplib.SMTP:
    asks = server.login is not None or server.tls != "off"
    if asks and server.port == TLS_PORT:
        return smtplib.SMTP_SSL(server.host, server.port, timeout=timeout_s, context=ssl.create_default_context())
    smtp = smtplib.SMTP(server.host, server.port, timeout=timeout_s)
    try:
        smtp.ehlo()
        if asks and smtp.has_extn("starttls"):
            smtp.starttls(context=ssl.create_default_context())
    except (OSError, smtplib.SMTPException):
        smtp.close()
        raise
    return smtp
