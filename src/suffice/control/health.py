"""A worker's health over HTTP, for probes: `/healthz` says whether it makes progress, `/readyz` whether it looks.

A worker that waits for its log is live and not ready: starting it again would not bring the log. `/metrics` has the
process; what looks have found is in the metrics of the gateways.

Both answer with what the worker does and what fails, as JSON. Nothing in it is text of users.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest

from suffice.control.jobs.base import Worker
from suffice.errors import ConfigError, StoreError
from suffice.store.database.views import last_place, open_reader
from suffice.store.database.watches import WATCHER, failing, read_watches

HANGS_S: Final = 900.0  # in one job, after which a worker counts as hanging: a fit of many audits takes minutes
READY_S: Final = 60.0  # since it last looked for new rows


@dataclass(slots=True)
class WorkerHealth:
    worker: Worker | None = None  # None: it waits for its log, …
    waits: str = "the log has not been opened yet"  # … for this reason

    @property
    def is_live(self) -> bool:
        if self.worker is None or self.worker.doing is None:
            return True
        return self.worker.monotonic_s() - self.worker.doing[1] < HANGS_S

    @property
    def is_ready(self) -> bool:
        if self.worker is None or self.worker.polled_s is None:
            return False
        return self.worker.monotonic_s() - self.worker.polled_s < READY_S

    def details(self) -> dict[str, Any]:
        """Return what the worker does, what fails, and by how many rows the slowest route is behind."""
        known: dict[str, Any] = {"job": None, "for_s": 0.0, "failing": [], "behind_rows": 0}
        if self.worker is None:
            return known | {"failing": [self.waits]}
        doing = self.worker.doing
        if doing is not None:
            known |= {"job": doing[0], "for_s": round(self.worker.monotonic_s() - doing[1], 1)}
        try:
            with open_reader(self.worker.decisions.path) as log:
                watches, last = read_watches(log), last_place(log)
        except StoreError as error:
            return known | {"failing": [str(error)]}
        looked = [one.seq for (job, route), one in watches.items() if job == WATCHER and route and one.beat]
        behind = max(0, last - min(looked, default=last))
        return known | {"failing": [one.sentence for one in failing(watches)], "behind_rows": behind}

    def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        if path not in ("/healthz", "/readyz"):
            return 404, {"error": "allowed: /healthz, /readyz and /metrics"}
        is_good = self.is_live if path == "/healthz" else self.is_live and self.is_ready
        return 200 if is_good else 503, {"status": "ok" if is_good else "not ok", **self.details()}


@contextmanager
def serve_health(health: WorkerHealth, host: str, port: int) -> Iterator[int]:
    """Answer probes from a thread beside the block; yield the port. Raises ConfigError if it is taken."""
    process = CollectorRegistry()
    ProcessCollector(registry=process)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                status, content_type, body = 200, CONTENT_TYPE_LATEST, generate_latest(process)
            else:
                status, details = health.answer(path)
                content_type, body = "application/json", msgspec.json.encode(details)
            self.send_response(status)
            self.send_header("content-type", content_type)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: probes come every few seconds."""

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise ConfigError(f"--health-port: {host}:{port} cannot be used: {error.strerror or error}") from None
    thread = threading.Thread(target=server.serve_forever, name="suffice-health", daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
