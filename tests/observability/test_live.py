"""A real Prometheus scrapes a real gateway under a little traffic, and answers every query of the dashboard."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from prometheus_client import generate_latest

from suffice.telemetry import METRICS, Metrics
from suffice_testing import FakeRequest, FakeUpstream, Fault, Reply
from tests.gateway.test_stop import enforcing, held
from tests.gateway_process import GatewayProcess
from tests.observability.prometheus import Prometheus, scraping
from tests.observability.test_files import ALERTS, QUERIES, RULES
from tests.otlp_collector import collecting
from tests.threaded_server import serving

KEY, SCRAPER_KEY = "sk-client", "sk-scraper"
REAL, MADE = "suffice", "made"

# Metrics that a healthy young gateway lacks: what needs weeks of evidence, ratings, people, or something that breaks.
# A second target exposes them with made values, so that their queries are answered as well.
ABSENT = {
    "suffice_em_drop_upper_bound",
    "suffice_em_drop_forecast",
    "suffice_alerts",
    "suffice_token_saving_ratio",
    "suffice_satisfaction_ratio",
    "suffice_satisfaction_effect",
    "suffice_satisfaction_effect_lower_bound",
    "suffice_satisfaction_effect_upper_bound",
    "suffice_versions_refused_total",
    "suffice_failopen_total",
    "suffice_events_dropped_total",
    "suffice_shed_total",
    "suffice_operating_moves_total",
    "suffice_fallback_load_ratio",
    "suffice_extra_calls_refused_total",
    "suffice_stops_skipped_total",
}


def says(seen: FakeRequest) -> Any:
    if seen.model == "broken":
        return Reply(faults=(Fault(status=500),))
    if seen.model == "gone":
        return Reply(faults=(Fault(die_after=1, die_how="rst"),))
    return HELD(seen)


HELD = held()


@dataclass(frozen=True, slots=True)
class Client:
    url: str

    def post(self, path: str, body: Any, key: str = KEY, **headers: str) -> dict[str, Any]:
        sent = {"authorization": f"Bearer {key}", "content-type": "application/json"} | headers
        requested = urllib.request.Request(self.url + path, json.dumps(body).encode(), sent)
        try:
            with urllib.request.urlopen(requested, timeout=60) as reply:
                result: dict[str, Any] = json.load(reply)
                return result
        except (urllib.error.HTTPError, ConnectionError, ValueError):
            return {}

    def chat(self, route: str, model: str = "m", key: str = KEY, **fields: Any) -> dict[str, Any]:
        text = f"How much is 2 + 2? {time.monotonic_ns()}"
        body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
        return self.post("/v1/chat/completions", body, key, **{"x-suffice-route": route})

    def some_of_everything(self) -> None:
        with ThreadPoolExecutor(8) as pool:
            for route in ("stops", "audits", "votes", "off"):
                pool.submit(self.chat, route)
            pool.submit(self.chat, "off", "broken")
            pool.submit(self.chat, "off", "gone")
            pool.submit(self.chat, "off", api_base="x")
            for _ in range(4):
                pool.submit(self.chat, "stops", key="sk-narrow")
        ended = self.chat("stops")
        about = ended.get("suffice", {}).get("episode_id", "")
        self.post("/v1/feedback", {"episode_id": about, "feedback_id": f"f{time.monotonic_ns()}", "correct": True})
        self.post("/v1/feedback", {"episode_id": "ep_none", "feedback_id": f"f{time.monotonic_ns()}", "rating": 3})
        self.post("/v1/decide", {"route": "loop", "question": "?", "step": {"index": 1, "answer": "x", "tokens": 5}})


@contextmanager
def made_metrics() -> Iterator[str]:
    """An exporter of every metric with made values, whose counters grow; yields its address."""
    metrics = Metrics()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            for spec in METRICS:
                labels = [f"{label}-1" for label in spec.labels]
                if spec.kind == "counter":
                    metrics.inc(spec.name, *labels)
                elif spec.kind == "gauge":
                    metrics.set(spec.name, 0.5, *labels)
                else:
                    metrics.observe(spec.name, 0.1, *labels)
            body = generate_latest(metrics.registry)
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with serving(Handler) as url:
        yield url.removeprefix("http://")


def settings_for(upstream: str, collector: str) -> dict[str, Any]:
    prices = {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0}
    shared: dict[str, Any] = {"upstream": "up"}
    return {
        "server": {"retry_window_s": 0.0},
        "keys": {
            "all": {"key_env": "KEYS", "routes": ["stops", "audits", "votes", "off", "loop"], "all_objects": True},
            "scraper": {"key_env": "SCRAPER", "routes": [], "all_objects": True},
            "narrow": {"key_env": "NARROW", "routes": ["stops"], "requests_per_minute": 2},
        },
        "upstreams": {"up": {"url": upstream, "driver": "llama.cpp", "finish": ["raw"], "slots": 2, "prices": prices}},
        "routes": {
            "stops": shared | enforcing() | {"match": {"header": "stops"}},
            "audits": shared | enforcing(audit_share=1.0) | {"match": {"header": "audits"}},
            "votes": shared | {"kind": "samples", "samples": 2, "scorer": "number", "match": {"header": "votes"}},
            "off": shared | {"mode": "off", "match": {"header": "off"}},
            "loop": {"kind": "rounds", "scorer": "text"},
        },
        "telemetry": {"otlp_endpoint": collector, "log_format": "json"},
        "console": {"enabled": False},
    }


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("live")
    environment = {"KEYS": KEY, "SCRAPER": SCRAPER_KEY, "NARROW": "sk-narrow", "OTEL_BSP_SCHEDULE_DELAY": "200"}
    with FakeUpstream.in_thread(says) as fake, collecting() as collector, made_metrics() as made:
        settings = settings_for(fake.url, collector.url)
        with GatewayProcess.serving(folder, settings, environment=environment) as gateway:
            client = Client(gateway.url)
            client.some_of_everything()  # so that counters exist before they grow
            targets = {REAL: gateway.url.removeprefix("http://"), MADE: made}
            with scraping(folder, targets, RULES, key=SCRAPER_KEY) as result:
                for _ in range(3):
                    time.sleep(1.5)
                    client.some_of_everything()
                time.sleep(1.5)
                yield result


def _of(query: str, job: str) -> str:
    return query.replace("$job", job).replace("$route", ".*").replace("$__rate_interval", "30s")


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("n", range(len(QUERIES)), ids=[f"{title}-{n}" for n, (title, _) in enumerate(QUERIES)])
def test_a_panel_answers(prometheus: Prometheus, n: int) -> None:
    title, query = QUERIES[n]
    is_absent = any(name in query for name in ABSENT)
    result = prometheus.series(_of(query, MADE if is_absent else REAL))
    assert result, f"{title}: no data for {query}"
    assert all(one["value"][1] not in ("NaN", "+Inf", "-Inf") or "quantile" in query for one in result), result


@pytest.mark.slow
def test_the_gateway_has_all_metrics_but_those_listed_as_absent(prometheus: Prometheus) -> None:
    for spec in METRICS:
        series = f"{spec.name}_count" if spec.kind == "histogram" else spec.name
        if spec.name not in ABSENT:
            assert prometheus.series(f'{series}{{job="{REAL}"}}'), f"{spec.name}: the gateway does not export it"


@pytest.mark.slow
def test_every_alert_can_be_evaluated_and_none_of_a_healthy_gateway_is_for_a_pager(prometheus: Prometheus) -> None:
    rules = {rule["name"]: rule for rule in prometheus.rules()}
    assert rules.keys() == {rule["alert"] for rule in ALERTS}
    assert {name: rule["lastError"] for name, rule in rules.items() if rule["health"] != "ok"} == {}
    assert prometheus.series(f'up{{job="{REAL}"}} == 1')
