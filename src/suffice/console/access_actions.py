"""Actions on people, keys of clients, and alerts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, get_args

from suffice.console.action_form import ActionForm
from suffice.console.auth import ROLES, Role
from suffice.console.context import AccessChange, ViewContext
from suffice.errors import BadRequest, ConfigError
from suffice.operations.fields import FormInput, any_route, one_of
from suffice.operations.keys import HOUR_S, office_of, revoke_key, rotate_key
from suffice.operations.operation import OperationResult, operation, raise_if_refused
from suffice.settings import AlertKind, KeyScope
from suffice.settings.limits import NAME
from suffice.store.database.views import newest_event, open_reader
from suffice.store.people.preferences import MEASURES, latest_rules, try_rule
from suffice.store.rows.preferences import AlertMute, AlertRule, RuleMeasure

SETTINGS, ALERTS = "/console/settings", "/console/alerts"
MOST_WINDOW_HOURS: Final = 24 * 14
MOST_MUTE_HOURS: Final = 24 * 30
SHORTEST_DAYS, LONGEST_DAYS = 0.001, 36_500.0  # of a key
SIDES: Final[tuple[Literal["above", "below"], ...]] = ("above", "below")
SCOPES: Final = get_args(KeyScope)


def _people(view: ViewContext) -> Iterable[tuple[str, str]]:
    return [(one.name, f"{one.name} ({one.role})") for one in view.visit.context.auth.people()]


def _rules(view: ViewContext) -> Iterable[tuple[str, str]]:
    return [("", "none: a plain test"), *((one.rule, one.rule) for one in latest_rules(view.connection))]


def _alert_kinds(_: ViewContext) -> Iterable[tuple[str, str]]:
    return [("", "every kind"), *((one, one.replace("_", " ")) for one in get_args(AlertKind))]


PERSON: Final = FormInput("their name", "choice", _people, required=True)


def _check_name(name: str) -> None:
    if (problem := NAME.problem(name)) is not None:
        raise BadRequest(f"name: {problem}", param="name")


# ---- people and keys -------------------------------------------------------------------------------


@operation(
    "/people/add",
    "give somebody access",
    {
        "name": FormInput("1 to 64 letters, digits and . _ @ -", required=True),
        "role": one_of(", ".join(ROLES), ROLES, default="reviewer"),
        "tenants": FormInput("see only runs of these, with commas between; empty: all", many=True),
    },
    title="Add a person",
    commands=("admin add",),
    goes_to=SETTINGS,
    needs="admin",
)
def _add_person(form: ActionForm, name: str, role: Role, tenants: tuple[str, ...]) -> OperationResult:
    sentence = f"has access as {role}; this is their secret, which is not shown again"
    return _change_access(form, name, "added", sentence, role, tenants or None)


@operation(
    "/people/reset",
    "replace a secret, and end its sessions",
    {"name": PERSON},
    title="Give a person a new secret",
    commands=("admin reset-secret",),
    goes_to=SETTINGS,
    needs="admin",
)
def _reset_person(form: ActionForm, name: str) -> OperationResult:
    return _change_access(form, name, "reset", "has a new secret, which is not shown again; their sessions are over")


@operation(
    "/people/remove",
    "end somebody's access",
    {"name": PERSON},
    title="Remove a person",
    commands=("admin remove",),
    goes_to=SETTINGS,
    needs="admin",
)
def _remove_person(form: ActionForm, name: str) -> OperationResult:
    if name == form.author:
        raise BadRequest("name: nobody removes themselves here; another admin does", param="name", status=409)
    return _change_access(form, name, "removed", "has no access any more; their sessions are over")


def _change_access(
    form: ActionForm,
    name: str,
    what: Literal["added", "reset", "removed"],
    sentence: str,
    role: Role = "reviewer",
    tenants: tuple[str, ...] | None = None,
) -> OperationResult:
    change = AccessChange(what=what, name=name, role=role, tenants=tenants, author=form.author, reason=form.reason)
    try:
        secret = form.services.change_access(change)
    except ConfigError as error:
        raise BadRequest(str(error), param="name", status=409, code="conflict") from None
    return OperationResult(f"{name} {sentence}.", secret=secret)


@operation(
    "/keys/create",
    "make a key for a client",
    {
        "name": FormInput("of its holder", required=True),
        "scopes": FormInput(
            f"what it may do, with commas between: {', '.join(SCOPES)}; empty: as a plain key", many=True
        ),
        "tenant": FormInput("whose requests it sends, and may see"),
        "requests_per_minute": FormInput("at most", least=0),
        "tokens_per_day": FormInput("at most, prompt and answer", least=0),
        "days": FormInput("after which it ends by itself; empty: never", "number", range=(SHORTEST_DAYS, LONGEST_DAYS)),
    },
    title="Create a key",
    commands=("key create",),
    needs="admin",
)
def _create_key(
    form: ActionForm, name: str, days: float | None, scopes: tuple[str, ...], **limits: str | float | None
) -> OperationResult:
    settings = form.context.settings
    _check_name(name)
    if name in settings.keys:
        raise BadRequest(f"name: {name!r} is a key of the settings, [keys.{name}]", param="name", status=409)
    if not settings.server.require_keys:
        message = "server.require_keys is false, so no key of the log is accepted; set it to true first"
        raise BadRequest(message, status=409, code="conflict")
    unknown = [one for one in scopes if one not in SCOPES]
    if unknown:
        raise BadRequest(f"scopes: unknown {unknown[0]!r}; allowed: {', '.join(SCOPES)}", param="scopes")
    permits = {field: value for field, value in (("scopes", scopes), *limits.items()) if value}
    until_s = None if days is None else form.now_s + days * 24 * HOUR_S
    made = raise_if_refused(office_of(form).issue(name, permits, until_s=until_s), f"key {name} ")
    return OperationResult(f"The key of {name} is not shown again; the log keeps its hash only.", secret=made.key)


# ---- alerts ----------------------------------------------------------------------------------------


@operation(
    "/alerts/rules/set",
    "create or change an alert rule",
    {
        "name": FormInput("of the rule; an existing one is changed", required=True),
        "measure": FormInput(
            ", ".join(MEASURES), "choice", lambda _: MEASURES.items(), required=True, allowed=tuple(MEASURES)
        ),
        "side": FormInput(
            "above or below the limit it alerts", "choice", lambda _: [(one, one) for one in SIDES], default="above"
        ),
        "limit": FormInput("a fraction, such as 0.02 for 2 %; of requests, a number", "number", required=True),
        "window_hours": FormInput(
            "over which it is measured, up to now", "number", default="24", least=1, range=(1, MOST_WINDOW_HOURS)
        ),
        "least_requests": FormInput("in the window, before it says anything", "number", default="100", least=0),
        "route": any_route("only this one; empty: each by itself"),
        "enabled": FormInput("false: switched off", "flag", default="true"),
    },
    title="Create an alert rule",
    goes_to=ALERTS,
)
def _set_rule(
    form: ActionForm,
    name: str,
    measure: RuleMeasure,
    side: str | None,
    limit: float | None,
    window_hours: int | None,
    least_requests: int | None,
    route: str | None,
    *,
    enabled: bool,
) -> OperationResult:
    _check_name(name)
    if limit is None:
        raise BadRequest("limit: is needed: a fraction, or a number of requests", param="limit")
    routes = tuple(form.context.settings.routes)
    before = next((one for one in latest_rules(form.writer.path) if one.rule == name), None)
    rule = AlertRule(
        rule=name,
        revision=1 if before is None else before.revision + 1,
        route=route or "",
        measure=measure,
        side=form.one_of("side", SIDES) if side else "above",
        limit=limit,
        window_hours=window_hours or 24,
        least_requests=100 if least_requests is None else least_requests,
        enabled=enabled,
        author=form.author,
        reason=form.reason,
    )
    with open_reader(form.writer.path) as log:
        tried = try_rule(log, rule, routes, form.now_s)
    if not form.writer.write_new(rule):
        raise BadRequest("somebody else changed this rule at the same time; try again", status=409, code="conflict")
    return OperationResult(f"Rule {name}{'' if rule.enabled else ', switched off'}. {tried}")


@operation(
    "/alerts/mute",
    "keep alerts from the sinks for a while",
    {
        "kind": FormInput("of alert; empty: every", "choice", _alert_kinds, allowed=("", *get_args(AlertKind))),
        "route": any_route("only this one; empty: all"),
        "hours": FormInput("0 ends a mute", "number", default="8", range=(0, MOST_MUTE_HOURS)),
    },
    title="Mute alerts",
    goes_to=ALERTS,
)
def _mute_alerts(form: ActionForm, kind: str, route: str | None, hours: float | None) -> OperationResult:
    if hours is None:
        raise BadRequest(f"hours: 0 (end the mute) to {MOST_MUTE_HOURS}", param="hours")
    last = newest_event(form.writer.path, AlertMute)
    mute = AlertMute(
        number=1 if last is None else last.number + 1,
        kind=kind,
        route=route or "",
        until_s=form.now_s + hours * HOUR_S,
        author=form.author,
        reason=form.reason,
    )
    if not form.writer.write_new(mute):
        raise BadRequest("somebody else muted alerts at the same time; try again", status=409, code="conflict")
    of = f"{kind.replace('_', ' ') or 'all'} alerts of {route or 'all routes'}"
    return OperationResult(f"{of}: {f'no sink is told for {hours:g} h' if hours else 'sinks are told again'}.")


@operation(
    "/alerts/test",
    "send a test to every sink",
    {"rule": FormInput("with what it says now; empty: a plain test", "choice", _rules)},
    title="Send a test alert",
    goes_to=ALERTS,
    asks_why=False,
    commands=("alerts test",),
)
def _send_test_alert(form: ActionForm, rule: str | None) -> OperationResult:
    known = next((one for one in latest_rules(form.writer.path) if one.rule == rule), None)
    if rule and known is None:
        raise BadRequest(f"rule: unknown {rule[:80]!r}", param="rule", status=404)
    sentence = "this is a test; nothing is wrong"
    if known is not None:
        with open_reader(form.writer.path) as log:
            tried = try_rule(log, known, tuple(form.context.settings.routes), form.now_s)
        sentence = f"this is a test of rule {rule}. {tried}"
    if form.rehearsal is not None:
        return OperationResult(f"Each sink would get: {sentence}")
    problems = form.services.send_test(sentence)
    results = ", ".join(f"{sink}: {problem or 'accepted'}" for sink, problem in problems.items())
    return OperationResult(f"{results}. It said: {sentence}")


ACCESS_ACTIONS: Final = (
    _add_person,
    _reset_person,
    _remove_person,
    _create_key,
    rotate_key,
    revoke_key,
    _set_rule,
    _send_test_alert,
    _mute_alerts,
)
