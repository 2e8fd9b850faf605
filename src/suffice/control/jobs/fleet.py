"""What the job `certify` decides for all routes together: the wealth that each certificate needs, and warm starts.

Both are rows of the log that the loop of each route folds, so that a replay comes to the same certificates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from suffice.assurance.certify import e_value_of
from suffice.assurance.fleet import (
    NO_REQUIREMENT,
    FleetRequirement,
    RouteWealth,
    WarmStart,
    require_wealth,
)
from suffice.control.evidence.cold_start import warm_burst
from suffice.control.evidence.versions import loader
from suffice.control.loop.learned import LearnedEvidence
from suffice.control.loop.route_loop import RouteLoop
from suffice.settings import Route, Settings
from suffice.store.database.views import LogReader
from suffice.store.routes.deployments import read_decided

FLEET: Final = "*"  # the part of the job with these decisions, where workers share the job
LEAST_DELTA: Final = 1e-12  # of a route with a confidence of 1, which is never certified


def change_requirement(
    loops: Mapping[str, RouteLoop],
    settings: Settings,
    routes: Mapping[str, Route],
    *,
    before: FleetRequirement | None,
    author: str,
) -> FleetRequirement | None:
    """Return the requirement of these routes by what their loops have read; None: it stays as it is.

    A route whose loop has failed counts as one without evidence.
    """
    confidence, wealth = settings.assurance.fleet_confidence, NO_REQUIREMENT
    evidence: tuple[RouteWealth, ...] = ()
    number, held = (1, NO_REQUIREMENT) if before is None else (before.number + 1, before.wealth)
    if confidence is None:
        if before is None or before.confidence is None:
            return None
        n_certified, reason = 0, "assurance.fleet_confidence is not set any more"
    else:
        evidence = tuple(_wealth_of(name, route, loops.get(name)) for name, route in sorted(routes.items()))
        wealth, n_certified = require_wealth(evidence, confidence=confidence, before=held)
        if before is not None and (before.confidence, before.wealth) == (confidence, wealth):
            return None
        reason = f"{n_certified:,} of {len(evidence):,} routes have a wealth of at least {wealth:,.1f}"
    return FleetRequirement(
        number=number,
        wealth=wealth,
        confidence=confidence,
        n_routes=len(evidence),
        n_certified=n_certified,
        evidence=evidence,
        reason=reason,
        author=author,
    )


def _wealth_of(name: str, route: Route, loop: RouteLoop | None) -> RouteWealth:
    own = 1 / max(LEAST_DELTA, 1 - route.confidence)
    if loop is None:
        return RouteWealth(route=name, epoch=0, wealth=0.0, own=own)
    wealth = e_value_of(loop.source.log_wealth) * loop.source.delta_part
    return RouteWealth(route=name, epoch=loop.state.epoch.number, wealth=wealth, own=own)


def warm_starts(loops: Mapping[str, RouteLoop], settings: Settings, log: LogReader, *, author: str) -> list[WarmStart]:
    """For each new route, the version with the most audits that a similar route serves with a certificate."""
    new = {
        name: loop
        for name, loop in loops.items()
        if isinstance(loop.source, LearnedEvidence) and loop.source.may_start_warm
    }
    if not new:
        return []
    published = [held.publication for held in read_decided(log).routes.values()]
    certified = [made for made in published if made is not None and made.certified and made.fit]
    load, starts = loader(log), list[WarmStart]()
    for name, loop in new.items():
        route, epoch = settings.routes[name], loop.state.epoch
        similar = [made for made in certified if _is_similar(route, settings.routes.get(made.route))]
        best = max(similar, key=lambda made: (made.evidence.n_audits, made.route), default=None)
        served = None if best is None else load(best.fit)
        if best is None or served is None or any(model.hopeless is not None for model in served.version.models):
            continue
        start = WarmStart(
            route=name,
            epoch=epoch.number,
            fit=best.fit,
            source=best.route,
            burst=warm_burst(route, settings.control, delta=loop.state.delta),
            reason=f"route {best.route} is similar, and level {best.level} of its version is certified there",
            author=author,
        )
        starts.append(start)
    return starts


def _is_similar(route: Route, other: Route | None) -> bool:
    return other is not None and _traits(route) == _traits(other)


def _traits(route: Route) -> tuple[Any, ...]:
    """What routes must have in common for one stop model; budgets and modes may differ."""
    return (
        *(route.kind, route.upstream, route.model, route.scorer, route.samples, route.wave),
        *(route.probe, route.steps, route.is_learned),
    )
