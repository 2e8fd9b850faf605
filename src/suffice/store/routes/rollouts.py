"""Rollouts in the log: history, state, the versions that they put in place, and the moves that people make.

A learned candidate is compared with the certified publication of the epoch that it was learned in, so there must be
one. Readers and writers raise StoreError, and ConfigError for models that cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from suffice.errors import ConfigError
from suffice.policy.folded_version import FoldedVersion as Models
from suffice.policy.folded_version import load_version, read_version
from suffice.rollout import stages, versions
from suffice.rollout.evidence import Rules, rules_of
from suffice.rollout.steps import RolloutStep, plan_steps
from suffice.rollout.versions import Version, VersionLineage
from suffice.scoring.base import scorer_label
from suffice.settings import Route
from suffice.store.database.decisions import Decisions, read_artefact
from suffice.store.database.views import LogReader, LogSource, open_reader, read_kinds, requests_since, select
from suffice.store.routes.deployments import RouteDeployment, read_decided
from suffice.store.rows.events import ProposedVersion, RolloutMove, RolloutStart, RolloutUndo


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRun:
    state: stages.State  # current
    first: stages.State  # initial
    number: int  # of the route's rollouts
    seq: int  # place in the log of its start
    author: str
    reason: str
    rules: Rules  # fixed at its start
    moves: tuple[stages.Transition, ...] = ()
    undone: RolloutUndo | None = None  # it was completed, and taken back later

    @property
    def serves_all(self) -> bool:
        return self.state.stage == "full" and self.undone is None

    @property
    def steps(self) -> tuple[RolloutStep, ...]:
        return plan_steps(self.rules)


def read_rollouts(source: LogSource) -> tuple[RolloutRun, ...]:
    by_rollout: dict[str, RolloutRun] = {}
    for stored in read_kinds(source, "rollout_begun", "rollout_moved", "rollout_undone"):
        event = stored.event
        if isinstance(event, RolloutStart):
            by_rollout[event.state.rollout] = _begun(event, stored.seq)
        elif isinstance(event, RolloutMove):
            move = event.transition
            before = by_rollout[move.rollout]
            by_rollout[move.rollout] = replace(before, state=before.state.after(move), moves=(*before.moves, move))
        elif isinstance(event, RolloutUndo):
            by_rollout[event.rollout] = replace(by_rollout[event.rollout], undone=event)
    return tuple(by_rollout.values())


def _begun(event: RolloutStart, seq: int) -> RolloutRun:
    return RolloutRun(
        state=event.state,
        first=event.state,
        number=event.number,
        seq=seq,
        author=event.author,
        reason=event.reason,
        rules=event.rules,
    )


def read_running_rollouts(held: Iterable[RolloutRun]) -> dict[str, RolloutRun]:
    return {one.state.route: one for one in held if not one.state.over}


def succession(held: Iterable[RolloutRun], route: str, own: str) -> tuple[str, ...]:
    """Return the versions that completed rollouts put in place of a route's own, in order; the last one serves.

    own  address of the settings' own policy, the first; a changed policy in the settings takes over
    """
    line = [own]
    for one in held:
        if one.state.route == route and one.serves_all and one.first.active == line[-1]:
            line.append(one.state.candidate)
    return tuple(line)


def read_serving_version(held: Iterable[RolloutRun], route: str, own: str) -> str:
    return succession(held, route, own)[-1]


def own_version(route: Route) -> Version:
    if not route.policy:
        raise ConfigError("policy: its owner wrote none down; what the control loop has learned needs no rollout")
    lineage = VersionLineage(parent=None, proposed_by="settings", why="written down by the route's owner")
    return _policy_version(route, route.policy, lineage)


def _policy_version(route: Route, table: Mapping[str, Any], lineage: VersionLineage) -> Version:
    scorer = scorer_label(route.scorer)
    return Version(form="policy", body=table, kind=route.kind, scorer=scorer, model_family=None, lineage=lineage)


def proposed_version(
    held: Iterable[RolloutRun], name: str, route: Route, table: Mapping[str, Any], lineage: VersionLineage
) -> Version:
    """Return a policy as a version in place of the one that serves."""
    serving = read_serving_version(held, name, own_version(route).address)
    return _policy_version(route, table, replace(lineage, parent=serving))


def lineage_of(proposed_by: str, why: str, now_s: float) -> VersionLineage:
    return VersionLineage(parent=None, proposed_by=proposed_by, why=why, proposed_s=now_s)


def version_at(connection: LogReader, address: str, *, secret: str) -> Version:
    body = read_artefact(connection, address)
    if body is None:
        raise ConfigError(f"version {address}: is not kept here")
    return versions.open_version(body.encode(), secret=secret, address=address)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutCandidate:
    route: str
    version: Version
    active: str  # address of the version that serves other requests
    follows: int = 0  # number of its publication; 0: from the settings
    fit: str = ""  # of a learned one: address of its models; "": it is a policy
    beside: tuple[Version, ...] = ()  # stored together with it


def own_candidate(held: Iterable[RolloutRun], version: Version, *, route: str, own: Version) -> RolloutCandidate | str:
    active = read_serving_version(held, route, own.address)
    if version.address == active:
        return f"{version.address} is already active on route {route}"
    return RolloutCandidate(route=route, version=version, active=active, beside=(own,))


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
    route, address = one.route, one.version.address
    past = [
        each.state if each.undone is None else replace(each.state, stage="rolled_back")
        for each in held
        if each.state.route == route
    ]
    why = stages.cool_down_refusal(past, address, now_s=now_s, rules=rules, held=held_by, by_person=by_person)
    if why is not None:
        return why
    state = stages.start_rollout(
        name,
        route=route,
        candidate=address,
        active=one.active,
        follows=one.follows,
        at=0,
        now_s=now_s,
        rules=rules,
        fit=one.fit,
    )
    return RolloutStart(state=state, number=1 + len(past), author=author, reason=reason, rules=rules)


def kept_with(one: RolloutCandidate, *, secret: str) -> dict[str, str]:
    return {each.address: versions.seal_version(each, secret=secret).decode() for each in (one.version, *one.beside)}


def start_candidate(
    writer: Decisions, one: RolloutCandidate, *, author: str, reason: str, name: str, rules: Rules, secret: str
) -> RolloutRun | str:
    held = read_rollouts(writer.path)
    event = beginning(held, one, author=author, reason=reason, name=name, rules=rules, now_s=writer.now())
    if isinstance(event, str):
        return event
    if not writer.write_new(event, artefacts=kept_with(one, secret=secret)):
        return "somebody else started a rollout on this route at the same time; check it and try again"
    return _begun(event, held[-1].seq if held else 0) if writer.rehearses else read_rollouts(writer.path)[-1]


def move(writer: Decisions, route: str, moved: Callable[[RolloutRun], stages.Transition]) -> stages.Transition | str:
    """Move the running rollout for a person; return a sentence if there is none or `moved` raises ValueError."""
    one = read_running_rollouts(read_rollouts(writer.path)).get(route)
    if one is None:
        return f"no rollout runs on route {route}"
    try:
        transition = moved(one)
    except ValueError as error:
        return str(error)
    row = RolloutMove(route=route, author=transition.by, reason=transition.reason, transition=transition)
    if not writer.write_new(row):
        return "somebody else moved it at the same time; check it and try again"
    return transition


STEPS: Final[Mapping[str, Callable[[stages.State, Rules, stages.StepOrder], stages.Transition]]] = {
    "promote": stages.promote_rollout,
    "hold": lambda state, _, order: stages.hold_rollout(state, order),
    "release": stages.resume_rollout,
    "rollback": lambda state, _, order: stages.roll_back(state, order),
}


def step(writer: Decisions, route: str, name: str, *, author: str, reason: str) -> stages.Transition | str:
    """Take a step (a key of STEPS) on the running rollout for a person; return a sentence if that is not possible."""
    with open_reader(writer.path) as connection:
        one = read_running_rollouts(read_rollouts(connection)).get(route)
        at = 0 if one is None else requests_since(connection, route, one.seq)
    order = stages.StepOrder(by=f"person:{author}", reason=reason, at=at, now_s=writer.now())
    return move(writer, route, lambda held: STEPS[name](held.state, held.rules, order))


def undo(writer: Decisions, route: str, now: str, *, author: str, reason: str) -> RolloutRun | str:
    last = find_serving_rollout(read_rollouts(writer.path), route, now)
    if last is None:
        return f"what serves route {route} came by no rollout"
    row = RolloutUndo(rollout=last.state.rollout, route=route, author=author, reason=reason)
    if not writer.write_new(row):
        return "somebody else took it back at the same time; check it and try again"
    return last


def find_serving_rollout(held: Sequence[RolloutRun], route: str, address: str) -> RolloutRun | None:
    rollouts = (
        one
        for one in reversed(held)
        if one.state.route == route and one.serves_all and address in (one.state.candidate, one.state.fit or None)
    )
    return next(rollouts, None)


def learned_candidate(
    connection: LogReader, name: str, route: Route, address: str, lineage: VersionLineage
) -> RolloutCandidate | str:
    held = read_decided(connection).of(name)
    problem = _cannot_be_compared(name, route, held)
    if problem is not None:
        return problem
    of = "route = ? AND json_extract(body, '$.proposal.address') = ? ORDER BY seq DESC LIMIT 1"
    for proposal in select(connection, ProposedVersion, of, (name, address)):
        return as_candidate(name, route, held, proposal, read_artefact(connection, address), lineage)
    return f"{address} was never proposed for route {name}; `suffice status` names what was"


def propose_learned(
    writer: Decisions, name: str, route: Route, address: str, *, author: str, reason: str, rollout: str, secret: str
) -> RolloutRun | str:
    lineage, rules = lineage_of(f"person:{author}", reason, writer.now()), rules_of(route)
    with open_reader(writer.path) as connection:
        one = learned_candidate(connection, name, route, address, lineage)
    if isinstance(one, str):
        return one
    return start_candidate(writer, one, author=author, reason=reason, name=rollout, rules=rules, secret=secret)


def as_candidate(
    name: str, route: Route, held: RouteDeployment, proposal: ProposedVersion, body: str | None, lineage: VersionLineage
) -> RolloutCandidate | str:
    problem = _cannot_be_compared(name, route, held)
    made = held.publication
    epoch = held.epoch
    if problem is not None or made is None:
        return problem or ""
    if proposal.address == made.fit:
        return f"{proposal.address} is already active on route {name}"
    if epoch is not None and proposal.read_to_seq < epoch.since_seq:
        return f"{proposal.address} was learned before epoch {epoch.number} began: {epoch.reason}"
    learned_from = proposal.lineage
    version = Version(
        form="learned",
        body=read_version(proposal.address, body).plain(),
        kind=route.kind,
        scorer=scorer_label(route.scorer),
        # the models of the active evidence, by the names that they give themselves
        model_family=", ".join(sorted({named or model for model, named, _ in made.upstream} - {""})) or "not named",
        report_card={"proposed": learned_from, "card": proposal.card},
        lineage=replace(lineage, since_seq=learned_from.get("first_seq"), to_seq=learned_from.get("last_seq")),
    )
    return RolloutCandidate(route=name, version=version, active=made.fit, follows=made.number, fit=proposal.address)


def models_of(version: Version) -> Models:
    if version.form != "learned":
        raise ConfigError(f"version {version.address}: is a policy and no learned version")
    return load_version(version.plain()["body"])


def plain_of(connection: LogReader, address: str, *, secret: str) -> dict[str, Any]:
    """Return a version, or the body of models, as plain data. Raise StoreError; ConfigError if missing or altered."""
    kept = _kept_at(connection, address, secret=secret)
    return {"body": kept.plain()} if isinstance(kept, Models) else kept.plain()


def _kept_at(connection: LogReader, address: str, *, secret: str) -> Models | Version:
    if address.startswith("v-"):
        return read_version(address, read_artefact(connection, address))
    return version_at(connection, address, secret=secret)


def take_back(writer: Decisions, name: str, route: Route, *, author: str, reason: str, secret: str) -> RolloutRun | str:
    """Take back the version that serves all of a route, or return why it is refused.

    It is refused if no rollout brought it, or the version before it cannot serve any more: its signals are gone, or the
    route has another kind or scorer now.
    """
    with open_reader(writer.path) as connection:
        now = serves(connection, name, route)
        last = find_serving_rollout(read_rollouts(connection), name, now)
        problem = "" if last is None else _cannot_serve(connection, route, last.first.active, secret=secret)
    if problem:
        return f"{problem}; `suffice kill` lets everything run in full, and the settings may name another policy"
    return undo(writer, name, now, author=author, reason=reason)


def _cannot_serve(connection: LogReader, route: Route, address: str, *, secret: str) -> str:
    if route.policy and own_version(route).address == address:
        return ""  # it is in the settings, which were checked
    try:
        version = _kept_at(connection, address, secret=secret)
    except ConfigError as error:
        return str(error)
    if isinstance(version, Models):
        return ""
    problem = versions.misfit(version, kind=route.kind, scorer=scorer_label(route.scorer))
    return "" if problem is None else f"version {address} {problem}"


def _cannot_be_compared(name: str, route: Route, held: RouteDeployment) -> str | None:
    made = held.publication
    if not route.is_learned:
        return f"route {name} serves what its owner wrote down, and nothing learned"
    if route.promise != "certified":
        return f"route {name} keeps its promise on average; nothing would certify a candidate there"
    if made is None or not made.certified or not made.fit:
        return f"nothing is certified on route {name} now, so there is nothing to compare a candidate with"
    return None


def serves(connection: LogReader, name: str, route: Route) -> str:
    if route.policy:
        return read_serving_version(read_rollouts(connection), name, own_version(route).address)
    made = read_decided(connection).of(name).publication
    return "" if made is None else made.fit
