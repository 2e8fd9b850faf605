"""Which database holds a log: the register of URL schemes, and the files that processes of one machine share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

from suffice.errors import ConfigError
from suffice.settings import Store
from suffice.store.database.postgres import postgres_database
from suffice.store.database.protocol import Database
from suffice.store.database.sqlite import SqliteDatabase

LogLocation: TypeAlias = Path | Database  # a path means the SQLite file there


def sqlite_path(store: Store) -> Path:
    """Return the file of `sqlite:///relative.db` or `sqlite:////absolute.db`. Raises ConfigError."""
    url, (_, separator, name) = store.url, store.url.partition(":///")
    if url != "sqlite://" and not separator:
        raise _unknown(url)
    if url == "sqlite://" or name in ("", ":memory:"):
        raise ConfigError(
            f"store.url: got {url!r}: a database in memory is seen by one connection only, and the log "
            "has a writer thread and readers; allowed: a file, for example sqlite:///suffice.db"
        )
    if "?" in name or name.endswith("/"):
        raise ConfigError(f"store.url: got {url!r}; need a file's name without options")
    return Path(name)


class Scheme(NamedTuple):
    open: Callable[[Store], LogLocation]  # raises ConfigError
    examples: str


SCHEMES: dict[str, Scheme] = {
    "sqlite": Scheme(sqlite_path, "sqlite:///relative.db, sqlite:////absolute.db"),
    "postgresql": Scheme(postgres_database, "postgresql://user@host:5432/database"),
    "postgres": Scheme(postgres_database, ""),
}


def log_location(store: Store) -> LogLocation:
    """Return where the settings keep the log. Raise ConfigError."""
    scheme = SCHEMES.get(store.url.partition(":")[0])
    if scheme is None:
        raise _unknown(store.url)
    return scheme.open(store)


def _unknown(url: str) -> ConfigError:
    allowed = ", ".join(one.examples for one in SCHEMES.values() if one.examples)
    return ConfigError(f"store.url: got {url.partition(':')[0]!r:.80}; allowed: {allowed}")  # the rest: a password?


def database_at(location: LogLocation | str) -> Database:
    return SqliteDatabase(Path(location).resolve()) if isinstance(location, Path | str) else location


def local_path(store: Store) -> Path:
    """Return the path whose name the files of this machine share: kill switch, last-good file, secret.

    It is in the data directory, also where the log is on a server.
    """
    location = log_location(store)
    return location if isinstance(location, Path) else Path(f"{store.local_files}.db")
