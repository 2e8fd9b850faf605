"""Checks of settings beyond types: ranges, references, and combinations that promise too much."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final, get_args, get_type_hints

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
_METRIC_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


def check_settings(settings: tables.Settings) -> None:
    """Check all settings. Raises ConfigError with the path of the value, what it is and what is allowed."""
    check_rollout("rollout", settings.rollout)
    for where, table in _tables("", settings):
        check_limits(where, table)
        if isinstance(table, tables.Template) and "{content}" not in table.turn:
            raise ConfigError(f"{where}.turn: must hold {{content}}, where a message's text goes")
    for name, key in settings.keys.items():
        _check_key(name, key, settings)
    _check_console(settings)
    for name, route in settings.routes.items():
        where = f"routes.{name}"
        if route.upstream not in settings.upstreams and (route.upstream or route.kind != "rounds"):
            raise ConfigError(
                f"{where}.upstream: unknown upstream {route.upstream!r}; {known_names(settings.upstreams)}"
            )
        _check_route(where, route)
        _check_tables(where, route)
    _check_alerts(settings.alerts)
    _check_experiments(settings.experiments, settings.routes, settings.metrics)
    _check_feedback(settings.feedback, settings.metrics)


def _tables(path: str, table: msgspec.Struct) -> Iterator[tuple[str, msgspec.Struct]]:
    for name in table.__struct_fields__:
        value, here = getattr(table, name), f"{path}.{name}" if path else name
        for key, one in value.items() if isinstance(value, Mapping) else ((None, value),):
            if isinstance(one, msgspec.Struct):
                where = here if key is None else f"{here}.{key}"
                yield where, one
                yield from _tables(where, one)


def check_limits(where: str, table: msgspec.Struct) -> None:
    """Check each number and text of a table alone. Raises ConfigError with its path, what it is and what is allowed."""
    for field, (limits, may_be_none) in _limits_of(type(table)).items():
        value = getattr(table, field)
        for one in value if isinstance(value, tuple) else (value,):
            problem = None if one is None and may_be_none else limits.problem(one)
            if problem is not None:
                raise ConfigError(f"{where}.{field}: {problem}")
    for field in table.__struct_fields__:
        value, most = getattr(table, field), 65_535 if field.endswith("port") else MOST_NUMBER
        if isinstance(value, int | float) and not isinstance(value, bool) and not 0 <= value <= most:
            raise ConfigError(f"{where}.{field}: got {value}; 0 to {most:,}")


@cache
def _limits_of(table: type[msgspec.Struct]) -> Mapping[str, tuple[tables.Limits | tables.TextRule, bool]]:
    """The limits of each field that has some, and whether it may be None."""
    hints = get_type_hints(table, include_extras=True)
    return {
        field: (limits, type(None) in get_args(hint)) for field, hint in hints.items() for limits in _limits_in(hint)
    }


def _limits_in(hint: Any) -> Iterator[tables.Limits | tables.TextRule]:
    for part in get_args(hint):
        if isinstance(part, tables.Limits | tables.TextRule):
            yield part
        else:
            yield from _limits_in(part)


def check_rollout(where: str, table: tables.Rollout) -> None:
    """Check the numbers of a rollout table. Raises ConfigError with the place."""
    check_limits(where, table)
    if not table.shares or list(table.shares) != sorted(set(table.shares)):
        raise ConfigError(f"{where}.shares: got {list(table.shares)}; at least one, each larger than the one before")
    unknown = [name for name in table.required if name not in tables.LIVE_GUARDRAILS]
    if unknown:
        raise ConfigError(f"{where}.required: got {unknown[0]!r:.60}; some of {', '.join(tables.LIVE_GUARDRAILS)}")
    if table.most_requests <= table.warmup_requests:
        raise ConfigError(
            f"{where}.most_requests: got {table.most_requests}; more than warmup_requests, {table.warmup_requests}"
        )


def known_names(names: Mapping[str, object]) -> str:
    return f"known: {', '.join(sorted(names)) or 'none is configured'}"


def _check_key(name: str, key: tables.Key, settings: tables.Settings) -> None:
    where = f"keys.{name}"
    if not _KEY_NAME.fullmatch(name):
        raise ConfigError(f"keys: got {name[:80]!r}; 1 to 64 letters, digits and . _ -, a letter or a digit first")
    if not key.key_env:
        raise ConfigError(f"{where}.key_env: must name the environment variable that holds the key")
    for route in key.routes or ():
        if route not in settings.routes:
            raise ConfigError(f"{where}.routes: unknown route {route!r}; {known_names(settings.routes)}")


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
    if alerts.email_to and tables.EMAIL_ADDRESS.problem(alerts.email_from):
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
    if (problem := tables.NAME.problem(name, most=80)) is not None:
        raise ConfigError(f"{where}: {problem}")


def _check_routes(where: str, one: tables.Experiment, routes: Mapping[str, tables.Route]) -> None:
    if not one.routes:
        raise ConfigError(f"{where}.routes: is empty; name at least one route")
    for route in one.routes:
        if route not in routes:
            raise ConfigError(f"{where}.routes: unknown route {route!r}; {known_names(routes)}")


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
