"""Rollouts as the log has them: which ran and which run, where each stands, and what serves a route behind them.

    rows ──▶ read_rollouts ──▶ Held: state, author, reason, moves ──▶ serving: the version that is in force on a route
    person's word ──▶ propose, move, undo ──▶ rows, each written only if nobody was quicker

Knows rows; refuses to know what the evidence says (`control.advance`) and who is served (`gateway.variants`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypedDict

from suffice.errors import ConfigError
from suffice.rollout.pace import Past, refusal
from suffice.rollout.rules import Rules
from suffice.rollout.stages import State, Transition, begin, hold, promote, resume, roll_back
from suffice.rollout.versions import Lineage, Version, make_version, open_version, seal
from suffice.scoring.base import scorer_label
from suffice.settings import Route
from suffice.store.decisions import Decisions, read_artefact
from suffice.store.events import EVENTS
from suffice.store.rollout_events import Beginning, Moved, RolloutBegun, RolloutMoved, RolloutUndone, Undoing
from suffice.store.views import Labelled, decoded, read_episodes, reading

# By the unique index on kind and key, which holds a handful of such rows however long the log is.
_ROWS: Final = """
    SELECT seq, at_s, kind, body FROM events
    WHERE kind IN ('rollout_begun', 'rollout_moved', 'rollout_undone') ORDER BY seq"""


class Word(TypedDict):
    """What a person says with a step."""

    by: str
    reason: str
    at: int          # governed runs of the route that had ended since the rollout began
    now_s: float     # Unix time


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One rollout."""

    state: State                          # where it stands now
    first: State                          # where it began
    number: int                           # of the route's rollouts
    seq: int                              # place in the log of its start
    author: str
    reason: str
    moves: tuple[Transition, ...] = ()
    undone: Undoing | None = None         # it had reached everybody, and was taken back

    @property
    def serves_all(self) -> bool:
        """Is its candidate what the route serves?"""
        return self.state.stage == "full" and self.undone is None

    def at(self, n_requests: int) -> State:
        """The state that it was in when the route had had that many requests."""
        state = self.first
        for move in self.moves:
            if move.at > n_requests:
                break
            state = state.after(move)
        return state


def read_rollouts(path_or_connection: Path | str | sqlite3.Connection) -> tuple[Held, ...]:
    """Every rollout, in the order in which they began. Raises StoreError."""
    with reading(path_or_connection) as connection:
        rows = connection.execute(_ROWS).fetchall()
    found: dict[str, Held] = {}
    for seq, _, kind, body in rows:
        event = decoded(seq, EVENTS[kind], body)
        if isinstance(event, RolloutBegun):
            made = event.beginning
            found[made.state.rollout] = Held(
                state=made.state, first=made.state, number=made.number, seq=seq, author=made.author, reason=made.reason
            )
        elif isinstance(event, RolloutMoved):
            move = event.moved.transition
            before = found[move.rollout]
            found[move.rollout] = replace(before, state=before.state.after(move), moves=(*before.moves, move))
        elif isinstance(event, RolloutUndone):
            found[event.undoing.rollout] = replace(found[event.undoing.rollout], undone=event.undoing)
    return tuple(found.values())


def running(held: Iterable[Held]) -> dict[str, Held]:
    """The rollout that runs on each route."""
    return {one.state.route: one for one in held if not one.state.over}


def serving(held: Iterable[Held], route: str, own: str) -> str:
    """The version that serves a route: what rollouts have made of the one that its settings have.

    own  address of the settings' own policy; where its owner writes another one, that one serves
    """
    now = own
    for one in held:
        if one.state.route == route and one.serves_all and one.first.in_force == now:
            now = one.state.candidate
    return now


def own_version(route: Route) -> Version:
    """The policy that a route's owner wrote into the settings, as a version. Raises ConfigError where there is none."""
    if not route.policy:
        raise ConfigError("policy: its owner wrote none down; what the control loop has learned needs no rollout")
    return make_version(
        "policy", route.policy, kind=route.kind, scorer=scorer_label(route.scorer), model_family=None,
        lineage=Lineage(parent=None, proposed_by="settings", why="written down by the route's owner"),
    )


def governed_runs(connection: sqlite3.Connection, held: Held) -> Iterator[Labelled]:
    """The governed runs of a rollout's route that have ended since it began, in that order. Raises StoreError."""
    for item in read_episodes(connection, held.state.route, held.seq):
        if item.episode.request.ungoverned is None:
            yield item


def version_at(connection: sqlite3.Connection, address: str, *, secret: str) -> Version:
    """The version under an address. Raises ConfigError for one that is gone or is not what it was, and StoreError."""
    body = read_artefact(connection, address)
    if body is None:
        raise ConfigError(f"version {address}: is not kept here")
    return open_version(body.encode(), secret=secret, address=address)


def past_of(held: Iterable[Held], route: str) -> list[Past]:
    """The rollouts of a route, for the rules of pace."""
    return [
        Past(
            candidate=one.state.candidate, began_s=one.first.began_s,
            ended_s=one.moves[-1].now_s if one.state.over else None,
            rolled_back=one.state.stage == "rolled_back" or one.undone is not None,
        )
        for one in held if one.state.route == route
    ]  # fmt: skip


def propose(
    writer: Decisions, version: Version, *, route: str, own: Version, author: str, reason: str, name: str, rules: Rules,
    secret: str, held_by: str = "", by_person: bool = True,
) -> Held | str:  # fmt: skip
    """Begin a rollout of a version on a route; a sentence where it may not begin now.

    own      the settings' own policy as a version
    name     of the rollout, one that no other has
    secret   of the deployment, which signs what is kept
    held_by  why a person holds the route; "": nobody does

    Raises StoreError.
    """
    held, now_s = read_rollouts(writer.path), writer.now()
    in_force = serving(held, route, own.address)
    if version.address == in_force:
        return f"{version.address} is in force on route {route} already"
    why = refusal(
        past_of(held, route), version.address, now_s=now_s, rules=rules, held=held_by, by_person=by_person
    )
    if why is not None:
        return why
    number = 1 + sum(one.state.route == route for one in held)
    state = begin(
        name, route=route, candidate=version.address, in_force=in_force, follows=0, at=0, now_s=now_s, rules=rules
    )
    event = RolloutBegun(Beginning(state=state, number=number, author=author, reason=reason))
    kept = {one.address: seal(one, secret=secret).decode() for one in (version, own)}
    if writer.write(None, [event], kept, all_new=True) != [True]:
        return "somebody else began a rollout on this route at the same moment; look again"
    return read_rollouts(writer.path)[-1]


def move(writer: Decisions, route: str, moved: Callable[[State], Transition]) -> Transition | str:
    """Have a person move the rollout that runs on a route; a sentence where there is nothing to move.

    moved  makes the transition; raises ValueError where the state does not allow it

    Raises StoreError.
    """
    one = running(read_rollouts(writer.path)).get(route)
    if one is None:
        return f"no rollout runs on route {route}"
    try:
        transition = moved(one.state)
    except ValueError as error:
        return str(error)
    row = RolloutMoved(
        Moved(route=route, author=transition.by, reason=transition.reason, transition=transition)
    )
    if writer.write(None, [row], all_new=True) != [True]:
        return "somebody else moved it at the same moment; look again"
    return transition


STEPS: Final[Mapping[str, Callable[[State, Rules, Word], Transition]]] = {
    "promote": lambda state, rules, word: promote(state, rules, **word),
    "hold": lambda state, _, word: hold(state, **word),
    "release": lambda state, rules, word: resume(state, rules, **word),
    "rollback": lambda state, _, word: roll_back(state, **word),
}


def step(writer: Decisions, route: str, name: str, *, author: str, reason: str, rules: Rules) -> Transition | str:
    """Take a person's step, a key of STEPS, on the rollout that runs on a route; a sentence where it cannot be.

    Raises StoreError.
    """
    with reading(writer.path) as connection:
        one = running(read_rollouts(connection)).get(route)
        at = 0 if one is None else sum(1 for _ in governed_runs(connection, one))
    word = Word(by=f"person:{author}", reason=reason, at=at, now_s=writer.now())
    return move(writer, route, lambda state: STEPS[name](state, rules, word))


def undo(writer: Decisions, route: str, own: str, *, author: str, reason: str) -> Held | str:
    """Take back the version that serves all of a route; a sentence where no rollout has brought it. Raises StoreError.

    own  address of the settings' own policy
    """
    held = read_rollouts(writer.path)
    now = serving(held, route, own)
    last = _latest(held, route, now)
    if now == own or last is None:
        return f"what serves route {route} came by no rollout: it stands in the settings"
    row = RolloutUndone(Undoing(rollout=last.state.rollout, route=route, author=author, reason=reason))
    if writer.write(None, [row], all_new=True) != [True]:
        return "somebody else took it back at the same moment; look again"
    return last


def _latest(held: Sequence[Held], route: str, address: str) -> Held | None:
    """The latest rollout that brought a version to all of a route."""
    brought = (
        one for one in reversed(held)
        if one.state.route == route and one.serves_all and one.state.candidate == address
    )  # fmt: skip
    return next(brought, None)
