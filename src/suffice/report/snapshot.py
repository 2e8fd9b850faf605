"""What is known of a route: one record, and its reader."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from suffice.assurance.estimate import RouteReport, report_of
from suffice.assurance.forecast import ForecastAction, RouteForecast
from suffice.assurance.guarantee import AuditEvidence, evidence
from suffice.assurance.runs import Tally
from suffice.assurance.spending import SpendForecast
from suffice.formatting import format_time
from suffice.review.holds import NO_HOLDS, Override, RouteHolds, describe_override, lowest, unexpired
from suffice.review.queue import ItemState
from suffice.review.route_guarantee import RouteGuarantee, State
from suffice.scoring.base import scorer_label
from suffice.settings import Route, Settings
from suffice.store.database.decisions import is_attended
from suffice.store.database.location import LogLocation
from suffice.store.database.log import StoredEvent
from suffice.store.database.views import (
    LogReader,
    newest_event,
    newest_request,
    query_rows,
    read_newer,
)
from suffice.store.people.deciding import read_reviews
from suffice.store.people.promises import Promises, read_promises
from suffice.store.routes.deployments import (
    NOTHING,
    Phase,
    RouteDeployment,
    phase_of,
    read_phases,
)
from suffice.store.routes.experiments import read_worse_arms
from suffice.store.routes.rollups import RouteScorer, read_to
from suffice.store.rows.events import KillSwitchState, ProposedBudget, ProposedVersion, WorseArm, route_of
from suffice.types import Epoch, Pause, Publication, Request, Resumption

EXACT = "exact string equality (no --config, so no route scorers)"
DECIDED_STATES = ("paused", "certified", "budgeted", "burst", "searching")  # that the control loop brought about
_FIRST = "SELECT at_s FROM events WHERE kind = 'request' AND route = ? ORDER BY seq LIMIT 1"
LEARNED: Final = "a learned policy"
DEFAULTS: Final = Route()


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteHoldings:
    overrides: tuple[str, ...]  # active ones in words, with author and end
    incidents: tuple[str, ...]  # open ones: name and summary
    n_to_review: int  # items that a reviewer can lease now
    n_contradicted: int  # of them: with contradicting verdicts


@dataclass(frozen=True, slots=True, kw_only=True)
class PairStatus:
    arm: str
    n: int  # pairs with the arm; audits whose client disconnected count as lost
    n_disagree: int
    em_drop: float | None  # mean of Z; None: no pairs
    em_drop_high: float | None  # the smallest drop that the pairs refute, valid at every look
    n_missing: int | None  # pairs until the certificate at the rates seen; 0: enough; None: never
    n_repeats: int  # pairs of two full runs
    n_repeats_disagree: int
    max_em_drop: float  # fraction: the drop to be certified
    confidence: float


@dataclass(frozen=True, kw_only=True)
class RouteSnapshot:
    name: str
    settings: Route | None  # None: it is not among them, or they are not known
    newest: Request | None  # its newest request; None: it has none
    tally: Tally
    deployment: RouteDeployment
    phase: Phase  # of its certification
    holds: RouteHolds
    cap: int | None  # the highest level that an override or a forecast allows; None: no cap
    cap_reason: str  # why no higher level is served, though one is or may be certified; "": nothing caps it
    guarantee: RouteGuarantee
    refused: str | None  # why "enforce" in the settings is refused; None: it is not, or not set
    forecast: RouteForecast | None  # the latest look of the job `monitor`; None: none
    lag: str  # by how much the figures are older than the log, as a sentence; "": they are current
    # What follows is read by `read_details`.
    spending: SpendForecast | None = None  # the latest; None: none
    proposal: ProposedVersion | None = None  # the newest of the job `retrain`
    budget: ProposedBudget | None = None  # of the job `budget`, while the owner's is as it was
    worse_arms: tuple[WorseArm, ...] = ()  # of running experiments
    pairs: tuple[PairStatus, ...] = ()  # of each effort, or of the budget, that paired calls certify
    held: RouteHoldings | None = None  # holds, and what waits for a decision; None: nothing
    since_s: float | None = None  # Unix time since when it does what it does; None: not known

    @property
    def served_level(self) -> int:
        return self.phase.level if self.cap is None else min(self.phase.level, self.cap)

    @property
    def mode(self) -> str:
        """Return the mode of the newest request."""
        return self.newest.mode if self.newest is not None else ""

    @property
    def policy_version(self) -> str:
        return self.newest.policy_version if self.newest is not None else ""

    @property
    def n_without_outcome(self) -> int:
        return self.tally.n_begun - self.report.n_requests

    @property
    def scorer(self) -> str:
        """Return the scorer that compared the labels, which need not be that of the settings yet."""
        keeps = self.guarantee.state == "gone" or is_stale(self.tally, self.settings)
        return (self.tally.scorer if keeps else scorer_name(self.settings)) or EXACT

    @property
    def confidence(self) -> float:
        return (self.settings or DEFAULTS).confidence

    @property
    def max_em_drop(self) -> float:
        return (self.settings or DEFAULTS).max_em_drop

    @property
    def certifies(self) -> bool | None:
        """Whether a control loop certifies what acts here; None: the settings are unknown."""
        return None if self.settings is None else self.settings.certifies_itself

    @property
    def control(self) -> Phase | None:
        """Return the state of its certification; None: no control loop serves it."""
        return self.phase if self.certifies or (self.certifies is None and self.phase.epoch) else None

    @property
    def promise(self) -> str:
        return self.guarantee.sentence

    @property
    def promise_state(self) -> str:
        """Return the guarantee as a word, as in /metrics."""
        return self.guarantee.state

    @property
    def policy(self) -> str:
        return policy_in_words(self.settings, self.policy_version)

    @property
    def needs_probe(self) -> bool:
        """Whether nothing of it can be certified without a table [routes.NAME.probe]."""
        return self.settings is not None and self.settings.kind == "reasoning" and self.settings.probe is None

    @cached_property
    def report(self) -> RouteReport:
        report = report_of(self.tally, route=self.name, confidence=self.confidence)
        # One uncertified newest request is enough to report it, even before it has ended.
        return replace(report, certified=report.certified and self.newest is not None and self.newest.certified)

    @cached_property
    def evidence(self) -> AuditEvidence:
        """Return the evidence, and what it still lacks."""
        return evidence(
            max_em_drop=self.max_em_drop,
            confidence=self.confidence,
            n_audits=self.report.n_telling_audits,
            n_disagreements=self.report.n_audit_disagreements,
            audits_at_s=self.report.audits_at_s,
        )


def read_snapshots(
    connection: LogReader,
    database: LogLocation,
    settings: Settings | None,
    tallies: Mapping[str, Tally],
    names: Iterable[str],
    *,
    now_s: float,
    killed: bool,
) -> list[RouteSnapshot]:
    """Read what is known of each route by its sums and its decisions. Raise StoreError."""
    promises, attended = read_promises(connection, now_s=now_s, killed=killed), is_attended(connection, database)
    phases, lag = read_phases(connection, promises.decided, attended=attended), read_to(connection).lag
    snapshots = list[RouteSnapshot]()
    for name in names:
        configured, tally = None if settings is None else settings.routes.get(name), tallies.get(name) or Tally()
        forecast, newest = newest_event(connection, RouteForecast, route=name), newest_request(connection, name)
        phase, holds = phases.get(name) or phase_of(NOTHING, attended=attended), promises.holds.of(name)
        refused = None
        if configured is None:
            known = "gone" if settings is not None else _state_without_settings(name, newest, promises)
            guarantee = RouteGuarantee(state=known)
        else:
            if configured.mode == "enforce":
                refused = promises.refusal(connection, name, configured, tally)
            setup = newest.setup or None if newest is not None else None
            guarantee = promises.of(name, configured, forecast, setup=setup, unreadable=refused is not None)
        stale = ""
        if guarantee.state != "gone" and is_stale(tally, configured):
            stale = f"the worker has not compared labels by {scorer_name(configured) or 'exact equality'} yet"
        snapshots.append(
            RouteSnapshot(
                name=name,
                settings=configured,
                newest=newest,
                tally=tally,
                deployment=promises.decided.of(name),
                phase=phase,
                holds=holds,
                cap=lowest(phase.cap, holds.in_effect(now_s).ceiling),
                cap_reason=_cap_reason(connection, name, phase, holds, now_s),
                guarantee=guarantee,
                refused=refused,
                forecast=forecast,
                lag="; ".join(filter(None, (lag, stale))),
            )
        )
    return snapshots


def _cap_reason(connection: LogReader, name: str, phase: Phase, holds: RouteHolds, now_s: float) -> str:
    ceiling = holds.in_effect(now_s).ceiling
    if ceiling is not None and 0 < ceiling < phase.level:
        live = [one for one in unexpired(holds.overrides, now_s) if one.query_class is None and one.level == ceiling]
        return "; ".join(
            f"override {one.number} of {one.author}, until {format_time(one.expires_at_s)}: {one.reason}"
            for one in live
        )
    if phase.cap is not None and phase.level >= phase.cap:
        action = newest_event(connection, ForecastAction, route=name)
        return f"a forecast: {action.reason}" if action is not None and action.cap is not None else "a forecast"
    return "people's ratings" if phase.ceiling is not None and phase.level == phase.ceiling < phase.n_levels else ""


def scorer_name(route: Route | None) -> str:
    """Return the scorer of a route's settings; "": exact comparison."""
    return "" if route is None else scorer_label(route.scorer)


def is_stale(tally: Tally, route: Route | None) -> bool:
    return RouteScorer(scorer_name(route), operator.eq).differs_from(tally)


def _state_without_settings(name: str, newest: Request | None, promises: Promises) -> State:
    decided, mode = promises.decided.of(name), newest.mode if newest is not None else "off"
    if mode == "off":
        return "off"
    if promises.killed:
        return "killed"
    if mode == "observe":
        return "observe"
    if decided.pause is not None:
        return "paused"
    return "unknown" if decided.epoch is not None else "uncertified"


def read_details(connection: LogReader, snapshots: Sequence[RouteSnapshot], *, now_s: float) -> list[RouteSnapshot]:
    """Add what is shown of few routes at a time. Reviews and decisions are read once for all. Raise StoreError."""
    held = read_held(connection, {one.name: one.holds for one in snapshots}, now_s=now_s)
    by_route = dict[str, list[StoredEvent]]()
    if any(one.promise_state in DECIDED_STATES for one in snapshots):
        for stored in reversed(read_newer(connection, "decisions", 0)):
            by_route.setdefault(route_of(stored.event) or "", []).append(stored)
    detailed = list[RouteSnapshot]()
    for one in snapshots:
        budget = newest_event(connection, ProposedBudget, route=one.name)
        detailed.append(
            replace(
                one,
                spending=newest_event(connection, SpendForecast, route=one.name),
                proposal=newest_event(connection, ProposedVersion, route=one.name),
                budget=None if budget is None or budget.before != one.max_em_drop else budget,
                worse_arms=read_worse_arms(connection, one.name),
                held=held.get(one.name),
                since_s=_since(connection, one, by_route.get(one.name, ())),
            )
        )
    return detailed


def _since(connection: LogReader, one: RouteSnapshot, decisions: Iterable[StoredEvent]) -> float | None:
    state, epoch = one.promise_state, one.deployment.epoch
    if state == "killed":
        switched = newest_event(connection, KillSwitchState)
        return None if switched is None or not switched.on else switched.stamp / 1e9
    if epoch is not None and state in DECIDED_STATES:
        return since_when(decisions, is_paused=state == "paused", acts=state in ("certified", "budgeted"))
    if len(one.tally.modes) == 1 and epoch is None:
        first = query_rows(connection, _FIRST, (one.name,))
        return float(first[0][0]) if first else None
    return None


def read_held(connection: LogReader, holds: Mapping[str, RouteHolds], *, now_s: float) -> dict[str, RouteHoldings]:
    """Return what people hold on routes, and what waits for their decision; the others are missing."""
    waiting: dict[str, list[ItemState]] = {}
    for one in read_reviews(connection).queue.waiting(now_s=now_s):
        waiting.setdefault(one.item.route, []).append(one)
    return {
        name: RouteHoldings(
            overrides=describe_overrides(held.overrides, now_s),
            incidents=tuple(f"{case.incident.incident}: {case.incident.summary}" for case in held.open_cases),
            n_to_review=len(waiting.get(name, ())),
            n_contradicted=sum(one.needs_third for one in waiting.get(name, ())),
        )
        for name, held in holds.items()
        if name in waiting or held is not NO_HOLDS  # nothing was ever held on it
    }


def describe_overrides(overrides: Iterable[Override], now_s: float) -> tuple[str, ...]:
    return tuple(
        f"{describe_override(one)} until {format_time(one.expires_at_s)}, by {one.author}: {one.reason}"
        for one in unexpired(overrides, now_s)
    )


def since_when(decisions: Iterable[StoredEvent], *, is_paused: bool, acts: bool) -> float | None:
    """Since when (Unix time) a route has been paused, has acted or has run in full; its decisions newest first."""
    since_s = None
    for stored in decisions:
        event = stored.event
        if isinstance(event, Pause):
            return stored.at_s if is_paused else since_s
        if isinstance(event, Resumption):
            return stored.at_s if since_s is None else since_s
        if isinstance(event, Publication) and bool(event.level and event.may_act) != acts:
            return since_s
        if isinstance(event, Epoch) and acts:
            return since_s
        if isinstance(event, Publication | Epoch):
            since_s = stored.at_s
    return since_s


def policy_in_words(route: Route | None, version: str) -> str:
    """The name of a route's policy, with its parameters; a learned one has no name but that."""
    name = version.partition("@")[0]
    if route is None:
        return LEARNED if name.startswith("v-") or not name else name
    if route.certifies_itself and not route.is_owned:
        return LEARNED
    values = {name: value for name, value in route.policy.items() if name != "policy"}
    arms = " or ".join(route.arms)
    return str(route.policy.get("policy") or arms or name or "no policy") + _in_brackets(values)


def _in_brackets(values: Mapping[str, object]) -> str:
    plain = [f"{name} {value:g}" for name, value in values.items() if isinstance(value, int | float)]
    return f" ({', '.join(plain)})" if plain else ""
