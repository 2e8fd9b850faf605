"""What the types of `[alerts]` cannot say."""

from __future__ import annotations

import re
from math import isfinite
from typing import Final

from suffice.errors import ConfigError
from suffice.settings.tables import Alerts

_ADDRESS: Final = re.compile(r"[^@\s<>,;]+@[^@\s<>,;]+")
_BASE: Final = re.compile(r"https?://[^/@\s?#]+(/[^@\s?#]*)?")


def check_alerts(alerts: Alerts) -> None:
    """Refuse what cannot work. Raises ConfigError."""
    if bool(alerts.smtp_user_env) != bool(alerts.smtp_password_env):
        raise ConfigError("alerts.smtp_user_env: needs smtp_password_env beside it; give both or none")
    if alerts.smtp_user_env and alerts.mail_tls != "required":
        raise ConfigError(
            f'alerts.smtp_tls: got "{alerts.smtp_tls}" beside a login; a password is sent over TLS only: "required"'
        )
    _check_mail(alerts)
    if not (isfinite(alerts.repeat_s) and alerts.repeat_s >= 0):
        raise ConfigError(f"alerts.repeat_s: got {alerts.repeat_s}; at least 0 seconds")
    if alerts.link is not None and not _BASE.fullmatch(alerts.link):
        raise ConfigError("alerts.link: needs http://host or https://host, without a user, a query or a fragment")


def _check_mail(alerts: Alerts) -> None:
    for address in alerts.email_to:
        if not _ADDRESS.fullmatch(address):
            raise ConfigError(f"alerts.email_to: got {address!r}; needs plain addresses such as ops@example.org")
    if alerts.email_to and not alerts.smtp_host:
        raise ConfigError("alerts.smtp_host: is empty; e-mail needs the name of a mail server")
    if alerts.email_to and not _ADDRESS.fullmatch(alerts.email_from):
        raise ConfigError(f"alerts.email_from: got {alerts.email_from!r}; e-mail needs an address to come from")
    if not 0 < alerts.smtp_port < 65_536:
        raise ConfigError(f"alerts.smtp_port: got {alerts.smtp_port}; 1 to 65535")
