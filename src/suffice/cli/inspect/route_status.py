"""Reads the snapshot of each route for the commands, with the pairs that the control loop compares."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from suffice.assurance.runs import Match
from suffice.edge.math import open_match
from suffice.errors import ConfigError
from suffice.report.snapshot import PairStatus, RouteSnapshot, read_details, read_snapshots, scorer_name
from suffice.settings import Route, Settings
from suffice.store.database.location import LogLocation
from suffice.store.database.views import LogReader, open_reader, read_episodes, snapshot
from suffice.store.routes.deployments import is_killed
from suffice.store.routes.rollups import RouteScorer, logged_routes, tallies_now
from suffice.wiring.keys import kill_file

if TYPE_CHECKING:  # the gateway and the learning code would take most of the start-up time of `suffice status`
    from suffice.assurance.paired import PairedAudit
    from suffice.control.evidence.audits import Audit


def read_statuses(database: LogLocation, settings: Settings | None, route: str | None) -> list[RouteSnapshot]:
    """Read the snapshot of every route in the log, or of one. Raise StoreError and ConfigError."""
    with open_reader(database) as connection:
        return statuses_of(connection, database, settings, route)


def statuses_of(
    connection: LogReader, database: LogLocation, settings: Settings | None, route: str | None
) -> list[RouteSnapshot]:
    """Like `read_statuses`, on an open reader. Without settings, answers are compared exactly."""
    now_s = time.time()
    with ExitStack() as stack:
        stack.enter_context(snapshot(connection))
        scorer_of, names = _scorers(settings, stack), logged_routes(connection)
        if route is not None and route not in names:
            seen = ", ".join(name or '""' for name in names) or "none yet"
            raise ConfigError(f"--route: no request of route {route!r} in {database}; routes seen: {seen}")
        snapshots = read_snapshots(
            connection,
            database,
            settings,
            tallies_now(connection, scorer_of),  # reads only rows that the job `rollup` has not summed up
            names if route is None else (route,),
            now_s=now_s,
            killed=is_killed(connection, None if settings is None else kill_file(settings)),
        )
        return [
            replace(one, pairs=_read_pairs(connection, one, scorer_of(one.name).match))
            for one in read_details(connection, snapshots, now_s=now_s)
        ]


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

        return RouteScorer(scorer_name(route), match)

    return scorer_of


def _read_pairs(connection: LogReader, one: RouteSnapshot, match: Match) -> tuple[PairStatus, ...]:
    route, name = one.settings, one.name
    if route is None or not route.is_paired:
        return ()
    from suffice.assurance.paired import pairs_of
    from suffice.control.evidence.audits import recorded_audit
    from suffice.control.jobs.base import since
    from suffice.control.loop.paired import is_pair, pair_audits

    audits: list[Audit] = []
    behind, callers = since(name, one.deployment, connection), set[str]()
    for item in read_episodes(connection, name, behind, ended_after=behind):
        callers.add(item.episode.request.sender)
        if is_pair(item.episode.request, item.episode.outcome, route.arms):
            audits.append(recorded_audit(item))
    pairs = pair_audits(audits, match, timeout=0, callers=callers - {""})
    n_arms = len(route.arms)
    return tuple(_pair_status(arm, pairs_of(pairs, lambda _, arm=arm: arm, n_arms), route) for arm in route.arms)  # type: ignore[misc]


def _pair_status(arm: str, pairs: Sequence[PairedAudit], route: Route) -> PairStatus:
    from suffice.assurance.paired import certify_arm
    from suffice.control.loop.paired import arm_part

    budget, delta = route.max_em_drop, (1 - route.confidence) * arm_part(len(route.arms))
    certificate = certify_arm(pairs, max_em_drop=budget, delta=delta, now=0)
    return PairStatus(
        arm=arm,
        n=certificate.n,
        n_disagree=certificate.n_disagree,
        em_drop=certificate.drop if certificate.n else None,
        em_drop_high=certificate.drop_high if certificate.n else None,
        n_missing=certificate.n_missing(max_em_drop=budget, delta=delta),
        n_repeats=certificate.n_repeats,
        n_repeats_disagree=certificate.n_repeats_disagree,
        max_em_drop=budget,
        confidence=route.confidence,
    )
