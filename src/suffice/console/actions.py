"""The actions of the console, each the function that its command calls, and the CSV exports."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeVar
from urllib.parse import urlencode

from suffice import cells
from suffice.console.auth import Principal
from suffice.console.context import Action, ActionFunction, ActionResult, ConsoleContext, ConsoleEndpoint
from suffice.console.exchange import Answer, ConsoleRequest
from suffice.console.views.episodes import MOST_PAGE, changes, episodes
from suffice.console.views.review import no_such_item
from suffice.errors import BadRequest, ConfigError
from suffice.formatting import format_moment
from suffice.review.decide import IncidentForm as Wants
from suffice.review.holds import DECISIONS
from suffice.review.items import MOST_TEXT, said_of
from suffice.store.people.deciding import decide_incident, end_override, end_pause, open_incident, start_pause
from suffice.store.people.reviews import give_item_back, lease_next, read_reviews, submit_verdict
from suffice.store.routes import experiments, rollouts
from suffice.store.routes.in_force import read_holds
from suffice.store.routes.rollouts import read_rollouts, read_running_rollouts


def format_csv_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(heads)
    writer.writerows([format_csv_cell(value) for value in row] for row in rows)
    return b"\xef\xbb\xbf" + text.getvalue().encode("utf-8", "replace")


def format_csv_cell(value: object) -> str:
    """A value as a cell: numbers as they are, text inert.

    >>> [format_csv_cell(x) for x in (None, -1.5, "=1+1", " @SUM(A1)", "fine", True)]
    ['', '-1.5', "'=1+1", "' @SUM(A1)", 'fine', 'yes']
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    return cells.format_cell(value.replace("\x00", "") if isinstance(value, str) else value)


MOST_CHARS: Final = 2_000  # of a reason
REVIEW: Final = "/console/review"
INCIDENTS: Final = "/console/incidents"
EXPERIMENTS: Final = "/console/experiments"
POLICIES: Final = "/console/policies"
# What the fields of a change mean, said once; a change says itself what only it asks for.
FIELDS: Final[Mapping[str, str]] = {
    "route": "its name",
    "reason": "why; it stays in the log",
    "item": "its episode",
    "said": "in your own words",
    "name": "as the settings have it",
}
T = TypeVar("T")


def asks(*names: str, **more: str) -> dict[str, str]:
    return {name: FIELDS[name] for name in names} | more


def done(result: T | str, where: str = "") -> T:
    """What a step came to. Raises BadRequest with the sentence that says why it cannot be done."""
    if isinstance(result, str):
        raise BadRequest(f"{where}{result}", status=409, code="conflict")
    return result


def reason_of(asked: ConsoleRequest) -> str:
    """Why somebody does what they do. Raises BadRequest where they do not say."""
    reason = asked.form.get("reason", "").strip()
    if not reason or len(reason) > MOST_CHARS or "\x00" in reason:
        raise BadRequest(f"reason: is needed, at most {MOST_CHARS:,} characters; it stays in the log", param="reason")
    return reason


def require_route(desk: ConsoleContext, asked: ConsoleRequest) -> str:
    """Which route is meant. Raises BadRequest for one that is not in the settings."""
    name = asked.form.get("route", "")
    if name not in desk.settings.routes:
        known = ", ".join(sorted(desk.settings.routes)) or "none is configured"
        raise BadRequest(f"route: unknown route {name[:80]!r}; known: {known}", param="route", status=404)
    return name


# ---- reviews ---------------------------------------------------------------------------------------


def _take(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> ActionResult:
    route = asked.form.get("route") or None
    lease = lease_next(desk.decisions(), visitor.name, now_s=desk.now(), route=route)
    return ActionResult(said="Nothing to review." if lease is None else "", goes_to=REVIEW)


def _say(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> ActionResult:
    form, writer = asked.form, desk.decisions()
    name = form.get("item", "")
    place = read_reviews(writer.path).queue.places.get(name)
    if place is None:
        raise no_such_item(name)
    outcome = said_of(
        place.item,
        form.get("verdict", ""),
        reviewer=visitor.name,
        corrected=_text(asked, "corrected") or None,
        reason=_text(asked, "reason"),
    )
    result = done(submit_verdict(writer, done(outcome), now_s=desk.now()))
    if form.get("next"):  # a person goes on with the next one at once
        lease_next(writer, visitor.name, now_s=desk.now(), route=form.get("route") or None)
    return ActionResult(said=result.told, goes_to=f"{REVIEW}?{urlencode({'changed': name})}")


def _give_back(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> ActionResult:
    name, writer = asked.form.get("item", ""), desk.decisions()
    if not give_item_back(writer, name, visitor.name, _text(asked, "reason") or "skipped", now_s=desk.now()):
        raise BadRequest(f"review: {name[:80]!r} is not in your hands", status=409, code="conflict")
    return ActionResult(said="It went back.", goes_to=REVIEW)


def _text(asked: ConsoleRequest, field: str) -> str:
    text = asked.form.get(field, "").strip()
    if len(text) > MOST_TEXT or "\x00" in text:
        raise BadRequest(f"{field}: at most {MOST_TEXT:,} characters", param=field)
    return text


# ---- incidents -------------------------------------------------------------------------------------


def _open_incident(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> ActionResult:
    name = require_route(desk, asked)
    result = done(
        open_incident(
            desk.decisions(),
            name,
            desk.settings.routes[name],
            reason_of(asked),
            visitor.name,
            now_s=desk.now(),
            pauses=asked.form.get("pauses", "") not in ("", "false", "no", "0"),
        )
    )
    return ActionResult(said=f"Incident {result.incident} is open.", goes_to=INCIDENTS)


def _decide_incident(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> ActionResult:
    form, writer = asked.form, desk.decisions()
    name, decision = form.get("incident", ""), form.get("decision", "")
    route = next((route for route, held in read_holds(writer.path).routes.items() if held.case(name)), None)
    if route is None or route not in desk.settings.routes:
        raise BadRequest(f"incident: unknown {name[:80]!r}", param="incident", status=404, code="not_found")
    if decision not in DECISIONS:
        raise BadRequest(f"decision: got {decision[:40]!r}; allowed: {', '.join(DECISIONS)}", param="decision")
    wanted = Wants(
        incident=name,
        decision=next(one for one in DECISIONS if one == decision),
        reason=reason_of(asked),
        author=visitor.name,
        days=_number(asked, "days") or 30.0,
        level=_count(asked, "level"),
        max_em_drop=_number(asked, "max_em_drop"),
    )
    incident = decide_incident(
        writer,
        desk.settings.routes[route],
        route,
        wanted,
        now_s=desk.now(),
        publication=_count(asked, "publication"),
        setup=desk.setup_of(route),
    )
    decided = done(incident, f"{name} " if isinstance(incident, str) and incident.startswith("is ") else "")
    return ActionResult(said=f"{name}: {decision.replace('_', ' ')}. Now: {decided.decision.after}", goes_to=INCIDENTS)


def _end_override(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> ActionResult:
    name, number = require_route(desk, asked), _count(asked, "number") or 0
    ended = done(
        end_override(
            desk.decisions(), name, desk.settings.routes[name], number, reason_of(asked), visitor.name, now_s=desk.now()
        )
    )
    return ActionResult(said=f"Override {number} of {name} is over. Now: {ended.after}", goes_to=INCIDENTS)


# ---- rollouts --------------------------------------------------------------------------------------


def _move_rollout(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> ActionResult:
    name, move, reason = require_route(desk, asked), asked.form.get("move", ""), reason_of(asked)
    if move not in rollouts.STEPS:
        raise BadRequest(f"move: got {move[:40]!r}; allowed: {', '.join(rollouts.STEPS)}", param="move")
    writer = desk.decisions()
    if move == "rollback" and name not in read_running_rollouts(read_rollouts(writer.path)):
        return _take_back(desk, name, reason, visitor)
    moved = done(rollouts.step(writer, name, move, author=visitor.name, reason=reason))
    sentence = f"Route {name}: {moved.stage.replace('_', ' ')}, {moved.share:.0%} of new units."
    return ActionResult(said=sentence, goes_to=POLICIES)


def _propose(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> ActionResult:
    name, address, reason = require_route(desk, asked), asked.form.get("address", ""), reason_of(asked)
    try:
        begun = done(desk.propose(name, address, reason, visitor.name))
    except ConfigError as error:  # its models are gone, or are not what they were
        raise BadRequest(str(error), status=409, code="conflict") from None
    return ActionResult(said=f"Route {name}: {begun.state.fit} is tried, in shadow.", goes_to=POLICIES)


def _take_back(desk: ConsoleContext, name: str, reason: str, visitor: Principal) -> ActionResult:
    undone = done(desk.take_back(name, reason, visitor.name))
    return ActionResult(said=f"Route {name}: {undone.first.in_force} serves again.", goes_to=POLICIES)


# ---- experiments -----------------------------------------------------------------------------------


def _start_experiment(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> ActionResult:
    name = _experiment_of(desk, asked)
    desk.check_experiment(name)
    try:
        experiment = experiments.start_experiment(
            desk.decisions(), name, desk.settings.experiments[name], author=visitor.name, reason=reason_of(asked)
        )
    except ConfigError as error:  # its layer has no room
        raise BadRequest(str(error), status=409, code="conflict") from None
    started = done(experiment, f"experiment {name} ")
    return ActionResult(said=f"Experiment {name} runs, run {started.experiment.run}.", goes_to=EXPERIMENTS)


def _stop_experiment(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> ActionResult:
    name = asked.form.get("name", "")
    experiment = experiments.stop_experiment(desk.decisions(), name, author=visitor.name, reason=reason_of(asked))
    done(experiment, f"experiment {name[:80]} ")
    return ActionResult(said=f"Experiment {name} is stopped.", goes_to=EXPERIMENTS)


def _experiment_of(desk: ConsoleContext, asked: ConsoleRequest) -> str:
    name = asked.form.get("name", "")
    if name not in desk.settings.experiments:
        known = ", ".join(sorted(desk.settings.experiments)) or "none is configured"
        raise BadRequest(f"name: unknown experiment {name[:80]!r}; known: {known}", param="name", status=404)
    return name


def _number(asked: ConsoleRequest, field: str) -> float | None:
    text = asked.form.get(field, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadRequest(f"{field}: got {text[:40]!r}; a number", param=field)
    return value


def _count(asked: ConsoleRequest, field: str) -> int | None:
    value = _number(asked, field)
    if value is None:
        return None
    if value != int(value) or not 0 <= value < 2**31:
        raise BadRequest(f"{field}: got {value:g}; a whole number", param=field)
    return int(value)


def _move_pause(verb: Callable[..., str | None], now: str) -> ActionFunction:
    def do(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> ActionResult:
        name, reason = require_route(desk, asked), reason_of(asked)
        done(verb(desk.decisions(), name, reason=reason, author=visitor.name), f"route {name} ")
        return ActionResult(said=f"Route {name} is {now}.")

    return do


_ON_ROUTE: Final = asks("route", "reason")
_ON_NAME: Final = asks("name", "reason")
_INCIDENT: Final = asks(
    "reason",
    incident="its name",
    decision=", ".join(DECISIONS),
    level="tighten: none above it",
    max_em_drop="tighten: a smaller budget, a fraction",
    publication="roll_back: to this one",
    days="until it ends by itself",
)
_VERDICT: Final = asks(
    "item",
    verdict="both, full, early, neither; right, wrong; unsure",
    corrected="the right answer, if you know it",
    reason=FIELDS["said"],
)
ACTIONS: Final[tuple[Action, ...]] = (
    Action("/review/next", "reviewer", _take, "take the next item", asks(route="only of this one")),
    Action("/review/say", "reviewer", _say, "say what is right of an item", _VERDICT),
    Action("/review/skip", "reviewer", _give_back, "give an item back", asks("item", reason=FIELDS["said"])),
    Action(
        "/incidents/open",
        "admin",
        _open_incident,
        "open an incident",
        _ON_ROUTE | {"pauses": "true: everything runs in full until it is decided"},
    ),
    Action("/incidents/decide", "admin", _decide_incident, "decide an incident", _INCIDENT),
    Action(
        "/rollouts/move",
        "admin",
        _move_rollout,
        "move the rollout that runs on a route, or take back what the last one brought",
        _ON_ROUTE | {"move": ", ".join(rollouts.STEPS)},
    ),
    Action(
        "/rollouts/propose",
        "admin",
        _propose,
        "try what a refit has proposed, in steps",
        _ON_ROUTE | {"address": "of the proposal, v- and twelve digits"},
    ),
    Action(
        "/experiments/start", "admin", _start_experiment, "start an experiment, or give it its new weights", _ON_NAME
    ),
    Action("/experiments/stop", "admin", _stop_experiment, "stop an experiment", _ON_NAME),
    Action("/overrides/end", "admin", _end_override, "end an override", _ON_ROUTE | {"number": "of the override"}),
    Action(
        "/routes/pause",
        "admin",
        _move_pause(start_pause, "paused"),
        "let every request of a route run in full",
        _ON_ROUTE,
    ),
    Action("/routes/resume", "admin", _move_pause(end_pause, "resumed"), "end a pause of a route", _ON_ROUTE),
)


CSV: Final = "text/csv; charset=utf-8"


# Columns of each export: head, and the field of the record under it.
_EPISODE_COLUMNS: Final = {
    "episode": "episode_id",
    "at (UTC)": "at_s",
    "route": "route",
    "class": "query_class",
    "kind": "kind",
    "end": "end_reason",
    "stopped": "stopped",
    "audit": "audit",
    "steps": "n_steps",
    "stop step": "stop_step",
    "answer": "answer",
    "answer at the stop": "would_answer",
    "differs": "differs",
    "right": "correct",
    "tokens": "tokens",
    "tokens saved": "saved_tokens",
}
_CHANGE_COLUMNS: Final = {"place": "seq", "at (UTC)": "at_s"} | {
    name: name for name in ("kind", "route", "before", "after", "reason", "author")
}


def _table(columns: Mapping[str, str], records: Iterable[object]) -> bytes:
    def cell(record: object, field: str) -> object:
        value = getattr(record, field)
        return format_moment(value) if field == "at_s" else value

    return format_csv_table(tuple(columns), ([cell(one, field) for field in columns.values()] for one in records))


async def _episodes(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> Answer:
    wanted = replace(asked, query={**asked.query, "limit": str(MOST_PAGE)})
    lines = (await desk.read(lambda look: episodes(look, wanted, visitor))).lines
    return await _file(desk, visitor, "episodes.csv", _table(_EPISODE_COLUMNS, lines), len(lines))


async def _changes(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> Answer:
    lines = (await desk.read(lambda look: changes(look, asked, visitor))).lines
    return await _file(desk, visitor, "changes.csv", _table(_CHANGE_COLUMNS, lines), len(lines))


async def _file(desk: ConsoleContext, visitor: Principal, name: str, body: bytes, n_rows: int) -> Answer:
    await desk.off_loop(lambda: desk.note_export(name, n_rows, visitor.name))
    return Answer(kind=CSV, body=body, headers=(("content-disposition", f'attachment; filename="{name}"'),))


EXPORTS: Final = (
    ConsoleEndpoint("POST", "/console/episodes.csv", "admin", _episodes, "runs as a table", CSV),
    ConsoleEndpoint("POST", "/console/changes.csv", "admin", _changes, "changes as a table", CSV),
)
