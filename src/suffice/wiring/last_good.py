"""The last-good file of a deployment: where its settings put it, and what it says of a log that is gone."""

from __future__ import annotations

import contextlib
import math
import time
from typing import Final

from suffice.errors import ConfigError, StoreError
from suffice.gateway.last_good import LastGood, LastGoodWriter, read_last_good
from suffice.settings import Settings
from suffice.store.database.location import log_location
from suffice.telemetry import LOG
from suffice.wiring.keys import deployment_salt, good_file, has_secret

KEEP_S: Final = 60.0  # the maximum age of the file while the log is readable


def last_good(settings: Settings) -> LastGood | None:
    file = good_file(settings)
    if not file.exists():
        return None
    if not has_secret(settings):
        raise ConfigError(f"{file}: the secret that it is signed with is gone (SUFFICE_SALT, or the log's .salt file)")
    return read_last_good(file, secret=deployment_salt(settings), now_s=time.time(), most_s=math.inf)


def valid_last_good(settings: Settings, secret: str, *, most_s: float) -> LastGood | None:
    if not settings.store.last_good_s:
        return None
    try:
        return read_last_good(good_file(settings), secret=secret, now_s=time.time(), most_s=most_s)
    except ConfigError as error:
        LOG.warning("last-good file %s", error)
        return None


def last_good_writer(settings: Settings, secret: str) -> LastGoodWriter | None:
    most_s = settings.store.last_good_s
    if not most_s:
        return None
    return LastGoodWriter(
        good_file(settings), secret=secret, monotonic_s=time.monotonic, every_s=min(KEEP_S, most_s / 10)
    )


def refuse_lost_log(settings: Settings) -> None:
    """Raise StoreError if the log is missing and must not be made anew, because what was active would be lost."""
    path, file = log_location(settings.store), good_file(settings)
    if path.exists():
        return
    with contextlib.suppress(ConfigError, OSError):
        good = last_good(settings)
        if good is not None and good.matters:
            raise StoreError(
                f"store {path}: is missing, but {file} shows that something was active in it; restore it, or delete"
                " that file as well to start over"
            )
