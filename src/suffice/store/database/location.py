"""Which database holds a log: one SQLite file, or a schema of a PostgreSQL server. Both answer the same calls."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from suffice.errors import ConfigError
from suffice.settings import Store
from suffice.store.database.postgres import PostgresDatabase, postgres_database
from suffice.store.database.sqlite import SqliteDatabase

LogDatabase: TypeAlias = SqliteDatabase | PostgresDatabase
LogLocation: TypeAlias = Path | LogDatabase  # a path means the SQLite file there


def log_location(store: Store) -> Path | PostgresDatabase:
    """Return where the settings keep the log. Raise ConfigError."""
    return postgres_database(store) if is_postgres(store) else sqlite_path(store.url)


def is_postgres(store: Store) -> bool:
    return store.url.partition("://")[0] in ("postgresql", "postgres")


def database_at(location: LogLocation | str) -> LogDatabase:
    return SqliteDatabase(Path(location).resolve()) if isinstance(location, Path | str) else location


def local_path(store: Store) -> Path:
    """Return the path whose name the files of this machine share: kill switch, last-good file, secret.

    It is in the data directory, also where the log is on a server.
    """
    return Path(f"{store.local_files}.db") if is_postgres(store) else sqlite_path(store.url)


def sqlite_path(url: str) -> Path:
    """Return the file of `sqlite:///relative.db` or `sqlite:////absolute.db`. Raises ConfigError."""
    scheme, separator, name = url.partition(":///")
    if url != "sqlite://" and (scheme != "sqlite" or not separator):
        got = url.partition(":")[0]  # the rest may hold a password
        raise ConfigError(
            f"store.url: got {got!r:.80}; allowed: sqlite:///relative.db, sqlite:////absolute.db,"
            " postgresql://user@host:5432/database"
        )
    if url == "sqlite://" or name in ("", ":memory:"):
        raise ConfigError(
            f"store.url: got {url!r}: a database in memory is seen by one connection only, and the log "
            "has a writer thread and readers; allowed: a file, for example sqlite:///suffice.db"
        )
    if "?" in name or name.endswith("/"):
        raise ConfigError(f"store.url: got {url!r}; need a file's name without options")
    return Path(name)
