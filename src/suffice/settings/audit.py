"""What the types of `[audit]` and `[retention]` cannot say."""

from __future__ import annotations

from math import isfinite
from typing import Final

from suffice.errors import ConfigError
from suffice.settings.tables import AuditLog, Retention

LEAST_S: Final = 1.0  # between two rounds of a job


def check_audit(audit: AuditLog, retention: Retention) -> None:
    """Refuse what cannot work. Raises ConfigError."""
    for where, value in (("audit.every_s", audit.every_s), ("retention.every_s", retention.every_s)):
        if not (isfinite(value) and value >= LEAST_S):
            raise ConfigError(f"{where}: got {value}; at least {LEAST_S:g} second")
    if not (isfinite(audit.timeout_s) and audit.timeout_s > 0):
        raise ConfigError(f"audit.timeout_s: got {audit.timeout_s}; more than 0 seconds")
    for part, days in retention.days.items():
        if not (isfinite(days) and days >= 0):
            raise ConfigError(f"retention.{part}_days: got {days}; at least 0 days")
