"""What `status` and the pages read does not grow with the log: they read sums, and what an index finds.

Costs are counted, not timed: SQLite's steps, and the rows that PostgreSQL reads from the log's table and its indexes.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from suffice.cli.inspect.route_status import read_statuses
from suffice.settings import Settings, Store
from suffice.store.database.copying import copy_log
from suffice.store.database.location import database_at, log_location
from suffice.store.database.postgres import PostgresConnection, postgres_database
from suffice.store.database.sqlite import SqliteConnection, SqliteDatabase
from suffice.store.database.views import query_number
from suffice.wiring.people import People
from suffice.wiring.worker import open_worker
from tests.console.made import fill
from tests.console.visitor import Visitor, settings_in, site
from tests.postgres import connect, empty_log

PLACES = (
    "/console",
    "/console?days=all",
    "/console/routes",
    "/console/route?route=math",
    "/console/runs",
    "/console/runs?route=math&end=differs",
    "/console/runs?q=ep_0000",
    "/console/runs/live",
    "/console/change",
    "/console/runs/ep_00000",
    "/console/changes",
    "/console/settings",
    "/console/review",
    "/console/incidents",
    "/console/alerts",
    "/console/policies",
    "/console/experiments",
    "/api/overview",
)
SIZES = (60, 240)  # copies of the forty runs of a log that has something of everything
COPIES = """
    WITH RECURSIVE copy (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM copy WHERE n < ?)
    INSERT INTO events (kind, key, episode_id, route, at_s, owner, body)
    SELECT kind, key || '_' || n, episode_id || '_' || n, route, at_s, owner,
        replace(replace(body, '"ep_', '"ep_' || n), '"r-ep_', '"r-ep_' || n)
    FROM copy CROSS JOIN events WHERE kind IN ('request', 'outcome') ORDER BY n, seq"""


def counting_steps(into: list[int]) -> Callable[..., sqlite3.Connection]:
    """As `sqlite3.connect`; adds a number for each hundred steps of a statement."""
    made = sqlite3.connect

    class Counted(SqliteConnection):
        def set_progress_handler(self, *_: Any) -> None:
            super().set_progress_handler(lambda: into.append(100), 100)

    def connect(*arguments: Any, **named: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = made(*arguments, **named | {"factory": Counted})
        connection.set_progress_handler(None, 0)
        return connection

    return connect


READ = """
    SELECT coalesce(pg_stat_get_xact_tuples_returned('events'::regclass), 0) AS scanned,
        (SELECT coalesce(sum(pg_stat_get_xact_tuples_returned(indexrelid)), 0) FROM pg_index
         WHERE indrelid = 'events'::regclass) AS found"""


@contextmanager
def counted(into: list[int], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Count what is read from a log in either database."""

    def begin(connection: PostgresConnection, *arguments: str) -> None:
        begun(connection, *arguments)
        before[connection] = connection.execute(READ).fetchone()  # of transactions that nobody has asked about yet

    def commit(connection: PostgresConnection) -> None:
        if connection in before:
            now, then = connection.execute(READ).fetchone(), before.pop(connection)
            assert now[0] == then[0], "the whole table was read"
            into.append(int(now[1] - then[1]))
        committed(connection)

    before, begun, committed = dict[PostgresConnection, Any](), PostgresConnection.begin, PostgresConnection.commit
    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", counting_steps(into))
        patch.setattr(PostgresConnection, "begin", begin)
        patch.setattr(PostgresConnection, "commit", commit)
        yield


def costs(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, int]:
    """What each place reads, the second time."""
    read, taken = list[int](), dict[str, int]()
    people = People.of(settings)
    secret = people.first() or people.reset("admin")

    def status() -> None:
        assert read_statuses(log_location(settings.store), settings, None)

    with site(settings) as app:
        visitor = Visitor(app)
        assert visitor.login(secret).status == 303
        for place in ("status", *PLACES):
            ask = status if place == "status" else partial(read_page, visitor, place, secret)
            ask()
            read.clear()
            with counted(read, monkeypatch):
                ask()
            taken[place] = sum(read)
    return taken


def read_page(visitor: Visitor, place: str, secret: str) -> None:
    headers = {"authorization": f"Bearer {secret}"} if place.startswith("/api") else {}
    assert visitor.get(place, **headers).status == 200, place


def summed_up(settings: Settings) -> None:
    with open_worker(settings, learning=False) as here:
        for job in here.jobs:
            job.forget()
        here.once("rollup")
    with database_at(log_location(settings.store)).reader() as log:
        n_behind = query_number(log, "SELECT max(seq) FROM events") - query_number(log, "SELECT seq FROM rolled")
    assert n_behind <= 1


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> list[Settings]:
    made = list[Settings]()
    for n in SIZES:
        folder = tmp_path_factory.mktemp(f"copies{n}")
        settings = settings_in(folder)
        fill(folder, settings, now_s=time.time())
        with closing(sqlite3.connect(folder / "log.db")) as connection, connection:
            connection.execute(COPIES, (n,))
            connection.execute("ANALYZE")
        summed_up(settings)
        made.append(settings)
    return made


def assert_constant(read: Sequence[Mapping[str, int]], slack: int) -> None:
    small, large = read
    growing = {place: (cost, large[place]) for place, cost in small.items() if large[place] > 1.5 * cost + slack}
    assert not growing


@pytest.mark.slow
def test_on_sqlite_nothing_grows_with_the_log(logs: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    assert_constant([costs(settings, monkeypatch) for settings in logs], slack=2_000)


@pytest.mark.slow
def test_on_postgresql_nothing_grows_with_the_log(
    logs: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = list[Mapping[str, int]]()
    for settings in logs:
        with empty_log() as store:
            no_scans = "options=-c%20enable_seqscan%3Doff"  # tables as small as these
            url = f"{store.url}{'&' if '?' in store.url else '?'}{no_scans}"
            named: dict[str, Any] = {
                "url": url,
                "schema_name": store.schema_name,
                "local_files": str(tmp_path / store.schema_name),
            }
            there = Store(**named)
            copy_log(SqliteDatabase(Path(settings.store.url[10:])), postgres_database(there), now_s=1.0)
            moved = settings_in(tmp_path, store=named)
            summed_up(moved)
            with closing(connect(schema=store.schema_name)) as connection, connection:
                connection.begin("READ WRITE")
                connection.run_script("ANALYZE events")
            read.append(costs(moved, monkeypatch))
    assert_constant(read, slack=100)
