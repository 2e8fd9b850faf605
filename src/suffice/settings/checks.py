"""Checks of settings beyond types: ranges, references, and combinations that promise too much."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from functools import cache, singledispatch
from typing import Any, Final, TypeAlias, get_args, get_type_hints

import msgspec

from suffice.errors import ConfigError
from suffice.settings import tables
from suffice.settings.limits import EMAIL_ADDRESS, LIVE_GUARDRAILS, NAME, Effort, KeyScope, Limits, TextRule
from suffice.settings.tables import Settings

BUILT_IN: Final = ("em", "satisfaction", "latency", "tokens")  # metrics that every route has
MOST_METRICS: Final = 50
MOST_VALUES: Final = 50
MOST_NUMBER: Final = 10**12  # of any number: bytes, tokens, seconds
RATING: Final = (1.0, 5.0)  # of a rating without a range of its own
SCORE_FIELDS: Final = ("correct", "gold", "answer", "rating", "thumbs", "comment")  # what a score may map to
_ISSUER: Final = re.compile(r"(https://[^/@\s?#]+|http://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?)(/[^@\s?#]*)?")
_BASE: Final = re.compile(r"https?://[^/@\s?#]+(/[^@\s?#]*)?")
# A bucket's name, no host: the worker sends its credentials there. An endpoint of one's own is in the environment.
_ARCHIVE: Final = re.compile(r"(file:///[^\s?#]*|(s3|gs|az)://[^/@:\s?#]*[A-Za-z][^/@:\s?#]*(/[^\s?#]*)?)")
# What the owner may call a table.
_NAMES: Final[Mapping[type[msgspec.Struct], TextRule]] = {
    **dict.fromkeys((tables.Key, tables.Experiment, tables.ExperimentArm), NAME),
    tables.Metric: TextRule(r"[A-Za-z][A-Za-z0-9_-]{0,63}", "a letter, then up to 63 letters, digits, _ and -"),
}

Problems: TypeAlias = Iterator[tuple[str, str]]  # a field, or "" for the whole table, and what is wrong


def check_settings(settings: Settings) -> None:
    """Check all settings. Raises ConfigError with the path of the value, what it is and what is allowed."""
    check_rollout("rollout", settings.rollout)  # first: the routes' tables are made of it
    all_tables = list(_tables("", settings))
    for parent, name, table in all_tables:
        check_limits(_path(parent, name), table)
        problem = _NAMES[type(table)].problem(name, most=80) if type(table) in _NAMES else None
        if problem is not None:
            raise ConfigError(f"{parent}: {problem}")
    if len(settings.metrics) > MOST_METRICS:
        raise ConfigError(f"metrics: got {len(settings.metrics)}; at most {MOST_METRICS}")
    for parent, name, table in all_tables:
        _raise_first(_path(parent, name), problems_of(table, settings))


def check_rollout(where: str, table: tables.Rollout) -> None:
    """Check the numbers of a rollout table. Raises ConfigError with the place."""
    check_limits(where, table)
    _raise_first(where, problems_of(table, Settings()))


def _tables(parent: str, table: msgspec.Struct) -> Iterator[tuple[str, str, msgspec.Struct]]:
    for name in table.__struct_fields__:
        value, here = getattr(table, name), _path(parent, name)
        for where, key, one in (
            [(here, key, one) for key, one in value.items()] if isinstance(value, Mapping) else [(parent, name, value)]
        ):
            if isinstance(one, msgspec.Struct):
                yield where, key, one
                yield from _tables(_path(where, key), one)


def _path(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name


def _raise_first(where: str, problems: Problems) -> None:
    for field, problem in problems:
        raise ConfigError(f"{_path(where, field) if field else where}: {problem}")


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
def typed_fields(table: type[msgspec.Struct]) -> Mapping[str, Any]:
    """The types of a table's fields, with their limits."""
    return get_type_hints(table, include_extras=True)


@cache
def _limits_of(table: type[msgspec.Struct]) -> Mapping[str, tuple[Limits | TextRule, bool]]:
    """The limits of each field that has some, and whether it may be None."""
    fields = typed_fields(table)
    return {
        field: (limits, type(None) in get_args(hint)) for field, hint in fields.items() for limits in _limits_in(hint)
    }


def _limits_in(hint: Any) -> Iterator[Limits | TextRule]:
    for part in get_args(hint):
        if isinstance(part, Limits | TextRule):
            yield part
        else:
            yield from _limits_in(part)


def known_names(names: Mapping[str, object]) -> str:
    return f"known: {', '.join(sorted(names)) or 'none is configured'}"


@singledispatch
def problems_of(table: msgspec.Struct, settings: Settings) -> Problems:  # noqa: ARG001 - tables without relations
    """Find what is wrong with a table whose fields are fine alone, first things first."""
    yield from ()


@problems_of.register
def _of_key(key: tables.Key, settings: Settings) -> Problems:
    if not key.key_env:
        yield "key_env", "must name the environment variable that holds the key"
    yield from key_problems(key, settings)


def key_problems(key: tables.Key, settings: Settings) -> Problems:
    """Find what is wrong with what a key may do, wherever the key itself is kept."""
    yield from _unknown_routes(key.routes or (), settings)
    if not key.scopes:
        yield "scopes", f"is empty; some of {', '.join(get_args(KeyScope))}"
    if key.usd_per_day is None and key.usd_per_month is None:
        return
    routes = [one for name, one in settings.routes.items() if key.routes is None or name in key.routes]
    used = {one.upstream: settings.upstreams.get(one.upstream) for one in routes}
    unpriced = {name for name, upstream in used.items() if upstream is not None and upstream.prices is None}
    for name in sorted(unpriced):
        field = "usd_per_month" if key.usd_per_day is None else "usd_per_day"
        yield field, f"needs [upstreams.{name}.prices]; without them nobody knows what its calls cost"


def _unknown_routes(routes: tuple[str, ...], settings: Settings) -> Problems:
    for route in routes:
        if route not in settings.routes:
            yield "routes", f"unknown route {route!r}; {known_names(settings.routes)}"


@problems_of.register
def _of_console(console: tables.Console, settings: Settings) -> Problems:
    if console.port is None and console.host:
        yield "host", f"got {console.host!r} without console.port; name both, or neither"
    if console.port and console.port == settings.server.port:
        yield "port", f"got {console.port}, which is server.port; name another one, or leave it out"


@problems_of.register
def _of_oidc(oidc: tables.Oidc, _: Settings) -> Problems:
    if not _ISSUER.fullmatch(oidc.issuer):
        yield "issuer", "needs https://host[/path], without a query or a fragment; http:// only on this computer"
    if not oidc.client_id:
        yield "client_id", "is empty; the provider gives each client a name"
    if not oidc.roles:
        yield "roles", "is empty, so nobody could log in; map at least one value of roles_claim to a role"
    if "openid" not in oidc.scopes:
        yield "scopes", "need 'openid', without which the provider sends no ID token"


_QUESTION: Final = frozenset(  # fields of a request that decide what is answered
    {"model", "messages", "input", "prompt", "system", "instructions", "tools", "tool_choice", "response_format"}
    | {"temperature", "top_p", "seed", "n", "stop", "max_tokens", "max_completion_tokens", "max_output_tokens"}
    | {"reasoning_effort", "reasoning", "thinking", "output_config", "stream", "stream_options"}
)


@problems_of.register
def _of_upstream(upstream: tables.Upstream, _: Settings) -> Problems:
    if upstream.api_key_env and upstream.api_key_file:
        yield "api_key_file", "excludes api_key_env; name one place for the key"
    if known := sorted(_QUESTION.intersection(upstream.paired_fields)):
        yield "paired_fields", f"got {known[0]!r}, which may change the answer; a paired call differs in its tier only"
    if upstream.paired_price < 1 and not upstream.paired_fields:
        yield "paired_price", "needs paired_fields, the fields for which the upstream charges less"


@problems_of.register
def _of_template(template: tables.Template, _: Settings) -> Problems:
    if "{content}" not in template.turn:
        yield "turn", "must hold {content}, where a message's text goes"


@problems_of.register
def _of_route(route: tables.Route, settings: Settings) -> Problems:
    if route.upstream not in settings.upstreams and (route.upstream or route.kind != "rounds"):
        yield "upstream", f"unknown upstream {route.upstream!r}; {known_names(settings.upstreams)}"
    if route.kind == "samples" and route.samples - 1 > route.max_extra_calls:
        why = "because every sample behind the first is one of max_extra_calls"
        yield "samples", f"got {route.samples}; at most {route.max_extra_calls + 1}, {why}"
    if route.kind != "reasoning" and (route.effort is not None or route.budget_tokens is not None):
        yield "", f"effort and budget_tokens belong to the kind 'reasoning', got {route.kind!r}"
    if route.promise == "budgeted" and (route.policy or route.arms):
        what = "policy" if route.policy else " and ".join(route.arms)
        moves = "which moves a level that the route has learned"
        yield "promise", f"got 'budgeted', {moves}, beside {what}; allowed: 'certified'"
    yield from _of_efforts(route)
    own = settings.routes.get(route.turns)
    if route.turns and (own is None or own.kind != "rounds"):
        rounds = {name: one for name, one in settings.routes.items() if one.kind == "rounds"}
        yield "turns", f"got {route.turns!r}; the name of a route of the kind 'rounds'; {known_names(rounds)}"
    if route.turns and route.kind == "rounds":
        yield "turns", "belongs to a route that answers requests, of the kind 'reasoning' or 'samples'"
    if route.reading_tools and route.kind != "rounds":
        yield "reading_tools", "belongs to the route of the kind 'rounds' that governs the turns"
    if route.embeddings is not None and route.kind == "samples":
        yield "embeddings", "belongs to 'rounds' and 'reasoning'; samples are no drafts of each other"
    if route.pressure is not None and not route.upstream:
        yield "pressure", "needs a route with an upstream, whose load is measured"


def _of_efforts(route: tables.Route) -> Problems:
    efforts = route.efforts
    if isinstance(route.effort, tuple) and list(efforts) != [one for one in get_args(Effort)[::-1] if one in efforts]:
        yield "effort", f"got {list(efforts)}; each level once, from the most expensive to the cheapest"
    if route.effort == ():
        yield "effort", "is an empty list; at least one level"
    if len(efforts) > 1 and route.policy:
        yield "effort", "several are certified by paired calls, which go with no policy; write one"
    if route.is_paired and efforts and route.budget_tokens is not None:
        yield "budget_tokens", "goes with no effort where paired calls certify it; write one of them"


@problems_of.register
def _of_pressure(pressure: tables.Pressure, _: Settings) -> Problems:
    targets = ("queue", "latency_s", "tokens_per_s", "usd_per_hour")
    if all(getattr(pressure, target) is None for target in targets):
        yield "", f"names no target; at least one of {', '.join(targets)}"
    slack, usual = pressure.slack_point, pressure.operating_point
    if slack is not None and not 0 <= slack <= usual:
        yield "slack_point", f"got {slack}; a fraction from 0 to {usual:g}"


@problems_of.register
def _of_probe(probe: tables.Probe, _: Settings) -> Problems:
    if probe.closing.endswith(" "):
        yield "closing", "must not end in a space: models then lose minus signs"
    if probe.reask_thought.count("{thought}") != 1:
        yield "reask_thought", "must hold {thought} once, where the reasoning so far goes"


@problems_of.register
def _of_rollout(rollout: tables.Rollout, _: Settings) -> Problems:
    if not rollout.shares or list(rollout.shares) != sorted(set(rollout.shares)):
        yield "shares", f"got {list(rollout.shares)}; at least one, each larger than the one before"
    unknown = [name for name in rollout.required if name not in LIVE_GUARDRAILS]
    if unknown:
        yield "required", f"got {unknown[0]!r:.60}; some of {', '.join(LIVE_GUARDRAILS)}"
    most, warmup = rollout.most_requests, rollout.warmup_requests
    if most <= warmup:
        yield "most_requests", f"got {most}; more than warmup_requests, {warmup}"


@problems_of.register
def _of_alerts(alerts: tables.Alerts, _: Settings) -> Problems:
    if bool(alerts.smtp_user_env) != bool(alerts.smtp_password_env):
        yield "smtp_user_env", "needs smtp_password_env beside it; give both or none"
    if alerts.smtp_user_env and alerts.mail_tls != "required":
        tls = "a password is sent over TLS only"
        yield "smtp_tls", f'got "{alerts.smtp_tls}" beside a login; {tls}: "required"'
    if alerts.link is not None and not _BASE.fullmatch(alerts.link):
        yield "link", "needs http://host or https://host, without a user, a query or a fragment"
    if alerts.email_to and not alerts.smtp_host:
        yield "smtp_host", "is empty; e-mail needs the name of a mail server"
    if alerts.email_to and EMAIL_ADDRESS.problem(alerts.email_from):
        yield "email_from", f"got {alerts.email_from!r}; e-mail needs an address to come from"


@problems_of.register
def _of_archive(archive: tables.ArchiveSettings, _: Settings) -> Problems:
    if "://" in archive.address and not _ARCHIVE.fullmatch(archive.address):
        yield "address", "needs a folder, or s3://bucket/folder, gs://… or az://…, without a user, a host or a query"


@problems_of.register
def _of_experiment(one: tables.Experiment, settings: Settings) -> Problems:
    if not one.routes:
        yield "routes", "is empty; name at least one route"
    yield from _unknown_routes(one.routes, settings)
    yield from _of_metrics(one, settings)
    for name, arm in one.arms.items():
        yield from _of_arm(f"arms.{name}", arm, [settings.routes[route] for route in one.routes])
    if sum(arm.weight > 0 for arm in one.arms.values()) < 2:
        yield "arms", "need at least two arms with a weight above 0"
    if one.planned_units < 2 * one.warmup_units:
        yield "planned_units", f"got {one.planned_units}; at least twice warmup_units, {2 * one.warmup_units}"
    control = one.arms.get(one.control)
    if one.control and control is None:
        yield "control", f"unknown arm {one.control!r}; known: {', '.join(one.arms)}"
    if control is not None and not control.weight:
        yield "control", f"arm {one.control!r} has no weight, so nothing can be compared with it"
    mates = {name: two for name, two in settings.experiments.items() if two.layer == one.layer}
    shared = (name for name, two in mates.items() if not set(two.routes).isdisjoint(one.routes))
    first = next(shared, None)
    if first is not None and mates[first].unit != one.unit:
        rule = "experiments of one layer on one route exclude each other, so all have one unit"
        other = f"experiments.{first} in layer {one.layer!r} has {mates[first].unit!r}"
        yield "unit", f"got {one.unit!r}; {rule}, and {other}; write another layer"


def _of_metrics(one: tables.Experiment, settings: Settings) -> Problems:
    known = (*BUILT_IN, *(name for name, metric in settings.metrics.items() if metric.type != "category"))
    for place, metric in (("primary", one.primary), *((f"margins.{name}", name) for name in one.margins)):
        if metric not in known:
            yield place, f"unknown metric {metric!r}; known: {', '.join(known)}"
    for metric, margin in one.margins.items():
        if not (math.isfinite(margin) and margin >= 0):
            yield f"margins.{metric}", f"got {margin}; at least 0, in the metric's own unit"


def _of_arm(where: str, arm: tables.ExperimentArm, routes: list[tables.Route]) -> Problems:
    own = [name for name in ("policy", "threshold", "level") if getattr(arm, name) not in ({}, None)]
    ahead = [name for name in ("effort", "budget_tokens") if getattr(arm, name) is not None]
    if arm.full and (own or ahead or arm.uncertified):
        yield where, "full = true is the full run, which goes with nothing but a weight"
    for names in (own, ahead):
        if len(names) > 1:
            yield where, f"{' and '.join(names)} exclude each other; write one of them"
    if arm.threshold is not None and not all("policy" in route.policy for route in routes):
        yield f"{where}.threshold", "needs routes with a policy of their own, whose threshold it replaces"
    if arm.level is not None and any(route.policy for route in routes):
        yield f"{where}.level", "needs routes without a policy of their own: what is certified has levels"
    if ahead and any(route.kind != "reasoning" for route in routes):
        yield f"{where}.{ahead[0]}", "belongs to routes of kind 'reasoning'"
    if {"policy", "threshold"} & set(own) and not (arm.uncertified or all(route.uncertified for route in routes)):
        way_out = "write uncertified = true to let it act"
        yield f"{where}.{own[0]}", f"nobody has certified it, so it stops nothing; {way_out}"


@problems_of.register
def _of_langfuse(langfuse: tables.Langfuse, settings: Settings) -> Problems:
    allowed = [*SCORE_FIELDS, *(f"metrics.{name}" for name in sorted(settings.metrics))]
    for score, field in langfuse.scores.items():
        if field not in allowed:
            yield f"scores.{score}", f"got {field!r}; allowed: {', '.join(allowed)}"


def span_of(metric: tables.Metric) -> tuple[float, float] | None:
    """Return the smallest and the largest value of a metric; None: a category."""
    if metric.type == "category":
        return None
    if metric.type == "boolean":
        return 0.0, 1.0
    return metric.range or RATING


@problems_of.register
def _of_metric(metric: tables.Metric, _: Settings) -> Problems:
    if metric.range is not None:
        low, high = metric.range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            yield "range", f"got {list(metric.range)}; the smallest and the largest value"
        if metric.type == "rating" and not (low.is_integer() and high.is_integer()):
            yield "range", f"got {list(metric.range)}; a rating has whole numbers"
        if metric.type in ("boolean", "category"):
            yield "range", f"belongs to the types rating and number, got {metric.type}"
    elif metric.type == "number":
        yield "range", "a number needs one: without it nobody can say how far a mean may be off"
    words = metric.values
    if metric.type != "category":
        if words:
            yield "values", f"belong to the type category, got {metric.type}"
        return
    if not 2 <= len(set(words)) == len(words) <= MOST_VALUES or not all(0 < len(word) <= 100 for word in words):
        yield "values", f"a category needs 2 to {MOST_VALUES} different words of 1 to 100 characters"
    if metric.survey:
        yield "survey", "a question of a survey is a boolean, rating or number: words have no mean"
