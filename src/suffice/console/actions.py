"""The actions of the console and the API, each by the function of its command."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import parse_qsl, urlencode

from suffice.console.context import Action, ActionResult, ConsoleVisit
from suffice.console.views.episodes import FILTER_FIELDS
from suffice.console.views.review import check_item
from suffice.errors import BadRequest, ConfigError, SufficeError
from suffice.review.decide import IncidentForm
from suffice.review.holds import DECISIONS
from suffice.review.items import MOST_TEXT, ReviewLease, VerdictForm
from suffice.settings import Route
from suffice.store.database.decisions import Decisions
from suffice.store.people.deciding import (
    decide_incident,
    end_override,
    end_pause,
    give_item_back,
    lease_next,
    open_incident,
    start_pause,
    submit_verdict,
)
from suffice.store.people.saved_views import save_view
from suffice.store.routes import experiments, rollouts
from suffice.store.routes.deployments import read_holds

MOST_CHARS: Final = 2_000  # of a reason
MOST_VIEW_NAME: Final = 60
REVIEW, INCIDENTS = "/console/review", "/console/incidents"
EXPERIMENTS, POLICIES = "/console/experiments", "/console/policies"
T = TypeVar("T")


def raise_if_refused(result: T | str, where: str = "") -> T:
    """Return the result. Raises BadRequest if it is a sentence that explains a refusal."""
    if isinstance(result, str):
        raise BadRequest(f"{where}{result}", status=409, code="conflict")
    return result


@dataclass(frozen=True, slots=True)
class ActionForm(ConsoleVisit):
    """The fields of a requested change. Every reader raises BadRequest for an invalid field."""

    @property
    def writer(self) -> Decisions:
        return self.context.services.decisions()

    @property
    def now_s(self) -> float:
        return self.context.now()

    @property
    def author(self) -> str:
        return self.principal.name

    @property
    def route(self) -> str:
        return self._known("route", self.context.settings.routes)

    @property
    def experiment(self) -> str:
        return self._known("name", self.context.settings.experiments, "experiment")

    @property
    def reason(self) -> str:
        reason = self.get("reason").strip()
        if not reason or len(reason) > MOST_CHARS or "\x00" in reason:
            message = f"reason: is needed, at most {MOST_CHARS:,} characters; it stays in the log"
            raise BadRequest(message, param="reason")
        return reason

    def settings_of(self, route: str) -> Route:
        return self.context.settings.routes[route]

    def get(self, field: str) -> str:
        return self.request.form.get(field, "")

    def text(self, field: str) -> str:
        text = self.get(field).strip()
        if len(text) > MOST_TEXT or "\x00" in text:
            raise BadRequest(f"{field}: at most {MOST_TEXT:,} characters", param=field)
        return text

    def number(self, field: str) -> float | None:
        text = self.get(field).strip()
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise BadRequest(f"{field}: got {text[:40]!r}; a number", param=field)
        return value

    def count(self, field: str) -> int | None:
        value = self.number(field)
        if value is None:
            return None
        if value != int(value) or not 0 <= value < 2**31:
            raise BadRequest(f"{field}: got {value:g}; a whole number", param=field)
        return int(value)

    def one_of(self, field: str, allowed: Iterable[T]) -> T:
        given, names = self.get(field), list(allowed)
        if given not in names:
            raise BadRequest(f"{field}: got {given[:40]!r}; allowed: {', '.join(map(str, names))}", param=field)
        return next(one for one in names if one == given)

    def _known(self, field: str, entries: Iterable[str], what: str = "") -> str:
        name, known = self.get(field), sorted(entries)
        if name not in known:
            listed = ", ".join(known) or "none is configured"
            message = f"{field}: unknown {what or field} {name[:80]!r}; known: {listed}"
            raise BadRequest(message, param=field, status=404)
        return name


# ---- reviews ---------------------------------------------------------------------------------------


def _lease_next(form: ActionForm) -> ReviewLease | None:
    route, tenants = form.get("route") or None, form.principal.tenants
    return lease_next(form.writer, form.author, now_s=form.now_s, route=route, tenants=tenants)


def _lease(form: ActionForm) -> ActionResult:
    lease = _lease_next(form)
    return ActionResult("Nothing to review." if lease is None else "", REVIEW)


def _submit(form: ActionForm) -> ActionResult:
    name, writer = form.get("item"), form.writer
    check_item(writer.path, name, form.principal.tenants)
    verdict = VerdictForm(
        item=name,
        reviewer=form.author,
        word=form.get("verdict"),
        corrected=form.text("corrected") or None,
        reason=form.text("reason"),
    )
    submission = raise_if_refused(submit_verdict(writer, verdict, now_s=form.now_s))
    if form.get("next"):  # the form may request the next item at once
        _lease_next(form)
    return ActionResult(submission.message, f"{REVIEW}?{urlencode({'changed': name})}")


def _give_back(form: ActionForm) -> ActionResult:
    name = form.get("item")
    check_item(form.writer.path, name, form.principal.tenants)
    if not give_item_back(form.writer, name, form.author, form.text("reason") or "skipped", now_s=form.now_s):
        raise BadRequest(f"review: {name[:80]!r} is not leased to you", status=409, code="conflict")
    return ActionResult("The item was returned.", REVIEW)


# ---- views of runs ---------------------------------------------------------------------------------


def _save_view(form: ActionForm) -> ActionResult:
    name, query = form.text("name")[:MOST_VIEW_NAME], form.get("query")
    fields = {field: value for field, value in parse_qsl(query) if field in FILTER_FIELDS}
    if not name:
        raise BadRequest("name: is needed", param="name")
    if query and not fields:
        raise BadRequest("query: a view needs at least one condition or an order", param="query")
    if not save_view(form.writer, form.author, name, urlencode(fields)):
        raise BadRequest("somebody saved a view at the same time; try again", status=409, code="conflict")
    return ActionResult(f"The view “{name}” is {'saved' if fields else 'removed'}.")


# ---- incidents and pauses --------------------------------------------------------------------------


def _open_incident(form: ActionForm) -> ActionResult:
    name, pauses = form.route, form.get("pauses") not in ("", "false", "no", "0")
    incident = open_incident(
        form.writer, name, form.settings_of(name), form.reason, form.author, now_s=form.now_s, pauses=pauses
    )
    return ActionResult(f"Incident {raise_if_refused(incident).incident} is open.", INCIDENTS)


def _decide_incident(form: ActionForm) -> ActionResult:
    name, writer = form.get("incident"), form.writer
    route = next((route for route, holds in read_holds(writer.path).routes.items() if holds.case(name)), None)
    if route is None or route not in form.context.settings.routes:
        raise BadRequest(f"incident: unknown {name[:80]!r}", param="incident", status=404, code="not_found")
    decision = form.one_of("decision", DECISIONS)
    wanted = IncidentForm(
        incident=name,
        decision=decision,
        reason=form.reason,
        author=form.author,
        days=form.number("days") or 30.0,
        level=form.count("level"),
        max_em_drop=form.number("max_em_drop"),
    )
    decided = decide_incident(
        writer,
        form.settings_of(route),
        route,
        wanted,
        now_s=form.now_s,
        publication=form.count("publication"),
        setup=form.context.services.setup_of(route),
    )
    rows = raise_if_refused(decided, f"{name} " if isinstance(decided, str) and decided.startswith("is ") else "")
    return ActionResult(f"{name}: {decision.replace('_', ' ')}. Now: {rows.decision.after}", INCIDENTS)


def _end_override(form: ActionForm) -> ActionResult:
    name, number = form.route, form.count("number") or 0
    ended = raise_if_refused(
        end_override(form.writer, name, form.settings_of(name), number, form.reason, form.author, now_s=form.now_s)
    )
    return ActionResult(f"Override {number} of {name} is over. Now: {ended.after}", INCIDENTS)


def _pause(form: ActionForm) -> ActionResult:
    name, reason = form.route, form.reason
    raise_if_refused(start_pause(form.writer, name, reason=reason, author=form.author), f"route {name} ")
    return ActionResult(f"Route {name} is paused.")


def _resume(form: ActionForm) -> ActionResult:
    name, reason = form.route, form.reason
    raise_if_refused(end_pause(form.writer, name, reason=reason, author=form.author), f"route {name} ")
    return ActionResult(f"Route {name} is resumed.")


def _stop_all(form: ActionForm) -> ActionResult:
    if form.context.services.killed():
        raise BadRequest("stopping is switched off already", status=409, code="conflict")
    return _switch(form, on=True, message="Stopping is switched off: every route runs in full within a second.")


def _release_all(form: ActionForm) -> ActionResult:
    if not form.context.services.killed():
        raise BadRequest("stopping is not switched off", status=409, code="conflict")
    return _switch(form, on=False, message="Released: what is certified may stop again.")


def _switch(form: ActionForm, *, on: bool, message: str) -> ActionResult:
    try:
        form.context.services.switch(on, form.reason, form.author)
    except OSError as error:
        raise BadRequest(
            f"the file of the kill switch cannot be changed ({error.strerror}); suffice kill --help names other ways",
            status=503,
            code="kill_file",
        ) from None
    return ActionResult(message)


# ---- rollouts and experiments ----------------------------------------------------------------------


def _move_rollout(form: ActionForm) -> ActionResult:
    name, reason, move = form.route, form.reason, form.one_of("move", rollouts.STEPS)
    writer = form.writer
    if move == "rollback" and name not in rollouts.read_running_rollouts(rollouts.read_rollouts(writer.path)):
        undone = raise_if_refused(form.context.services.take_back(name, reason, form.author))
        return ActionResult(f"Route {name}: {undone.first.active} serves again.", POLICIES)
    moved = raise_if_refused(rollouts.step(writer, name, move, author=form.author, reason=reason))
    return ActionResult(f"Route {name}: {moved.stage.replace('_', ' ')}, {moved.share:.0%} of new units.", POLICIES)


def _propose(form: ActionForm) -> ActionResult:
    name, reason = form.route, form.reason
    try:
        begun = raise_if_refused(form.context.services.propose(name, form.get("address"), reason, form.author))
    except ConfigError as error:  # its models are missing, or have changed
        raise BadRequest(str(error), status=409, code="conflict") from None
    return ActionResult(f"Route {name}: {begun.state.fit} is rolled out, starting in shadow.", POLICIES)


def _start_experiment(form: ActionForm) -> ActionResult:
    name = form.experiment
    experiment = form.context.settings.experiments[name]
    try:
        form.context.services.check_experiment(name)
        run = experiments.start_experiment(form.writer, name, experiment, author=form.author, reason=form.reason)
    except ConfigError as error:  # an arm cannot be built now, or its layer has no room
        raise BadRequest(str(error), status=409, code="conflict") from None
    started = raise_if_refused(run, f"experiment {name} ")
    return ActionResult(f"Experiment {name} runs, run {started.experiment.run}.", EXPERIMENTS)


def _stop_experiment(form: ActionForm) -> ActionResult:
    name = form.get("name")
    run = experiments.stop_experiment(form.writer, name, author=form.author, reason=form.reason)
    raise_if_refused(run, f"experiment {name[:80]} ")
    return ActionResult(f"Experiment {name} is stopped.", EXPERIMENTS)


def _reload(form: ActionForm) -> ActionResult:
    reload = form.context.services.reload
    if reload is None:
        raise BadRequest("this console runs beside no gateway that could reload", status=409, code="conflict")
    try:
        return ActionResult(f"Reloaded: {reload(form.author).sentence}.", "/console/settings")
    except SufficeError as error:
        raise BadRequest(f"nothing was reloaded: {error}", status=409, code="conflict") from None


_REASON: Final = {"reason": "why; it stays in the log"}
_ON_ROUTE: Final = {"route": "its name", **_REASON}
_ON_NAME: Final = {"name": "as the settings have it", **_REASON}
_ON_ITEM: Final = {"item": "its episode", "reason": "in your own words"}
_VERDICT: Final = {
    "item": "its episode",
    "verdict": "both, full, early, neither; right, wrong; unsure",
    "corrected": "the right answer, if you know it",
    "reason": "in your own words",
}
_INCIDENT: Final = {
    **_REASON,
    "incident": "its name",
    "decision": ", ".join(DECISIONS),
    "level": "tighten: none above it",
    "max_em_drop": "tighten: a smaller budget, a fraction",
    "publication": "roll_back: to this one",
    "days": "until it ends by itself",
}
_VIEW: Final = {"name": "of the view", "query": "of the page of runs, as in its address; empty removes the view"}
_PAUSES: Final = _ON_ROUTE | {"pauses": "true: everything runs in full until it is decided"}
_MOVE: Final = _ON_ROUTE | {"move": ", ".join(rollouts.STEPS)}
_PROPOSE: Final = _ON_ROUTE | {"address": "of the proposal, v- and twelve digits"}
_OVERRIDE: Final = _ON_ROUTE | {"number": "of the override"}
_MOVE_SUMMARY: Final = "move the rollout that runs on a route, or undo the last one"
_START_SUMMARY: Final = "start an experiment, or give it its new weights"
ACTIONS: Final = (
    Action("/review/next", "reviewer", _lease, "take the next item", {"route": "only of this one"}, True),
    Action("/review/say", "reviewer", _submit, "submit a verdict on an item", _VERDICT, True),
    Action("/review/skip", "reviewer", _give_back, "return an item without a verdict", _ON_ITEM, True),
    Action("/views/save", "viewer", _save_view, "save a view of runs for yourself, or remove it", _VIEW, True),
    Action("/incidents/open", "operator", _open_incident, "open an incident", _PAUSES),
    Action("/incidents/decide", "operator", _decide_incident, "decide an incident", _INCIDENT),
    Action("/rollouts/move", "operator", _move_rollout, _MOVE_SUMMARY, _MOVE),
    Action("/rollouts/propose", "operator", _propose, "try what a refit has proposed, in steps", _PROPOSE),
    Action("/experiments/start", "operator", _start_experiment, _START_SUMMARY, _ON_NAME),
    Action("/experiments/stop", "operator", _stop_experiment, "stop an experiment", _ON_NAME),
    Action("/overrides/end", "operator", _end_override, "end an override", _OVERRIDE),
    Action("/routes/pause", "operator", _pause, "let every request of a route run in full", _ON_ROUTE),
    Action("/routes/resume", "operator", _resume, "end a pause of a route", _ON_ROUTE),
    Action("/stop-all", "operator", _stop_all, "let every request of every route run in full", _REASON),
    Action("/release-all", "operator", _release_all, "let what is certified stop again", _REASON),
    Action("/settings/reload", "admin", _reload, "apply the changes in the settings file", {}),
)
