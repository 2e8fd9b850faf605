"""What only a server can do to a log: vanish in the middle, be behind a pooler, be of another version, keep a clock."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner

from suffice.cli.main import main
from suffice.errors import ConfigError, StoreError
from suffice.settings import Store
from suffice.store.audit.chain import head
from suffice.store.audit.verify import verify_chain
from suffice.store.database import postgres, schema
from suffice.store.database.copying import copy_log
from suffice.store.database.decisions import Decisions, LeaseLost
from suffice.store.database.postgres import PostgresConnection, PostgresDatabase, PostgresError, postgres_database
from suffice.store.database.schema import Migration
from suffice.store.database.sqlite import SqliteDatabase
from suffice.store.database.views import last_place, open_reader, query_number, read_events
from suffice.store.database.writer import LogWriter
from suffice.store.sql import NamedQuery, load_queries
from tests.postgres import connect, empty_log
from tests.store.made_chain import named_request, published, story
from tests.store.test_log import ended, label


@pytest.fixture
def store() -> Iterator[Store]:
    with empty_log() as one:
        yield one


@pytest.fixture
def database(store: Store) -> PostgresDatabase:
    return postgres_database(store)


def opened(store: Store) -> LogWriter:
    return LogWriter(store, now=lambda: 1.0)


# ---- a server that goes away -------------------------------------------------------------------------


def end_backends(store: Store) -> None:
    """End the connections that work on the log, as a failover does."""
    with contextlib.closing(connect()) as connection, connection:
        connection.execute(
            """SELECT count(pg_terminate_backend(l.pid)) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
               JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = ? AND l.pid <> pg_backend_pid()""",
            (store.schema_name,),
        )


async def test_a_failover_in_the_middle_of_a_batch_loses_and_doubles_nothing(store: Store) -> None:
    log, n, until_s = opened(store), 0, time.monotonic() + 60.0
    is_over = threading.Event()

    def fail() -> None:
        while not is_over.wait(0.4):
            end_backends(store)

    failing = threading.Thread(target=fail)
    failing.start()
    try:
        while n < 300 or (log.n_retries == 0 and time.monotonic() < until_s):
            log.append(named_request(f"e{n}"))
            log.append(ended(f"e{n}"))
            if n % 10 == 0:
                receipt = await log.append_durable(label(n))
                assert not receipt.duplicate, "the row of an earlier attempt is the sender's own"
            n += 1
    finally:
        is_over.set()
        failing.join()
    assert await asyncio.to_thread(log.drain, 20.0)
    log.close()
    assert log.n_retries > 0, "there was a failover"
    assert log.n_dropped == log.n_failed == 0
    rows = [*read_events(log.database)]
    assert log.n_written == len(rows) == 2 * n + -(-n // 10)
    with open_reader(log.database) as reader:
        assert verify_chain(reader).ok


async def test_a_commit_whose_answer_is_lost_counts_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    log, lost = opened(store), list[str]()
    commit = PostgresConnection.commit

    def commit_and_lose(self: PostgresConnection) -> None:
        commit(self)
        if not lost and threading.current_thread().name == "suffice-store":
            lost.append("answer")
            raise PostgresError("connection was closed in the middle of operation")

    monkeypatch.setattr(PostgresConnection, "commit", commit_and_lose)
    log.append(named_request("e1"))
    receipt = await log.append_durable(label(1))
    assert lost
    assert not receipt.duplicate
    assert log.n_written == len([*read_events(log.database)]) == 2
    log.close()
    other = opened(store)
    assert other.recover() == 1, "the request was known to be open"
    other.close()


def test_a_server_that_is_not_there_is_named_without_its_password(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hunter2\n")
    store = Store(url="postgresql://ann@127.0.0.1:9/db", password_file=str(tmp_path / "password"))
    with pytest.raises(StoreError, match=r"postgresql://127\.0\.0\.1:9/db") as refused:
        opened(store)
    assert "hunter2" not in str(refused.value)
    assert "hunter2" not in repr(postgres_database(store))


# ---- time --------------------------------------------------------------------------------------------


def test_a_query_that_takes_too_long_ends(store: Store) -> None:
    opened(store).close()
    database = postgres_database(Store(url=store.url, schema_name=store.schema_name, statement_timeout_s=0.2))
    with pytest.raises(StoreError, match=r"longer than 0\.2 s"), database.reader() as reader:
        reader.execute("SELECT pg_sleep(5)")
    with database.reader() as reader:
        assert query_number(reader, "SELECT 7") == 7, "and the next one begins anew"


def test_a_reader_that_nobody_waits_for_is_interrupted(store: Store) -> None:
    opened(store).close()
    began_s = time.monotonic()
    with pytest.raises(StoreError), open_reader(postgres_database(store), is_over=lambda: True) as reader:
        reader.execute("SELECT pg_sleep(5)")
    assert time.monotonic() - began_s < 3


def decisions(database: PostgresDatabase, *, now_s: float, lease_s: float = 30.0) -> Decisions:
    return Decisions(database, now=lambda: now_s, monotonic_s=lambda: 0.0, lease_s=lease_s)


def test_leases_end_by_the_servers_clock_whatever_the_machines_think(database: PostgresDatabase) -> None:
    with decisions(database, now_s=9e9, lease_s=0.5) as ahead, decisions(database, now_s=1.0) as behind:
        lease = ahead.acquire("certify")
        assert lease is not None
        assert behind.acquire("certify") is None
        ahead.renew(lease)
        time.sleep(0.6)
        taken = behind.acquire("certify")
        assert taken is not None
        with pytest.raises(LeaseLost):
            ahead.write(lease, [published(1)])
        assert behind.write(taken, [published(1)]) == [True]


def test_a_process_without_a_beat_is_dead_and_comes_back_with_one(
    database: PostgresDatabase, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = opened(store), opened(store)
    one.append(named_request("e1"))
    assert one.drain()
    with database.transaction() as connection:
        connection.execute("UPDATE owners SET beat_s = beat_s - 61")
    started = "now() - CAST('{} s' AS INTERVAL)"
    in_query = postgres._IS_ALIVE.replace("pg_postmaster_start_time()", started)
    monkeypatch.setattr(postgres, "_IS_ALIVE", in_query.format(50))
    assert other.recover() == 0, "the server has not been there for long enough to hear anybody"
    monkeypatch.setattr(postgres, "_IS_ALIVE", in_query.format(70))
    other._failed_s = time.monotonic() - 50
    assert other.recover() == 0, "this process could not write, and so perhaps the others"
    other._failed_s = time.monotonic() - 70
    assert other.recover() == 1
    with database.transaction() as connection:
        database.beat(connection, 1)
        assert database.is_alive(connection, 1)
    one.append(ended("e1"))
    assert one.drain()
    assert query_number(database, "SELECT count(*) FROM events WHERE kind = 'outcome'") == 1, "counted once"
    for log in (one, other):
        log.close()


# ---- a pooler ----------------------------------------------------------------------------------------


@pytest.fixture
def pooled(store: Store) -> Iterator[Store]:
    """The log behind a pooler in transaction mode with two connections to the server."""
    pooler = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if pooler is None:
        pytest.skip("needs pgbouncer")
    parts = urlsplit(store.url)
    options = parse_qs(parts.query)
    host = options.get("host", [parts.hostname or "127.0.0.1"])[0]
    server_port = options.get("port", [str(parts.port or 5432)])[0]
    owner = Path(host).owner() if host.startswith("/") else "nobody"  # a server refuses to run as root
    group = str(pwd.getpwnam(owner).pw_gid)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="pooler"))  # which another user can read
    user = parts.username or "postgres"
    (folder / "users.txt").write_text(f'"{user}" ""\n')
    (folder / "pooler.ini").write_text(f"""
[databases]
* = host={host} port={server_port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users.txt
pool_mode = transaction
default_pool_size = 2
""")
    for file in (folder, folder / "users.txt", folder / "pooler.ini"):
        file.chmod(0o755)
    with subprocess.Popen(
        ["setpriv", "--reuid", owner, "--regid", group, "--clear-groups", pooler, str(folder / "pooler.ini")]
    ) as process:
        try:
            for _ in range(100):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.05)
            yield Store(url=f"postgresql://{user}@127.0.0.1:{port}{parts.path}", schema_name=store.schema_name)
        finally:
            process.kill()  # asked to end, it would wait for its clients
            shutil.rmtree(folder)


def test_behind_a_pooler_in_transaction_mode_nothing_depends_on_a_session(pooled: Store) -> None:
    logs = [opened(pooled) for _ in range(3)]
    for number, event in enumerate(story(60)):
        logs[number % 3].append(event)
    assert all(log.drain(20.0) for log in logs)
    with contextlib.ExitStack() as held:
        readers = [held.enter_context(open_reader(logs[0].database)) for _ in range(1)]
        for _ in range(3):
            assert len([*itertools.chain(*(read_events(reader) for reader in readers))]) == 1 + 2 * 60 + 15 + 1
        assert verify_chain(readers[0]).ok
    with decisions(postgres_database(pooled), now_s=1.0) as writer:
        assert writer.acquire("certify") is not None
    for log in logs:
        log.close()


# ---- versions ----------------------------------------------------------------------------------------

REAL = schema.MIGRATIONS
NEWEST = REAL[-1].version
ADDITION, CHANGE = Migration(NEWEST + 1, NEWEST), Migration(NEWEST + 2, NEWEST + 1)


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> dict[str, NamedQuery]:
    """Queries of PostgreSQL, which a test may add to."""
    queries = load_queries("postgres")
    monkeypatch.setitem(queries, ADDITION.name, NamedQuery("ALTER TABLE events ADD COLUMN note TEXT", ()))
    monkeypatch.setitem(queries, CHANGE.name, NamedQuery("ALTER TABLE events DROP COLUMN note", ()))
    return queries


@pytest.mark.usefixtures("scripts")
def test_a_gateway_survives_one_version_of_the_schema_and_not_two(
    store: Store, database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, fresh = opened(store), Store(url=store.url, schema_name=store.schema_name, statement_timeout_s=29.0)
    monkeypatch.setattr(schema, "MIGRATIONS", (*REAL, ADDITION))
    with pytest.raises(StoreError, match="suffice store migrate"), open_reader(postgres_database(fresh)):
        pass
    assert database.migrate(now_s=2.0) == 1
    assert database.migrate(now_s=2.0) == 0, "again does nothing"
    monkeypatch.setattr(schema, "MIGRATIONS", REAL)
    old.append(named_request("e1"))
    assert old.drain()
    opened(store).close()
    monkeypatch.setattr(schema, "MIGRATIONS", (*REAL, ADDITION, CHANGE))
    assert database.migrate(now_s=3.0) == 1
    monkeypatch.setattr(schema, "MIGRATIONS", REAL)
    with (
        pytest.raises(StoreError, match=f"needs a gateway of schema {NEWEST + 1}"),
        open_reader(postgres_database(fresh)),
    ):
        pass
    old.close()


def set_back(store: Store, *, version: int) -> None:
    """Give the log an earlier schema, without the tables of the migrations since."""
    opened(store).close()
    with closing(connect(schema=store.schema_name)) as connection, connection:
        connection.begin("READ WRITE")
        connection.run_script("DROP TABLE fold_states; DROP TABLE watches")
        connection.run_script(f"UPDATE schema_versions SET version = {version} WHERE version = 18")
        connection.run_script("DELETE FROM schema_versions WHERE version > 18")


def test_a_log_of_schema_18_gets_what_it_lacks(store: Store, database: PostgresDatabase) -> None:
    set_back(store, version=18)
    fresh = Store(url=store.url, schema_name=store.schema_name, statement_timeout_s=29.0)
    with pytest.raises(StoreError, match="run `suffice store migrate`"), open_reader(postgres_database(fresh)):
        pass
    assert database.migrate(now_s=2.0) == 3
    with database.reader() as connection:
        assert connection.execute("SELECT seq FROM fold_states").fetchall() == []
        assert connection.execute("SELECT seq FROM watches").fetchall() == []
        assert connection.execute("SELECT finished_unread FROM outcomes").fetchall() == []
    opened(store).close()


def test_a_log_that_is_too_old_is_refused_and_left_alone(store: Store, database: PostgresDatabase) -> None:
    set_back(store, version=17)
    with pytest.raises(StoreError, match="has schema 17, written by an older version"):
        database.migrate(now_s=2.0)
    with closing(connect(schema=store.schema_name)) as connection, connection:
        assert connection.execute("SELECT max(version) FROM schema_versions").fetchone()[0] == 17


def test_a_migration_that_fails_changes_nothing(
    store: Store, database: PostgresDatabase, scripts: dict[str, NamedQuery], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(store).close()
    scripts[ADDITION.name] = NamedQuery("ALTER TABLE events ADD COLUMN note TEXT; SELECT 1 / 0", ())
    monkeypatch.setattr(schema, "MIGRATIONS", (*REAL, ADDITION))
    with pytest.raises(StoreError, match="division by zero"):
        database.migrate(now_s=2.0)
    monkeypatch.setattr(schema, "MIGRATIONS", REAL)
    with open_reader(database) as reader:
        assert query_number(reader, "SELECT max(version) FROM schema_versions") == NEWEST
        columns = "SELECT count(*) FROM information_schema.columns WHERE table_schema = ? AND column_name = 'note'"
        assert query_number(reader, columns + " AND table_name = 'events'", (store.schema_name,)) == 0


def test_two_processes_make_one_schema(store: Store) -> None:
    made = list[LogWriter]()
    threads = [threading.Thread(target=lambda: made.append(opened(store))) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(made) == 4
    for log in made:
        log.close()


# ---- settings ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"url": "postgresql://ann:hunter2@db/x"}, "holds a password"),
        ({"url": "postgresql://ann@db/x?password=hunter2"}, "holds a password"),
        ({"url": "postgresql://ann@db/x", "schema_name": 'a"; DROP'}, "lower-case name"),
        ({"url": "postgresql://ann@db/x", "password_env": "A", "password_file": "b"}, "name one place"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        postgres_database(Store(**wrong))
    assert "hunter2" not in str(refused.value)


def test_tls_is_in_the_words_of_libpq() -> None:
    database = postgres_database(Store(url="postgresql://ann@db/x", sslmode="verify-full", ca_file="/etc/ca.pem"))
    assert database.url == "postgresql://ann@db/x?sslmode=verify-full&sslrootcert=%2Fetc%2Fca.pem"


def test_a_setting_of_the_server_may_stand_in_the_url(store: Store) -> None:
    named = f"{store.url}{'&' if '?' in store.url else '?'}options=-c%20enable_seqscan%3Doff"
    there = Store(url=named, schema_name=store.schema_name)
    opened(there).close()
    with open_reader(postgres_database(there)) as reader:
        assert reader.execute("SHOW enable_seqscan").fetchone() == ("off",)


# ---- moving a log ------------------------------------------------------------------------------------


def filled_file(path: Path) -> SqliteDatabase:
    log = LogWriter(Store(url=f"sqlite:///{path}"), now=lambda: 1.0)
    for event in story(60):
        log.append(event)
    log.append(named_request("open"))
    log.close()
    return SqliteDatabase(path)


def test_a_copied_log_is_the_same_to_the_last_link_and_goes_on(
    store: Store, database: PostgresDatabase, tmp_path: Path
) -> None:
    source = filled_file(tmp_path / "a.db")
    copied = copy_log(source, database, now_s=2.0)
    assert [*read_events(source)] == [*read_events(database)]
    with open_reader(source) as log:
        assert head(log) == copied.head
    log_there = opened(store)
    log_there.append(published(99))
    assert log_there.drain()
    assert log_there.recover() == 61, "the requests that were open in the file"
    log_there.close()
    with open_reader(database) as reader:
        assert verify_chain(reader, [copied.head]).ok


def test_a_log_is_copied_into_an_empty_schema_and_not_while_it_is_open(
    database: PostgresDatabase, tmp_path: Path
) -> None:
    source = filled_file(tmp_path / "a.db")
    using = LogWriter(Store(url=f"sqlite:///{source.path}"), now=lambda: 1.0)
    with pytest.raises(StoreError, match="processes have it open"):
        copy_log(source, database, now_s=2.0)
    using.close()
    copy_log(source, database, now_s=2.0)
    with pytest.raises(StoreError, match="into an empty schema"):
        copy_log(source, database, now_s=2.0)


def test_a_log_that_was_tampered_with_is_said_to_be(database: PostgresDatabase, tmp_path: Path) -> None:
    source = filled_file(tmp_path / "a.db")
    with source.transaction() as connection:
        connection.execute("UPDATE events SET body = replace(body, 'comment 1', 'comment 2') WHERE kind = 'feedback'")
    with pytest.raises(StoreError, match="edited"):
        copy_log(source, database, now_s=2.0)


def test_the_commands_move_a_log_and_say_what_it_is(store: Store, tmp_path: Path) -> None:
    filled_file(tmp_path / "a.db")
    config = tmp_path / "suffice.toml"
    config.write_text(f'[store]\nurl = "{store.url}"\nschema_name = "{store.schema_name}"\n', "utf-8")

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["store", *arguments, "--config", str(config)])
        assert result.exit_code == 0, result.output
        return result.output

    assert f"{1 + len(REAL)} migrations ran" in run("migrate")
    assert "of this version already" in run("migrate")
    assert "the chain is intact" in run("copy", str(tmp_path / "a.db"))
    assert json.loads(run("check", "--json"))["last_row"] == last_place(postgres_database(store))
    assert "PostgreSQL" in run("check")
