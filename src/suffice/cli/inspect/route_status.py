"""Reads the snapshot of each route for the commands, with the pairs that the control loop compares."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from suffice.assurance.runs import Match
from suffice.report.snapshot import PairStatus, RouteSnapshot, read_snapshots
from suffice.settings import Route, Settings
from suffice.store.database.location import LogLocation
from suffice.store.database.views import LogReader, open_reader, read_episodes
from suffice.store.routes.deployments import RouteDeployment
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
    """Like `read_statuses`, on an open reader."""
    return read_snapshots(
        connection,
        database,
        settings,
        route,
        kill_file=None if settings is None else kill_file(settings),
        now_s=time.time(),
        read_pairs=read_pairs,
    )


def read_pairs(
    connection: LogReader, name: str, route: Route | None, match: Match, held: RouteDeployment
) -> tuple[PairStatus, ...]:
    if route is None or not route.is_paired:
        return ()
    from suffice.assurance.paired import pairs_of
    from suffice.control.evidence.audits import recorded_audit
    from suffice.control.jobs.base import since
    from suffice.control.loop.paired import is_pair, pair_audits

    audits: list[Audit] = []
    behind, callers = since(name, held, connection), set[str]()
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
