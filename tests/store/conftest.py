from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from suffice.settings import Store
from suffice.store.database.writer import LogWriter


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "suffice.db"


@pytest.fixture
def open_log(database: Path) -> Iterator[Callable[..., LogWriter]]:
    """Open a log on the test's file; all are closed at the end."""
    with ExitStack() as opened:

        def open_one(**settings: Any) -> LogWriter:
            clock = itertools.count(1.0)  # a clock that only the test moves
            log = LogWriter(Store(url=f"sqlite:///{database}", **settings), now=lambda: next(clock))
            opened.callback(log.close)
            return log

        yield open_one


@pytest.fixture
def query(database: Path) -> Callable[..., list[tuple[Any, ...]]]:
    """What somebody sees who opens the file with any SQL tool."""

    def ask(sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(database)) as connection:
            return connection.execute(sql, values).fetchall()

    return ask


@pytest.fixture
def locked(database: Path) -> Callable[[], Any]:
    """Another program holds the database exclusively, as a backup or a stuck process does."""

    @contextmanager
    def hold() -> Iterator[None]:
        with closing(sqlite3.connect(database, isolation_level=None, timeout=5)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            yield
            connection.execute("ROLLBACK")

    return hold
