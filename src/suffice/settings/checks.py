"""What the types of settings cannot say: references, ranges, and combinations that promise too much."""

from __future__ import annotations

import math
import re
from math import isfinite
from typing import Final

import msgspec

from suffice.errors import ConfigError
from suffice.settings.alerts import check_alerts
from suffice.settings.audit import check_audit
from suffice.settings.experiments import check_experiments
from suffice.settings.feedback import check_feedback
from suffice.settings.review import check_per_day, check_review
from suffice.settings.rollout import check_rollout
from suffice.settings.tables import (
    Control,
    Embeddings,
    Extra,
    Judge,
    Key,
    Pressure,
    Prices,
    Probe,
    Route,
    Server,
    Settings,
    Store,
)
from suffice.types import Kind

LEAST_SAMPLE_RATE: Final = 0.001  # below it a class of live runs would hardly be seen
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,253}")
_ORIGIN: Final = re.compile(r"(?!http://.*:80$|https://.*:443$)[a-z][a-z0-9+.-]*://[a-z0-9_.\[\]:-]+")
_MOST_PER_MINUTE: Final = 1_000_000  # a gateway remembers the times of so many requests of one key
_KEY_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RELAY: Final = re.compile(r"(GET|POST|PUT|PATCH|DELETE|OPTIONS) (/|(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]{1,200})+)")


def check_settings(settings: Settings) -> None:
    _check_server(settings.server)
    _check_connections(settings.server)
    for name, key in settings.keys.items():
        _check_key(name, key, settings)
    _check_console(settings)
    for name, upstream in settings.upstreams.items():
        _check_limit(f"upstreams.{name}.first_byte_timeout_s", upstream.first_byte_timeout_s)
        _check_extra(f"upstreams.{name}.extra", upstream.extra)
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]*", upstream.affinity_header):
            got = upstream.affinity_header
            raise ConfigError(f"upstreams.{name}.affinity_header: got {got!r}; no HTTP header name")
        if upstream.prices is not None:
            _check_prices(f"upstreams.{name}.prices", upstream.prices)
        if upstream.template is not None and "{content}" not in upstream.template.turn:
            raise ConfigError(f"upstreams.{name}.template.turn: must hold {{content}}, where a message's text goes")
    check_rollout("rollout", settings.rollout)
    for name, route in settings.routes.items():
        where = f"routes.{name}"
        if route.upstream not in settings.upstreams and (route.upstream or route.kind != "rounds"):
            known = ", ".join(sorted(settings.upstreams)) or "none is configured"
            raise ConfigError(f"{where}.upstream: unknown upstream {route.upstream!r}; known: {known}")
        _check_route(where, route)
        _check_promise(where, route)
        _check_load(where, route)
        _check_tables(where, route)
    _check_sampling(settings)
    check_per_day("review", settings.review)
    _check_control(settings.control)
    _check_store(settings.store)
    check_audit(settings.audit, settings.retention)
    check_alerts(settings.alerts)
    check_experiments(settings.experiments, settings.routes, settings.metrics)
    check_feedback(settings.feedback, settings.metrics)


def _check_server(server: Server) -> None:
    if not 0 <= server.retry_window_s < math.inf:
        raise ConfigError(f"server.retry_window_s: got {server.retry_window_s}; a number of seconds, at least 0")
    for name in server.allowed_hosts:
        if not _HOST_NAME.fullmatch(name):
            raise ConfigError(f"server.allowed_hosts: got {name[:200]!r}; a host name without scheme and port")
    for origin in server.allowed_origins:
        if not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"server.allowed_origins: got {origin[:200]!r}; an origin as browsers send it, in lower case, without a"
                " path and without the scheme's own port, such as 'https://app.example.com'; no wildcards"
            )
    for entry in server.relay:
        if not _RELAY.fullmatch(entry):
            raise ConfigError(
                f"server.relay: got {entry[:200]!r}; need a method and an exact path, such as 'POST /tokenize';"
                " methods: GET, POST, PUT, PATCH, DELETE, OPTIONS"
            )


def _check_connections(server: Server) -> None:
    for field in ("head_timeout_s", "body_timeout_s", "keepalive_s"):
        _check_limit(f"server.{field}", getattr(server, field))
    if server.max_connections is not None and server.max_connections < 1:
        raise ConfigError(f"server.max_connections: got {server.max_connections}; at least 1")
    if server.max_connections_per_address < 0:
        got = server.max_connections_per_address
        raise ConfigError(f"server.max_connections_per_address: got {got}; at least 1, or 0: no limit")


def _check_key(name: str, key: Key, settings: Settings) -> None:
    where = f"keys.{name}"
    if not _KEY_NAME.fullmatch(name):
        raise ConfigError(f"keys: got {name[:80]!r}; 1 to 64 letters, digits and . _ -, a letter or a digit first")
    if not key.key_env:
        raise ConfigError(f"{where}.key_env: must name the environment variable that holds the key")
    for route in key.routes or ():
        if route not in settings.routes:
            known = ", ".join(sorted(settings.routes)) or "none is configured"
            raise ConfigError(f"{where}.routes: unknown route {route!r}; known: {known}")
    for field in ("requests_per_minute", "concurrency", "tokens_per_day"):
        limit, most = getattr(key, field), _MOST_PER_MINUTE if field == "requests_per_minute" else 2**53
        if limit is not None and not 1 <= limit <= most:
            raise ConfigError(f"{where}.{field}: got {limit}; from 1 to {most}")


def _check_limit(where: str, value_s: float) -> None:
    if not (isfinite(value_s) and value_s >= 0):
        raise ConfigError(f"{where}: got {value_s}; a number of seconds, or 0: no limit")


def _check_console(settings: Settings) -> None:
    console = settings.console
    if console.port is None and console.host:
        raise ConfigError(f"console.host: got {console.host!r} without console.port; name both, or neither")
    if console.port is not None and not 0 <= console.port <= 65_535:
        raise ConfigError(f"console.port: got {console.port}; 0 to 65535")
    if console.port and console.port == settings.server.port:
        raise ConfigError(f"console.port: got {console.port}, which is server.port; name another one, or leave it out")


def _check_control(control: Control) -> None:
    for field in ("tick_requests", "burst_requests", "refit_requests", "window_audits"):
        value = getattr(control, field)
        if value is not None and value < 1:
            raise ConfigError(f"control.{field}: got {value}; at least 1")
    if not (isfinite(control.period_s) and control.period_s > 0):
        raise ConfigError(f"control.period_s: got {control.period_s}; more than 0 seconds")


def _check_store(store: Store) -> None:
    if not (isfinite(store.last_good_s) and store.last_good_s >= 0):
        raise ConfigError(f"store.last_good_s: got {store.last_good_s}; at least 0 seconds")


def _check_sampling(settings: Settings) -> None:
    rates = {"monitoring": settings.monitoring.sample_rate}
    rates |= {f"routes.{name}": settings.sample_rate_of(name) for name in settings.routes}
    for where, rate in rates.items():
        if not (isfinite(rate) and LEAST_SAMPLE_RATE <= rate <= 1):
            raise ConfigError(
                f"{where}.sample_rate: got {rate}; a fraction from {LEAST_SAMPLE_RATE:g} to 1, which keeps all"
            )


def _check_extra(where: str, extra: Extra) -> None:
    for field in ("calls_per_s", "tokens_per_s"):
        value = getattr(extra, field)
        if value is not None and not (isfinite(value) and value >= 0):
            raise ConfigError(f"{where}.{field}: got {value}; at least 0")
    for field in ("concurrency_share", "rate_limit_share"):
        value = getattr(extra, field)
        if not 0 <= value <= 1:
            raise ConfigError(f"{where}.{field}: got {value}; a fraction from 0 to 1")


def _check_prices(where: str, prices: Prices) -> None:
    for field, value in msgspec.structs.asdict(prices).items():
        if value is not None and not (isfinite(value) and value >= 0):
            raise ConfigError(f"{where}.{field}: got {value}; US dollars for a million tokens, at least 0")


def _check_route(where: str, route: Route) -> None:
    for field in ("max_em_drop", "confidence", "critical_em", "audit_share", "most_audit_share"):
        value = getattr(route, field)
        if value is not None and not 0 <= value <= 1:
            raise ConfigError(f"{where}.{field}: got {value}; a fraction from 0 to 1 (1 point of EM = 0.01)")
    timeout_s = route.label_timeout_s
    if timeout_s is not None and not (isfinite(timeout_s) and timeout_s >= 0):
        raise ConfigError(f"{where}.label_timeout_s: got {timeout_s}; at least 0 seconds")
    for field in ("samples", "wave"):
        if getattr(route, field) < 1:
            raise ConfigError(f"{where}.{field}: got {getattr(route, field)}; at least 1")
    if route.max_extra_calls < 0:
        raise ConfigError(f"{where}.max_extra_calls: got {route.max_extra_calls}; at least 0")
    if route.kind == "samples" and route.samples - 1 > route.max_extra_calls:
        raise ConfigError(
            f"{where}.samples: got {route.samples}; at most {route.max_extra_calls + 1},"
            " because every sample behind the first is one of max_extra_calls"
        )
    if route.budget_tokens is not None and route.budget_tokens < 0:
        raise ConfigError(f"{where}.budget_tokens: got {route.budget_tokens}; at least 0, which is no thought at all")
    if route.kind != "reasoning" and (route.effort is not None or route.budget_tokens is not None):
        raise ConfigError(f"{where}: effort and budget_tokens belong to the kind 'reasoning', got {route.kind!r}")


def _check_promise(where: str, route: Route) -> None:
    if route.promise == "budgeted" and (route.policy or route.arms):
        what = "policy" if route.policy else " and ".join(route.arms)
        raise ConfigError(
            f"{where}.promise: got 'budgeted', which moves a level that the route has learned, beside {what};"
            " allowed: 'certified'"
        )


def _check_tables(where: str, route: Route) -> None:
    if route.probe is not None:
        _check_probe(f"{where}.probe", route.probe)
    if route.embeddings is not None:
        _check_embeddings(f"{where}.embeddings", route.embeddings, route.kind)
    if route.judge is not None:
        _check_judge(f"{where}.judge", route.judge)
    check_review(f"{where}.review", route.review)
    check_rollout(f"{where}.rollout", route.rollout)


def _check_judge(where: str, judge: Judge) -> None:
    if not (isfinite(judge.timeout_s) and judge.timeout_s > 0):
        raise ConfigError(f"{where}.timeout_s: got {judge.timeout_s}; more than 0 seconds")
    if judge.max_tokens < 1:
        raise ConfigError(f"{where}.max_tokens: got {judge.max_tokens}; at least 1")


def _check_embeddings(where: str, embeddings: Embeddings, kind: Kind) -> None:
    if kind == "samples":
        raise ConfigError(f"{where}: belongs to 'rounds' and 'reasoning'; samples are no drafts of each other")
    for field in ("timeout_s", "pause_s"):
        value = getattr(embeddings, field)
        if not (isfinite(value) and value > 0):
            raise ConfigError(f"{where}.{field}: got {value}; more than 0 seconds")


def _check_load(where: str, route: Route) -> None:
    if route.min_satisfaction is not None and not 0 < route.min_satisfaction <= 5:
        got = route.min_satisfaction
        raise ConfigError(f"{where}.min_satisfaction: got {got}; a fraction up to 1, or a rating above 1 and up to 5")
    if route.fallback_capacity is not None and not (isfinite(route.fallback_capacity) and route.fallback_capacity > 0):
        raise ConfigError(f"{where}.fallback_capacity: got {route.fallback_capacity}; a ratio above 0")
    if route.pressure is not None:
        if not route.upstream:
            raise ConfigError(f"{where}.pressure: needs a route with an upstream, whose load is measured")
        _check_pressure(f"{where}.pressure", route.pressure)


def _check_pressure(where: str, pressure: Pressure) -> None:
    targets = {name: getattr(pressure, name) for name in ("queue", "latency_s", "tokens_per_s", "usd_per_hour")}
    if all(target is None for target in targets.values()):
        raise ConfigError(f"{where}: names no target; at least one of {', '.join(targets)}")
    for field, value in (targets | {"hold_s": pressure.hold_s}).items():
        if value is not None and not (isfinite(value) and value > 0):
            raise ConfigError(f"{where}.{field}: got {value}; more than 0")
    usual = pressure.operating_point
    for field, value, most in (("operating_point", usual, 1.0), ("slack_point", pressure.slack_point, usual)):
        if value is not None and not 0 <= value <= most:
            raise ConfigError(f"{where}.{field}: got {value}; a fraction from 0 to {most:g}")


def _check_probe(where: str, probe: Probe) -> None:
    if probe.closing.endswith(" "):
        raise ConfigError(f"{where}.closing: must not end in a space: models then lose minus signs")
    if probe.timeout_s <= 0:
        raise ConfigError(f"{where}.timeout_s: got {probe.timeout_s}; more than 0 seconds")
    if probe.reask_thought.count("{thought}") != 1:
        raise ConfigError(f"{where}.reask_thought: must hold {{thought}} once, where the reasoning so far goes")
