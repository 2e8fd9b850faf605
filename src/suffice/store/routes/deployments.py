"""The active deployment of each route, what people hold on it, and its phase; polling reads only new rows."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar

from suffice.agent.plan import AgentPlan
from suffice.assurance.certify import FleetRequirement, fleet_sentence
from suffice.assurance.clusters import describe_clusters
from suffice.errors import StoreError
from suffice.review.holds import NO_HOLDS, Incident, IncidentDecision, Override, OverrideEnd, RouteHolds
from suffice.review.route_guarantee import request_window
from suffice.store.database import views
from suffice.store.database.location import LogLocation, database_at
from suffice.store.database.log import StoredEvent
from suffice.store.database.presence import Presence, read_presences, switch_reason
from suffice.store.database.schema import QUICK_CHECK_BYTES
from suffice.store.database.watches import WATCHER, describe_look, failures_of, read_watches
from suffice.store.rows.events import Event, KillSwitchState, ReplicaState, route_of
from suffice.types import Alarm, BudgetAccount, Epoch, Pause, Publication, Request, Resumption

S = TypeVar("S")

DRIFTS: Final = ("signals", "outcomes", "disagreement")  # causes of alarms that no change of the route brought about


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteDeployment:
    epoch: Epoch | None = None  # the latest; None: no worker has started with this route
    publication: Publication | None = None  # the latest of this epoch; None: no publication
    last: Publication | None = None  # the latest of any epoch
    plan: AgentPlan | None = None  # the agent's latest in this epoch; None: it has not planned
    pause: Pause | None = None  # that has not ended
    alarm: Alarm | None = None  # the latest
    n_publications: int = 0  # numbers that are used up
    n_plans: int = 0
    n_pauses: int = 0
    n_epochs: int = 0
    changed_seq: int = 0  # place in the log where an epoch last began without an alarm of drift

    @property
    def level(self) -> int:
        """The level that may be acted on, certified or under a budgeted promise; 0: none."""
        made = self.publication
        return made.level if made is not None and made.may_act and self.pause is None else 0

    @property
    def classes(self) -> tuple[tuple[str, int], ...]:
        """Query classes that run below the level, and theirs; also where an ended epoch's level goes on."""
        made = self.publication or self.last
        return made.classes if made is not None else ()

    @property
    def in_burst(self) -> bool:
        return self.publication is None

    def after(self, event: Event) -> RouteDeployment:
        if isinstance(event, Epoch) and event.number > self.n_epochs:
            alarm = self.alarm
            drifted = alarm is not None and not alarm.level and alarm.epoch == self.n_epochs and alarm.cause in DRIFTS
            return replace(
                self,
                epoch=event,
                publication=None,
                plan=None,
                n_epochs=event.number,
                changed_seq=self.changed_seq if drifted else event.since_seq,
            )
        if isinstance(event, Publication) and event.number > self.n_publications:
            mine = event if event.epoch == self.n_epochs else self.publication  # of an ended epoch: void
            return replace(self, publication=mine, last=event, n_publications=event.number)
        if isinstance(event, AgentPlan) and event.number > self.n_plans:
            mine_too = event if event.epoch == self.n_epochs else self.plan
            return replace(self, plan=mine_too, n_plans=event.number)
        if isinstance(event, Alarm):
            return replace(self, alarm=event)
        if isinstance(event, Pause) and event.number > self.n_pauses:
            return replace(self, pause=event, n_pauses=event.number)
        if isinstance(event, Resumption) and self.pause is not None:
            return replace(self, pause=None) if event.number >= self.pause.number else self
        return self


NOTHING: Final = RouteDeployment()


@dataclass(frozen=True, slots=True)
class RouteStates(Generic[S]):
    """A state of each route, up to a place in the log."""

    seq: int
    routes: Mapping[str, S]
    nothing: S  # of the other routes

    def of(self, route: str) -> S:
        return self.routes.get(route, self.nothing)


DeploymentState: TypeAlias = RouteStates[RouteDeployment]
Holds: TypeAlias = RouteStates[RouteHolds]
NOTHING_DECIDED: Final[DeploymentState] = RouteStates(0, {}, NOTHING)
NOTHING_HELD: Final[Holds] = RouteStates(0, {}, NO_HOLDS)


def read_decided(source: views.LogSource, known: DeploymentState = NOTHING_DECIDED) -> DeploymentState:
    """Return the state, updated from `known`; the same object if nothing is new. Raise StoreError."""
    rows = views.read_newer(source, "decisions", known.seq)
    if not rows:
        return known
    routes = fold_decisions((stored.event for stored in rows), known.routes)
    return replace(known, seq=rows[-1].seq, routes=routes)


def fold_decisions(events: Iterable[Event], known: Mapping[str, RouteDeployment]) -> dict[str, RouteDeployment]:
    routes = dict(known)
    for event in events:
        route = route_of(event)
        if route is not None:
            routes[route] = routes.get(route, NOTHING).after(event)
    return routes


def read_fleet(source: views.LogSource) -> str:
    """Return what is promised of the certified routes together, as a sentence; "": nothing."""
    requirement = views.newest_event(source, FleetRequirement)
    if requirement is None:
        return ""
    decided = read_decided(source)
    made = [decided.of(one.route).publication for one in requirement.evidence]
    return fleet_sentence(requirement, n_certified=sum(one is not None and one.certified for one in made))


def decisions_of(connection: views.LogReader, route: str, n: int) -> list[StoredEvent]:
    return views.query_events(connection, "decisions_of_route", (route, n))


def read_holds(source: views.LogSource, known: Holds = NOTHING_HELD) -> Holds:
    """Return the holds, updated from `known`; the same object if nothing is new. Raise StoreError."""
    rows = views.read_newer(source, "holds", known.seq)
    return replace(known, seq=rows[-1].seq, routes=_after(known.routes, rows)) if rows else known


def read_holds_until(source: views.LogSource, route: str, seq: int) -> RouteHolds:
    """Return the holds of one route as they were at this place in the log. Raise StoreError."""
    rows = [stored for stored in views.read_newer(source, "holds", 0) if stored.seq <= seq]
    return _after({}, rows).get(route, NO_HOLDS)


def _after(routes: Mapping[str, RouteHolds], rows: Iterable[StoredEvent]) -> dict[str, RouteHolds]:
    held = dict(routes)
    for stored in rows:
        event = stored.event
        if isinstance(event, Override | OverrideEnd | Incident | IncidentDecision | Pause | Resumption):
            held[event.route] = held.get(event.route, NO_HOLDS).after(event, stored.at_s)
    return held


def read_kill_order(source: views.LogSource) -> KillSwitchState | None:
    """Return the newest order to all replicas to switch early stopping off or on again; None: there was none.

    Its stamp is later than that of each row before it: the log's order counts, not the clocks of several machines.
    """
    order, latest = None, 0
    for one in reversed(views.newest_events(source, KillSwitchState, -1)):
        latest = max(one.stamp, latest + 1) if one.ordered else max(one.stamp, latest)
        if one.ordered:
            order = replace(one, stamp=latest)
    return order


def stamp_after(order: KillSwitchState | None, stamp: int) -> int:
    """Return the stamp of an order that comes after this one, whatever the clocks of several machines say."""
    return stamp if order is None else max(stamp, order.stamp + 1)


def is_killed(source: views.LogSource, switch: Path | None) -> bool:
    """Whether the switch's file or the newest order for all replicas says so. Raise StoreError."""
    if switch is not None and switch_reason(switch) is not None:
        return True
    order = read_kill_order(source)
    return order is not None and order.on


def read_local_kills(location: LogLocation) -> tuple[KillSwitchState, ...]:
    """Return the kills by files that persons made and have not removed, of living gateways. Raise StoreError."""
    rows = views.newest_events(location, KillSwitchState, -1)
    ended = {one.stamp for one in rows if one.ordered or not one.on}
    held = [one for one in reversed(rows) if one.on and not one.ordered and one.stamp and one.stamp not in ended]
    if not held:
        return ()
    living = {one.name for one in read_replicas(location)}
    return tuple(one for one in held if one.gateway in living)


def last_at_s(connection: views.LogReader) -> float:
    """Return the Unix time at which the log accepted its last row; 0 if empty. The control loop has no other clock."""
    rows = views.query_rows(connection, "SELECT at_s FROM events ORDER BY seq DESC LIMIT 1")
    return float(rows[0][0]) if rows else 0.0


# Labels that were requested and have not arrived, of all routes.
_WANTED: Final = """
    SELECT w.route, count(*) FROM events w WHERE w.kind = 'label_wanted' AND (
        SELECT 1 FROM events f WHERE f.kind = 'feedback' AND f.episode_id = w.key LIMIT 1
    ) IS NULL GROUP BY w.route"""

PhaseName: TypeAlias = Literal["unattended", "cold start", "burst", "searching", "certified", "budgeted", "paused"]


# Copied from the latest publication and its evidence.
_OF_EVIDENCE: Final = (
    *("n_audits", "n_missing", "share", "e_value", "max_em_drop", "confidence", "judge_charge", "n_lost"),
    "n_disagreeing",
)
_OF_PUBLICATION: Final = ("ceiling", "cap", "classes", "spending", "arm", "exposure")


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    phase: PhaseName
    epoch: int  # 0: no worker has started with it
    level: int  # active; 0 never stops
    n_levels: int  # above level 0; 0: nothing is learned yet
    n_requests: int  # governed ones of this epoch, counted up to `n_burst`
    n_burst: int  # initial governed requests that run in full; 0: a level acts as soon as it is proved …
    n_learning: int = (
        0  # … and on half of the requests at most, until there are so many audits; 0: not a start by share
    )
    n_audits: int = 0  # after the latest publication
    clusters: str = ""  # how many they come from, in words; "": not counted
    n_missing: int | None = None  # audits to the next level, at the rates seen
    share: float | None = None  # of tokens that the level would have saved on these audits
    e_value: float | None = None
    max_em_drop: float | None = None  # certified: the drop is below this
    confidence: float | None = None
    reason: str  # of the latest publication, pause or epoch
    alarm: str | None  # the latest, with its cause
    n_labels_wanted: int
    attended: bool = False  # a living worker serves it
    look: str = ""  # the latest completed one, in words; "": none is known
    failing: tuple[str, ...] = ()  # looks, parts of looks, and jobs that fail, in sentences
    plan: AgentPlan | None = None  # of the agent; None: it has none
    ceiling: int | None = None  # the highest level that ratings allow; None: no limit
    cap: int | None = None  # the highest level that a forecast allows; None: no cap
    classes: tuple[tuple[str, int], ...] = ()  # query classes held below by guardrails, and their levels
    spending: BudgetAccount | None = None  # the account of a budgeted promise; None: not budgeted
    judge_charge: float = 0.0  # fraction of EM taken off the budget for a judge model's errors; 0: no judge is used
    window: tuple[int, int] | None = None  # numbers of the first and last request that the certificate covers
    n_lost: int = 0  # of the audits, at the level
    n_disagreeing: int | None = None  # of the audits, at the level; None: unknown
    audit_share: float | None = None  # of the next requests
    exposure: float = 1.0  # share of the requests on which the level may act
    arm: str = ""  # the effort or budget that is level 1; "": levels are stops


def read_phases(
    source: views.LogSource, decided: DeploymentState | None = None, *, attended: bool = False
) -> dict[str, Phase]:
    with views.open_reader(source) as connection:
        watches, last = read_watches(connection), views.last_place(connection)
        phases, wanted = {}, dict[str, int](views.query_rows(connection, _WANTED))
        for name, held in (decided or read_decided(connection)).routes.items():
            n = 0 if held.epoch is None or held.epoch.ramps else held.epoch.burst
            if held.epoch is not None and held.publication is None:
                n = governed_since(connection, name, held.epoch.since_seq, most=n)
            made = phase_of(held, n_requests=n, n_labels_wanted=wanted.get(name, 0), attended=attended)
            look = describe_look(watches.get((WATCHER, name)), last)
            phases[name] = replace(made, look=look, failing=failures_of(watches, name))
        for _, name in watches.keys() - {(WATCHER, name) for name in phases}:
            if name and name not in phases:  # its first look failed
                phases[name] = replace(phase_of(NOTHING, attended=attended), failing=failures_of(watches, name))
        return phases


def governed_since(connection: views.LogReader, route: str, seq: int, *, most: int) -> int:
    n = views.query_number(connection, "n_governed_since", (route, seq, most))
    return n if n >= most else min(most, n + views.n_counted(connection, route, seq))


def phase_of(held: RouteDeployment, *, n_requests: int = 0, n_labels_wanted: int = 0, attended: bool = False) -> Phase:
    made = held.publication
    epoch = held.epoch
    alarm = held.alarm
    known: dict[str, Any] = {}
    if made is not None:
        known = {name: getattr(made, name) for name in _OF_PUBLICATION}
        known |= {name: getattr(made.evidence, name) for name in _OF_EVIDENCE}
        known |= {"audit_share": made.share, "window": request_window(made.evidence)}
        known["clusters"] = describe_clusters(made.evidence)
    latest = held.pause or made or epoch
    return Phase(
        phase=_phase_name(held),
        epoch=epoch.number if epoch is not None else 0,
        level=held.level,
        n_levels=made.n_levels - 1 if made is not None and (made.fit or made.is_owned) else 0,
        n_requests=n_requests,
        n_burst=0 if epoch is None or epoch.ramps else epoch.burst,
        n_learning=0 if epoch is None or not epoch.ramps else epoch.burst,
        reason=latest.reason if latest is not None else "no worker has begun with this route",
        alarm=None if alarm is None else _describe_alarm(alarm),
        n_labels_wanted=n_labels_wanted,
        attended=attended,
        plan=held.plan,
        **known,
    )


def _describe_alarm(alarm: Alarm) -> str:
    did = f"took level {alarm.level} away" if alarm.level else f"ended epoch {alarm.epoch}"
    return f"{alarm.cause}: {alarm.reason} ({did})"


def _phase_name(held: RouteDeployment) -> PhaseName:
    if held.pause is not None:
        return "paused"
    if held.epoch is None:
        return "unattended"
    if held.publication is None:
        return "cold start" if held.epoch.number == 1 else "burst"
    if not held.level:
        return "searching"
    return "certified" if held.publication.spending is None else "budgeted"


def is_large(path: LogLocation) -> bool:
    try:
        return database_at(path).size_bytes() > QUICK_CHECK_BYTES
    except (OSError, StoreError):
        return False


MOST_PAUSES: Final = 5  # that are named one by one
CHECK_S: Final = 0.3  # for checking a log that no gateway has checked


def describe_condition(
    path: LogLocation, switch: Path, announced: Sequence[Path], *, routes: Collection[str], checks: bool
) -> tuple[str, ...]:
    """Say what is wrong with the deployment, without its unreadable parts. Never raises."""
    processes = read_presences(announced)
    order, local = None, tuple[KillSwitchState, ...]()
    with contextlib.suppress(StoreError):
        order, local = read_kill_order(path), read_local_kills(path)
    sentences = [*_killed(switch_reason(switch), processes, order, local), *_paused(path, routes)]
    with contextlib.suppress(StoreError):
        sentences += describe_differences(read_replicas(path))
    if not processes:
        sentences.append("NO GATEWAY: no process serves this log now")
    damage = next((one.damage for one in processes if one.damage), "")
    if checks and not damage and not is_large(path):
        damage = database_at(path).find_damage(within_s=CHECK_S) or ""
    if damage:
        sentences.append(f"LOG DAMAGED: {damage}; restore a backup: what is shown may be incomplete")
    return tuple(sentences)


def _killed(
    reason: str | None, processes: Sequence[Presence], order: KillSwitchState | None, local: Sequence[KillSwitchState]
) -> Iterator[str]:
    killed = [one for one in processes if one.killed]
    ordered = None if order is None or not order.on else order.reason
    if reason is not None or ordered is not None:
        late = [one.name for one in processes if not one.killed]
        waits = f" ({', '.join(late)} has not confirmed)" if late else ""
        yield f"KILLED: nothing is stopped on any route{waits}: {reason or ordered}"
    elif killed:
        names = ", ".join(one.name for one in killed)
        yield f"KILLED: {names} stops nothing on any route: {killed[0].kill_reason}"
    here = [(one.name, one.kill_reason) for one in processes if one.kill_local]
    known = {one.replica for one in processes}
    for name, why in [*here, *((one.gateway, one.reason) for one in local if one.gateway not in known)]:
        yield f"KILLED BY HAND: {name}: {why}; a release does not reach it: run suffice unkill on its machine"


def _paused(path: LogLocation, routes: Collection[str]) -> Iterator[str]:
    pauses: list[Pause] = []
    with contextlib.suppress(StoreError):
        rows = views.read_kinds(path, "enforcement_paused", "enforcement_resumed")
        held = sorted(fold_decisions((stored.event for stored in rows), {}).items())
        pauses = [one.pause for route, one in held if one.pause is not None and route in routes]
    for one in pauses[:MOST_PAUSES]:
        yield f"PAUSED: route {one.route} runs in full until somebody resumes it: {one.reason} ({one.author})"
    if rest := [one.route for one in pauses[MOST_PAUSES:]]:
        yield f"PAUSED: {len(rest)} more routes: {', '.join(rest)}"


# ── the gateways that run on one log ─────────────────────────────────────────────────────────────

_LATEST_STATES: Final = """
    SELECT e.seq, e.owner, e.body FROM events e JOIN owners o ON o.id = e.owner WHERE e.kind = 'replica_seen'
    ORDER BY e.seq"""

_RUNNING: Final = """
    SELECT q.body, q.owner FROM events q WHERE q.kind = 'request' AND q.key = ? AND NOT EXISTS (
        SELECT 1 FROM events o WHERE o.kind = 'outcome' AND o.key = q.key)"""
_STATE_OF: Final = "SELECT body FROM events WHERE kind = 'replica_seen' AND owner = ? ORDER BY seq DESC LIMIT 1"


def read_replicas(location: LogLocation) -> list[ReplicaState]:
    """Return the state of each living gateway, by name. Raise StoreError."""
    database, latest = database_at(location), dict[int, ReplicaState]()
    with views.open_reader(database.location) as reader:
        for seq, owner, body in reader.execute(_LATEST_STATES).fetchall():
            latest[owner] = views.decoded(seq, ReplicaState, body)
        living = [one for owner, one in latest.items() if database.is_alive(reader, owner)]
    return sorted(living, key=lambda one: one.name)


def find_running(location: LogLocation, episode_id: str) -> tuple[Request, str] | None:
    """Return a request without an outcome, and the name of the gateway that wrote it. Raise StoreError."""
    for body, owner in views.query_rows(location, _RUNNING, (episode_id,)):
        states = views.query_rows(location, _STATE_OF, (owner,))
        return views.decoded(0, Request, body), next(
            (views.decoded(0, ReplicaState, one).name for (one,) in states), ""
        )
    return None


def version_skew(replicas: Sequence[ReplicaState]) -> dict[str, dict[str, list[str]]]:
    """Return, for each route that gateways serve in different versions, the names of the gateways by version."""
    served = dict[str, dict[str, list[str]]]()
    for one in replicas:
        for route, version in one.versions.items():
            served.setdefault(route, {}).setdefault(version, []).append(one.name)
    return {route: by_version for route, by_version in served.items() if len(by_version) > 1}


def describe_differences(replicas: Sequence[ReplicaState]) -> Iterator[str]:
    for route, by_version in version_skew(replicas).items():
        served = "; ".join(f"{', '.join(names)}: {version}" for version, names in sorted(by_version.items()))
        yield f"VERSION SKEW: route {route} is served in {len(by_version)} versions: {served}"
    if len({one.secret for one in replicas}) > 1:
        names = ", ".join(f"{one.name} {one.secret}" for one in replicas)
        yield f"SECRETS DIFFER: replicas of one log need one SUFFICE_SALT; fingerprints: {names}"
    if len({one.software for one in replicas}) > 1:
        yield f"SOFTWARE SKEW: {', '.join(f'{one.name} runs {one.software}' for one in replicas)}"
