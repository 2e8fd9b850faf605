"""Actions on people, keys of clients, and alerts."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Final, Literal, get_args

from suffice.console.action_form import ActionForm, ActionResult, action
from suffice.console.auth import ROLES, Role
from suffice.console.context import AccessChange, ViewContext
from suffice.errors import BadRequest, ConfigError
from suffice.operations.fields import FormInput, any_route, one_of
from suffice.operations.operation import raise_if_refused
from suffice.settings import AlertKind, KeyScope
from suffice.store.database.views import newest_event, open_reader
from suffice.store.people.keys import KeyOffice, live_keys, valid_keys
from suffice.store.people.preferences import MEASURES, latest_rules, try_rule
from suffice.store.rows.preferences import AlertMute, AlertRule

SETTINGS, ALERTS = "/console/settings", "/console/alerts"
HOUR_S: Final = 3_600.0
MOST_WINDOW_HOURS: Final = 24 * 14
MOST_MUTE_HOURS: Final = 24 * 30
SHORTEST_DAYS, LONGEST_DAYS = 0.001, 36_500.0  # of a key
SIDES: Final[tuple[Literal["above", "below"], ...]] = ("above", "below")
SCOPES: Final = get_args(KeyScope)


def _people(view: ViewContext) -> Iterable[tuple[str, str]]:
    return [(one.name, f"{one.name} ({one.role})") for one in view.visit.context.auth.people()]


def _holders(view: ViewContext) -> Iterable[tuple[str, str]]:
    return dict.fromkeys((one.name, one.name) for one in live_keys(valid_keys(view.connection), view.now_s))


def _rules(view: ViewContext) -> Iterable[tuple[str, str]]:
    return [("", "none: a plain test"), *((one.rule, one.rule) for one in latest_rules(view.connection))]


def _alert_kinds(_: ViewContext) -> Iterable[tuple[str, str]]:
    return [("", "every kind"), *((one, one.replace("_", " ")) for one in get_args(AlertKind))]


PERSON: Final = FormInput("their name", "choice", _people, required=True)

# ---- people and keys -------------------------------------------------------------------------------


@action(
    "/people/add",
    "give somebody access",
    {
        "name": FormInput("1 to 64 letters, digits and . _ @ -", required=True),
        "role": one_of(", ".join(ROLES), ROLES, default="reviewer"),
        "tenants": FormInput("see only runs of these, with commas between; empty: all"),
    },
    title="Add a person",
    commands=("admin add",),
    needs="admin",
)
def _add_person(form: ActionForm) -> ActionResult:
    tenants = tuple(one.strip() for one in form.text("tenants").split(",") if one.strip())
    sentence = "has access as {role}; this is their secret, which is not shown again"
    return _change_access(form, "added", sentence, form.one_of("role", ROLES), tenants or None)


@action(
    "/people/reset",
    "replace a secret, and end its sessions",
    {"name": PERSON},
    title="Give a person a new secret",
    commands=("admin reset-secret",),
    needs="admin",
)
def _reset_person(form: ActionForm) -> ActionResult:
    return _change_access(form, "reset", "has a new secret, which is not shown again; their sessions are over")


@action(
    "/people/remove",
    "end somebody's access",
    {"name": PERSON},
    title="Remove a person",
    commands=("admin remove",),
    needs="admin",
)
def _remove_person(form: ActionForm) -> ActionResult:
    if form.text("name") == form.author:
        raise BadRequest("name: nobody removes themselves here; another admin does", param="name", status=409)
    return _change_access(form, "removed", "has no access any more; their sessions are over")


def _change_access(
    form: ActionForm,
    what: Literal["added", "reset", "removed"],
    sentence: str,
    role: Role = "reviewer",
    tenants: tuple[str, ...] | None = None,
) -> ActionResult:
    name = form.text("name", required=True)
    change = AccessChange(what=what, name=name, role=role, tenants=tenants, author=form.author, reason=form.reason)
    try:
        secret = form.services.change_access(change)
    except ConfigError as error:
        raise BadRequest(str(error), param="name", status=409, code="conflict") from None
    return ActionResult(f"{name} {sentence.format(role=role)}.", SETTINGS, secret=secret)


def _office(form: ActionForm) -> KeyOffice:
    return KeyOffice(
        writer=form.writer, author=form.author, reason=form.reason, now_s=form.now_s, random_bytes=secrets.token_bytes
    )


@action(
    "/keys/create",
    "make a key for a client",
    {
        "name": FormInput("of its holder", required=True),
        "scopes": FormInput(f"what it may do, with commas between: {', '.join(SCOPES)}; empty: as a plain key"),
        "tenant": FormInput("whose requests it sends, and may see"),
        "requests_per_minute": FormInput("at most"),
        "tokens_per_day": FormInput("at most, prompt and answer"),
        "days": FormInput("after which it ends by itself; empty: never", "number"),
    },
    title="Create a key",
    commands=("key create",),
    needs="admin",
)
def _create_key(form: ActionForm) -> ActionResult:
    name, settings = form.new_name(), form.context.settings
    if name in settings.keys:
        raise BadRequest(f"name: {name!r} is a key of the settings, [keys.{name}]", param="name", status=409)
    if not settings.server.require_keys:
        message = "server.require_keys is false, so no key of the log is accepted; set it to true first"
        raise BadRequest(message, status=409, code="conflict")
    permits = dict[str, object]()
    if scopes := tuple(one.strip() for one in form.get("scopes").split(",") if one.strip()):
        unknown = [one for one in scopes if one not in SCOPES]
        if unknown:
            raise BadRequest(f"scopes: unknown {unknown[0]!r}; allowed: {', '.join(SCOPES)}", param="scopes")
        permits["scopes"] = scopes
    if tenant := form.text("tenant"):
        permits["tenant"] = tenant
    permits |= {field: n for field in ("requests_per_minute", "tokens_per_day") if (n := form.count(field))}
    days = form.number("days", SHORTEST_DAYS, LONGEST_DAYS)
    until_s = None if days is None else form.now_s + days * 24 * HOUR_S
    made = raise_if_refused(_office(form).issue(name, permits, until_s=until_s), f"key {name} ")
    return ActionResult(f"The key of {name} is not shown again; the log keeps its hash only.", secret=made.key)


@action(
    "/keys/rotate",
    "give the holder of a key another one",
    {
        "name": FormInput("of its holder", "choice", _holders, required=True),
        "overlap_hours": FormInput("for which the old key lives on", "number", default="24"),
    },
    title="Rotate a key",
    commands=("key rotate",),
    needs="admin",
)
def _rotate_key(form: ActionForm) -> ActionResult:
    name, hours = form.text("name", required=True), form.number("overlap_hours", 0, 24 * 366)
    hours = 24.0 if hours is None else hours
    made = raise_if_refused(_office(form).rotate(name, overlap_s=hours * HOUR_S), f"key {name} ", fields={"": "name"})
    return ActionResult(
        f"{name} has another key, not shown again; the old one ends in {hours:g} h.", SETTINGS, made.key
    )


@action(
    "/keys/revoke",
    "end a key now",
    {"name": FormInput("of its holder, or an id", "choice", _holders, required=True)},
    title="Revoke a key",
    commands=("key revoke",),
    needs="admin",
)
def _revoke_key(form: ActionForm) -> ActionResult:
    name = form.text("name", required=True)
    n = raise_if_refused(_office(form).revoke(name), f"key {name} ", fields={"": "name"})
    return ActionResult(f"{n} of {name} ended.", SETTINGS)


# ---- alerts ----------------------------------------------------------------------------------------


@action(
    "/alerts/rules/set",
    "create or change an alert rule",
    {
        "name": FormInput("of the rule; an existing one is changed", required=True),
        "measure": FormInput(", ".join(MEASURES), "choice", lambda _: MEASURES.items(), required=True),
        "side": one_of("above or below the limit it alerts", SIDES, default="above"),
        "limit": FormInput("a fraction, such as 0.02 for 2 %; of requests, a number", "number", required=True),
        "window_hours": FormInput("over which it is measured, up to now", "number", default="24"),
        "least_requests": FormInput("in the window, before it says anything", "number", default="100"),
        "route": any_route("only this one; empty: each by itself"),
        "enabled": FormInput("false: switched off", "flag", default="true"),
    },
    title="Create an alert rule",
)
def _set_rule(form: ActionForm) -> ActionResult:
    name, limit, route = form.new_name(), form.number("limit"), form.get("route")
    if limit is None:
        raise BadRequest("limit: is needed: a fraction, or a number of requests", param="limit")
    form.number("window_hours", 1, MOST_WINDOW_HOURS)
    hours, least = form.count("window_hours") or 24, form.count("least_requests")
    routes = tuple(form.context.settings.routes)
    measure, side = form.one_of("measure", MEASURES), form.one_of("side", SIDES) if form.get("side") else "above"
    before = next((one for one in latest_rules(form.writer.path) if one.rule == name), None)
    rule = AlertRule(
        rule=name,
        revision=1 if before is None else before.revision + 1,
        route=form.route if route else "",
        measure=measure,
        side=side,
        limit=limit,
        window_hours=hours,
        least_requests=100 if least is None else least,
        enabled=form.flag("enabled"),
        author=form.author,
        reason=form.reason,
    )
    with open_reader(form.writer.path) as log:
        tried = try_rule(log, rule, routes, form.now_s)
    if not form.writer.write_new(rule):
        raise BadRequest("somebody else changed this rule at the same time; try again", status=409, code="conflict")
    return ActionResult(f"Rule {name}{'' if rule.enabled else ', switched off'}. {tried}", ALERTS)


@action(
    "/alerts/mute",
    "keep alerts from the sinks for a while",
    {
        "kind": FormInput("of alert; empty: every", "choice", _alert_kinds),
        "route": any_route("only this one; empty: all"),
        "hours": FormInput("0 ends a mute", "number", default="8"),
    },
    title="Mute alerts",
)
def _mute_alerts(form: ActionForm) -> ActionResult:
    kind, route = form.one_of("kind", ("", *get_args(AlertKind))), form.get("route")
    hours = form.number("hours", 0, MOST_MUTE_HOURS)
    if hours is None:
        raise BadRequest(f"hours: 0 (end the mute) to {MOST_MUTE_HOURS}", param="hours")
    last = newest_event(form.writer.path, AlertMute)
    mute = AlertMute(
        number=1 if last is None else last.number + 1,
        kind=kind,
        route=form.route if route else "",
        until_s=form.now_s + hours * HOUR_S,
        author=form.author,
        reason=form.reason,
    )
    if not form.writer.write_new(mute):
        raise BadRequest("somebody else muted alerts at the same time; try again", status=409, code="conflict")
    of = f"{kind.replace('_', ' ') or 'all'} alerts of {route or 'all routes'}"
    return ActionResult(f"{of}: {f'no sink is told for {hours:g} h' if hours else 'sinks are told again'}.", ALERTS)


@action(
    "/alerts/test",
    "send a test to every sink",
    {"rule": FormInput("with what it says now; empty: a plain test", "choice", _rules)},
    title="Send a test alert",
    asks_why=False,
    commands=("alerts test",),
)
def _send_test_alert(form: ActionForm) -> ActionResult:
    name = form.get("rule")
    rule = next((one for one in latest_rules(form.writer.path) if one.rule == name), None)
    if name and rule is None:
        raise BadRequest(f"rule: unknown {name[:80]!r}", param="rule", status=404)
    sentence = "this is a test; nothing is wrong"
    if rule is not None:
        with open_reader(form.writer.path) as log:
            sentence = (
                f"this is a test of rule {name}. {try_rule(log, rule, tuple(form.context.settings.routes), form.now_s)}"
            )
    if form.rehearsal is not None:
        return ActionResult(f"Each sink would get: {sentence}", ALERTS)
    problems = form.services.send_test(sentence)
    results = ", ".join(f"{sink}: {problem or 'accepted'}" for sink, problem in problems.items())
    return ActionResult(f"{results}. It said: {sentence}", ALERTS)


ACCESS_ACTIONS: Final = (
    _add_person,
    _reset_person,
    _remove_person,
    _create_key,
    _rotate_key,
    _revoke_key,
    _set_rule,
    _send_test_alert,
    _mute_alerts,
)
