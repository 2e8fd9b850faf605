"""How the work of certification divides among workers on one PostgreSQL log, and whether its decisions stay the same.

    python bench/workers.py [--routes 30] [--runs 190] [--workers 3]

One worker certifies all routes of a log of simulated traffic; then several workers do on an equal log. Prints the CPU
time of each worker process and the routes that it decided, and ends with 1 if any decision differs, with 2 where
PostgreSQL is not installed. CPU times exclude imports and filling the log.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from dataclasses import replace
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.control.made import CONTROL, ROUTE, traffic
from tests.postgres import empty_log

from suffice.control.jobs.base import Worker
from suffice.control.jobs.certify import Certify
from suffice.settings import Settings, Store
from suffice.store.database.decisions import Decisions
from suffice.store.database.location import log_location
from suffice.store.database.views import open_reader, read_kinds
from suffice.store.database.writer import LogWriter
from suffice.store.rows.events import to_row
from suffice.types import Request

DECIDED = ("alarm_raised", "enforcement_paused", "epoch_began", "incident_opened", "label_wanted", "policy_published")
QUIET_ROUNDS = 3  # without a decision anywhere, after which the work is done


def fill(store: Store, n_routes: int, n_runs: int) -> None:
    log = LogWriter(store, now=lambda: 1.0)
    for route in range(n_routes):
        for event in traffic(n_runs, seed=route, first=1_000 * route):
            log.append(replace(event, route=f"r{route}") if isinstance(event, Request) else event)
        assert log.drain(600)
    log.close()


def work(store: Store, n_routes: int, name: str, start: Barrier, over: Event, told: Any) -> None:
    settings = Settings(upstreams={}, routes={f"r{n}": ROUTE for n in range(n_routes)}, control=CONTROL, store=store)
    path = log_location(store)
    with Decisions(path, now=lambda: 1.0, monotonic_s=time.monotonic, lease_s=600.0) as decisions:
        worker = Worker(
            decisions=decisions,
            jobs=(Certify(settings=settings, path=path, author=name),),
            author=name,
            now=lambda: 1.0,
            monotonic_s=time.monotonic,
            new_id=lambda: f"{name}-{time.monotonic_ns()}",
        )
        decisions.join("certify")  # all of them have a place before the routes are shared out
        start.wait()
        began_s = time.process_time()
        while not over.is_set():
            worker.round()
            told.put((name, time.process_time() - began_s))
            time.sleep(1.0)


def decided(store: Store) -> tuple[dict[str, list[str]], Counter[str]]:
    """The decisions of each route without their authors, and how many each author made."""
    rows, authors = dict[str, list[str]](), Counter[str]()
    with open_reader(log_location(store)) as log:
        for stored in read_kinds(log, *DECIDED):
            row = to_row(stored.event)
            body = json.loads(row.body)
            for fields in (one for one in body.values() if isinstance(one, dict) and "author" in one):
                authors[fields.pop("author")] += 1
            rows.setdefault(str(row.route), []).append(json.dumps([row.kind, row.key, body], sort_keys=True))
    return rows, authors


def certify(n_workers: int, n_routes: int, n_runs: int) -> dict[str, list[str]]:
    context = multiprocessing.get_context("spawn")
    with empty_log(queue_rows=1_000_000) as store:
        fill(store, n_routes, n_runs)
        start, over, told = context.Barrier(n_workers), context.Event(), context.Queue()
        names = [f"worker {number}" for number in range(1, n_workers + 1)]
        processes = [context.Process(target=work, args=(store, n_routes, one, start, over, told)) for one in names]
        for one in processes:
            one.start()
        spent_s, rounds, last = dict[str, float](), Counter[str](), -1
        while min(rounds[name] for name in names) < QUIET_ROUNDS:
            name, spent_s[name] = told.get()
            n_decided = sum(map(len, decided(store)[0].values()))
            if n_decided != last:
                rounds.clear()
                last = n_decided
            rounds[name] += 1
        over.set()
        for one in processes:
            one.join(60)
        rows, authors = decided(store)
    whole_s = sum(spent_s.values())
    for name in names:
        print(f"  {name}: {spent_s[name]:.1f} s of CPU, {authors[name]:,} decisions")
    print(
        f"{n_workers} workers: {whole_s:.1f} s of CPU in all, {max(spent_s.values()):.1f} s the busiest one", flush=True
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--routes", type=int, default=30)
    parser.add_argument("--runs", type=int, default=190, help="of each route")
    parser.add_argument("--workers", type=int, default=3)
    given = parser.parse_args()
    one, several = (certify(n, given.routes, given.runs) for n in (1, given.workers))
    print(f"decisions of {len(one)} routes: {'the same' if one == several else 'NOT THE SAME'}")
    sys.exit(one != several)


if __name__ == "__main__":
    main()
