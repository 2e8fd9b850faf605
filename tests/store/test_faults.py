"""What was acknowledged survives kill -9, locks and full disks; what was not is counted."""

from __future__ import annotations

import multiprocessing
import pickle
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from suffice.errors import StoreError
from suffice.settings import Store
from suffice.store.database import postgres, schema, sqlite, writer
from suffice.store.database.location import LogLocation
from suffice.store.database.postgres import PostgresDatabase
from suffice.store.database.writer import LogWriter
from suffice.types import Outcome
from tests.store.feedback_sender import FINISHED, feedback, seen, send_feedback

PROCESSES = multiprocessing.get_context("forkserver")  # which imports once for all that it starts
PROCESSES.set_forkserver_preload([send_feedback.__module__])
Open = Callable[..., LogWriter]
Query = Callable[..., list[tuple[Any, ...]]]


class Sender:
    """Another process: one open request, then feedback for ever, each told once acknowledged."""

    def __init__(self, store: Store, run: str, n_feedback: int = 1_000_000) -> None:
        self.receiver, theirs = PROCESSES.Pipe(duplex=False)
        self.process = PROCESSES.Process(target=send_feedback, args=(store, run, n_feedback, theirs))
        self.process.start()
        theirs.close()

    def rest(self) -> Iterator[str]:
        """What else it tells before it ends or is killed; half a name is none."""
        with self.receiver, suppress(EOFError, OSError, pickle.UnpicklingError):
            while True:
                yield self.receiver.recv()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def silence(database: LogLocation) -> None:
    """Let the time pass after which a process without a sign of life counts as dead, where there are signs."""
    if isinstance(database, PostgresDatabase):
        with database.transaction() as connection:
            connection.execute("UPDATE owners SET beat_s = 0")


def ended(episode_id: str) -> Outcome:
    return Outcome(episode_id=episode_id, end_reason="done", status=200, answer="4", response_id=None, usage=None)


def test_acknowledged_feedback_survives_kill_9(
    open_log: Open, store: Store, database: LogLocation, query: Query
) -> None:
    rng, acknowledged = random.Random(1), list[str]()
    for run in range(20):
        sender = Sender(store, str(run))
        acknowledged += [sender.receiver.recv() for _ in range(rng.randint(1, 12))]
        time.sleep(rng.uniform(0, 0.005))
        sender.kill()
        acknowledged += sender.rest()
    kept = {row[0] for row in query("SELECT feedback_id FROM feedback")}
    assert len(acknowledged) >= 20
    assert set(acknowledged) <= kept
    # The same twenty deaths left twenty requests without an end.
    silence(database)
    log = open_log()
    assert log.recover() == 20
    assert query("SELECT end_reason, count(*) FROM outcomes GROUP BY 1") == [("lost", 20)]
    assert query("SELECT count(*) FROM requests") == [(20,)]
    assert log.recover() == 0
    if isinstance(database, Path):
        assert not [path for path in database.parent.iterdir() if path.suffix == ".lock"][1:], "one lock: ours"


def test_requests_of_a_living_process_are_not_lost(
    open_log: Open, store: Store, database: LogLocation, query: Query
) -> None:
    sender = Sender(store, "living", n_feedback=5)
    while sender.receiver.recv() != FINISHED:
        pass
    log = open_log()
    log.append(seen("mine"))
    assert log.drain()
    assert log.recover() == 0
    assert query("SELECT count(*) FROM requests") == [(2,)]
    sender.kill()
    silence(database)
    assert log.recover() == 1
    assert query("SELECT episode_id, end_reason FROM outcomes") == [("open-living", "lost")]


def test_a_process_that_closed_in_order_may_leave_requests_too(open_log: Open, query: Query) -> None:
    first = open_log()
    for name in ("ended", "open"):
        first.append(seen(name))
    first.append(ended("ended"))
    assert first.drain()
    second = open_log()
    assert second.recover() == 0, "two logs of one process do not touch each other's requests"
    first.close()
    assert second.recover() == 1
    assert query("SELECT episode_id, end_reason FROM outcomes ORDER BY 1") == [("ended", "done"), ("open", "lost")]


def test_several_processes_write_one_log(store: Store, query: Query) -> None:
    senders = [Sender(store, name, n_feedback=40) for name in ("a", "b", "c")]
    for sender in senders:
        while sender.receiver.recv() != FINISHED:
            pass
        sender.kill()
    assert query("SELECT count(*), count(DISTINCT feedback_id) FROM feedback") == [(3 * 4 * 40,) * 2]


@pytest.mark.sqlite_only
def test_a_new_file_that_another_process_is_making_is_waited_for(tmp_path: Path) -> None:
    """SQLite refuses at once, time-out or not, to change the journal of a file that somebody is about to write."""
    path = tmp_path / "new.db"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        done = threading.Timer(0.5, other.execute, ["ROLLBACK"])
        done.start()
        _, owner = sqlite.SqliteDatabase(path).enter(now_s=0.0)
        done.join()
    assert owner == 1


@pytest.mark.sqlite_only
@pytest.mark.parametrize("at", range(1, 7))
def test_a_log_that_another_process_creates_meanwhile_is_not_taken_for_a_foreign_file(tmp_path: Path, at: int) -> None:
    path, statements = tmp_path / "new.db", count(1)

    def create(_statement: str) -> None:
        if next(statements) == at:
            with closing(sqlite3.connect(path, timeout=0.0, isolation_level=None)) as other:
                with suppress(sqlite3.OperationalError):  # the file is being read
                    schema.create(other, str(path))

    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.set_trace_callback(create)
        assert schema.check_version(connection, str(path)) in {0, schema.VERSION}


def test_a_second_of_exclusive_lock_loses_nothing_and_stops_nobody(
    open_log: Open,
    database: LogLocation,
    query: Query,
    locked: Callable[[], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = open_log()
    held, enough, slowest_s, i = threading.Event(), threading.Event(), 0.0, 0

    def hold() -> None:
        with locked():
            held.set()
            time.sleep(1.0)
            enough.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(60)
    while holder.is_alive():
        before = time.perf_counter()
        assert log.append(seen(f"e{i}"))
        assert log.append(ended(f"e{i}"))
        slowest_s = max(slowest_s, time.perf_counter() - before)
        time.sleep(0.001)
        i += 1
        if i > 50:  # appends went on all the time
            enough.set()
    holder.join()
    assert i > 50
    assert log.drain()
    assert slowest_s < 2.0, "an append never waits for the database"
    assert query("SELECT count(*), count(DISTINCT episode_id) FROM outcomes") == [(i, i)]
    assert query("SELECT count(*) FROM requests") == [(i,)]
    assert (log.n_written, log.n_dropped, log.n_failed) == (2 * i, 0, 0)
    assert log.n_retries > 0 or isinstance(database, PostgresDatabase), "which waits for the lock itself"
    n_warnings = sum("tried again" in record.getMessage() for record in caplog.records)
    assert n_warnings == min(1, log.n_retries), "one for all the attempts"


async def test_durable_feedback_fails_in_bounded_time_and_may_be_sent_again(
    open_log: Open, query: Query, locked: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert writer.DURABLE_TIMEOUT_S < 5.0, "as the interface promises"
    monkeypatch.setattr(writer, "DURABLE_TIMEOUT_S", 0.5)
    log = open_log()
    with locked():
        before = time.monotonic()
        with pytest.raises(StoreError, match="send it again with the same id"):
            await log.append_durable(feedback("f"))
        assert time.monotonic() - before < 20.0
    log.append(seen("e"))
    assert log.drain()
    assert query("SELECT count(*) FROM feedback") == [(0,)], "what was refused is not written behind the back"
    assert not (await log.append_durable(feedback("f"))).duplicate
    assert log.n_failed == 1


@contextmanager
def refusing(database: LogLocation, key: str) -> Iterator[None]:
    """Let the database refuse the row with this key."""
    if isinstance(database, PostgresDatabase):
        with database.transaction() as connection:
            connection.run_script(f"""
                CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN IF new.key = '{key}' THEN RAISE EXCEPTION 'the disk says no'; END IF; RETURN new; END $$;
                CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION refuse()""")
        yield
        with database.transaction() as connection:
            connection.run_script("DROP TRIGGER refuse ON events; DROP FUNCTION refuse")
        return
    with closing(sqlite3.connect(str(database))) as connection:
        connection.execute(
            f"CREATE TRIGGER refuse BEFORE INSERT ON events WHEN new.key = '{key}' "
            "BEGIN SELECT RAISE(ABORT, 'the disk says no'); END"
        )
    yield
    with closing(sqlite3.connect(str(database))) as connection:
        connection.execute("DROP TRIGGER refuse")


@pytest.mark.parametrize("k", [0, 1, 7, 19])
async def test_a_batch_that_fails_at_its_kth_row_is_written_once_in_the_end(
    open_log: Open, database: LogLocation, query: Query, k: int
) -> None:
    log = open_log()
    with refusing(database, f"e{k}"):
        for i in range(20):
            log.append(seen(f"e{i}"))
        with pytest.raises(StoreError, match="the disk says no"):
            await log.append_durable(feedback("f"))
        assert query("SELECT count(*) FROM requests") == [(0,)], "a batch is written whole or not at all"
    assert log.drain()
    assert query("SELECT episode_id FROM requests ORDER BY seq") == [(f"e{i}",) for i in range(20)]
    assert log.n_written == 20


# Run as another process, because a process cannot undo a hard limit on the size of its files.
FULL_DISK = """
import asyncio, resource, sys, time
from suffice.errors import StoreError
from suffice.settings import Store
from suffice.store.rows.events import FeedbackEvent
from suffice.store.database.writer import LogWriter
from suffice.types import Feedback

log = LogWriter(Store(url=f"sqlite:///{sys.argv[1]}"), now=time.time)
said = lambda name: FeedbackEvent(Feedback(feedback_id=name, comment="x" * 2000))
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
kept = []
for i in range(1000):
    before = time.monotonic()
    try:
        asyncio.run(log.append_durable(said(f"f{i}")))
    except StoreError as error:
        assert time.monotonic() - before < 30, "bounded"
        break
    kept.append(i)
assert 1 < len(kept) < 999, kept
waiting = [log.append(said(f"later{i}")) for i in range(10)]
assert all(waiting), "the data path does not notice"
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert log.drain(60), "it recovers alone"
asyncio.run(log.append_durable(said("after")))
log.close()
print(len(kept), log.n_failed, flush=True)
"""


@pytest.mark.sqlite_only  # of a server, it is in tests/replicas/test_outage.py
def test_a_full_disk_fails_feedback_keeps_the_rest_and_recovers_alone(database: Path, query: Query) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(database)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    n_kept, n_failed = map(int, done.stdout.split())
    assert n_failed == 1
    names = [row[0] for row in query("SELECT feedback_id FROM feedback ORDER BY seq")]
    assert names == [*(f"f{i}" for i in range(n_kept)), *(f"later{i}" for i in range(10)), "after"]


def test_closing_while_the_database_is_locked_is_bounded_and_counts_what_is_left(
    open_log: Open, locked: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "LOCK_S", 1.0)  # for which a statement waits on the server
    log = open_log()
    with locked():
        log.append(seen("e"))
        before = time.monotonic()
        log.close(timeout_s=0.3)
        assert time.monotonic() - before < 20.0
    assert (log.n_written, log.n_failed) == (0, 1)


@pytest.mark.slow
def test_a_log_that_is_locked_at_start_says_so(store: Store, open_log: Open, locked: Callable[[], Any]) -> None:
    open_log().close()
    with locked(), pytest.raises(StoreError, match=r"another process has held it for [35] s"):
        LogWriter(store, now=time.time)
