"""The worker's own health: probes see that it hangs, that it does not look, and what fails."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from suffice.control.health import HANGS_S, READY_S, WorkerHealth, serve_health
from suffice.errors import ConfigError
from tests.control.made import traffic
from tests.control.test_worker import fill
from tests.faults.test_looks import Clock, Matches, Scripted, certify, worker_of


def fetch(port: int, path: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_readiness_says_whether_it_looks_what_fails_and_how_far_behind_it_is(tmp_path: Path) -> None:
    fill(tmp_path, traffic(20))
    clock, broken = Clock(), Scripted("notify", ValueError())
    job = certify(tmp_path, Matches(), clock)
    with (
        worker_of(tmp_path, job, broken, clock=clock) as here,
        serve_health(WorkerHealth(here), "127.0.0.1", 0) as port,
    ):
        assert fetch(port, "/readyz")[0] == 503, "it has not looked yet"
        here.round_if_due()
        status, details = fetch(port, "/readyz")
        assert (status, details["status"], details["job"]) == (200, "ok", None)
        (failure,) = details["failing"]
        assert failure.startswith("notify has failed once since ")
        fill(tmp_path, traffic(10, seed=1, first=20))
        assert fetch(port, "/readyz")[1]["behind_rows"] >= 20
        clock.s += READY_S
        assert fetch(port, "/readyz")[0] == 503
        assert fetch(port, "/healthz")[0] == 200, "it does not hang: it waits"
        here.round_if_due()
        assert fetch(port, "/readyz")[0] == 200
        assert fetch(port, "/health")[0] == 404
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as scraped:
            assert b"\nprocess_resident_memory_bytes " in scraped.read()


def test_a_job_that_hangs_makes_the_worker_unhealthy(tmp_path: Path) -> None:
    fill(tmp_path, traffic(1))
    clock = Clock()
    with worker_of(tmp_path, clock=clock) as here, serve_health(WorkerHealth(here), "127.0.0.1", 0) as port:
        here.doing = "certify", clock.s
        clock.s += HANGS_S - 1
        assert fetch(port, "/healthz")[0] == 200
        clock.s += 1
        status, details = fetch(port, "/healthz")
        assert (status, details["job"], details["for_s"]) == (503, "certify", HANGS_S)
        here.doing = None
        assert fetch(port, "/healthz")[0] == 200


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    fill(tmp_path, traffic(1))
    with worker_of(tmp_path, clock=Clock()) as here, serve_health(WorkerHealth(here), "127.0.0.1", 0) as port:
        with pytest.raises(ConfigError, match=f"--health-port: 127.0.0.1:{port} cannot be used"):
            serve_health(WorkerHealth(here), "127.0.0.1", port).__enter__()
