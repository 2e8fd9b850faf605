"""A gateway starts as quickly on a long log as on a short one: what it reads is bounded, whatever the log holds."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from suffice.settings import Settings, Store
from suffice.store.database.views import read_events
from suffice.store.database.writer import LogWriter
from suffice.store.rows.events import Row, to_row
from suffice.types import Outcome, Request
from suffice.wiring import startup
from suffice.wiring.worker import open_decisions
from tests.control.made import traffic
from tests.gateway.served import settings_for

ROUTE = {"upstream": "up", "kind": "samples", "samples": 8, "scorer": "number", "mode": "enforce"}
OTHER = {**ROUTE, "match": {"model": "other"}}
INSERT = "INSERT INTO events (kind, key, episode_id, route, at_s, owner, body) VALUES (?, ?, ?, ?, 1.0, 99, ?)"
STEP = 100  # instructions of SQLite between two counts


def settings_in(folder: Path) -> Settings:
    folder.mkdir()
    return settings_for("http://127.0.0.1:1", folder, routes={"r": ROUTE, "other": OTHER})


def made(folder: Path, n_episodes: int) -> Settings:
    """A log of so many episodes on two routes; of one no run was full."""
    report = settings_in(folder)
    with open_decisions(report):
        pass
    seen, ended = traffic(1, seed=9)
    assert isinstance(seen, Request)
    assert isinstance(ended, Outcome)
    pairs = [(to_row(replace(seen, route=route, audit=route == "r")), to_row(ended)) for route in ("r", "other")]

    def rows() -> Iterator[tuple[str, str, str, str | None, str]]:
        for number in range(n_episodes):
            for row in pairs[number % 2]:
                yield named(row, f"e{number:06}")

    with closing(sqlite3.connect(folder / "log.db")) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.executemany(INSERT, rows())
        connection.execute(
            "INSERT INTO owners (id, lock, pid, started_s, settled) VALUES (99, 'dead', 1, 1.0, ?)",
            (2 * n_episodes - 100,),
        )
        connection.commit()
    return report


def named(row: Row, name: str) -> tuple[str, str, str, str | None, str]:
    return row.kind, name, name, row.route, row.body.replace("ep_00000", name)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Count what SQLite does, in hundreds of its instructions: it cannot read a row without some."""
    n, connect = 0, sqlite3.connect

    def note() -> int:
        nonlocal n
        n += 1
        return 0

    def counting(*args: object, **options: object) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **options)  # type: ignore[call-overload]
        connection.set_progress_handler(note, STEP)
        return connection

    with monkeypatch.context() as patched:
        patched.setattr(sqlite3, "connect", counting)
        yield lambda: n


@pytest.mark.slow
def test_what_a_start_reads_does_not_grow_with_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "LEARNT_RUNS", 100)
    monkeypatch.setattr(startup, "FIRST_REQUESTS", 1_000)
    monkeypatch.setattr("suffice.store.people.promises.WINDOW_RUNS", 100)
    monkeypatch.setattr("suffice.store.database.schema.QUICK_CHECK_BYTES", 0)  # as in a log of gigabytes
    took = []
    for n in (5_000, 25_000):
        report = made(tmp_path / str(n), n)
        with counted(monkeypatch) as count:
            log, known = startup.open_checked_log(report)
            took.append(count())
            log.close()
        assert known.n_requests == {"r": 1_000, "other": 1_000}, "as far as it matters"
        assert len(known.recent) == 100
        assert known.recent[-1].request.episode_id == f"e{n - 1:06}"
        assert not any(run.outcome.steps for run in known.recent if not run.outcome.stopped), "most of a run's memory"
        assert {name: len(seen) for name, seen in known.evidence.extracted.items()} == {"r": 100, "other": 0}
    assert took[1] < 1.2 * took[0]


@pytest.mark.slow
def test_the_open_requests_of_a_dead_process_are_found_among_its_last_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, ended = traffic(1, seed=9)
    assert isinstance(seen, Request)
    assert isinstance(ended, Outcome)
    took = []
    for n in (2_000, 12_000):
        folder = tmp_path / str(n)
        folder.mkdir()
        log = LogWriter(Store(url=f"sqlite:///{folder}/log.db"), now=lambda: 1.0)
        for number in range(n):
            name = f"e{number:06}"
            log.append(replace(seen, episode_id=name))
            if number not in (n - 900, n - 1):
                log.append(replace(ended, episode_id=name))
            if number % 1_000 == 999:
                assert log.drain()
        assert log.drain()
        with closing(sqlite3.connect(folder / "log.db")) as live, closing(sqlite3.connect(folder / "dead.db")) as copy:
            live.backup(copy)  # whose owner has no lock there, as after a kill
        log.close()
        later = LogWriter(Store(url=f"sqlite:///{folder}/dead.db"), now=lambda: 2.0)
        with counted(monkeypatch) as count:
            assert later.recover() == 2
            took.append(count())
        later.close()
        lost = [
            one.event.episode_id
            for one in read_events(folder / "dead.db")
            if isinstance(one.event, Outcome) and one.event.end_reason == "lost"
        ]
        assert lost == [f"e{n - 900:06}", f"e{n - 1:06}"]
    assert took[1] < 1.2 * took[0]


def test_a_log_whose_secret_is_gone_says_so_and_a_new_log_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("SUFFICE_SALT", raising=False)
    report = settings_for("http://127.0.0.1:1", tmp_path, routes={"r": ROUTE})

    def opened() -> str:
        caplog.clear()
        begun = startup.open_known_log(report)
        begun.log.append(traffic(1, seed=9)[0])
        begun.log.close()
        return caplog.text

    assert "secret is missing" not in opened()
    assert "secret is missing" not in opened()
    (tmp_path / "log.salt").unlink()
    text = opened()
    assert "secret is missing on this machine" in text
    assert "log.salt" in text
    assert "secret is missing" not in opened(), "there is a new one"
    monkeypatch.setenv("SUFFICE_SALT", "given")
    (tmp_path / "log.salt").unlink()
    assert "secret is missing" not in opened()
