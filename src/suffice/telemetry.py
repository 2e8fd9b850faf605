"""Log lines, the table of metric names, and the registry built from it. No label holds a prompt, key, user or id."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

LOG = logging.getLogger("suffice")
ACCESS = logging.getLogger("suffice.access")  # one line per request
ACCESS_LINE: Final = "%s %s %s %d ms %d bytes route=%s id=%s request_id=%s"
_ACCESS_FIELDS: Final = ("method", "path", "status", "duration_ms", "bytes", "route", "episode_id", "request_id")
REQUEST_ID: Final = "x-request-id"
_REQUEST_ID_TEXT: Final = re.compile(r"[A-Za-z0-9._~:=+/@-]{1,128}")


def is_request_id(text: str) -> bool:
    return _REQUEST_ID_TEXT.fullmatch(text) is not None


_RANDOM: Final = list[str]()  # drawn and not used yet
_DRAWN_AT_ONCE: Final = 256
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_RANDOM.clear)


def random_hex() -> str:
    """Return 64 random bits of the operating system, as 16 digits. It is asked for many at once: a call costs more."""
    try:
        return _RANDOM.pop()
    except IndexError:
        digits = os.urandom(8 * _DRAWN_AT_ONCE).hex()
        _RANDOM.extend(digits[at : at + 16] for at in range(16, len(digits), 16))
        return digits[:16]


@dataclass(slots=True)
class RequestContext:
    """What log lines say of the request that is being served."""

    request_id: str = "-"
    is_given: bool = False  # the client chose the id
    route: str = "-"
    episode_id: str = "-"
    trace_id: str = ""  # "": not traced

    @classmethod
    def of(cls, headers: Iterable[tuple[bytes, bytes]]) -> RequestContext:
        """Take the client's id if it is one, or else a random one. `headers` have names in lower case."""
        for name, value in headers:
            if name == b"x-request-id" and is_request_id(given := value.decode("latin-1")):
                return cls(given, is_given=True)
        return cls(f"req_{random_hex()}")


NO_REQUEST: Final = RequestContext()
CURRENT_REQUEST: ContextVar[RequestContext] = ContextVar("suffice.request", default=NO_REQUEST)


class LineFormatter(logging.Formatter):
    """Formats a record as one line of text, in local time, or as one JSON object, in UTC, with its request."""

    def __init__(self, log_format: Literal["text", "json"] = "text") -> None:
        super().__init__()
        self._is_json = log_format == "json"
        self._second, self._stamp = -1, ""

    def format(self, record: logging.LogRecord) -> str:
        second = int(record.created)
        if second != self._second:
            at = time.gmtime(second) if self._is_json else time.localtime(second)
            self._second, self._stamp = second, time.strftime("%Y-%m-%dT%H:%M:%S" if self._is_json else "%F %T", at)
        if self._is_json:
            return self._as_json(record)
        text = f"{self._stamp},{record.msecs:03.0f} {record.levelname} {record.name}: {record.getMessage()}"
        request = CURRENT_REQUEST.get()
        if request is not NO_REQUEST and record.msg is not ACCESS_LINE:
            text += f" route={request.route} request_id={request.request_id}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text

    def _as_json(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": f"{self._stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        request = CURRENT_REQUEST.get()
        if record.msg is ACCESS_LINE and isinstance(record.args, tuple):
            line["message"] = "{} {} {}".format(*record.args)
            line |= {name: value for name, value in zip(_ACCESS_FIELDS, record.args, strict=True) if value != "-"}
        else:
            line["message"] = record.getMessage()
            named = (("request_id", request.request_id), ("route", request.route), ("episode_id", request.episode_id))
            line |= {name: value for name, value in named if value != "-"}
        if request.trace_id:
            line["trace_id"] = request.trace_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return msgspec.json.encode(line).decode()
        except UnicodeEncodeError:  # a lone surrogate
            safe = {k: v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for k, v in line.items()}
            return msgspec.json.encode(safe).decode()


def configure_logging(
    level: str, log_format: Literal["text", "json"] = "text", handler: logging.Handler | None = None
) -> None:
    """Write the log lines of this process, to standard error unless `handler` is given."""
    handler = handler or logging.StreamHandler()
    handler.setFormatter(LineFormatter(log_format))
    logging.basicConfig(level=level.upper(), handlers=[handler])


@contextmanager
def only_errors() -> Iterator[None]:
    """Leave out warnings, which a command says itself in its own words."""
    LOG.setLevel(logging.ERROR)
    try:
        yield
    finally:
        LOG.setLevel(logging.NOTSET)


def skip_unused_facts() -> None:
    """Let no record look up its thread, process, task and source line, which no line shows.

    See "Optimization" in Python's logging HOWTO.
    """
    for name in ("logThreads", "logMultiprocessing", "logProcesses", "logAsyncioTasks"):
        setattr(logging, name, False)
    logging._srcfile = None  # noqa: SLF001 - documented there


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
    MetricSpec("suffice_audits_left_total", "counter", "Audits that their callers left.", ("route", "counted")),
    MetricSpec("suffice_tokens_total", "counter", "Tokens by purpose.", ("route", "type")),
    MetricSpec("suffice_cost_usd_total", "counter", "US dollars, where prices are known.", ("route", "type")),
    MetricSpec("suffice_stops_skipped_total", "counter", "Stops decided but not performed.", ("route", "reason")),
    MetricSpec("suffice_failopen_total", "counter", "Internal errors that cost tokens, not answers.", ("site",)),
    MetricSpec("suffice_upstream_calls_total", "counter", "Calls to model servers.", ("route", "purpose")),
    MetricSpec("suffice_extra_calls_skipped_total", "counter", "Extra calls that were not sent.", ("route", "reason")),
    MetricSpec("suffice_extra_calls_refused_total", "counter", "Extra calls answered with 429 or 503.", ("route",)),
    MetricSpec("suffice_upstream_errors_total", "counter", "Failed upstream calls.", ("upstream", "code")),
    MetricSpec("suffice_upstream_reachable", "gauge", "1: the upstream answers; asked at a scrape.", ("upstream",)),
    MetricSpec("suffice_stripped_fields_total", "counter", "Body fields removed for safety.", ("field",)),
    MetricSpec("suffice_spans_total", "counter", "Spans of traces, by what became of them.", ("result",)),
    MetricSpec("suffice_build_info", "gauge", "1; the label names the version.", ("version",)),
    MetricSpec("suffice_events_dropped_total", "counter", "Events dropped because the queue was full."),
    MetricSpec("suffice_keys_limited_total", "counter", "Requests above a limit of their key.", ("key", "limit")),
    MetricSpec("suffice_feedback_total", "counter", "Feedback by result.", ("result",)),
    MetricSpec("suffice_feedback_unjoined_total", "counter", "Feedback for a request unknown at that time."),
    MetricSpec("suffice_decisions_total", "counter", "Steps of caller-driven runs, by decision.", ("route", "action")),
    MetricSpec("suffice_kill_switch", "gauge", "1 while the kill switch is on and no run is stopped."),
    MetricSpec(
        "suffice_kill_switch_local",
        "gauge",
        "1 while a file made by hand, or its environment, keeps this gateway killed whatever is released elsewhere.",
    ),
    MetricSpec("suffice_replicas", "gauge", "Running gateways on the same log, this one included."),
    MetricSpec("suffice_version_skew", "gauge", "Versions that running gateways serve, less one.", ("route",)),
    MetricSpec("suffice_log_unread_seconds", "gauge", "Seconds since the log was last read; 0: it is readable."),
    MetricSpec("suffice_versions_refused_total", "counter", "Published versions that could not be loaded.", ("route",)),
    MetricSpec("suffice_open_episodes", "gauge", "Open caller-driven runs."),
    MetricSpec("suffice_certified_level", "gauge", "Most aggressive certified level; 0 never stops.", ("route",)),
    MetricSpec("suffice_watch_age_seconds", "gauge", "Seconds since a look at the route was completed.", ("route",)),
    MetricSpec("suffice_watch_lag_rows", "gauge", "Rows of the log that the last look had not read.", ("route",)),
    MetricSpec("suffice_watch_lapsed", "gauge", "1: certified, but runs in full as nobody watches it.", ("route",)),
    MetricSpec("suffice_sums_lag_rows", "gauge", "Rows of the log that no worker has summed up."),
    MetricSpec("suffice_failing_jobs", "gauge", "Jobs, looks and parts of looks that fail, by job.", ("task",)),
    MetricSpec("suffice_em_drop_upper_bound", "gauge", "Upper bound of the EM drop.", ("route",)),
    MetricSpec("suffice_token_saving_ratio", "gauge", "Share of tokens saved since the log began.", ("route",)),
    MetricSpec("suffice_enforced_tokens", "gauge", "Tokens of enforced requests since the log began.", ("route",)),
    MetricSpec("suffice_saved_tokens", "gauge", "Tokens saved since the log began, net.", ("route", "certified")),
    MetricSpec("suffice_em_drop_ratio", "gauge", "EM drop that audits show since the log began.", ("route",)),
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
    MetricSpec("suffice_request_duration_seconds", "histogram", "From arrival to the end of the reply.", ("route",)),
    MetricSpec("suffice_handover_seconds", "histogram", "Pause in the stream caused by a stop.", ("method",)),
)

disable_created_metrics()  # type: ignore[no-untyped-call] # a series with the time of creation for each counter
BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


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
        ProcessCollector(registry=self._registry)
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
