"""Floods: half-open connections, more than there are descriptors or than a limit lets in, keep nobody out."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from suffice_testing import FakeRequest, FakeUpstream, Reply
from tests.attacks.raw_http import (
    BODY,
    CHAT,
    GET,
    LAST,
    LENGTH,
    WAIT_S,
    connect,
    healthz,
    port_of,
    read_to_end,
    request,
    statuses,
    talk,
)
from tests.fake_models import EchoNonce
from tests.gateway_process import GatewayProcess, nested_toml


def slowly(seen: FakeRequest) -> Reply:
    """A stream without an end in sight, where the prompt says slow; else a short answer."""
    return Reply(reasoning=("so\n",) * 4_000, answer=("4",), delay_s=0.05) if "slow" in seen.text else Reply()


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeUpstream]:
    with FakeUpstream.in_thread(EchoNonce(n_reasoning=2, n_answer=1)) as upstream:
        yield upstream


@contextlib.contextmanager
def limited(folder: Path, settings: dict[str, Any], n_descriptors: int) -> Iterator[tuple[str, int]]:
    """`suffice serve` as a process that may have so many descriptors, and no more."""
    raw = {**settings, "store": {"url": f"sqlite:///{folder / 'log.db'}"}}
    (folder / "suffice.toml").write_text(nested_toml(raw), encoding="utf-8")
    code = "from suffice.cli.main import main; main()"
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [
        "sh",
        "-c",
        f'ulimit -n {n_descriptors}; exec "$0" "$@"',
        sys.executable,
        "-c",
        code,
        "serve",
        "--config",
        str(folder / "suffice.toml"),
        "--port",
        "0",
        "--no-access-log",
    ]
    with (folder / "limited.txt").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": paths})
    try:
        end_s = time.monotonic() + WAIT_S
        while not (result := re.search(rb"listening on (\S+)/v1", (folder / "limited.txt").read_bytes())):
            assert time.monotonic() < end_s, (folder / "limited.txt").read_text()
            assert process.poll() is None, (folder / "limited.txt").read_text()
            time.sleep(0.02)
        yield result[1].decode(), process.pid
        process.terminate()
        assert process.wait(WAIT_S) == 0
    finally:
        process.kill()
        process.wait()


def children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def half_open(port: int, n: int, sent: bytes = GET) -> list[socket.socket]:
    """So many connections that a client has left half-way; those that are closed at once count, too."""
    opened = []
    for i in range(n):
        client = connect(port)
        with contextlib.suppress(OSError):
            client.sendall(sent if i % 2 else b"")
        opened.append(client)
    return opened


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, fake: FakeUpstream) -> Iterator[tuple[str, int, Path]]:
    """A gateway with 256 descriptors that has its worker: address, process, and what it wrote."""
    if not Path("/proc/self/task").exists():
        pytest.skip("finds the worker in /proc")
    folder = tmp_path_factory.mktemp("small")
    settings = {"upstreams": {"up": {"url": fake.url}}, "routes": {"r": {"upstream": "up"}}}
    with limited(folder, settings, 256) as (url, pid):
        yield url, pid, folder / "limited.txt"


N_WORKERS = 2  # processes: one looks at what is certified, one does everything else
FLOODS: dict[str, tuple[int, bytes]] = {
    "unfinished heads, while the worker begins": (600, b"POST /v1/chat"),
    "unfinished bodies": (600, request(LENGTH)[:-1]),
    "no byte at all": (600, b""),
    "two thousand of each kind": (2_000, b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"),
}


@pytest.mark.parametrize("name", FLOODS)
def test_half_open_connections_keep_nobody_out(small: tuple[str, int, Path], name: str) -> None:
    """The process and its worker live, and others are served."""
    url, pid, report = small
    n, sent = FLOODS[name]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < n + 200:
        pytest.skip(f"needs {n + 200} descriptors; the limit is {hard}")
    with more_descriptors(n + 200):
        attackers = half_open(port_of(url), n, sent)
        try:
            end_s = time.monotonic() + WAIT_S
            while len(children(pid)) < N_WORKERS:  # at the first case it begins its worker in the middle of the flood
                assert time.monotonic() < end_s
                assert healthz(url) == 200
                time.sleep(0.1)
            for _ in range(10):
                assert healthz(url) == 200
                requested = urllib.request.Request(url + CHAT, BODY, {"content-type": "application/json"})
                with urllib.request.urlopen(requested, timeout=WAIT_S) as reply:
                    assert reply.status == 200
            n_open = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            assert n_open < 256 - 20, "some are left for the log and the worker"
            assert len(children(pid)) == N_WORKERS
        finally:
            for client in attackers:
                client.close()
    assert "worker" not in report.read_text(), "it never ended, and could be started"
    assert "Too many open files" not in report.read_text()
    assert "suffice.access" not in report.read_text(), "a flag turns it off"


@contextlib.contextmanager
def more_descriptors(n: int) -> Iterator[None]:
    """Let this process have so many while the block lasts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, n), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


LIMITS: dict[str, dict[str, Any]] = {
    "in total": {"max_connections": 4},
    "from one address": {"max_connections_per_address": 4},
}


@pytest.mark.parametrize("name", LIMITS)
def test_requests_that_came_whole_are_never_given_up_for_a_newcomer(tmp_path: Path, name: str) -> None:
    with FakeUpstream.in_thread(slowly) as upstream:
        settings = {
            "server": {**LIMITS[name], "grace_s": 0.1},
            "upstreams": {"up": {"url": upstream.url}},
            "control": {"enabled": False},
        }
        body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "slow"}]}).encode()
        with GatewayProcess.serving(tmp_path, settings) as one, contextlib.ExitStack() as stack:
            port = port_of(one.url)
            live = [stack.enter_context(connect(port)) for _ in range(4)]
            for client in live:
                client.sendall(request(f"content-length: {len(body)}", body=body))
                assert client.recv(16).startswith(b"HTTP/1.1 200")
            answer = talk(port, b"")
            assert statuses(answer) == [503]
            assert b"retry-after: 1" in answer
            assert b"too_many_connections" in answer
            for client in live:
                assert client.recv(1), "the others go on"
            live[0].close()
            end_s = time.monotonic() + WAIT_S
            while statuses(talk(port, LAST)) != [200]:
                assert time.monotonic() < end_s, "a place that became free is given away"


def test_a_flood_from_one_address_leaves_room_for_another(tmp_path: Path, fake: FakeUpstream) -> None:
    settings = {
        "server": {"max_connections_per_address": 8, "host": "127.0.0.1"},
        "upstreams": {"up": {"url": fake.url}},
        "control": {"enabled": False},
    }
    with GatewayProcess.serving(tmp_path, settings) as one:
        port = port_of(one.url)
        other = socket.create_connection(("127.0.0.1", port), WAIT_S, source_address=("127.0.0.9", 0))
        other.sendall(b"GET /hea")
        attackers = half_open(port, 50)
        other.sendall(b"lthz HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
        assert statuses(read_to_end(other)) == [200], "it was there before, and is no part of the flood"
        for client in (other, *attackers):
            client.close()
