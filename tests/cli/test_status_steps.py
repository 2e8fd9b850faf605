"""`suffice status` reads what the worker has summed up: its work grows neither with the log nor with routes squared."""

from __future__ import annotations

import contextlib
import sqlite3
import tomllib
from pathlib import Path

import pytest
from bench.status import fill, sum_up

from suffice.cli.inspect.route_report import status_sections
from suffice.cli.inspect.route_status import read_statuses, statuses_of
from suffice.report.sentences import summarize
from suffice.settings import parse_settings
from suffice.store.database.sqlite import SqliteConnection
from suffice.store.database.views import open_reader
from suffice.store.routes import rollups


def steps(config: Path) -> tuple[int, int]:
    """How many of SQLite's own instructions one status takes, in hundreds, and how many routes it shows."""
    n, settings = [0], parse_settings(tomllib.loads(config.read_text("utf-8")))

    def step() -> None:
        n[0] += 1

    with open_reader(config.parent / "log.db") as connection:
        assert isinstance(connection, SqliteConnection)
        connection.set_progress_handler(step, 100)
        statuses = statuses_of(connection, config.parent / "log.db", settings, None)
        connection.set_progress_handler(None, 0)
    return n[0], len(statuses)


def made(folder: Path, n_rows: int, n_routes: int) -> Path:
    folder.mkdir()
    config = fill(folder, n_rows, n_routes)
    sum_up(config)
    return config


@pytest.mark.slow
def test_it_does_not_grow_with_the_log(tmp_path: Path) -> None:
    few, many = (steps(made(tmp_path / str(n), n, 2))[0] for n in (6_000, 18_000))
    assert many <= 1.1 * few + 5, (few, many)


def test_it_grows_with_routes_and_not_with_their_square(tmp_path: Path) -> None:
    few, many = (steps(made(tmp_path / str(n), 20 * n, n)) for n in (20, 80))
    assert (few[1], many[1]) == (20, 80)
    assert many[0] <= 4 * few[0] + 10, (few, many)


@pytest.mark.slow
def test_a_route_that_was_renamed_is_history_and_its_rows_are_not_read_again(tmp_path: Path) -> None:
    config = made(tmp_path / "log", 6_000, 2)
    before = steps(config)[0]
    database, settings = config.parent / "log.db", parse_settings(tomllib.loads(config.read_text("utf-8")))
    old = next(iter(settings.routes))
    config.write_text(config.read_text("utf-8").replace(f"[routes.{old}", "[routes.renamed"), "utf-8")
    after = steps(config)
    assert after[0] <= 1.2 * before, (before, after)
    renamed = parse_settings(tomllib.loads(config.read_text("utf-8")))
    (was,), (now,) = read_statuses(database, settings, old), read_statuses(database, renamed, old)
    assert (now.promise_state, now.scorer) == ("gone", was.scorer)
    assert now.report.n_labelled == was.report.n_labelled > 0
    lines = [text for section in status_sections(now) for _, text in section]
    assert summarize(now).now == "history: no route of the settings has this name any more"
    assert not any("UNCERTIFIED" in text for text in lines)


def test_rows_that_nobody_has_summed_up_are_read_and_the_figures_are_the_same(tmp_path: Path) -> None:
    config = made(tmp_path / "log", 600, 3)
    settings = parse_settings(tomllib.loads(config.read_text("utf-8")))
    summed = read_statuses(config.parent / "log.db", settings, None)
    with contextlib.closing(sqlite3.connect(config.parent / "log.db")) as connection, connection:
        for table in ("rollups", "tallies", "rolled"):
            connection.execute(f"DELETE FROM {table}")
    assert [one.report for one in read_statuses(config.parent / "log.db", settings, None)] == [
        one.report for one in summed
    ]


def test_sums_that_lag_are_not_made_up_for_by_reading_the_log_and_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = made(tmp_path / "log", 1_200, 20)
    summed = steps(config)
    with contextlib.closing(sqlite3.connect(config.parent / "log.db")) as connection, connection:
        for table in ("rollups", "tallies", "rolled"):
            connection.execute(f"DELETE FROM {table}")
    monkeypatch.setattr(rollups, "MOST_ROWS", 1_000)
    late = steps(config)
    assert late[1] == summed[1] == 20, "a route is listed whether or not it is summed up"
    assert late[0] <= summed[0] + 5, (late, summed)
    settings = parse_settings(tomllib.loads(config.read_text("utf-8")))
    for one in read_statuses(config.parent / "log.db", settings, None):
        assert "rows of the log behind" in one.lag
        assert one.report.n_requests == 0
        assert one.lag in summarize(one).effect


def test_a_scorer_that_changes_does_not_make_it_read_a_long_log_again_and_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = made(tmp_path / "log", 1_200, 2)
    before, database = steps(config)[0], config.parent / "log.db"
    was = read_statuses(database, parse_settings(tomllib.loads(config.read_text("utf-8"))), "r0")[0]
    config.write_text(config.read_text("utf-8").replace('scorer = "number"', 'scorer = "text"', 1), "utf-8")
    changed = parse_settings(tomllib.loads(config.read_text("utf-8")))
    short = read_statuses(database, changed, "r0")[0]
    assert (short.scorer, short.lag) == ("text", ""), "a short log is read again at once"
    assert steps(config)[0] > 1.5 * before
    monkeypatch.setattr(rollups, "MOST_ROWS", 1_000)
    assert steps(config)[0] <= before + 5
    one, other = read_statuses(database, changed, None)
    assert (one.scorer, one.report) == ("number", was.report)
    assert one.lag == "the worker has not compared labels by text yet"
    assert other.lag == ""
    assert one.lag in summarize(one).effect
    sum_up(config)
    assert read_statuses(database, changed, "r0")[0].scorer == "text"
