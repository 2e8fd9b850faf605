"""Checks of settings beyond types: ranges, references, and combinations that promise too much."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from suffice.errors import ConfigError
from suffice.settings import tables

BUILT_IN: Final = ("em", "satisfaction", "latency", "tokens")  # metrics that every route has
MOST_METRICS: Final = 50
MOST_VALUES: Final = 50
MOST_NUMBER: Final = 10**12  # of any number: bytes, tokens, seconds
RATING: Final = (1.0, 5.0)  # of a rating without a range of its own
SCORE_FIELDS: Final = ("correct", "gold", "answer", "rating", "thumbs", "comment")  # what a score may map to
_KEY_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_BASE: Final = re.compile(r"https?://[^/@\s?#]+(/[^@\s?#]*)?")
_ADDRESS: Final = re.compile(r"[^@\s<>,;]+@[^@\s<>,;]+")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_NAME_SAYS: Final = "a name is 1 to 64 letters, digits, '_', '.' and '-'"
_METRIC_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")

_ORIGIN_SAYS: Final = (
    "an origin as browsers send it, in lower case, without a path and without the scheme's own port, such as"
    " 'https://app.example.com'; no wildcards"
)
_RELAY_SAYS: Final = (
    "need a method and an exact path, such as 'POST /tokenize'; methods: GET, POST, PUT, PATCH, DELETE, OPTIONS"
)

# Texts, and lists of texts, that must match a pattern, and the pattern in words.
PATTERNS: Final[Mapping[type[msgspec.Struct], Mapping[str, tuple[re.Pattern[str], str]]]] = {
    tables.Server: {
        "allowed_hosts": (re.compile(r"[A-Za-z0-9_.-]{1,253}"), "a host name without scheme and port"),
        "allowed_origins": (
            re.compile(r"(?!http://.*:80$|https://.*:443$)[a-z][a-z0-9+.-]*://[a-z0-9_.\[\]:-]+"),
            _ORIGIN_SAYS,
        ),
        "relay": (
            re.compile(r"(GET|POST|PUT|PATCH|DELETE|OPTIONS) (/|(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]{1,200})+)"),
            _RELAY_SAYS,
        ),
    },
    tables.Upstream: {"affinity_header": (re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]*"), "no HTTP header name")},
    tables.Alerts: {"email_to": (_ADDRESS, "needs plain addresses such as ops@example.org")},
    tables.Experiment: {"layer": (_NAME, _NAME_SAYS)},
}

Range = tuple[float, float, str]  # least and most, and the range in words
_MOST: Final = 1e300  # of a number without a limit of its own: finite
_ABOVE_0: Final = math.nextafter(0.0, 1.0)
_ABOVE_HALF: Final = math.nextafter(0.5, 1)
_BELOW_1: Final = math.nextafter(1, 0)
_AT_LEAST_0: Final[Range] = (0, _MOST, "at least 0")
_AT_LEAST_0_S: Final[Range] = (0, _MOST, "at least 0 seconds")
_AT_LEAST_1: Final[Range] = (1, _MOST, "at least 1")
_POSITIVE: Final[Range] = (_ABOVE_0, _MOST, "more than 0")
_POSITIVE_S: Final[Range] = (_ABOVE_0, _MOST, "more than 0 seconds")
_LIMIT_S: Final[Range] = (0, _MOST, "a number of seconds, or 0: no limit")
_FRACTION: Final[Range] = (0, 1, "a fraction from 0 to 1")
_INSIDE: Final[Range] = (_ABOVE_0, _BELOW_1, "above 0 and below 1")
_EM_FRACTION: Final[Range] = (0, 1, "a fraction from 0 to 1 (1 point of EM = 0.01)")
_DAYS: Final[Range] = (0, _MOST, "at least 0 days")
_USD: Final[Range] = (0, _MOST, "US dollars for a million tokens, at least 0")
_PER_DAY: Final[Range] = (0, 10_000, "0 to 10,000, where 0 asks nobody")  # more is surely a mistake
# Below a thousandth, a class would have too few live runs.
_SAMPLE_RATE: Final[Range] = (0.001, 1, "a fraction from 0.001 to 1, which keeps all")
_MOST_TOKENS: Final[Range] = (1, 2**53, f"from 1 to {2**53}")
# None is allowed wherever the type allows it.
RANGES: Final[Mapping[type[msgspec.Struct], Mapping[str, Range]]] = {
    tables.Server: {
        "retry_window_s": (0, _MOST, "a number of seconds, at least 0"),
        **dict.fromkeys(("head_timeout_s", "body_timeout_s", "keepalive_s"), _LIMIT_S),
        "max_connections": _AT_LEAST_1,
        "max_connections_per_address": (0, _MOST, "at least 1, or 0: no limit"),
    },
    # A gateway remembers the times of this many requests per key.
    tables.Key: {
        "requests_per_minute": (1, 1_000_000, "from 1 to 1000000"),
        "concurrency": _MOST_TOKENS,
        "tokens_per_day": _MOST_TOKENS,
    },
    tables.Console: {"port": (0, 65_535, "0 to 65535")},
    tables.Upstream: {"first_byte_timeout_s": _LIMIT_S},
    tables.Extra: {
        **dict.fromkeys(("calls_per_s", "tokens_per_s"), _AT_LEAST_0),
        **dict.fromkeys(("concurrency_share", "rate_limit_share"), _FRACTION),
    },
    tables.Prices: dict.fromkeys(("input_usd_per_mtok", "output_usd_per_mtok", "cached_input_usd_per_mtok"), _USD),
    tables.Route: {
        **dict.fromkeys(("max_em_drop", "confidence", "critical_em", "audit_share", "most_audit_share"), _EM_FRACTION),
        "label_timeout_s": _AT_LEAST_0_S,
        "samples": _AT_LEAST_1,
        "wave": _AT_LEAST_1,
        "max_extra_calls": _AT_LEAST_0,
        "budget_tokens": (0, _MOST, "at least 0, which is no thought at all"),
        "min_satisfaction": (_ABOVE_0, 5, "a fraction up to 1, or a rating above 1 and up to 5"),
        "fallback_capacity": (_ABOVE_0, _MOST, "a ratio above 0"),
        "sample_rate": _SAMPLE_RATE,
    },
    tables.Probe: {"timeout_s": _POSITIVE_S},
    tables.Embeddings: {"timeout_s": _POSITIVE_S, "pause_s": _POSITIVE_S},
    tables.Judge: {"timeout_s": _POSITIVE_S, "max_tokens": _AT_LEAST_1},
    tables.Pressure: {
        **dict.fromkeys(("queue", "latency_s", "tokens_per_s", "usd_per_hour", "hold_s"), _POSITIVE),
        "operating_point": _FRACTION,
    },
    tables.Review: {
        "per_day": _PER_DAY,
        "control_share": _FRACTION,
        "reviewers": (1, 9, "1 to 9"),
        **dict.fromkeys(("lease_s", "open_days", "text_days"), _POSITIVE),
    },
    tables.ReviewCap: {"per_day": _PER_DAY},
    tables.SamplingSettings: {"sample_rate": _SAMPLE_RATE},
    tables.Control: {
        **dict.fromkeys(("tick_requests", "burst_requests", "refit_requests", "window_audits"), _AT_LEAST_1),
        "period_s": _POSITIVE_S,
    },
    tables.Store: {"last_good_s": _AT_LEAST_0_S},
    tables.AuditLog: {"every_s": (1, _MOST, "at least 1 second"), "timeout_s": _POSITIVE_S},
    tables.Retention: {
        "every_s": (1, _MOST, "at least 1 second"),
        **dict.fromkeys((f"{part}_days" for part in ("answers", "comments", "questions", "metadata", "steps")), _DAYS),
    },
    tables.Alerts: {"repeat_s": _AT_LEAST_0_S, "smtp_port": (1, 65_535, "1 to 65535")},
    tables.Experiment: {
        "share": (0.001, 1, "a fraction from 0.001 to 1"),
        "confidence": (_ABOVE_HALF, _BELOW_1, "a fraction above 0.5 and below 1"),
        "warmup_units": (20, _MOST, "at least 20"),  # a cap learned from fewer cuts many runs
        **dict.fromkeys(("max_tokens", "max_latency_s"), _POSITIVE),
    },
    tables.ExperimentArm: dict.fromkeys(("weight", "level", "budget_tokens"), _AT_LEAST_0),
    tables.Rollout: {
        "shares": (_ABOVE_0, 0.5, "above 0 and at most 0.5, so that the control can be as large"),
        **dict.fromkeys(("audit_share", "rare_share", "least_kept", "most_cut"), _FRACTION),
        **dict.fromkeys(("em_margin", "class_em_margin", "error_margin", "no_answer_margin"), _INSIDE),
        "satisfaction_margin": _INSIDE,
        "latency_margin": (_ABOVE_0, 10.0, "above 0 and at most 10"),
        **dict.fromkeys(("confidence", "harm_confidence"), (_ABOVE_HALF, _BELOW_1, "above 0.5 and below 1")),
        **dict.fromkeys(("least_audits", "least_class_audits", "least_requests"), _AT_LEAST_1),
        **dict.fromkeys(("most_requests", "most_idle_requests", "most_a_day"), _AT_LEAST_1),
        **dict.fromkeys(
            ("least_stage_s", "warmup_requests", "warmup_s", "cool_down_s", "most_cool_down_s"), _AT_LEAST_0
        ),
        "latency_cap_s": _POSITIVE_S,
    },
    tables.FeedbackRules: {
        "token_hours": _AT_LEAST_0,
        "park_days": _POSITIVE,
        "least_propensity": (_ABOVE_0, 1, "a fraction above 0, up to 1"),
    },
}


def check_settings(settings: tables.Settings) -> None:
    """Check all settings. Raises ConfigError with the path of the value, what it is and what is allowed."""
    check_rollout("rollout", settings.rollout)
    all_tables = list(_tables("", settings))
    for where, table in all_tables:
        _check_ranges(where, table)
        _check_patterns(where, table)
        if isinstance(table, tables.Template) and "{content}" not in table.turn:
            raise ConfigError(f"{where}.turn: must hold {{content}}, where a message's text goes")
    for name, key in settings.keys.items():
        _check_key(name, key, settings)
    _check_console(settings)
    for name, route in settings.routes.items():
        where = f"routes.{name}"
        if route.upstream not in settings.upstreams and (route.upstream or route.kind != "rounds"):
            raise ConfigError(f"{where}.upstream: unknown upstream {route.upstream!r}; {_known(settings.upstreams)}")
        _check_route(where, route)
        _check_tables(where, route)
    _check_alerts(settings.alerts)
    _check_experiments(settings.experiments, settings.routes, settings.metrics)
    _check_feedback(settings.feedback, settings.metrics)
    for where, table in all_tables:
        _check_numbers(where, table)


def _tables(path: str, table: msgspec.Struct) -> Iterator[tuple[str, msgspec.Struct]]:
    for name in table.__struct_fields__:
        value, here = getattr(table, name), f"{path}.{name}" if path else name
        for key, one in value.items() if isinstance(value, Mapping) else ((None, value),):
            if isinstance(one, msgspec.Struct):
                where = here if key is None else f"{here}.{key}"
                yield where, one
                yield from _tables(where, one)


def _check_ranges(where: str, table: msgspec.Struct, kind: type[msgspec.Struct] | None = None) -> None:
    for field, (least, most, says) in RANGES.get(kind or type(table), {}).items():
        value = getattr(table, field)
        for one in value if isinstance(value, tuple) else (value,):
            if one is None and kind is None:  # allowed by the type
                continue
            if isinstance(one, bool) or not isinstance(one, int | float) or not math.isfinite(one):
                raise ConfigError(f"{where}.{field}: got {one!r:.60}; a finite number, {says}")
            if not least <= one <= most:
                raise ConfigError(f"{where}.{field}: got {one}; {says}")


def _check_patterns(where: str, table: msgspec.Struct) -> None:
    for field, (pattern, says) in PATTERNS.get(type(table), {}).items():
        value = getattr(table, field)
        for text in (value,) if isinstance(value, str) else value:
            if not pattern.fullmatch(text):
                raise ConfigError(f"{where}.{field}: got {text[:200]!r}; {says}")


def _check_numbers(where: str, table: msgspec.Struct) -> None:
    for name in table.__struct_fields__:
        value, most = getattr(table, name), 65_535 if name.endswith("port") else MOST_NUMBER
        if isinstance(value, int | float) and not isinstance(value, bool) and not 0 <= value <= most:
            raise ConfigError(f"{where}.{name}: got {value}; 0 to {most:,}")


def check_rollout(where: str, table: tables.Rollout) -> None:
    """Check the numbers of a rollout table. Raises ConfigError with the place."""
    _check_ranges(where, table, tables.Rollout)
    if not table.shares or list(table.shares) != sorted(set(table.shares)):
        raise ConfigError(f"{where}.shares: got {list(table.shares)}; at least one, each larger than the one before")
    unknown = [name for name in table.required if name not in tables.LIVE_GUARDRAILS]
    if unknown:
        raise ConfigError(f"{where}.required: got {unknown[0]!r:.60}; some of {', '.join(tables.LIVE_GUARDRAILS)}")
    if table.most_requests <= table.warmup_requests:
        raise ConfigError(
            f"{where}.most_requests: got {table.most_requests}; more than warmup_requests, {table.warmup_requests}"
        )


def _known(names: Mapping[str, object]) -> str:
    return f"known: {', '.join(sorted(names)) or 'none is configured'}"


def _check_key(name: str, key: tables.Key, settings: tables.Settings) -> None:
    where = f"keys.{name}"
    if not _KEY_NAME.fullmatch(name):
        raise ConfigError(f"keys: got {name[:80]!r}; 1 to 64 letters, digits and . _ -, a letter or a digit first")
    if not key.key_env:
        raise ConfigError(f"{where}.key_env: must name the environment variable that holds the key")
    for route in key.routes or ():
        if route not in settings.routes:
            raise ConfigError(f"{where}.routes: unknown route {route!r}; {_known(settings.routes)}")


def _check_console(settings: tables.Settings) -> None:
    console = settings.console
    if console.port is None and console.host:
        raise ConfigError(f"console.host: got {console.host!r} without console.port; name both, or neither")
    if console.port and console.port == settings.server.port:
        raise ConfigError(f"console.port: got {console.port}, which is server.port; name another one, or leave it out")


def _check_route(where: str, route: tables.Route) -> None:
    if route.kind == "samples" and route.samples - 1 > route.max_extra_calls:
        raise ConfigError(
            f"{where}.samples: got {route.samples}; at most {route.max_extra_calls + 1},"
            " because every sample behind the first is one of max_extra_calls"
        )
    if route.kind != "reasoning" and (route.effort is not None or route.budget_tokens is not None):
        raise ConfigError(f"{where}: effort and budget_tokens belong to the kind 'reasoning', got {route.kind!r}")
    if route.promise == "budgeted" and (route.policy or route.arms):
        what = "policy" if route.policy else " and ".join(route.arms)
        raise ConfigError(
            f"{where}.promise: got 'budgeted', which moves a level that the route has learned, beside {what};"
            " allowed: 'certified'"
        )


def _check_tables(where: str, route: tables.Route) -> None:
    if route.probe is not None:
        _check_probe(f"{where}.probe", route.probe)
    if route.embeddings is not None and route.kind == "samples":
        raise ConfigError(
            f"{where}.embeddings: belongs to 'rounds' and 'reasoning'; samples are no drafts of each other"
        )
    if route.pressure is not None:
        if not route.upstream:
            raise ConfigError(f"{where}.pressure: needs a route with an upstream, whose load is measured")
        _check_pressure(f"{where}.pressure", route.pressure)
    check_rollout(f"{where}.rollout", route.rollout)


def _check_pressure(where: str, pressure: tables.Pressure) -> None:
    targets = ("queue", "latency_s", "tokens_per_s", "usd_per_hour")
    if all(getattr(pressure, target) is None for target in targets):
        raise ConfigError(f"{where}: names no target; at least one of {', '.join(targets)}")
    slack, usual = pressure.slack_point, pressure.operating_point
    if slack is not None and not 0 <= slack <= usual:
        raise ConfigError(f"{where}.slack_point: got {slack}; a fraction from 0 to {usual:g}")


def _check_probe(where: str, probe: tables.Probe) -> None:
    if probe.closing.endswith(" "):
        raise ConfigError(f"{where}.closing: must not end in a space: models then lose minus signs")
    if probe.reask_thought.count("{thought}") != 1:
        raise ConfigError(f"{where}.reask_thought: must hold {{thought}} once, where the reasoning so far goes")


def _check_alerts(alerts: tables.Alerts) -> None:
    if bool(alerts.smtp_user_env) != bool(alerts.smtp_password_env):
        raise ConfigError("alerts.smtp_user_env: needs smtp_password_env beside it; give both or none")
    if alerts.smtp_user_env and alerts.mail_tls != "required":
        raise ConfigError(
            f'alerts.smtp_tls: got "{alerts.smtp_tls}" beside a login; a password is sent over TLS only: "required"'
        )
    if alerts.link is not None and not _BASE.fullmatch(alerts.link):
        raise ConfigError("alerts.link: needs http://host or https://host, without a user, a query or a fragment")
    if alerts.email_to and not alerts.smtp_host:
        raise ConfigError("alerts.smtp_host: is empty; e-mail needs the name of a mail server")
    if alerts.email_to and not _ADDRESS.fullmatch(alerts.email_from):
        raise ConfigError(f"alerts.email_from: got {alerts.email_from!r}; e-mail needs an address to come from")


def _check_experiments(
    experiments: Mapping[str, tables.Experiment],
    routes: Mapping[str, tables.Route],
    metrics: Mapping[str, tables.Metric],
) -> None:
    layers: dict[str, tuple[str, str]] = {}
    known = (*BUILT_IN, *(name for name, metric in metrics.items() if metric.type != "category"))
    for name, one in experiments.items():
        where = f"experiments.{name}"
        _check_name("experiments", name)
        _check_routes(where, one, routes)
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
        raise ConfigError(f"{where}: got {name[:80]!r}; {_NAME_SAYS}")


def _check_routes(where: str, one: tables.Experiment, routes: Mapping[str, tables.Route]) -> None:
    if not one.routes:
        raise ConfigError(f"{where}.routes: is empty; name at least one route")
    for route in one.routes:
        if route not in routes:
            raise ConfigError(f"{where}.routes: unknown route {route!r}; {_known(routes)}")


def _check_metrics(where: str, one: tables.Experiment, known: tuple[str, ...]) -> None:
    for place, metric in (("primary", one.primary), *((f"margins.{name}", name) for name in one.margins)):
        if metric not in known:
            raise ConfigError(f"{where}.{place}: unknown metric {metric!r}; known: {', '.join(known)}")
    for metric, margin in one.margins.items():
        if not (math.isfinite(margin) and margin >= 0):
            raise ConfigError(f"{where}.margins.{metric}: got {margin}; at least 0, in the metric's own unit")


def _check_arms(where: str, one: tables.Experiment, routes: list[tables.Route]) -> None:
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


def _check_arm(where: str, arm: tables.ExperimentArm, routes: list[tables.Route]) -> None:
    own = [name for name in ("policy", "threshold", "level") if getattr(arm, name) not in ({}, None)]
    ahead = [name for name in ("effort", "budget_tokens") if getattr(arm, name) is not None]
    if arm.full and (own or ahead or arm.uncertified):
        raise ConfigError(f"{where}: full = true is the full run, which goes with nothing but a weight")
    for names in (own, ahead):
        if len(names) > 1:
            raise ConfigError(f"{where}: {' and '.join(names)} exclude each other; write one of them")
    _check_fit(where, arm, routes, own, ahead)


def _check_fit(
    where: str, arm: tables.ExperimentArm, routes: list[tables.Route], own: list[str], ahead: list[str]
) -> None:
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


def _check_feedback(rules: tables.FeedbackRules, metrics: Mapping[str, tables.Metric]) -> None:
    if len(metrics) > MOST_METRICS:
        raise ConfigError(f"metrics: got {len(metrics)}; at most {MOST_METRICS}")
    for name, metric in metrics.items():
        _check_metric(f"metrics.{name}", name, metric)
    for score, field in rules.langfuse.scores.items():
        kind, _, name = field.partition(".")
        if field not in SCORE_FIELDS and (kind != "metrics" or name not in metrics):
            allowed = ", ".join([*SCORE_FIELDS, *(f"metrics.{known}" for known in sorted(metrics))])
            raise ConfigError(f"feedback.langfuse.scores.{score}: got {field!r}; allowed: {allowed}")


def span_of(metric: tables.Metric) -> tuple[float, float] | None:
    """Return the smallest and the largest value of a metric; None: a category."""
    if metric.type == "category":
        return None
    if metric.type == "boolean":
        return 0.0, 1.0
    return metric.range or RATING


def _check_metric(where: str, name: str, metric: tables.Metric) -> None:
    if not _METRIC_NAME.fullmatch(name):
        raise ConfigError(f"{where}: a name needs a letter, then up to 63 letters, digits, _ and -")
    if metric.range is not None:
        low, high = metric.range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigError(f"{where}.range: got {list(metric.range)}; the smallest and the largest value")
        if metric.type == "rating" and not (low.is_integer() and high.is_integer()):
            raise ConfigError(f"{where}.range: got {list(metric.range)}; a rating has whole numbers")
    if metric.type == "number" and metric.range is None:
        raise ConfigError(f"{where}.range: a number needs one: without it nobody can say how far a mean may be off")
    if metric.type in ("boolean", "category") and metric.range is not None:
        raise ConfigError(f"{where}.range: belongs to the types rating and number, got {metric.type}")
    _check_words(where, metric)


def _check_words(where: str, metric: tables.Metric) -> None:
    words = metric.values
    if metric.type != "category":
        if words:
            raise ConfigError(f"{where}.values: belong to the type category, got {metric.type}")
        return
    if not 2 <= len(set(words)) == len(words) <= MOST_VALUES or not all(0 < len(word) <= 100 for word in words):
        raise ConfigError(f"{where}.values: a category needs 2 to {MOST_VALUES} different words of 1 to 100 characters")
    if metric.survey:
        raise ConfigError(f"{where}.survey: a question of a survey is a boolean, rating or number: words have no mean")
