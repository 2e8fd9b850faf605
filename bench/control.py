"""What the control loop costs, and what it costs requests: one look, a fit, and a decision's p99 while a fit runs.

    python bench/control.py [--episodes 1000000] [--rounds 6]

Ends with 2 where scikit-learn is missing.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.control.made import traffic
from tests.gateway_process import GatewayProcess

from suffice.assurance.certify import certified_level, count_outcomes, log_wealth
from suffice.settings import Store, parse_settings
from suffice.store.database.writer import LogWriter
from suffice.store.rows.events import to_row
from suffice.types import Outcome, Request
from suffice.wiring.worker import open_worker

INSERT = "INSERT INTO events (kind, key, episode_id, route, at_s, owner, body) VALUES (?, ?, ?, ?, ?, ?, ?)"
AUDITS, WINDOW = 3_000, 800
N_DECISIONS = 1_500
BUSY = """
import sys
import numpy as np
from bench.control import fitted_on
print("ready", flush=True)
while True:
    fitted_on(3_000)
"""


def settings(folder: Path) -> Any:
    route = {"upstream": "up", "kind": "samples", "samples": 8, "scorer": "number", "mode": "enforce"}
    return parse_settings(
        {
            "upstreams": {"up": {"url": "http://127.0.0.1:1"}},
            "routes": {"r": route},
            "store": {"url": f"sqlite:///{folder / 'log.db'}"},
        }
    )


def fitted_on(n_audits: int) -> float:
    """Seconds that a version of five models takes on so many audits."""
    from suffice.control.evidence.audits import Audit, audits_to_rows
    from suffice.control.evidence.versions import LiveLearner, fit_audited_version
    from suffice.learn.features import choose_features
    from suffice.types import Episode

    events = traffic(n_audits, seed=1, p_right=0.7)
    audits = [
        Audit(seq=n, at=n, ended_at_s=0.0, episode=Episode(request=seen.request, outcome=ended.outcome))
        for n, (seen, ended) in enumerate(zip(events[::2], events[1::2], strict=True))
        if isinstance(seen, Request) and isinstance(ended, Outcome)
    ]
    queries = [audit.episode.request.query for audit in audits]
    chosen = choose_features("samples", [query for query in queries if query is not None])
    runs = audits_to_rows(audits, chosen=chosen, match=lambda a, b: a == b, wave=4, counts={})
    assert runs is not None
    began_s = time.process_time()
    made = fit_audited_version(
        runs,
        LiveLearner(chosen),
        now=float(n_audits),
        max_em_drop=0.02,
        label_free=False,
        split="folds",
        n_levels=41,
        cost_exponent=0.5,
    )
    assert made is not None
    return time.process_time() - began_s


def looks(n_episodes: int) -> tuple[float, float, int]:
    """Seconds of CPU for one look behind so many stored episodes, for a restart, and the file's size in bytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        told = settings(folder)
        LogWriter(Store(url=told.store.url), now=lambda: 1.0).close()
        fill(folder, n_episodes)
        with open_worker(told) as here:
            add(folder, traffic(1_300, seed=2))
            here.round()
            taken = []
            for number in range(5):
                add(folder, traffic(100, seed=3 + number, first=1_300 + 100 * number))
                began_s = time.process_time()
                here.round()
                taken.append(time.process_time() - began_s)
        with open_worker(told) as again:
            began_s = time.process_time()
            again.round()
            restart_s = time.process_time() - began_s
        return median(taken), restart_s, (folder / "log.db").stat().st_size


def fill(folder: Path, n_episodes: int) -> None:
    """Episodes of other routes, as small as they come."""
    import sqlite3

    seen, ended = traffic(1, seed=9)
    assert isinstance(seen, Request)
    assert isinstance(ended, Outcome)
    small = replace(ended, steps=())
    rows = [to_row(replace(seen, route="other")), to_row(small)]
    with sqlite3.connect(folder / "log.db") as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.executemany(
            INSERT,
            (
                (row.kind, f"other{n}", f"other{n}", row.route, 1.0, 1, row.body.replace("ep_00000", f"other{n}"))
                for n in range(n_episodes)
                for row in rows
            ),
        )


def add(folder: Path, events: list[Any]) -> None:
    log = LogWriter(Store(url=f"sqlite:///{folder / 'log.db'}"), now=time.time)
    for event in events:
        log.append(event)
    assert log.drain(60)
    log.close()


def decisions(rounds: int) -> dict[str, list[tuple[float, float]]]:
    """p50 and p99 in ms of `POST /v1/decide` at a gateway, alternately alone and beside a process that only fits."""
    found: dict[str, list[tuple[float, float]]] = {"alone": [], "beside a fit": []}
    with tempfile.TemporaryDirectory() as name:
        raw = {
            "upstreams": {"up": {"url": "http://127.0.0.1:1"}},
            "control": {"enabled": False},
            "routes": {"loop": {"kind": "rounds", "scorer": "number", "mode": "enforce"}},
        }
        with GatewayProcess.serving(name, raw) as gateway:
            timed(gateway.url, 300)
            for _ in range(rounds):
                found["alone"].append(timed(gateway.url, N_DECISIONS))
                busy = subprocess.Popen(
                    [sys.executable, "-c", BUSY],
                    stdout=subprocess.PIPE,
                    preexec_fn=lambda: os.nice(10),  # noqa: PLW1509
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                )
                assert busy.stdout is not None
                busy.stdout.readline()
                try:
                    found["beside a fit"].append(timed(gateway.url, N_DECISIONS))
                finally:
                    busy.kill()
                    busy.wait()
                    busy.stdout.close()
    return found


def timed(url: str, n: int) -> tuple[float, float]:
    place, taken_ms = urlsplit(url), []
    connection = http.client.HTTPConnection(str(place.hostname), place.port)
    for number in range(n):
        body = {
            "route": "loop",
            "question": f"question {number} {time.time_ns()}",
            "done": True,
            "step": {"index": 1, "answer": "4", "tokens": 20},
        }
        began_s = time.perf_counter()
        connection.request("POST", "/v1/decide", json.dumps(body), {"content-type": "application/json"})
        reply = connection.getresponse()
        reply.read()
        taken_ms.append((time.perf_counter() - began_s) * 1e3)
        assert reply.status == 200, reply.status
    connection.close()
    return float(np.percentile(taken_ms, 50)), float(np.percentile(taken_ms, 99))


def certifying() -> float:
    """Milliseconds to certify 41 levels on the window's audits from their outcomes."""
    z = np.random.default_rng(0).choice(np.array([-1, 0, 1], np.int8), p=[0.01, 0.97, 0.02], size=(WINDOW, 41))
    taken = []
    for _ in range(50):
        began_s = time.perf_counter()
        certified_level(log_wealth(count_outcomes(z), max_em_drop=0.02), delta=0.05)
        taken.append((time.perf_counter() - began_s) * 1e3)
    return median(taken)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--episodes", type=int, default=100_000, help="stored in the log before the look")
    options.add_argument("--rounds", type=int, default=4, help="of decisions, alone and beside a fit in turn")
    asked = options.parse_args()
    try:
        import sklearn  # noqa: F401
    except ImportError:
        print("control.py: needs scikit-learn; install the extra train")
        return 2
    print(
        f"machine: {platform.platform()} | Python {platform.python_version()} | cores {os.cpu_count()}"
        f" | load {os.getloadavg()[0]:.1f}"
    )
    print(f"certify 41 levels on {WINDOW} audits: {certifying():.2f} ms")
    fit_s = median(fitted_on(AUDITS) for _ in range(3))
    print(f"fit a version of five models on {AUDITS:,} audits: {fit_s:.2f} s of CPU")
    look_s, restart_s, size = looks(asked.episodes)
    print(
        f"one look (100 new audits) behind {asked.episodes:,} stored episodes ({size / 2**20:.0f} MiB):"
        f" {look_s:.2f} s of CPU; a new worker that reads its epoch of 1,800 requests again: {restart_s:.2f} s"
    )
    for what, measured in decisions(asked.rounds).items():
        p50, p99 = (median(one[at] for one in measured) for at in (0, 1))
        print(f"POST /v1/decide {what}: p50 {p50:.2f} ms, p99 {p99:.2f} ms (median of {len(measured)} rounds)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
