"""The table of metric names, the registry built from it, and the loggers. No label holds a prompt, key, user or id."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LOG = logging.getLogger("suffice")
ACCESS = logging.getLogger("suffice.access")  # one line per request


@dataclass(frozen=True, slots=True)
class MetricSpec:
    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


METRICS: tuple[MetricSpec, ...] = (
    MetricSpec("suffice_requests_total", "counter", "Requests by end reason.", ("route", "mode", "end_reason")),
    MetricSpec("suffice_ungoverned_total", "counter", "Requests passed through, by reason.", ("route", "reason")),
    MetricSpec("suffice_stops_total", "counter", "Runs ended early by the policy.", ("route", "reason", "method")),
    MetricSpec("suffice_audits_total", "counter", "Requests assigned at random to run in full.", ("route",)),
    MetricSpec("suffice_tokens_total", "counter", "Tokens by purpose.", ("route", "type")),
    MetricSpec("suffice_cost_usd_total", "counter", "US dollars, where prices are known.", ("route", "type")),
    MetricSpec("suffice_stops_skipped_total", "counter", "Stops decided but not performed.", ("route", "reason")),
    MetricSpec("suffice_failopen_total", "counter", "Internal errors that cost tokens, not answers.", ("site",)),
    MetricSpec("suffice_upstream_calls_total", "counter", "Calls to model servers.", ("route", "purpose")),
    MetricSpec("suffice_extra_calls_skipped_total", "counter", "Extra calls that were not sent.", ("route", "reason")),
    MetricSpec("suffice_extra_calls_refused_total", "counter", "Extra calls answered with 429 or 503.", ("route",)),
    MetricSpec("suffice_upstream_errors_total", "counter", "Failed upstream calls.", ("code",)),
    MetricSpec("suffice_stripped_fields_total", "counter", "Body fields removed for safety.", ("field",)),
    MetricSpec("suffice_events_dropped_total", "counter", "Events dropped because the queue was full."),
    MetricSpec("suffice_keys_limited_total", "counter", "Requests above a limit of their key.", ("key", "limit")),
    MetricSpec("suffice_feedback_total", "counter", "Feedback by result.", ("result",)),
    MetricSpec("suffice_feedback_unjoined_total", "counter", "Feedback for a request unknown at that time."),
    MetricSpec("suffice_decisions_total", "counter", "Steps of caller-driven runs, by decision.", ("route", "action")),
    MetricSpec("suffice_kill_switch", "gauge", "1 while the kill switch is on and no run is stopped."),
    MetricSpec("suffice_log_unread_seconds", "gauge", "Seconds since the log was last read; 0: it is readable."),
    MetricSpec("suffice_versions_refused_total", "counter", "Published versions that could not be loaded.", ("route",)),
    MetricSpec("suffice_open_episodes", "gauge", "Open caller-driven runs."),
    MetricSpec("suffice_certified_level", "gauge", "Most aggressive certified level; 0 never stops.", ("route",)),
    MetricSpec("suffice_em_drop_upper_bound", "gauge", "Upper bound of the EM drop.", ("route",)),
    MetricSpec("suffice_token_saving_ratio", "gauge", "Share of tokens saved since the log began.", ("route",)),
    MetricSpec("suffice_promise_state", "gauge", "1 for the state of the route's guarantee.", ("route", "state")),
    MetricSpec("suffice_satisfaction_ratio", "gauge", "Satisfaction of users who gave feedback.", ("route", "runs")),
    MetricSpec("suffice_satisfaction_effect", "gauge", "Effect of early stopping on satisfaction.", ("route",)),
    MetricSpec("suffice_satisfaction_effect_lower_bound", "gauge", "Lower bound of the effect.", ("route",)),
    MetricSpec("suffice_satisfaction_effect_upper_bound", "gauge", "Upper bound of the effect.", ("route",)),
    MetricSpec("suffice_em_drop_forecast", "gauge", "Forecast EM drop 3,000 requests ahead.", ("route",)),
    MetricSpec("suffice_overrides", "gauge", "Active overrides on the route.", ("route",)),
    MetricSpec("suffice_open_incidents", "gauge", "Incidents that nobody has closed.", ("route",)),
    MetricSpec("suffice_alerts", "gauge", "Forecasts that cross their limit soon.", ("route",)),
    MetricSpec("suffice_live_requests", "gauge", "Requests being served now."),
    MetricSpec("suffice_upstream_queue_ratio", "gauge", "Open calls of an upstream over its slots.", ("upstream",)),
    MetricSpec("suffice_latency_p95_seconds", "gauge", "95th percentile of runs that may be stopped.", ("route",)),
    MetricSpec("suffice_generated_tokens_per_second", "gauge", "Tokens generated per second.", ("route",)),
    MetricSpec("suffice_spend_usd_per_second", "gauge", "US dollars per second, where prices are known.", ("route",)),
    MetricSpec("suffice_operating_level", "gauge", "Level applied to new requests; 0 never stops.", ("route",)),
    MetricSpec("suffice_operating_moves_total", "counter", "Changes of the operating point.", ("route", "stance")),
    MetricSpec("suffice_fallback_load_ratio", "gauge", "Tokens/s if all ran in full, over those now.", ("route",)),
    MetricSpec("suffice_shed_total", "counter", "New requests rejected to shed load.", ("route",)),
    MetricSpec("suffice_ttft_seconds", "histogram", "Time to the first byte for the client.", ("route",)),
    MetricSpec("suffice_handover_seconds", "histogram", "Pause in the stream caused by a stop.", ("method",)),
)

BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one process. Increments are buffered until the registry is read."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._lock = threading.Lock()
        self._added: dict[tuple[str, ...], float] = {}  # since the last read, by name and labels
        self._fills: list[Callable[[], None]] = []  # called before each read
        self._made: dict[str, Counter | Gauge | Histogram] = {}
        self._children: dict[tuple[str, ...], Any] = {}  # by name and labels
        kinds: dict[str, Callable[..., Any]] = {
            "counter": Counter,
            "gauge": Gauge,
            "histogram": partial(Histogram, buckets=BUCKETS_S),
        }
        for spec in METRICS:
            self._made[spec.name] = kinds[spec.kind](spec.name, spec.help, spec.labels, registry=self._registry)

    @property
    def registry(self) -> CollectorRegistry:
        for fill in self._fills:
            fill()
        with self._lock:
            for key, by in self._added.items():
                self._child(*key).inc(by)
            self._added.clear()
        return self._registry

    def filled_by(self, fill: Callable[[], None]) -> None:
        self._fills.append(fill)

    def inc(self, *key: str, by: float = 1) -> None:
        """Add to a counter or gauge, given by its name and its `labels` in the order of the table."""
        if key not in self._children:
            self._child(*key)  # fails here for an unknown name
        with self._lock:
            self._added[key] = self._added.get(key, 0) + by

    def set(self, name: str, value: float, *labels: str) -> None:
        """Not for a gauge that `inc` moves."""
        self._child(name, *labels).set(value)

    def observe(self, name: str, value_s: float, *labels: str) -> None:
        self._child(name, *labels).observe(value_s)

    def _child(self, *key: str) -> Any:
        if key not in self._children:
            name, *labels = key
            self._children[key] = self._made[name].labels(*labels) if labels else self._made[name]
        return self._children[key]

    def value(self, name: str, **labels: str) -> float:
        """Return a counter or gauge, 0 if it was never set. For tests and status."""
        sample = name if name.endswith("_total") or name in self._made else f"{name}_total"
        return self.registry.get_sample_value(sample, labels) or 0.0
