"""What is known of a route: one record, and its reader."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final, TypeAlias

from suffice.assurance.estimate import RouteReport, report_of
from suffice.assurance.forecast import RouteForecast
from suffice.assurance.guarantee import AuditEvidence, evidence
from suffice.assurance.runs import Match, Tally
from suffice.assurance.spending import SpendForecast
from suffice.edge.math import open_match
from suffice.errors import ConfigError
from suffice.formatting import format_time
from suffice.review.holds import Override, describe_override, unexpired
from suffice.review.queue import ItemState
from suffice.review.route_guarantee import RouteGuarantee
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
    snapshot,
)
from suffice.store.people.deciding import read_reviews
from suffice.store.people.promises import Promises, read_promises
from suffice.store.routes.deployments import (
    NOTHING,
    DeploymentState,
    Holds,
    Phase,
    RouteDeployment,
    is_killed,
    phase_of,
    read_phases,
)
from suffice.store.routes.experiments import read_worse_arms
from suffice.store.routes.rollups import RouteScorer, logged_routes, read_to, tallies_now
from suffice.store.rows.events import KillSwitchState, ProposedBudget, ProposedVersion, WorseArm, route_of
from suffice.types import Epoch, Pause, Publication, Request, Resumption

EXACT = "exact string equality (no --config, so no route scorers)"
DECIDED_STATES = ("paused", "certified", "budgeted", "burst", "searching")  # that the control loop brought about
_FIRST = "SELECT at_s FROM events WHERE kind = 'request' AND route = ? ORDER BY seq LIMIT 1"
LEARNED: Final = "a learned policy"


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


PairReader: TypeAlias = Callable[[LogReader, str, Route | None, Match, RouteDeployment], tuple[PairStatus, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSnapshot:
    report: RouteReport
    mode: str  # of the newest request
    policy_version: str  # of the newest request
    n_without_outcome: int
    scorer: str
    confidence: float  # of every interval
    max_em_drop: float  # fraction: the drop that a certificate must guarantee
    evidence: AuditEvidence  # what it still lacks
    refused: str | None  # why "enforce" in the settings is refused; None: it is not, or not set
    certifies: bool | None  # a control loop certifies what acts here; None: the settings are unknown
    control: Phase | None = None  # the state of its certification; None: no control loop serves it
    forecast: RouteForecast | None = None  # the latest look of the job `monitor`; None: none
    spending: SpendForecast | None = None  # the latest; None: none
    proposal: ProposedVersion | None = None  # the newest of the job `retrain`
    budget: ProposedBudget | None = None  # of the job `budget`, while the owner's is as it was
    worse_arms: tuple[WorseArm, ...] = ()  # of running experiments
    promise: str = ""  # as a sentence with all conditions
    promise_state: str = ""  # … and as a word, as in /metrics
    pairs: tuple[PairStatus, ...] = ()  # of each effort, or of the budget, that paired calls certify
    held: RouteHoldings | None = None  # holds, and what waits for a decision; None: nothing
    policy: str = ""  # its name, with its parameters
    needs_probe: bool = False  # without a table [routes.NAME.probe], nothing of it can be certified
    lag: str = ""  # by how much `report` and `evidence` are older than the log, as a sentence; "": they are current
    since_s: float | None = None  # Unix time since when it does what it does; None: not known


def read_snapshots(
    connection: LogReader,
    database: LogLocation,
    settings: Settings | None,
    route: str | None,
    *,
    kill_file: Path | None,
    now_s: float,
    read_pairs: PairReader,
) -> list[RouteSnapshot]:
    """Read what is known of every route in the log, or of one; without settings, answers are compared exactly.

    Reads only rows that the job `rollup` has not summed up. Raises StoreError when the log cannot be read, and
    ConfigError when it has no such route and for an unknown scorer.
    """
    with ExitStack() as stack:
        stack.enter_context(snapshot(connection))
        scorer_of = _scorers(settings, stack)
        tallies, lag = tallies_now(connection, scorer_of), read_to(connection).lag
        newest = {
            name: request
            for name in logged_routes(connection)
            if (request := newest_request(connection, name)) is not None
        }
        if route is not None and route not in newest:
            names = ", ".join(name or '""' for name in newest) or "none yet"
            raise ConfigError(f"--route: no request of route {route!r} in {database}; routes seen: {names}")
        killed = is_killed(connection, kill_file)
        promises = read_promises(connection, now_s=now_s, killed=killed)
        phases = read_phases(connection, promises.decided, attended=is_attended(connection, database))
        held = read_held(connection, promises.holds, now_s=now_s)
        snapshots = [
            _snapshot(
                connection,
                name,
                configured=None if settings is None else settings.routes.get(name),
                newest=request,
                tally=tallies.get(name) or Tally(),
                scorer=scorer_of(name),
                promises=promises,
                phase=phases.get(name),
                held=held.get(name),
                read_pairs=read_pairs,
            )
            for name, request in newest.items()
            if route in (None, name)
        ]
        snapshots = [replace(one, lag="; ".join(filter(None, (lag, one.lag)))) for one in snapshots]
        return _with_times(connection, snapshots, promises.decided)


def _scorers(settings: Settings | None, stack: ExitStack) -> Callable[[str], RouteScorer]:
    @cache
    def scorer_of(name: str) -> RouteScorer:
        route = settings.routes.get(name) if settings is not None else None
        if route is None:
            return RouteScorer("", operator.eq, is_gone=settings is not None)

        @cache  # a judge of formulas starts processes, and most logs need none
        def opened() -> Match:
            return stack.enter_context(open_match(route))

        def match(answer: str | None, gold: str) -> bool:
            return opened()(answer, gold)

        return RouteScorer(scorer_label(route.scorer), match)

    return scorer_of


def _snapshot(
    connection: LogReader,
    name: str,
    *,
    configured: Route | None,
    newest: Request,
    tally: Tally,
    scorer: RouteScorer,
    promises: Promises,
    phase: Phase | None,
    held: RouteHoldings | None,
    read_pairs: PairReader,
) -> RouteSnapshot:
    rules = configured or Route()
    certifies = None if configured is None else configured.certifies_itself
    report, stale = report_of(tally, route=name, confidence=rules.confidence), scorer.differs_from(tally)
    if certifies is False or (certifies is None and phase is not None and not phase.epoch):
        phase = None  # only a pause by a person: no control loop
    elif phase is None and certifies:
        phase = phase_of(NOTHING)
    forecast, refused = newest_event(connection, RouteForecast, route=name), None
    budget = newest_event(connection, ProposedBudget, route=name)
    if configured is None:
        promise = _promise_without_settings(name, newest.mode, promises, is_gone=scorer.is_gone)
    else:
        promise, refused = read_guarantee(
            connection, name, configured, promises, tally=tally, forecast=forecast, newest=newest
        )
    return RouteSnapshot(
        # One uncertified newest request is enough to report it, even before it has ended.
        report=replace(report, certified=report.certified and newest.certified),
        mode=newest.mode,
        policy_version=newest.policy_version,
        n_without_outcome=tally.n_begun - report.n_requests,
        scorer=(tally.scorer if scorer.is_gone or stale else scorer.name) or EXACT,
        confidence=rules.confidence,
        max_em_drop=rules.max_em_drop,
        evidence=_evidence(report, rules),
        refused=refused,
        certifies=certifies,
        control=phase,
        forecast=forecast,
        spending=newest_event(connection, SpendForecast, route=name),
        proposal=newest_event(connection, ProposedVersion, route=name),
        budget=None if budget is None or budget.before != rules.max_em_drop else budget,
        worse_arms=read_worse_arms(connection, name),
        promise=promise.sentence,
        promise_state=promise.state,
        pairs=read_pairs(connection, name, configured, scorer.match, promises.decided.of(name)),
        lag=f"the worker has not compared labels by {scorer.name or 'exact equality'} yet" if stale else "",
        held=held,
        policy=policy_in_words(configured, newest.policy_version),
        needs_probe=configured is not None and configured.kind == "reasoning" and configured.probe is None,
    )


def _evidence(report: RouteReport, rules: Route) -> AuditEvidence:
    return evidence(
        max_em_drop=rules.max_em_drop,
        confidence=rules.confidence,
        n_audits=report.n_telling_audits,
        n_disagreements=report.n_audit_disagreements,
        audits_at_s=report.audits_at_s,
    )


def _with_times(
    connection: LogReader, snapshots: Sequence[RouteSnapshot], decided: DeploymentState
) -> list[RouteSnapshot]:
    """Add since when each route does what it does. Decisions are read once for all routes, as `decided` was."""
    by_route = dict[str, list[StoredEvent]]()
    if any(one.promise_state in DECIDED_STATES for one in snapshots):
        for stored in reversed(read_newer(connection, "decisions", 0)):
            by_route.setdefault(route_of(stored.event) or "", []).append(stored)
    return [replace(one, since_s=_since(connection, one, decided, by_route)) for one in snapshots]


def _since(
    connection: LogReader, one: RouteSnapshot, decided: DeploymentState, by_route: Mapping[str, Sequence[StoredEvent]]
) -> float | None:
    state, name = one.promise_state, one.report.route
    if state == "killed":
        switched = newest_event(connection, KillSwitchState)
        return None if switched is None or not switched.on else switched.stamp / 1e9
    if decided.of(name).epoch is not None and state in DECIDED_STATES:
        acts = state in ("certified", "budgeted")
        return since_when(by_route.get(name, ()), is_paused=state == "paused", acts=acts)
    if len(one.report.modes) == 1 and decided.of(name).epoch is None:
        first = query_rows(connection, _FIRST, (name,))
        return float(first[0][0]) if first else None
    return None


def read_guarantee(
    connection: LogReader,
    name: str,
    route: Route,
    promises: Promises,
    *,
    tally: Tally | None,
    forecast: RouteForecast | None,
    newest: Request | None,
) -> tuple[RouteGuarantee, str | None]:
    """Return the guarantee on a configured route, and why its mode "enforce" is refused; None: it is not refused."""
    refused = promises.refusal(connection, name, route, tally) if route.mode == "enforce" else None
    setup = (newest.setup or None) if newest is not None else None
    return promises.of(name, route, forecast, setup=setup, unreadable=refused is not None), refused


def _promise_without_settings(name: str, mode: str, promises: Promises, *, is_gone: bool) -> RouteGuarantee:
    decided = promises.decided.of(name)
    if is_gone:
        return RouteGuarantee(state="gone")
    if mode == "off":
        return RouteGuarantee(state="off")
    if promises.killed:
        return RouteGuarantee(state="killed")
    if mode == "observe":
        return RouteGuarantee(state="observe")
    if decided.pause is not None:
        return RouteGuarantee(state="paused")
    return RouteGuarantee(state="unknown" if decided.epoch is not None else "uncertified")


def read_held(connection: LogReader, holds: Holds, *, now_s: float) -> dict[str, RouteHoldings]:
    waiting: dict[str, list[ItemState]] = {}
    for one in read_reviews(connection).queue.waiting(now_s=now_s):
        waiting.setdefault(one.item.route, []).append(one)
    return {
        name: RouteHoldings(
            overrides=describe_overrides(holds.of(name).overrides, now_s),
            incidents=tuple(f"{case.incident.incident}: {case.incident.summary}" for case in holds.of(name).open_cases),
            n_to_review=len(waiting.get(name, ())),
            n_contradicted=sum(one.needs_third for one in waiting.get(name, ())),
        )
        for name in {*holds.routes, *waiting}
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
