"""The actions of the console and the API, each by the function of its command."""

from __future__ import annotations

from typing import Final, get_args
from urllib.parse import parse_qsl, urlencode

from suffice.console.access_actions import ACCESS_ACTIONS
from suffice.console.action_form import ActionForm, raise_if_refused
from suffice.console.context import Action, ActionResult
from suffice.console.experiment_actions import EXPERIMENT_ACTIONS
from suffice.console.views.episodes import FILTER_FIELDS
from suffice.console.views.review import check_item, unblind
from suffice.errors import BadRequest, ConfigError, SufficeError
from suffice.formatting import format_time
from suffice.review.decide import IncidentForm, OverrideForm
from suffice.review.holds import DECISIONS, OverrideKind
from suffice.review.items import ReviewLease, VerdictForm
from suffice.store.people.deciding import (
    ask_about,
    decide_incident,
    end_override,
    end_pause,
    give_item_back,
    lease_next,
    open_incident,
    set_override,
    start_pause,
    submit_verdict,
)
from suffice.store.people.saved_views import save_view
from suffice.store.routes import experiments, rollouts
from suffice.store.routes.deployments import read_holds

MOST_VIEW_NAME: Final = 60
LIVE: Final = "/console/runs/live"
REVIEW, INCIDENTS = "/console/review", "/console/incidents"
EXPERIMENTS, POLICIES = "/console/experiments", "/console/policies"


# ---- reviews ---------------------------------------------------------------------------------------


def _lease_next(form: ActionForm) -> ReviewLease | None:
    route, tenants, third = form.get("route") or None, form.principal.tenants, form.flag("contested")
    return lease_next(form.writer, form.author, now_s=form.now_s, route=route, tenants=tenants, third=third)


def _lease(form: ActionForm) -> ActionResult:
    lease = _lease_next(form)
    return ActionResult("Nothing to review." if lease is None else "", REVIEW)


def _ask(form: ActionForm) -> ActionResult:
    name, rules = form.text("episode", required=True), {n: r.review for n, r in form.context.settings.routes.items()}
    item = raise_if_refused(ask_about(form.writer, name, rules, form.reason, form.author, now_s=form.now_s))
    return ActionResult(f"Run {item.episode_id} is in the review queue.", REVIEW)


def _submit(form: ActionForm) -> ActionResult:
    name, writer = form.get("item"), form.writer
    item = check_item(writer.path, name, form.principal.tenants)
    verdict = VerdictForm(
        item=name,
        reviewer=form.author,
        word=unblind(item, form.get("verdict")),
        corrected=form.text("corrected") or None,
        reason=form.text("reason"),
    )
    submission = raise_if_refused(submit_verdict(writer, verdict, now_s=form.now_s))
    if form.get("next"):  # the form may request the next item at once
        _lease_next(form)
    # The page itself says what was said, and offers to say it again.
    message = submission.message if submission.verdict is None or submission.verdict.late else ""
    return ActionResult(message, f"{REVIEW}?{urlencode({'changed': name})}")


def _give_back(form: ActionForm) -> ActionResult:
    name = form.get("item")
    check_item(form.writer.path, name, form.principal.tenants)
    if not give_item_back(form.writer, name, form.author, form.text("reason") or "skipped", now_s=form.now_s):
        raise BadRequest(f"review: {name[:80]!r} is not leased to you", status=409, code="conflict")
    return ActionResult("The item was returned.", REVIEW)


# ---- running requests ------------------------------------------------------------------------------


def _ask_run(form: ActionForm, wish: str, message: str) -> ActionResult:
    name, live = form.text("run", required=True), form.services.live
    if live is None:
        raise BadRequest("no gateway runs in this process", status=409, code="conflict")
    if (why_not := live.ask(name, wish, f"console {form.author}")) is not None:
        raise BadRequest(f"{name[:80]}: {why_not}", param="run", status=409, code="cannot_be_asked")
    return ActionResult(message.format(name), LIVE)


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
    name, pauses = form.route, form.flag("pauses")
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
        setup=form.services.setup_of(route),
    )
    rows = raise_if_refused(decided, f"{name} " if isinstance(decided, str) and decided.startswith("is ") else "")
    return ActionResult(f"{name}: {decision.replace('_', ' ')}. Now: {rows.decision.after}", INCIDENTS)


def _end_override(form: ActionForm) -> ActionResult:
    name, number = form.route, form.count("number") or 0
    ended = raise_if_refused(
        end_override(form.writer, name, form.settings_of(name), number, form.reason, form.author, now_s=form.now_s)
    )
    return ActionResult(f"Override {number} of {name} is over. Now: {ended.after}", INCIDENTS)


def _set_override(form: ActionForm) -> ActionResult:
    name, kind = form.route, form.one_of("kind", get_args(OverrideKind))
    wanted = OverrideForm(
        kind=kind,
        reason=form.reason,
        author=form.author,
        days=form.number("days") or 30.0,
        query_class=form.text("class") or None,
        level=form.count("level"),
        max_em_drop=form.number("max_em_drop"),
    )
    override = raise_if_refused(
        set_override(
            form.writer,
            name,
            form.settings_of(name),
            wanted,
            now_s=form.now_s,
            publication=form.count("publication"),
            setup=form.services.setup_of(name),
        )
    )
    until = format_time(override.expires_at_s)
    return ActionResult(f"Route {name}, override {override.number}: {override.after}, until {until}.", INCIDENTS)


def _pause(form: ActionForm) -> ActionResult:
    name, reason = form.route, form.reason
    raise_if_refused(start_pause(form.writer, name, reason=reason, author=form.author), f"route {name} ")
    return ActionResult(f"Route {name} is paused.")


def _resume(form: ActionForm) -> ActionResult:
    name, reason = form.route, form.reason
    raise_if_refused(end_pause(form.writer, name, reason=reason, author=form.author), f"route {name} ")
    return ActionResult(f"Route {name} is resumed.")


def _stop_all(form: ActionForm) -> ActionResult:
    if form.services.killed():
        raise BadRequest("stopping is switched off already", status=409, code="conflict")
    return _switch(form, on=True, message="Stopping is switched off: every route runs in full within a second.")


def _release_all(form: ActionForm) -> ActionResult:
    if not form.services.killed():
        raise BadRequest("stopping is not switched off", status=409, code="conflict")
    return _switch(form, on=False, message="Released: what is certified may stop again.")


def _switch(form: ActionForm, *, on: bool, message: str) -> ActionResult:
    try:
        form.services.switch(on, form.reason, form.author)
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
        undone = raise_if_refused(form.services.take_back(name, reason, form.author))
        return ActionResult(f"Route {name}: {undone.first.active} serves again.", POLICIES)
    moved = raise_if_refused(rollouts.step(writer, name, move, author=form.author, reason=reason))
    return ActionResult(f"Route {name}: {moved.stage.replace('_', ' ')}, {moved.share:.0%} of new units.", POLICIES)


def _propose(form: ActionForm) -> ActionResult:
    name, reason = form.route, form.reason
    try:
        begun = raise_if_refused(form.services.propose(name, form.get("address"), reason, form.author))
    except ConfigError as error:  # its models are missing, or have changed
        raise BadRequest(str(error), status=409, code="conflict") from None
    return ActionResult(f"Route {name}: {begun.state.fit} is rolled out, starting in shadow.", POLICIES)


def _start_experiment(form: ActionForm) -> ActionResult:
    name = form.experiment
    experiment = form.context.settings.experiments[name]
    try:
        form.services.check_experiment(form.context.settings, name)
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
    if form.rehearsal is not None:
        return ActionResult("The file is read again; if all of it can be applied it is, and otherwise nothing is.")
    try:
        return ActionResult(f"Reloaded: {reload(form.author).sentence}.", "/console/settings")
    except SufficeError as error:
        raise BadRequest(f"nothing was reloaded: {error}", status=409, code="conflict") from None


_REASON: Final = {"reason": "why; it stays in the log"}
_ON_ROUTE: Final = {"route": "its name", **_REASON}
_ON_NAME: Final = {"name": "as the settings have it", **_REASON}
_ON_ITEM: Final = {"item": "its episode", "reason": "in your own words"}
_LEASE: Final = {"route": "only of this one", "contested": "true: only items on which reviewers disagree"}
_VERDICT: Final = {
    "item": "its episode",
    "verdict": "both, full, early, neither; right, wrong; first, second (of the two as the page shows them); unsure",
    "corrected": "the right answer, if you know it",
    "reason": "in your own words",
}
_ASK: Final = {"episode": "id of the run", **_REASON}
_INCIDENT: Final = {
    "incident": "its name",
    "decision": ", ".join(DECISIONS),
    "level": "tighten: none above it",
    "max_em_drop": "tighten: a smaller budget, a fraction",
    "publication": "roll_back: to this one",
    "days": "until it ends by itself",
    **_REASON,
}
_RUN: Final = {"run": "id of the running request"}
_VIEW: Final = {"name": "of the view", "query": "of the page of runs, as in its address; empty removes the view"}
_OPEN: Final = {
    "route": "its name",
    "pauses": "true: everything runs in full until it is decided",
    "reason": "what is wrong, in a sentence; it stays in the log",
}
_MOVE: Final = {"route": "its name", "move": ", ".join(rollouts.STEPS), **_REASON}
_PROPOSE: Final = {"route": "its name", "address": "of the proposal, v- and twelve digits", **_REASON}
_OVERRIDE: Final = {
    "route": "its name",
    "kind": "pin a level, cap it, only observe, or a smaller EM budget",
    "level": "pin, cap: the level; 0 never stops",
    "max_em_drop": "budget: smaller than the settings', a fraction",
    "publication": "pin: an earlier one of the route",
    "class": "cap, observe: only this class of questions",
    "days": "until it ends by itself, at most 30",
    **_REASON,
}
_END: Final = {"route": "its name", "number": "of the override", **_REASON}
_MOVE_SUMMARY: Final = "move the rollout that runs on a route, or undo the last one"
_START_SUMMARY: Final = "start an experiment, or give it its new weights"
_POLICY: Final = tuple(f"policy {name}" for name in ("promote", "hold", "release", "rollback"))
_BY_NAME: Final = {"name": "experiment"}
ACTIONS: Final = (
    Action(
        "/review/next",
        "reviewer",
        _lease,
        "take the next item",
        _LEASE,
        True,
        commands=("review next", "review adjudicate"),
        form_page="/review",
    ),
    Action(
        "/review/say",
        "reviewer",
        _submit,
        "submit a verdict on an item",
        _VERDICT,
        True,
        commands=("review submit",),
        form_page="/review",
    ),
    Action(
        "/review/skip", "reviewer", _give_back, "return an item without a verdict", _ON_ITEM, True, form_page="/review"
    ),
    Action(
        "/review/ask",
        "operator",
        _ask,
        "queue a run for review, whatever the daily cap",
        _ASK,
        title="Ask for a review",
        commands=("review ask",),
    ),
    Action(
        "/runs/answer-now",
        "operator",
        lambda form: _ask_run(form, "answer_now", "{} is asked for its answer at the next place."),
        "ask a running request for its answer",
        _RUN,
        form_page="/runs/live",
    ),
    Action(
        "/runs/think-more",
        "operator",
        lambda form: _ask_run(form, "think_more", "{} thinks on: its policy stops it no more."),
        "let a running request think on",
        _RUN,
        form_page="/runs/live",
    ),
    Action(
        "/views/save",
        "viewer",
        _save_view,
        "save a view of runs for yourself, or remove it",
        _VIEW,
        True,
        form_page="/runs",
    ),
    Action(
        "/incidents/open",
        "operator",
        _open_incident,
        "open an incident",
        _OPEN,
        title="Open an incident",
        commands=("incident open",),
    ),
    Action(
        "/incidents/decide",
        "operator",
        _decide_incident,
        "decide an incident",
        _INCIDENT,
        title="Decide an incident",
        commands=("incident decide",),
    ),
    Action(
        "/rollouts/move",
        "operator",
        _move_rollout,
        _MOVE_SUMMARY,
        _MOVE,
        title="Move a rollout, or roll back",
        commands=_POLICY,
    ),
    Action(
        "/rollouts/propose",
        "operator",
        _propose,
        "try what a refit has proposed, in steps",
        _PROPOSE,
        title="Try a proposed policy",
        commands=("policy propose",),
    ),
    Action(
        "/experiments/start",
        "operator",
        _start_experiment,
        _START_SUMMARY,
        _ON_NAME,
        title="Start an experiment of the settings",
        commands=("experiment start",),
        inputs=_BY_NAME,
    ),
    Action(
        "/experiments/stop",
        "operator",
        _stop_experiment,
        "stop an experiment",
        _ON_NAME,
        title="Stop an experiment",
        commands=("experiment stop",),
    ),
    Action(
        "/overrides/set",
        "operator",
        _set_override,
        "make a route safer until a date",
        _OVERRIDE,
        title="Override a route: level, budget or observe",
        commands=("override set", "policy pin"),
    ),
    Action(
        "/overrides/end",
        "operator",
        _end_override,
        "end an override",
        _END,
        title="End an override",
        commands=("override end",),
    ),
    Action(
        "/routes/pause",
        "operator",
        _pause,
        "let every request of a route run in full",
        _ON_ROUTE,
        title="Pause a route",
        commands=("pause",),
    ),
    Action(
        "/routes/resume",
        "operator",
        _resume,
        "end a pause of a route",
        _ON_ROUTE,
        title="Resume a route",
        commands=("resume",),
    ),
    Action(
        "/stop-all",
        "operator",
        _stop_all,
        "let every request of every route run in full",
        _REASON,
        title="Stop all stopping",
        commands=("kill",),
    ),
    Action(
        "/release-all",
        "operator",
        _release_all,
        "let what is certified stop again",
        _REASON,
        title="Release: let certified policies stop again",
        commands=("unkill",),
    ),
    Action(
        "/settings/reload",
        "admin",
        _reload,
        "apply the changes in the settings file",
        {},
        title="Reload the settings file",
        commands=("reload",),
    ),
    *EXPERIMENT_ACTIONS,
    *ACCESS_ACTIONS,
)
