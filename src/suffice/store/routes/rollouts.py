"""Rollouts as the log has them: which ran and which run, where each stands, and what serves a route behind them.

rows ──▶ read_rollouts ──▶ RolloutRun: state, author, reason, moves ──▶ serving: the version in force on a route
person's word ──▶ propose, move, undo ──▶ rows, each written only if nobody was quicker

Everything here that reads or writes the log raises StoreError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from suffice.errors import ConfigError
from suffice.rollout.evidence import Rules
from suffice.rollout.stages import (
    PastRollout,
    State,
    StepOrder,
    Transition,
    cool_down_refusal,
    hold_rollout,
    promote_rollout,
    resume_rollout,
    roll_back,
    start_rollout,
)
from suffice.rollout.versions import Version, VersionLineage, make_version, open_version, seal_version
from suffice.scoring.base import scorer_label
from suffice.settings import Route
from suffice.store.database.decisions import Decisions, read_artefact
from suffice.store.database.views import LogReader, LogSource, open_reader, read_kinds
from suffice.store.routes.windows import requests_since
from suffice.store.rows.records import RolloutMove, RolloutStart, RolloutUndo


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRun:
    state: State  # where it stands now
    first: State  # where it began
    number: int  # of the route's rollouts
    seq: int  # place in the log of its start
    author: str
    reason: str
    rules: Rules  # that it began with
    moves: tuple[Transition, ...] = ()
    undone: RolloutUndo | None = None  # it had reached everybody, and was taken back

    @property
    def serves_all(self) -> bool:
        return self.state.stage == "full" and self.undone is None


def read_rollouts(source: LogSource) -> tuple[RolloutRun, ...]:
    """Every rollout, in the order in which they began."""
    by_rollout: dict[str, RolloutRun] = {}
    for stored in read_kinds(source, "rollout_begun", "rollout_moved", "rollout_undone"):
        event = stored.event
        if isinstance(event, RolloutStart):
            by_rollout[event.state.rollout] = RolloutRun(
                state=event.state,
                first=event.state,
                number=event.number,
                seq=stored.seq,
                author=event.author,
                reason=event.reason,
                rules=event.rules,
            )
        elif isinstance(event, RolloutMove):
            move = event.transition
            before = by_rollout[move.rollout]
            by_rollout[move.rollout] = replace(before, state=before.state.after(move), moves=(*before.moves, move))
        elif isinstance(event, RolloutUndo):
            by_rollout[event.rollout] = replace(by_rollout[event.rollout], undone=event)
    return tuple(by_rollout.values())


def read_running_rollouts(held: Iterable[RolloutRun]) -> dict[str, RolloutRun]:
    return {one.state.route: one for one in held if not one.state.over}


def succession(held: Iterable[RolloutRun], route: str, own: str) -> tuple[str, ...]:
    """The versions that rollouts have made of a route's own, each in the place of the one before it; the last serves.

    own  address of the settings' own policy, which stands first; where its owner writes another one, that one serves
    """
    line = [own]
    for one in held:
        if one.state.route == route and one.serves_all and one.first.in_force == line[-1]:
            line.append(one.state.candidate)
    return tuple(line)


def read_serving_version(held: Iterable[RolloutRun], route: str, own: str) -> str:
    return succession(held, route, own)[-1]


def own_version(route: Route) -> Version:
    """The policy that a route's owner wrote into the settings, as a version. Raises ConfigError where there is none."""
    if not route.policy:
        raise ConfigError("policy: its owner wrote none down; what the control loop has learned needs no rollout")
    lineage = VersionLineage(parent=None, proposed_by="settings", why="written down by the route's owner")
    return _policy_version(route, route.policy, lineage)


def _policy_version(route: Route, table: Mapping[str, Any], lineage: VersionLineage) -> Version:
    scorer = scorer_label(route.scorer)
    return make_version("policy", table, kind=route.kind, scorer=scorer, model_family=None, lineage=lineage)


def proposed_version(
    held: Iterable[RolloutRun],
    name: str,
    route: Route,
    table: Mapping[str, Any],
    *,
    author: str,
    why: str,
    now_s: float,
) -> Version:
    """A policy that somebody proposes for a route, as a version that follows what serves there. Raises ConfigError."""
    lineage = VersionLineage(
        parent=read_serving_version(held, name, own_version(route).address),
        proposed_by=f"person:{author}",
        why=why,
        proposed_s=now_s,
    )
    return _policy_version(route, table, lineage)


def version_at(connection: LogReader, address: str, *, secret: str) -> Version:
    """The version under an address. Raises ConfigError for one that is gone or is not what it was, and StoreError."""
    body = read_artefact(connection, address)
    if body is None:
        raise ConfigError(f"version {address}: is not kept here")
    return open_version(body.encode(), secret=secret, address=address)


def past_of(held: Iterable[RolloutRun], route: str) -> list[PastRollout]:
    """The rollouts of a route, for the rules of pace."""
    return [
        PastRollout(
            candidate=one.state.candidate,
            began_s=one.first.began_s,
            ended_s=one.moves[-1].now_s if one.state.over else None,
            rolled_back=one.state.stage == "rolled_back" or one.undone is not None,
        )
        for one in held
        if one.state.route == route
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutCandidate:
    """What is to be tried on a route, and what it is compared with."""

    route: str
    version: Version
    in_force: str  # address of what serves the others
    follows: int = 0  # number of the publication that put that in force; 0: the settings did
    fit: str = ""  # of a learned one: address of its models; "": it is a policy
    beside: tuple[Version, ...] = ()  # what must be kept with it


def own_candidate(held: Iterable[RolloutRun], version: Version, *, route: str, own: Version) -> RolloutCandidate | str:
    """A policy that is to be tried where its owner wrote one down; a sentence where it serves already."""
    in_force = read_serving_version(held, route, own.address)
    if version.address == in_force:
        return f"{version.address} is in force on route {route} already"
    return RolloutCandidate(route=route, version=version, in_force=in_force, beside=(own,))


def beginning(
    held: Sequence[RolloutRun],
    one: RolloutCandidate,
    *,
    author: str,
    reason: str,
    name: str,
    rules: Rules,
    now_s: float,
    held_by: str = "",
    by_person: bool = True,
) -> RolloutStart | str:
    """The first row of a rollout; a sentence where it may not begin now."""
    route, address = one.route, one.version.address
    why = cool_down_refusal(past_of(held, route), address, now_s=now_s, rules=rules, held=held_by, by_person=by_person)
    if why is not None:
        return why
    state = start_rollout(
        name,
        route=route,
        candidate=address,
        in_force=one.in_force,
        follows=one.follows,
        at=0,
        now_s=now_s,
        rules=rules,
        fit=one.fit,
    )
    number = 1 + sum(each.state.route == route for each in held)
    return RolloutStart(state=state, number=number, author=author, reason=reason, rules=rules)


def kept_with(one: RolloutCandidate, *, secret: str) -> dict[str, str]:
    """What is written beside the log with the first row, by address; signed with the deployment's secret."""
    return {each.address: seal_version(each, secret=secret).decode() for each in (one.version, *one.beside)}


def start_candidate(
    writer: Decisions, one: RolloutCandidate, *, author: str, reason: str, name: str, rules: Rules, secret: str
) -> RolloutRun | str:
    """Begin a rollout of a candidate by a person's word; a sentence where it may not begin now."""
    held = read_rollouts(writer.path)
    event = beginning(held, one, author=author, reason=reason, name=name, rules=rules, now_s=writer.now())
    if isinstance(event, str):
        return event
    if not writer.write_new(event, artefacts=kept_with(one, secret=secret)):
        return "somebody else began a rollout on this route at the same moment; look again"
    return read_rollouts(writer.path)[-1]


def move(writer: Decisions, route: str, moved: Callable[[RolloutRun], Transition]) -> Transition | str:
    """Have a person move the rollout that runs on a route; a sentence where there is nothing to move.

    moved  makes the transition; raises ValueError where the state does not allow it
    """
    one = read_running_rollouts(read_rollouts(writer.path)).get(route)
    if one is None:
        return f"no rollout runs on route {route}"
    try:
        transition = moved(one)
    except ValueError as error:
        return str(error)
    row = RolloutMove(route=route, author=transition.by, reason=transition.reason, transition=transition)
    if not writer.write_new(row):
        return "somebody else moved it at the same moment; look again"
    return transition


STEPS: Final[Mapping[str, Callable[[State, Rules, StepOrder], Transition]]] = {
    "promote": promote_rollout,
    "hold": lambda state, _, order: hold_rollout(state, order),
    "release": resume_rollout,
    "rollback": lambda state, _, order: roll_back(state, order),
}


def step(writer: Decisions, route: str, name: str, *, author: str, reason: str) -> Transition | str:
    """Take a person's step, a key of STEPS, on the rollout that runs on a route; a sentence where it cannot be."""
    with open_reader(writer.path) as connection:
        one = read_running_rollouts(read_rollouts(connection)).get(route)
        at = 0 if one is None else requests_since(connection, route, one.seq)
    order = StepOrder(by=f"person:{author}", reason=reason, at=at, now_s=writer.now())
    return move(writer, route, lambda held: STEPS[name](held.state, held.rules, order))


def undo(writer: Decisions, route: str, now: str, *, author: str, reason: str) -> RolloutRun | str:
    """Take back the version that serves all of a route; a sentence where no rollout has brought it.

    now  address of what serves it: of a policy (`read_serving_version`), or of learned models
    """
    last = brought_by(read_rollouts(writer.path), route, now)
    if last is None:
        return f"what serves route {route} came by no rollout"
    row = RolloutUndo(rollout=last.state.rollout, route=route, author=author, reason=reason)
    if not writer.write_new(row):
        return "somebody else took it back at the same moment; look again"
    return last


def brought_by(held: Sequence[RolloutRun], route: str, address: str) -> RolloutRun | None:
    """The latest rollout that brought a version to all of a route; None: none has."""
    brought = (
        one
        for one in reversed(held)
        if one.state.route == route and one.serves_all and address in (one.state.candidate, one.state.fit or None)
    )
    return next(brought, None)
