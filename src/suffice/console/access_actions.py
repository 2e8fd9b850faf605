"""Actions on people, keys of clients, and alerts."""

from __future__ import annotations

import secrets
from typing import Final, get_args

from suffice.console.action_form import ActionForm, raise_if_refused
from suffice.console.auth import ROLES
from suffice.console.context import AccessChange, Action, ActionResult
from suffice.errors import BadRequest, ConfigError
from suffice.settings import AlertKind, KeyScope
from suffice.settings.limits import NAME
from suffice.store.database.views import newest_event, open_reader
from suffice.store.people.alert_rules import MEASURES, latest_rules, try_rule
from suffice.store.people.keys import KeyOffice
from suffice.store.rows.preferences import AlertMute, AlertRule

SETTINGS, ALERTS = "/console/settings", "/console/alerts"
HOUR_S: Final = 3_600.0
MOST_WINDOW_HOURS: Final = 24 * 14
MOST_MUTE_HOURS: Final = 24 * 30
SCOPES: Final = get_args(KeyScope)

# ---- people and keys -------------------------------------------------------------------------------


def _add_person(form: ActionForm) -> ActionResult:
    tenants = tuple(one.strip() for one in form.text("tenants").split(",") if one.strip())
    return _change_access(
        form,
        AccessChange(
            what="added",
            name=form.text("name", required=True),
            role=form.one_of("role", ROLES),
            tenants=tenants or None,
            author=form.author,
            reason=form.reason,
        ),
        "has access as {role}; this is their secret, which is not shown again",
    )


def _reset_person(form: ActionForm) -> ActionResult:
    change = AccessChange(what="reset", name=form.text("name", required=True), author=form.author, reason=form.reason)
    return _change_access(form, change, "has a new secret, which is not shown again; their sessions are over")


def _remove_person(form: ActionForm) -> ActionResult:
    change = AccessChange(what="removed", name=form.text("name", required=True), author=form.author, reason=form.reason)
    if change.name == form.author:
        raise BadRequest("name: nobody removes themselves here; another admin does", param="name", status=409)
    return _change_access(form, change, "has no access any more; their sessions are over")


def _change_access(form: ActionForm, change: AccessChange, sentence: str) -> ActionResult:
    try:
        secret = form.services.change_access(change)
    except ConfigError as error:
        raise BadRequest(str(error), param="name", status=409, code="conflict") from None
    return ActionResult(f"{change.name} {sentence.format(role=change.role)}.", SETTINGS, secret=secret)


def _office(form: ActionForm) -> KeyOffice:
    return KeyOffice(
        writer=form.writer,
        author=form.author,
        reason=form.reason,
        now_s=form.now_s,
        random_bytes=secrets.token_bytes,
    )


def _create_key(form: ActionForm) -> ActionResult:
    name, settings = form.text("name", required=True), form.context.settings
    if (problem := NAME.problem(name)) is not None:
        raise BadRequest(f"name: {problem}", param="name")
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
    days = form.number("days")
    if days is not None and days <= 0:
        raise BadRequest(f"days: got {days:g}; above 0, or empty for ever", param="days")
    until_s = None if days is None else form.now_s + days * 24 * HOUR_S
    made = raise_if_refused(_office(form).issue(name, permits, until_s=until_s), f"key {name} ")
    return ActionResult(f"The key of {name} is not shown again; the log keeps its hash only.", secret=made.key)


def _rotate_key(form: ActionForm) -> ActionResult:
    name, hours = form.text("name", required=True), form.number("overlap_hours")
    hours = 24.0 if hours is None else hours
    if not 0 <= hours <= 24 * 366:
        raise BadRequest(f"overlap_hours: got {hours:g}; 0 to {24 * 366}", param="overlap_hours")
    made = raise_if_refused(_office(form).rotate(name, overlap_s=hours * HOUR_S), f"key {name} ")
    return ActionResult(
        f"{name} has another key, not shown again; the old one ends in {hours:g} h.", SETTINGS, made.key
    )


def _revoke_key(form: ActionForm) -> ActionResult:
    name = form.text("name", required=True)
    n = raise_if_refused(_office(form).revoke(name), f"key {name} ")
    return ActionResult(f"{n} of {name} ended.", SETTINGS)


# ---- alerts ----------------------------------------------------------------------------------------


def _set_rule(form: ActionForm) -> ActionResult:
    name, limit, route = form.text("name", required=True), form.number("limit"), form.get("route")
    if (problem := NAME.problem(name)) is not None:
        raise BadRequest(f"name: {problem}", param="name")
    if limit is None:
        raise BadRequest("limit: is needed: a fraction, or a number of requests", param="limit")
    hours, least = form.count("window_hours") or 24, form.count("least_requests")
    if hours > MOST_WINDOW_HOURS:
        raise BadRequest(f"window_hours: at most {MOST_WINDOW_HOURS}", param="window_hours")
    routes = tuple(form.context.settings.routes)
    measure, side = form.one_of("measure", MEASURES), form.get("side") or "above"
    if side not in ("above", "below"):
        raise BadRequest(f"side: got {side[:40]!r}; allowed: above, below", param="side")
    before = next((one for one in latest_rules(form.writer.path) if one.rule == name), None)
    rule = AlertRule(
        rule=name,
        revision=1 if before is None else before.revision + 1,
        route=form.route if route else "",
        measure=measure,
        side="above" if side == "above" else "below",
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


def _mute(form: ActionForm) -> ActionResult:
    kind, route, hours = form.get("kind"), form.get("route"), form.number("hours")
    if kind and kind not in get_args(AlertKind):
        raise BadRequest(f"kind: unknown {kind[:40]!r}; allowed: {', '.join(get_args(AlertKind))}", param="kind")
    if hours is None or not 0 <= hours <= MOST_MUTE_HOURS:
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


def _test_alert(form: ActionForm) -> ActionResult:
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
    try:
        problems = form.services.send_test(sentence)
    except ConfigError as error:
        raise BadRequest(str(error), status=409, code="conflict") from None
    results = ", ".join(f"{sink}: {problem or 'accepted'}" for sink, problem in problems.items())
    return ActionResult(f"{results}. It said: {sentence}", ALERTS)


_REASON: Final = {"reason": "why; it stays in the log"}
_PERSON: Final = {
    "name": "1 to 64 letters, digits and . _ @ -",
    "role": ", ".join(ROLES),
    "tenants": "see only runs of these, with commas between; empty: all",
    **_REASON,
}
_NAME: Final = {"name": "their name", **_REASON}
_KEY: Final = {
    "name": "of its holder",
    "scopes": f"what it may do, with commas between: {', '.join(SCOPES)}; empty: as a plain key",
    "tenant": "whose requests it sends, and may see",
    "requests_per_minute": "at most",
    "tokens_per_day": "at most, prompt and answer",
    "days": "after which it ends by itself; empty: never",
    **_REASON,
}
_RULE: Final = {
    "name": "of the rule; an existing one is changed",
    "measure": ", ".join(MEASURES),
    "side": "above or below the limit it alerts",
    "limit": "a fraction, such as 0.02 for 2 %; of requests, a number",
    "window_hours": "over which it is measured, up to now",
    "least_requests": "in the window, before it says anything",
    "route": "only this one; empty: each by itself",
    "enabled": "false: switched off",
    **_REASON,
}
_MUTE: Final = {
    "kind": "of alert; empty: every",
    "route": "only this one; empty: all",
    "hours": "0 ends a mute",
    **_REASON,
}
_TEST: Final = {"rule": "with what it says now; empty: a plain test"}
ACCESS_ACTIONS: Final = (
    Action(
        "/people/add",
        "admin",
        _add_person,
        "give somebody access",
        _PERSON,
        title="Add a person",
        commands=("admin add",),
        inputs={"name": "new_person"},
    ),
    Action(
        "/people/reset",
        "admin",
        _reset_person,
        "replace a secret, and end its sessions",
        _NAME,
        title="Give a person a new secret",
        commands=("admin reset-secret",),
        inputs={"name": "person"},
    ),
    Action(
        "/people/remove",
        "admin",
        _remove_person,
        "end somebody's access",
        _NAME,
        title="Remove a person",
        commands=("admin remove",),
        inputs={"name": "person"},
    ),
    Action(
        "/keys/create",
        "admin",
        _create_key,
        "make a key for a client",
        _KEY,
        title="Create a key",
        commands=("key create",),
        inputs={"name": "new_key", "days": "key_days"},
    ),
    Action(
        "/keys/rotate",
        "admin",
        _rotate_key,
        "give the holder of a key another one",
        {"name": "of its holder", "overlap_hours": "for which the old key lives on", **_REASON},
        title="Rotate a key",
        commands=("key rotate",),
        inputs={"name": "key"},
    ),
    Action(
        "/keys/revoke",
        "admin",
        _revoke_key,
        "end a key now",
        {"name": "of its holder, or an id", **_REASON},
        title="Revoke a key",
        commands=("key revoke",),
        inputs={"name": "key"},
    ),
    Action(
        "/alerts/rules/set",
        "operator",
        _set_rule,
        "create or change an alert rule",
        _RULE,
        title="Create an alert rule",
        inputs={"name": "new_rule", "route": "any_route"},
    ),
    Action(
        "/alerts/test",
        "operator",
        _test_alert,
        "send a test to every sink",
        _TEST,
        title="Send a test alert",
        commands=("alerts test",),
    ),
    Action(
        "/alerts/mute",
        "operator",
        _mute,
        "keep alerts from the sinks for a while",
        _MUTE,
        title="Mute alerts",
        inputs={"route": "any_route", "kind": "alert_kind"},
    ),
)
