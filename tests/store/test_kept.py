"""A connection that stays open between looks: it misses nothing, waits for nobody, and follows the file's name."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from suffice.errors import StoreError
from suffice.store.database.sqlite import SqliteLog
from suffice.store.database.views import CachedReader
from tests.store.test_views import ended, said, seen

Open = Callable[..., SqliteLog]
COUNT = "SELECT count(*) FROM events WHERE kind = 'request'"


@pytest.fixture
def reader(database: Path) -> Iterator[CachedReader]:
    with closing(CachedReader(database)) as kept:
        yield kept


def n_requests(reader: CachedReader) -> int:
    with reader.reading() as connection:
        return int(connection.execute(COUNT).fetchone()[0])


def write(log: SqliteLog, *names: str) -> None:
    for name in names:
        assert log.append(seen(name))
    assert log.drain()


def test_every_commit_is_something_new_until_it_was_looked_at(open_log: Open, reader: CachedReader) -> None:
    log = open_log(flush_ms=0)
    assert reader.has_new(), "nobody has looked yet"
    for n in range(5):
        assert n_requests(reader) == n
        assert not reader.has_new()
        assert not reader.has_new(), "to ask is not to look"
        write(log, f"e{n}")
        assert reader.has_new()
    assert log.append(ended("e0"))
    assert log.drain()
    assert n_requests(reader) == 5
    assert not reader.has_new()


def test_rows_that_nobody_looks_at_are_nothing_new_and_hide_nothing(open_log: Open, database: Path) -> None:
    log = open_log(flush_ms=0)
    with closing(CachedReader(database, besides=frozenset({"request", "outcome"}))) as reader:
        n_requests(reader)
        for n in range(3):
            write(log, f"e{n}")
            assert log.append(ended(f"e{n}"))
            assert log.drain()
            assert not reader.has_new()
        assert log.append(said("f"))
        write(log, "behind it")
        assert reader.has_new(), "one row of another kind among them"
        assert reader.has_new(), "and it stays so until it was looked at"
        assert n_requests(reader) == 4
        assert not reader.has_new()
        write(log, *(f"many{n}" for n in range(200)))
        assert reader.has_new(), "so many are not gone through"
        n_requests(reader)
        with closing(sqlite3.connect(database)) as other, other:
            other.execute("DELETE FROM owners WHERE id < 0")
            other.execute("UPDATE owners SET pid = pid + 1")
        assert reader.has_new(), "a commit that is no row"


def test_what_is_read_in_one_look_is_one_state_and_what_came_meanwhile_is_new(
    open_log: Open, reader: CachedReader
) -> None:
    log = open_log(flush_ms=0)
    write(log, "before")
    with reader.reading() as connection:
        first = connection.execute(COUNT).fetchone()
        write(log, "meanwhile")
        assert connection.execute(COUNT).fetchone() == first
    assert reader.has_new()
    assert n_requests(reader) == 2


def test_a_look_holds_nothing_when_it_is_over(
    open_log: Open, reader: CachedReader, query: Callable[..., list[tuple[int, ...]]]
) -> None:
    write(open_log(flush_ms=0), "a")
    n_requests(reader)
    reader.has_new()
    assert query("PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0, "a checkpoint was blocked"


def test_another_file_of_the_same_name_is_read(open_log: Open, reader: CachedReader, database: Path) -> None:
    write(open_log(flush_ms=0), "a", "b")
    assert n_requests(reader) == 2
    away = database.with_name("away")
    for part in ("", "-wal", "-shm"):
        Path(f"{database}{part}").rename(f"{away}{part}")
    assert reader.has_new()
    with pytest.raises(StoreError, match="no such file"):
        n_requests(reader)
    assert reader.has_new(), "a look that failed was none"
    write(open_log(flush_ms=0), "c")
    assert n_requests(reader) == 1
    assert not reader.has_new()


def test_a_file_that_is_none_of_ours_is_refused_at_each_look(reader: CachedReader, database: Path) -> None:
    with closing(sqlite3.connect(database)) as other:
        other.execute("CREATE TABLE theirs (x)")
    for _ in range(2):
        with pytest.raises(StoreError, match="another program"):
            n_requests(reader)
        assert reader.has_new()


def test_whether_there_is_anything_new_waits_for_nobody(open_log: Open, reader: CachedReader) -> None:
    """Neither for a look in another thread nor for a process that holds the file for itself."""
    log = open_log(flush_ms=0)
    n_requests(reader)
    looks, looked = threading.Event(), threading.Event()

    def look() -> None:
        with reader.reading():
            looks.set()
            looked.wait(60)

    thread = threading.Thread(target=look)
    thread.start()
    assert looks.wait(60)
    began_s = time.monotonic()
    assert reader.has_new()
    assert time.monotonic() - began_s < 30
    looked.set()
    thread.join()
    log.close()
    with closing(sqlite3.connect(log.path, isolation_level=None, timeout=0)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("BEGIN EXCLUSIVE")
        began_s = time.monotonic()
        reader.has_new()
        assert time.monotonic() - began_s < 1
        other.execute("ROLLBACK")
