"""The log's files are damaged, cut, old, or their writer dies in the middle: refused in words, or whole."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from suffice.errors import StoreError
from suffice.settings import Store
from suffice.store.audit.verify import ChainCheck, verify_chain
from suffice.store.database import schema
from suffice.store.database.decisions import read_artefact
from suffice.store.database.sqlite import SqliteConnection
from suffice.store.database.views import open_reader, read_events
from suffice.store.database.writer import LogWriter
from suffice.store.routes.deployments import read_decided
from suffice_testing import FakeUpstream, Samples
from tests.gateway_process import GatewayProcess
from tests.store.made_chain import feedback, head_of, made, open_made, story, write

# A process that forks one publisher after the other: each publishes without end until it is killed.
PUBLISHER = """
import os, sys, time
from pathlib import Path
from suffice.store.database.decisions import Decisions
from suffice.store.routes.deployments import read_decided
from suffice.types import Epoch
from tests.store.made_chain import published

path = Path(sys.argv[1])
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        with Decisions(path, now=time.time, monotonic_s=time.monotonic) as writer:
            number = began = read_decided(path).of("math").n_publications
            while True:
                number += 1
                epoch = Epoch(route="math", number=number, at=0, since_seq=0, reason="anew", author="w")
                one = published(number)
                writer.write(None, [epoch, one], {f"artefact {number}": "x" * 9_000, f"second {number}": "y" * 9_000})
                if number == began + 1:
                    print(os.getpid(), flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


def checked(database: Path) -> ChainCheck:
    with open_reader(database) as connection:
        return verify_chain(connection)


def test_a_publisher_that_is_killed_leaves_the_old_or_the_new_and_never_a_mix(tmp_path: Path) -> None:
    database, rng, seen = tmp_path / "log.db", random.Random(46), set[int]()
    LogWriter(Store(url=f"sqlite:///{database}"), now=lambda: 1.0).close()
    command = [sys.executable, "-c", PUBLISHER, str(database)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        for _ in range(40):
            parent.stdin.write("next\n")
            parent.stdin.flush()
            publisher = int(parent.stdout.readline())
            time.sleep(rng.uniform(0, 0.02))
            os.kill(publisher, signal.SIGKILL)
            assert parent.stdout.readline() == "dead\n"
            seen.add(whole_publications(database))
        parent.stdin.close()
    assert len(seen) == 40, "each published something before it died"
    log = LogWriter(Store(url=f"sqlite:///{database}"), now=lambda: 1.0)
    log.append(feedback(1))
    log.close()
    assert checked(database).ok


def whole_publications(database: Path) -> int:
    """How many publications there are, having seen that each is there with all that belongs to it."""
    with open_reader(database) as connection:
        assert verify_chain(connection).ok
        held = read_decided(connection).of("math")
        n_rows = connection.execute("SELECT count(*) FROM events").fetchone()[0]
        n_artefacts = connection.execute("SELECT count(*) FROM artefacts").fetchone()[0]
        n = held.n_publications
        assert (held.n_epochs, n_rows, n_artefacts) == (n, 2 * n, 2 * n)
        if n:
            assert read_artefact(connection, f"artefact {n}") == "x" * 9_000
    return n


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of some pages; not to be changed."""
    database = tmp_path_factory.mktemp("whole") / "log.db"
    open_made(database, 150)
    return database


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_byte_is_refused_in_words_or_found_or_was_in_no_row(whole: Path, tmp_path: Path, seed: int) -> None:
    rng, database = random.Random(seed), tmp_path / "log.db"
    content = bytearray(whole.read_bytes())
    at = rng.randrange(100, len(content))
    length = rng.choice([1, 8, 512])
    for place in range(at, min(len(content), at + length)):
        content[place] ^= rng.randrange(1, 256)
    database.write_bytes(content)
    verdict = opened_and_checked(database)
    if isinstance(verdict, str):
        assert str(database) in verdict or "row" in verdict
        return
    unchanged = all_rows(whole) == all_rows(database)
    # Requests stand in no chain: a letter of one may be another one now, as in any file.
    assert not verdict.ok or unchanged or chained_rows(whole) == chained_rows(database)


def opened_and_checked(database: Path) -> ChainCheck | str:
    """What `verify_chain` finds, or why the log is refused."""
    try:
        LogWriter(Store(url=f"sqlite:///{database}"), now=lambda: 1.0).close()
        list(read_events(database))
        return checked(database)
    except StoreError as error:
        return str(error)


def all_rows(database: Path) -> list[tuple[object, ...]]:
    return as_bytes(database, "SELECT seq, kind, key, body FROM events ORDER BY seq")


def chained_rows(database: Path) -> list[tuple[object, ...]]:
    return as_bytes(
        database, "SELECT e.seq, e.kind, e.key, e.at_s, e.body FROM chain c JOIN events e ON e.seq = c.seq ORDER BY 1"
    )


def as_bytes(database: Path, query: str) -> list[tuple[object, ...]]:
    """Damaged text need not be text any more."""
    with closing(sqlite3.connect(database)) as connection:
        connection.text_factory = bytes
        return connection.execute(query).fetchall()


def test_a_gateway_on_a_damaged_log_serves_all_the_same_and_says_what_to_do(whole: Path, tmp_path: Path) -> None:
    content = bytearray(whole.read_bytes())
    for at in range(8_192, len(content), 4_096):
        content[at : at + 64] = b"\xff" * 64
    (tmp_path / "log.db").write_bytes(content)
    with FakeUpstream.in_thread(Samples(["it is 4"])) as fake:
        settings = {"upstreams": {"u": {"url": fake.url}}, "routes": {"r": {"upstream": "u"}}}
        with GatewayProcess.serving(tmp_path, settings) as gateway:
            requested = urllib.request.Request(
                f"{gateway.url}/v1/chat/completions",
                json.dumps({"model": "m", "messages": [{"role": "user", "content": "how many?"}]}).encode(),
                {"content-type": "application/json"},
            )
            with urllib.request.urlopen(requested) as reply:
                assert "it is 4" in reply.read().decode()
            while "damaged" not in (errors := gateway.stderr().decode()):  # its log is read through meanwhile
                time.sleep(0.05)
    assert "restore a backup or name a new file: everything runs in full until it can be opened" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("kept", [0.0, 0.2, 0.5, 0.9, 0.97])
def test_a_write_ahead_log_that_is_cut_is_read_up_to_there_and_a_head_names_what_is_gone(
    tmp_path: Path, kept: float
) -> None:
    source, target = tmp_path / "log.db", tmp_path / "copy.db"
    with closing(made(source, 0)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for event in list(story(40))[1:]:
            write(connection, [event])
        head = head_of(connection)
        wal = source.with_name("log.db-wal").read_bytes()
        assert len(wal) > 50_000
        shutil.copy(source, target)
        target.with_name("copy.db-wal").write_bytes(wal[: int(len(wal) * kept)])
    LogWriter(Store(url=f"sqlite:///{target}"), now=lambda: 1.0).close()
    with open_reader(target) as connection:
        alone = verify_chain(connection)
        bad = verify_chain(connection, [head]).bad
    assert alone.ok, "what is left is whole"
    assert alone.n_rows < head.place
    assert bad is not None
    assert bad.what == f"cut off: a head at place {head.place} was exported"


@pytest.mark.parametrize(("version", "way"), [(16, "an older version"), (schema.VERSION + 1, "upgrade")])
def test_a_log_of_another_version_is_refused_and_left_alone(tmp_path: Path, version: int, way: str) -> None:
    database = tmp_path / "log.db"
    LogWriter(Store(url=f"sqlite:///{database}"), now=lambda: 1.0).close()
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(StoreError, match=f"has schema {version}, .*{way}.* or name a new file"):
        LogWriter(Store(url=f"sqlite:///{database}"), now=lambda: 1.0)
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (version,)


def test_a_backup_that_is_taken_while_somebody_writes_is_whole_and_a_later_head_says_what_it_lacks(
    tmp_path: Path,
) -> None:
    source, backup = tmp_path / "log.db", tmp_path / "backup.db"
    log = LogWriter(Store(url=f"sqlite:///{source}"), now=time.time)
    for number in range(300):
        log.append(feedback(number))
        if number == 150:
            assert log.drain()
            with closing(sqlite3.connect(source)) as live, closing(sqlite3.connect(backup)) as copy:
                live.backup(copy)
    log.close()
    with closing(SqliteConnection(source, isolation_level=None)) as connection:
        head = head_of(connection)
    LogWriter(Store(url=f"sqlite:///{backup}"), now=time.time).close()
    with open_reader(backup) as connection:
        assert verify_chain(connection).ok
        bad = verify_chain(connection, [head]).bad
    assert bad is not None
    assert bad.place is not None
    assert 150 < bad.place <= 302
