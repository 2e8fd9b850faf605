from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from suffice.settings import Store
from suffice.store.database.location import SCHEMES, LogLocation, log_location
from suffice.store.database.views import query_rows
from suffice.store.database.writer import LogWriter
from tests import memory  # noqa: F401 - registers its scheme
from tests.postgres import empty_log

# What holds on every database of the register. A test that opens the file itself is marked `sqlite_only`.
EVERYWHERE = ("deciding", "decisions", "experiments", "log", "reviews", "rollouts", "views")
OF_PROCESSES = ("faults",)  # several processes write


DATABASES: dict[str, Callable[[Path], AbstractContextManager[Store]]] = {
    "sqlite": lambda folder: nullcontext(Store(url=f"sqlite:///{folder / 'suffice.db'}")),
    "postgresql": lambda _: empty_log(),
    "memory": lambda folder: nullcontext(Store(url=f"memory:///{folder}", local_files=str(folder / "suffice"))),
}
assert {*DATABASES} == {*SCHEMES} - {"postgres"}, "each database of the register has its empty log here"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "store" not in metafunc.fixturenames or metafunc.module.__name__.endswith("test_postgres"):
        return
    name = metafunc.module.__name__.rpartition(".test_")[2]
    kinds = ["sqlite"]
    if name in (*EVERYWHERE, *OF_PROCESSES) and not any(metafunc.definition.iter_markers("sqlite_only")):
        kinds = [one for one in DATABASES if one != "memory" or name in EVERYWHERE]
    metafunc.parametrize("store", kinds, indirect=True)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Settings of a log that does not exist yet."""
    with DATABASES[request.param](tmp_path) as one:
        yield one


@pytest.fixture
def database(store: Store) -> LogLocation:
    return log_location(store)


@pytest.fixture
def open_log(store: Store) -> Iterator[Callable[..., LogWriter]]:
    """Open the test's log; all are closed at the end."""
    with ExitStack() as opened:

        def open_one(**settings: Any) -> LogWriter:
            clock = itertools.count(1.0)  # a clock that only the test moves
            changed = Store(**{name: getattr(store, name) for name in store.__struct_fields__} | settings)
            log = LogWriter(changed, now=lambda: next(clock))
            opened.callback(log.close)
            return log

        yield open_one


@pytest.fixture
def query(database: LogLocation) -> Callable[..., list[tuple[Any, ...]]]:
    """What somebody sees who opens the log with any SQL tool."""

    def ask(sql: str, *values: Any) -> list[tuple[Any, ...]]:
        if not isinstance(database, Path):
            return [tuple(row) for row in query_rows(database, sql, values)]
        with closing(sqlite3.connect(str(database))) as connection:
            return connection.execute(sql, values).fetchall()

    return ask


@pytest.fixture
def locked(database: LogLocation) -> Callable[[], Any]:
    """Another program holds the database exclusively, as a backup or a stuck process does."""

    @contextmanager
    def hold() -> Iterator[None]:
        if not isinstance(database, Path):
            with database.transaction():
                yield
            return
        with closing(sqlite3.connect(str(database), isolation_level=None, timeout=5)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            yield
            connection.execute("ROLLBACK")

    return hold
