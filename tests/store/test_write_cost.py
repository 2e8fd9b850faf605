"""What an outcome costs the log: statements, work, bytes and round trips, which grow unnoticed; times are benched."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from suffice.settings import Store
from suffice.store.audit.appender import COLUMNS, Appender
from suffice.store.database.location import database_at, log_location
from suffice.store.database.postgres import PostgresConnection, postgres_database
from suffice.store.database.sqlite import SqliteDatabase
from suffice.store.rows.events import to_row
from suffice.store.sql import load_queries
from suffice.types import Outcome, Request, Usage
from tests.postgres import empty_log
from tests.records import plain_request, plain_step

N_STEPS, N_RUNS = 8, 1_000


def runs(n: int, first: int = 0) -> Iterator[tuple[Request, Outcome]]:
    """Requests of one route with eight steps, as a gateway logs them."""
    steps = tuple(
        plain_step(i, tokens=100, confidence=0.9, entropy=0.4, probe_tokens=8, reason="the streak is short")
        for i in range(1, N_STEPS + 1)
    )
    for number in range(first, first + n):
        name = f"ep_{number:09}"
        request = plain_request(name, propensity=0.9, policy_version="v1", question_key="q", received_at_s=1.0)
        outcome = Outcome(
            episode_id=name,
            end_reason="done",
            status=200,
            answer="4",
            response_id=f"chatcmpl-{name}",
            usage=Usage(prompt_tokens=90, completion_tokens=800),
            steps=steps,
        )
        yield request, outcome


def test_the_rows_of_a_run_take_few_bytes_and_name_no_field_that_is_unknown() -> None:
    request, outcome = (to_row(event) for event in next(runs(1)))
    assert len(request.body) < 500
    assert len(outcome.body) < 800 + 180 * N_STEPS
    assert [name for name, value in json.loads(request.body)["request"].items() if value is None] == ["ungoverned"], (
        "which has no default"
    )
    assert ":null" not in outcome.body


def test_a_run_in_sqlite_is_two_statements_little_work_and_few_bytes(store: Store) -> None:
    database = database_at(log_location(store))
    assert isinstance(database, SqliteDatabase)
    claim, owner = database.enter(now_s=1.0)
    connection = database.connect_writer()
    statements = list[str]()
    rows = [(to_row(event), 1.0) for run in runs(N_RUNS) for event in run]
    connection.set_trace_callback(statements.append)
    database.begin(connection, synced=False)
    Appender(connection, owner=owner).add_all(rows)
    connection.commit()
    connection.set_trace_callback(None)
    work = {
        name
        for _, name, *_ in connection.execute(
            f"EXPLAIN {load_queries('sqlite')['insert_event'].text}", [None] * len(COLUMNS[1:])
        )
    }
    connection.close()
    claim.release()
    assert len(statements) <= 2 * N_RUNS + 4  # PRAGMA, BEGIN, the places, COMMIT
    assert not work & {"OpenEphemeral", "Function", "PureFunc"}, "no index makes a table of kinds, and none reads JSON"
    assert database.size_bytes() < 3_500 * N_RUNS


def test_a_batch_in_postgresql_is_three_round_trips_whatever_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    n_trips, run = itertools.count(), PostgresConnection._execute

    def counted(self: PostgresConnection, *arguments: Any) -> Any:
        next(n_trips)
        return run(self, *arguments)

    with empty_log() as store:
        database = postgres_database(store)
        claim, owner = database.enter(now_s=1.0)
        connection = database.connect_writer()
        monkeypatch.setattr(PostgresConnection, "_execute", counted)
        for first, n in ((0, 1), (1, 10), (11, N_RUNS)):
            before = next(n_trips)
            database.begin(connection, synced=False)
            rows = [(to_row(event), 1.0) for run in runs(n, first) for event in run]
            added = Appender(connection, owner=owner).add_all(rows)
            connection.commit()
            assert [one.seq - added[0].seq for one in added] == [*range(2 * n)], "places follow each other"
            assert next(n_trips) - before - 1 == 3, "BEGIN, the rows, COMMIT"
        connection.close()
        claim.release()
        assert database.size_bytes() < 2_200 * N_RUNS
