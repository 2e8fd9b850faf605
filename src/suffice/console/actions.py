"""The actions of the console and the API, each by the function of its command."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl, urlencode

from suffice.console.access_actions import ACCESS_ACTIONS
from suffice.console.action_form import ActionForm, PreviewRow
from suffice.console.experiment_actions import create_experiment
from suffice.console.views.episodes import FILTER_FIELDS
from suffice.console.views.review import check_item, unblind
from suffice.errors import BadRequest, SufficeError
from suffice.operations.experiments import start_named_experiment, stop_named_experiment
from suffice.operations.fields import ROUTE, FormInput, find_later
from suffice.operations.operation import OperationResult, operation, raise_if_refused
from suffice.operations.overrides import OVERRIDES
from suffice.operations.reviews import ask_for_review
from suffice.operations.rollouts import move_rollout
from suffice.review.items import ReviewLease, VerdictForm
from suffice.store.people.deciding import (
    give_item_back,
    lease_next,
    submit_verdict,
)
from suffice.store.people.preferences import save_view

MOST_VIEW_NAME: Final = 60
LIVE: Final = "/console/runs/live"
REVIEW: Final = "/console/review"
EXPERIMENTS, POLICIES = "/console/experiments", "/console/policies"


# ---- reviews ---------------------------------------------------------------------------------------


def _lease_next(form: ActionForm, route: str | None = None, *, contested: bool = False) -> ReviewLease | None:
    tenants = form.principal.tenants
    return lease_next(form.writer, form.author, now_s=form.now_s, route=route, tenants=tenants, third=contested)


@operation(
    "/review/next",
    "take the next item",
    {
        "route": FormInput("only of this one"),
        "contested": FormInput("true: only items on which reviewers disagree", "flag"),
    },
    commands=("review next", "review adjudicate"),
    goes_to=REVIEW,
    needs="reviewer",
    by_tenant=True,
)
def _lease_next_item(form: ActionForm, route: str | None, *, contested: bool) -> OperationResult:
    lease = _lease_next(form, route, contested=contested)
    return OperationResult("Nothing to review." if lease is None else "")


@operation(
    "/review/say",
    "submit a verdict on an item",
    {
        "item": FormInput("its episode"),
        "verdict": FormInput(
            "both, full, early, neither; right, wrong; first, second (of the two as the page shows them); unsure"
        ),
        "corrected": FormInput("the right answer, if you know it"),
        "reason": FormInput("in your own words"),
    },
    commands=("review submit",),
    needs="reviewer",
    by_tenant=True,
)
def _submit(form: ActionForm, item: str | None, verdict: str | None, corrected: str | None) -> OperationResult:
    name = item or ""
    word = unblind(check_item(form.writer.path, name, form.principal.tenants), verdict or "")
    wanted = VerdictForm(item=name, reviewer=form.author, word=word, corrected=corrected, reason=form.text("reason"))
    submission = raise_if_refused(submit_verdict(form.writer, wanted, now_s=form.now_s))
    if form.get("next"):  # the form may request the next item at once
        _lease_next(form, form.get("route") or None, contested=form.flag("contested"))
    # The page itself says what was said, and offers to say it again.
    message = submission.message if submission.verdict is None or submission.verdict.late else ""
    return OperationResult(message, goes_to=f"{REVIEW}?{urlencode({'changed': name})}")


@operation(
    "/review/skip",
    "return an item without a verdict",
    {"item": FormInput("its episode"), "reason": FormInput("in your own words")},
    goes_to=REVIEW,
    needs="reviewer",
    by_tenant=True,
)
def _give_back(form: ActionForm, item: str | None) -> OperationResult:
    name = item or ""
    check_item(form.writer.path, name, form.principal.tenants)
    if not give_item_back(form.writer, name, form.author, form.text("reason") or "skipped", now_s=form.now_s):
        raise BadRequest(f"review: {name[:80]!r} is not leased to you", status=409, code="conflict")
    return OperationResult("The item was returned.")


# ---- running requests ------------------------------------------------------------------------------


_ON_RUN: Final = {"run": FormInput("id of the running request", required=True)}


def _ask_run(form: ActionForm, name: str, wish: str, message: str) -> OperationResult:
    live = form.services.live
    if live is None:
        raise BadRequest("no gateway runs in this process", status=409, code="conflict")
    if (why_not := live.ask(name, wish, f"console {form.author}")) is not None:
        raise BadRequest(f"{name[:80]}: {why_not}", param="run", status=409, code="cannot_be_asked")
    return OperationResult(message.format(name))


@operation("/runs/answer-now", "ask a running request for its answer", _ON_RUN, goes_to=LIVE)
def _answer_now(form: ActionForm, run: str) -> OperationResult:
    return _ask_run(form, run, "answer_now", "{} is asked for its answer at the next place.")


@operation("/runs/think-more", "let a running request think on", _ON_RUN, goes_to=LIVE)
def _think_more(form: ActionForm, run: str) -> OperationResult:
    return _ask_run(form, run, "think_more", "{} thinks on: its policy stops it no more.")


# ---- views of runs ---------------------------------------------------------------------------------


@operation(
    "/views/save",
    "save a view of runs for yourself, or remove it",
    {
        "name": FormInput("of the view", required=True),
        "query": FormInput("of the page of runs, as in its address; empty removes the view"),
    },
    needs="viewer",
    by_tenant=True,
)
def _save_run_view(form: ActionForm, name: str, query: str | None) -> OperationResult:
    name = name[:MOST_VIEW_NAME]
    fields = {field: value for field, value in parse_qsl(query or "") if field in FILTER_FIELDS}
    if query and not fields:
        raise BadRequest("query: a view needs at least one condition or an order", param="query")
    if not save_view(form.writer, form.author, name, urlencode(fields)):
        raise BadRequest("somebody saved a view at the same time; try again", status=409, code="conflict")
    return OperationResult(f"The view “{name}” is {'saved' if fields else 'removed'}.")


# ---- the kill switch --------------------------------------------------------------------------------


@operation(
    "/stop-all", "let every request of every route run in full", {}, title="Stop all stopping", commands=("kill",)
)
def _stop_all(form: ActionForm) -> OperationResult:
    return _switch(form, on=True, message="Stopping is switched off: every route runs in full within a second.")


@operation(
    "/release-all",
    "let what is certified stop again",
    {},
    title="Release: let certified policies stop again",
    commands=("unkill",),
)
def _release_all(form: ActionForm) -> OperationResult:
    return _switch(form, on=False, message="Released: what is certified may stop again.")


def _switch(form: ActionForm, *, on: bool, message: str) -> OperationResult:
    if form.services.killed() == on:
        already = "stopping is switched off already" if on else "stopping is not switched off"
        raise BadRequest(already, status=409, code="conflict")
    try:
        form.services.switch(on, form.reason, form.author)
    except OSError as error:
        raise BadRequest(
            f"the file of the kill switch cannot be changed ({error.strerror}); suffice kill --help names other ways",
            status=503,
            code="kill_file",
        ) from None
    if not on and form.rehearsal is None and form.services.killed():
        message = "The release is given; a file that a person made keeps this gateway killed: run suffice unkill there."
    return OperationResult(message)


# ---- rollouts and experiments ----------------------------------------------------------------------


@operation(
    "/rollouts/propose",
    "try what a refit has proposed, in steps",
    {"route": ROUTE, "address": FormInput("of the proposal, v- and twelve digits", required=True, find=find_later)},
    title="Try a proposed policy",
    commands=("policy propose",),
    goes_to=POLICIES,
)
def _propose(form: ActionForm, route: str, address: str) -> OperationResult:
    begun = raise_if_refused(form.services.propose(route, address, form.reason, form.author))
    return OperationResult(f"Route {route}: {begun.state.fit} is rolled out, starting in shadow.")


@operation(
    "/settings/reload",
    "apply the changes in the settings file",
    {},
    title="Reload the settings file",
    commands=("reload",),
    needs="admin",
)
def _reload_settings(form: ActionForm) -> OperationResult:
    reload, reason = form.services.reload, form.reason
    if reload is None:
        raise BadRequest("this console runs beside no gateway that could reload", status=409, code="conflict")
    try:
        result = reload(None if form.rehearsal is not None else form.author, reason)
    except SufficeError as error:
        raise BadRequest(f"nothing was reloaded: {error}", status=409, code="conflict") from None
    if form.rehearsal is None:
        return OperationResult(f"Reloaded: {result.sentence}.", goes_to="/console/settings")
    rows = tuple(
        PreviewRow(kind=one.path, before=one.sides[0], after=one.sides[1], note=one.note) for one in result.changes
    )
    sentence = result.sentence[:1].upper() + result.sentence[1:]
    return OperationResult(f"{sentence}.", rows=rows, effect=" ".join(result.notes))


ACTIONS: Final = (
    _lease_next_item,
    _submit,
    _give_back,
    ask_for_review,
    _answer_now,
    _think_more,
    _save_run_view,
    move_rollout,
    _propose,
    start_named_experiment,
    stop_named_experiment,
    *OVERRIDES,
    _stop_all,
    _release_all,
    _reload_settings,
    create_experiment,
    *ACCESS_ACTIONS,
)
