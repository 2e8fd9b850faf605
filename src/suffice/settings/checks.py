"""What the types of settings cannot say: references, ranges, and combinations that promise too much."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from math import isfinite
from typing import Final

import msgspec

from suffice.errors import ConfigError
from suffice.settings.rollout import check_rollout
from suffice.settings.tables import (
    Alerts,
    AuditLog,
    Control,
    Embeddings,
    Experiment,
    ExperimentArm,
    Extra,
    FeedbackRules,
    Judge,
    Key,
    Metric,
    Pressure,
    Prices,
    Probe,
    Retention,
    Review,
    ReviewCap,
    Route,
    Server,
    Settings,
    Store,
)
from suffice.types import Kind

_ADDRESS: Final = re.compile(r"[^@\s<>,;]+@[^@\s<>,;]+")
_BASE: Final = re.compile(r"https?://[^/@\s?#]+(/[^@\s?#]*)?")


def check_alerts(alerts: Alerts) -> None:
    """Refuse what cannot work. Raises ConfigError."""
    if bool(alerts.smtp_user_env) != bool(alerts.smtp_password_env):
        raise ConfigError("alerts.smtp_user_env: needs smtp_password_env beside it; give both or none")
    if alerts.smtp_user_env and alerts.mail_tls != "required":
        raise ConfigError(
            f'alerts.smtp_tls: got "{alerts.smtp_tls}" beside a login; a password is sent over TLS only: "required"'
        )
    _check_mail(alerts)
    if not (isfinite(alerts.repeat_s) and alerts.repeat_s >= 0):
        raise ConfigError(f"alerts.repeat_s: got {alerts.repeat_s}; at least 0 seconds")
    if alerts.link is not None and not _BASE.fullmatch(alerts.link):
        raise ConfigError("alerts.link: needs http://host or https://host, without a user, a query or a fragment")


def _check_mail(alerts: Alerts) -> None:
    for address in alerts.email_to:
        if not _ADDRESS.fullmatch(address):
            raise ConfigError(f"alerts.email_to: got {address!r}; needs plain addresses such as ops@example.org")
    if alerts.email_to and not alerts.smtp_host:
        raise ConfigError("alerts.smtp_host: is empty; e-mail needs the name of a mail server")
    if alerts.email_to and not _ADDRESS.fullmatch(alerts.email_from):
        raise ConfigError(f"alerts.email_from: got {alerts.email_from!r}; e-mail needs an address to come from")
    if not 0 < alerts.smtp_port < 65_536:
        raise ConfigError(f"alerts.smtp_port: got {alerts.smtp_port}; 1 to 65535")


LEAST_S: Final = 1.0  # between two rounds of a job


def check_audit(audit: AuditLog, retention: Retention) -> None:
    """Refuse what cannot work. Raises ConfigError."""
    for where, value in (("audit.every_s", audit.every_s), ("retention.every_s", retention.every_s)):
        if not (isfinite(value) and value >= LEAST_S):
            raise ConfigError(f"{where}: got {value}; at least {LEAST_S:g} second")
    if not (isfinite(audit.timeout_s) and audit.timeout_s > 0):
        raise ConfigError(f"audit.timeout_s: got {audit.timeout_s}; more than 0 seconds")
    for part, days in retention.days.items():
        if not (isfinite(days) and days >= 0):
            raise ConfigError(f"retention.{part}_days: got {days}; at least 0 days")


BUILT_IN: Final = ("em", "satisfaction", "latency", "tokens")  # metrics that every route has
LEAST_WARMUP: Final = 20  # units: a cap that is learnt from fewer cuts many runs
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def check_experiments(
    experiments: Mapping[str, Experiment], routes: Mapping[str, Route], metrics: Mapping[str, Metric]
) -> None:
    """Raises ConfigError with the path of what cannot be."""
    layers: dict[str, tuple[str, str]] = {}
    known = (*BUILT_IN, *(name for name, metric in metrics.items() if metric.type != "category"))
    for name, one in experiments.items():
        where = f"experiments.{name}"
        _check_name("experiments", name)
        _check_name(f"{where}.layer", one.layer)
        _check_routes(where, one, routes)
        _check_numbers(where, one)
        _check_metrics(where, one, known)
        _check_arms(where, one, [routes[route] for route in one.routes])
        first, unit = layers.setdefault(one.layer, (name, one.unit))
        if unit != one.unit:
            raise ConfigError(
                f"{where}.unit: got {one.unit!r}; experiments of one layer exclude each other, so all have one unit,"
                f" and experiments.{first} in layer {one.layer!r} has {unit!r}; write another layer"
            )


def _check_name(where: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: got {name[:80]!r}; a name is 1 to 64 letters, digits, '_', '.' and '-'")


def _check_routes(where: str, one: Experiment, routes: Mapping[str, Route]) -> None:
    if not one.routes:
        raise ConfigError(f"{where}.routes: is empty; name at least one route")
    for route in one.routes:
        if route not in routes:
            known = ", ".join(sorted(routes)) or "none is configured"
            raise ConfigError(f"{where}.routes: unknown route {route!r}; known: {known}")


def _check_numbers(where: str, one: Experiment) -> None:
    if not 0.001 <= one.share <= 1:
        raise ConfigError(f"{where}.share: got {one.share}; a fraction from 0.001 to 1")
    if not 0.5 < one.confidence < 1:
        raise ConfigError(f"{where}.confidence: got {one.confidence}; a fraction above 0.5 and below 1")
    if one.warmup_units < LEAST_WARMUP:
        raise ConfigError(f"{where}.warmup_units: got {one.warmup_units}; at least {LEAST_WARMUP}")
    for field in ("max_tokens", "max_latency_s"):
        value = getattr(one, field)
        if value is not None and not (isfinite(value) and value > 0):
            raise ConfigError(f"{where}.{field}: got {value}; more than 0")


def _check_metrics(where: str, one: Experiment, known: tuple[str, ...]) -> None:
    for place, metric in (("primary", one.primary), *((f"margins.{name}", name) for name in one.margins)):
        if metric not in known:
            raise ConfigError(f"{where}.{place}: unknown metric {metric!r}; known: {', '.join(known)}")
    for metric, margin in one.margins.items():
        if not (isfinite(margin) and margin >= 0):
            raise ConfigError(f"{where}.margins.{metric}: got {margin}; at least 0, in the metric's own unit")


def _check_arms(where: str, one: Experiment, routes: list[Route]) -> None:
    for name, arm in one.arms.items():
        _check_name(f"{where}.arms", name)
        _check_arm(f"{where}.arms.{name}", arm, routes)
    if sum(arm.weight > 0 for arm in one.arms.values()) < 2:
        raise ConfigError(f"{where}.arms: need at least two arms with a weight above 0")
    control = one.arms.get(one.control)
    if one.control and control is None:
        raise ConfigError(f"{where}.control: unknown arm {one.control!r}; known: {', '.join(one.arms)}")
    if control is not None and not control.weight:
        raise ConfigError(f"{where}.control: arm {one.control!r} has no weight, so nothing can be compared with it")


def _check_arm(where: str, arm: ExperimentArm, routes: list[Route]) -> None:
    if not (isfinite(arm.weight) and arm.weight >= 0):
        raise ConfigError(f"{where}.weight: got {arm.weight}; at least 0")
    own = [name for name in ("policy", "threshold", "level") if getattr(arm, name) not in ({}, None)]
    ahead = [name for name in ("effort", "budget_tokens") if getattr(arm, name) is not None]
    if arm.full and (own or ahead or arm.uncertified):
        raise ConfigError(f"{where}: full = true is the full run, which goes with nothing but a weight")
    for names in (own, ahead):
        if len(names) > 1:
            raise ConfigError(f"{where}: {' and '.join(names)} exclude each other; write one of them")
    for name in ("level", "budget_tokens"):
        if (getattr(arm, name) or 0) < 0:
            raise ConfigError(f"{where}.{name}: got {getattr(arm, name)}; at least 0")
    _check_fit(where, arm, routes, own, ahead)


def _check_fit(where: str, arm: ExperimentArm, routes: list[Route], own: list[str], ahead: list[str]) -> None:
    if arm.threshold is not None and not all("policy" in route.policy for route in routes):
        raise ConfigError(f"{where}.threshold: needs routes with a policy of their own, whose threshold it replaces")
    if arm.level is not None and any(route.policy for route in routes):
        raise ConfigError(f"{where}.level: needs routes without a policy of their own: what is certified has levels")
    if ahead and any(route.kind != "reasoning" for route in routes):
        raise ConfigError(f"{where}.{ahead[0]}: belongs to routes of kind 'reasoning'")
    if {"policy", "threshold"} & set(own) and not (arm.uncertified or all(route.uncertified for route in routes)):
        raise ConfigError(
            f"{where}.{own[0]}: nobody has certified it, so it stops nothing; write uncertified = true to let it act"
        )


MOST_METRICS: Final = 50
MOST_VALUES: Final = 50
RATING: Final = (1.0, 5.0)  # of a rating that names no other range
SCORE_FIELDS: Final = ("correct", "gold", "answer", "rating", "thumbs", "comment")  # that a score may be
_FEEDBACK_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


def check_feedback(rules: FeedbackRules, metrics: Mapping[str, Metric]) -> None:
    """Refuse what cannot work. Raises ConfigError."""
    if len(metrics) > MOST_METRICS:
        raise ConfigError(f"metrics: got {len(metrics)}; at most {MOST_METRICS}")
    for name, metric in metrics.items():
        _check_metric(f"metrics.{name}", name, metric)
    _check_rules(rules)
    for score, field in rules.langfuse.scores.items():
        kind, _, name = field.partition(".")
        if field not in SCORE_FIELDS and (kind != "metrics" or name not in metrics):
            allowed = ", ".join([*SCORE_FIELDS, *(f"metrics.{known}" for known in sorted(metrics))])
            raise ConfigError(f"feedback.langfuse.scores.{score}: got {field!r}; allowed: {allowed}")


def span_of(metric: Metric) -> tuple[float, float] | None:
    """The smallest and the largest value that a metric can have; None: its values are words."""
    if metric.type == "category":
        return None
    if metric.type == "boolean":
        return 0.0, 1.0
    return metric.range or RATING


def _check_metric(where: str, name: str, metric: Metric) -> None:
    if not _FEEDBACK_NAME.fullmatch(name):
        raise ConfigError(f"{where}: a name needs a letter, then up to 63 letters, digits, _ and -")
    if metric.range is not None:
        low, high = metric.range
        if not (isfinite(low) and isfinite(high) and low < high):
            raise ConfigError(f"{where}.range: got {list(metric.range)}; the smallest and the largest value")
        if metric.type == "rating" and not (low.is_integer() and high.is_integer()):
            raise ConfigError(f"{where}.range: got {list(metric.range)}; a rating has whole numbers")
    if metric.type == "number" and metric.range is None:
        raise ConfigError(f"{where}.range: a number needs one: without it nobody can say how far a mean may be off")
    if metric.type in ("boolean", "category") and metric.range is not None:
        raise ConfigError(f"{where}.range: belongs to the types rating and number, got {metric.type}")
    _check_words(where, metric)


def _check_words(where: str, metric: Metric) -> None:
    words = metric.values
    if metric.type != "category":
        if words:
            raise ConfigError(f"{where}.values: belong to the type category, got {metric.type}")
        return
    if not 2 <= len(set(words)) == len(words) <= MOST_VALUES or not all(0 < len(word) <= 100 for word in words):
        raise ConfigError(f"{where}.values: a category needs 2 to {MOST_VALUES} different words of 1 to 100 characters")
    if metric.survey:
        raise ConfigError(f"{where}.survey: a question of a survey is a boolean, rating or number: words have no mean")


def _check_rules(rules: FeedbackRules) -> None:
    if not (isfinite(rules.token_hours) and rules.token_hours >= 0):
        raise ConfigError(f"feedback.token_hours: got {rules.token_hours}; at least 0")
    if not (isfinite(rules.park_days) and rules.park_days > 0):
        raise ConfigError(f"feedback.park_days: got {rules.park_days}; more than 0")
    if not 0 < rules.least_propensity <= 1:
        raise ConfigError(f"feedback.least_propensity: got {rules.least_propensity}; a fraction above 0, up to 1")


MOST_A_DAY: Final = 10_000  # more is no review but a flood
MOST_REVIEWERS: Final = 9


def check_review(where: str, review: Review) -> None:
    """Raises ConfigError with the path of what cannot be."""
    check_per_day(where, review)
    if not 0 <= review.control_share <= 1:
        raise ConfigError(f"{where}.control_share: got {review.control_share}; a fraction from 0 to 1")
    if not 1 <= review.reviewers <= MOST_REVIEWERS:
        raise ConfigError(f"{where}.reviewers: got {review.reviewers}; 1 to {MOST_REVIEWERS}")
    for field in ("lease_s", "open_days", "text_days"):
        value = getattr(review, field)
        if not (isfinite(value) and value > 0):
            raise ConfigError(f"{where}.{field}: got {value}; more than 0")


def check_per_day(where: str, cap: Review | ReviewCap) -> None:
    """Raises ConfigError for a daily cap that is none."""
    if not 0 <= cap.per_day <= MOST_A_DAY:
        raise ConfigError(f"{where}.per_day: got {cap.per_day}; 0 to {MOST_A_DAY:,}, where 0 asks nobody")


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
