"""What people change here: each the same function that the command calls, with a reason and the name of who did it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, TypeVar
from urllib.parse import urlencode

from suffice.console.auth import Principal
from suffice.console.context import ConsoleContext
from suffice.console.exchange import ConsoleRequest
from suffice.console.table import Action, ActionResult
from suffice.console.views.review import no_such_item
from suffice.errors import BadRequest, ConfigError
from suffice.review.decide import IncidentForm as Wants
from suffice.review.incident import DECISIONS
from suffice.review.items import MOST_TEXT, said_of
from suffice.store.database.decisions import Decisions
from suffice.store.people.deciding import decide_incident, end_override, end_pause, open_incident, start_pause
from suffice.store.people.holds import read_holds
from suffice.store.people.reviews import give_item_back, lease_next, read_reviews, submit_verdict
from suffice.store.routes import experiments, rollouts
from suffice.store.routes.rollouts import read_rollouts, read_running_rollouts

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


def asks(*names: str, **more: str) -> Mapping[str, str]:
    """The fields of a change with what they mean."""
    return {name: FIELDS[name] for name in names} | more


def done(found: T | str, where: str = "") -> T:
    """What a step came to. Raises BadRequest with the sentence that says why it cannot be done."""
    if isinstance(found, str):
        raise BadRequest(f"{where}{found}", status=409, code="conflict")
    return found


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


def _on_route(
    decide: Callable[[Decisions, str, str, str], str | None], now: str
) -> Callable[[ConsoleContext, ConsoleRequest, Principal], ActionResult]:
    def do(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> ActionResult:
        name, reason = require_route(desk, asked), reason_of(asked)
        done(decide(desk.decisions(), name, reason, visitor.name), f"route {name} ")
        return ActionResult(said=f"Route {name} is {now}.")

    return do


# ---- reviews ---------------------------------------------------------------------------------------


def _take(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> ActionResult:
    route = asked.form.get("route") or None
    lease = lease_next(desk.decisions(), visitor.name, now_s=desk.now(), route=route)
    return ActionResult(said="Nothing waits for you." if lease is None else "", goes_to=REVIEW)


def _say(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> ActionResult:
    form, writer = asked.form, desk.decisions()
    name = form.get("item", "")
    place = read_reviews(writer.path).queue.places.get(name)
    if place is None:
        raise no_such_item(name)
    said = said_of(
        place.item,
        form.get("verdict", ""),
        reviewer=visitor.name,
        corrected=_text(asked, "corrected") or None,
        reason=_text(asked, "reason"),
    )
    found = done(submit_verdict(writer, done(said), now_s=desk.now()))
    if form.get("next"):  # a person goes on with the next one at once
        lease_next(writer, visitor.name, now_s=desk.now(), route=form.get("route") or None)
    return ActionResult(said=found.told, goes_to=f"{REVIEW}?{urlencode({'changed': name})}")


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
    found = done(
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
    return ActionResult(said=f"Incident {found.incident} is open.", goes_to=INCIDENTS)


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
    found = decide_incident(
        writer,
        desk.settings.routes[route],
        route,
        wanted,
        now_s=desk.now(),
        publication=_count(asked, "publication"),
        setup=desk.setup_of(route),
    )
    decided = done(found, f"{name} " if isinstance(found, str) and found.startswith("is ") else "")
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
    said = f"Route {name}: {moved.stage.replace('_', ' ')}, {moved.share:.0%} of new units."
    return ActionResult(said=said, goes_to=POLICIES)


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
        found = experiments.start_experiment(
            desk.decisions(), name, desk.settings.experiments[name], author=visitor.name, reason=reason_of(asked)
        )
    except ConfigError as error:  # its layer has no room
        raise BadRequest(str(error), status=409, code="conflict") from None
    started = done(found, f"experiment {name} ")
    return ActionResult(said=f"Experiment {name} runs, run {started.experiment.run}.", goes_to=EXPERIMENTS)


def _stop_experiment(desk: ConsoleContext, asked: ConsoleRequest, visitor: Principal) -> ActionResult:
    name = asked.form.get("name", "")
    found = experiments.stop_experiment(desk.decisions(), name, author=visitor.name, reason=reason_of(asked))
    done(found, f"experiment {name[:80]} ")
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


DEEDS: Final[tuple[Action, ...]] = (
    Action(
        path="/review/next",
        needs="reviewer",
        do=_take,
        summary="take the next item",
        asks=asks(route="only of this one"),
    ),
    Action(
        path="/review/say",
        needs="reviewer",
        do=_say,
        summary="say what is right of an item",
        asks=asks(
            "item",
            verdict="both, full, early, neither; right, wrong; unsure",
            corrected="the right answer, if you know it",
            reason=FIELDS["said"],
        ),
    ),
    Action(
        path="/review/skip",
        needs="reviewer",
        do=_give_back,
        summary="give an item back",
        asks=asks("item", reason=FIELDS["said"]),
    ),
    Action(
        path="/incidents/open",
        needs="admin",
        do=_open_incident,
        summary="open an incident",
        asks=asks("route", "reason", pauses="true: everything runs in full until it is decided"),
    ),
    Action(
        path="/incidents/decide",
        needs="admin",
        do=_decide_incident,
        summary="decide an incident",
        asks=asks(
            "reason",
            incident="its name",
            decision=", ".join(DECISIONS),
            level="tighten: none above it",
            max_em_drop="tighten: a smaller budget, a fraction",
            publication="roll_back: to this one",
            days="until it ends by itself",
        ),
    ),
    Action(
        path="/rollouts/move",
        needs="admin",
        do=_move_rollout,
        summary="move the rollout that runs on a route, or take back what the last one brought",
        asks=asks("route", "reason", move=", ".join(rollouts.STEPS)),
    ),
    Action(
        path="/rollouts/propose",
        needs="admin",
        do=_propose,
        summary="try what a refit has proposed, in steps",
        asks=asks("route", "reason", address="of the proposal, v- and twelve digits"),
    ),
    Action(
        path="/experiments/start",
        needs="admin",
        do=_start_experiment,
        summary="start an experiment, or give it its new weights",
        asks=asks("name", "reason"),
    ),
    Action(
        path="/experiments/stop",
        needs="admin",
        do=_stop_experiment,
        summary="stop an experiment",
        asks=asks("name", "reason"),
    ),
    Action(
        path="/overrides/end",
        needs="admin",
        do=_end_override,
        summary="end an override",
        asks=asks("route", "reason", number="of the override"),
    ),
    Action(
        path="/routes/pause",
        needs="admin",
        summary="let every request of a route run in full",
        asks=asks("route", "reason"),
        do=_on_route(
            lambda writer, route, reason, author: start_pause(writer, route, reason=reason, author=author),
            "paused",
        ),
    ),
    Action(
        path="/routes/resume",
        needs="admin",
        summary="end a pause of a route",
        asks=asks("route", "reason"),
        do=_on_route(
            lambda writer, route, reason, author: end_pause(writer, route, reason=reason, author=author),
            "resumed",
        ),
    ),
)
