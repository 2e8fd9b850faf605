"""The deployment that a settings file names: is its log there, and what holds on all of it?

Commands that only look begin here, so nothing of a gateway or a worker is imported.
"""

from __future__ import annotations

from pathlib import Path

from suffice.errors import StoreError
from suffice.settings import Settings
from suffice.store.database.sqlite import database_path
from suffice.store.routes.condition import Condition, read_condition
from suffice.wiring.files import load_settings
from suffice.wiring.keys import kill_file, presence_files


def load_deployment(file: str | Path) -> Settings:
    """The settings in a file, of a deployment that exists: its log is there. Raises ConfigError and StoreError."""
    settings = load_settings(file)
    require_log(settings, file)
    return settings


def require_log(settings: Settings, file: str | Path) -> None:
    """Raise StoreError, with where the log was looked for and why there, if it does not exist.

    file  from which the settings were read
    """
    log, named = database_path(settings.store.url), Path(file)
    try:
        if log.is_file():
            return
        from suffice.wiring.startup import missing_log_reason

        gone = missing_log_reason(settings)
        if gone is not None:
            raise StoreError(gone)
        what = _instead_of(log)
    except (OSError, ValueError) as error:  # a name that is too long, or none
        what = f"cannot be looked for ({getattr(error, 'strerror', None) or error})"
    link = f", a link to {named.resolve()}," if named.is_symlink() else ""
    raise StoreError(
        f"store {log}: {what}; store.url in {named.absolute()}{link} names this log, and `suffice serve` makes it when"
        " it first runs: name the deployment's settings file with --config"
    )


def _instead_of(log: Path) -> str:
    if log.is_dir():
        return "is a folder"
    if log.is_symlink():
        return f"is a link to {log.readlink()}, which leads to no file"
    if log.exists():
        return "is no regular file"
    return "does not exist" if log.parent.is_dir() else f"does not exist, nor does its folder {log.parent}"


def condition(settings: Settings, *, checks: bool = True) -> Condition:
    """What everybody has to know of the settings' deployment first. Raises ConfigError.

    checks  read a small log through for damage
    """
    return read_condition(
        database_path(settings.store.url),
        kill_file(settings),
        presence_files(settings),
        routes=settings.routes,
        checks=checks,
    )
