"""Full runs at the beginning of an epoch, and the time to a first certificate.

Without `audit_share` audits are frequent until something is certified, and few afterwards. A configured share holds
from the end of the burst on, also while nothing is certified: a small one can keep a route at full runs for good.
"""

from __future__ import annotations

from math import inf
from typing import TypedDict

from suffice.assurance.certify import window_audits
from suffice.assurance.start import LIKELY_PARTS, MOST_AUDITS, StartForecast, StartTerms
from suffice.certification.plan import Plan, full_runs
from suffice.rollout.assign import audit_share
from suffice.settings import Control, Route
from suffice.types import Epoch


def burst_of(route: Route, control: Control) -> int:
    """Full runs at the beginning of a route's epoch; 0 on a route without learned levels."""
    return burst_requests(control, route.max_em_drop) if route.is_learned else 0


class EpochStart(TypedDict):
    """How an epoch begins, as fields of `Epoch`."""

    burst: int
    ramps: bool


def epoch_start(route: Route, control: Control) -> EpochStart:
    """By share, where levels are learned and certified and the owner asks for no burst."""
    ramps = route.is_learned and route.promise == "certified" and control.burst_requests is None
    return EpochStart(burst=burst_of(route, control), ramps=ramps)


def warm_burst(route: Route, control: Control, *, delta: float) -> int:
    """Full runs of a route that begins with the version of a similar one: it has nothing to learn, only to certify."""
    return min(burst_of(route, control), start_terms(route, control, delta=delta).audits())


def burst_requests(control: Control, max_em_drop: float) -> int:
    """Full runs of a burst: as configured, else by `certification.plan.full_runs`."""
    if control.burst_requests is not None:
        return control.burst_requests
    return full_runs(max_em_drop) if 0 < max_em_drop < 1 else MOST_AUDITS


def window_size(control: Control, max_em_drop: float) -> int:
    """Audits in a certificate's window: as configured, else by `assurance.certify`."""
    if control.window_audits is not None:
        return control.window_audits
    return window_audits(max_em_drop) if 0 < max_em_drop < 1 else MOST_AUDITS


def live_plan(route: Route, control: Control, epoch: Epoch) -> Plan:
    share = route.later_audit_share
    if not route.is_replayed:  # the gateway's own share, whatever the loop publishes
        share = audit_share(epoch.at, route.audit_share)
    return Plan(
        max_em_drop=epoch.max_em_drop,
        confidence=epoch.confidence,
        promise=epoch.promise,
        warm_up=epoch.at + epoch.burst,
        ramps=epoch.ramps,
        burst=epoch.burst,
        window=window_size(control, epoch.max_em_drop),
        refit_every=control.refit_requests,
        share=share,
        most_share=route.most_audit_share,
        free_audits=_free_audits(route),
    )


def forecast_start(route: Route, control: Control) -> list[StartForecast]:
    """When levels that lose little, the usual and much of the budget are expected to act."""
    start, terms = epoch_start(route, control), start_terms(route, control)
    if start["ramps"]:
        return terms.likely_starts()
    waits = [_behind_burst(route, control, terms.audits(part=part)) for part in LIKELY_PARTS]
    return [StartForecast(n, n) for n in waits]


def _behind_burst(route: Route, control: Control, n_audits: int) -> float:
    burst = burst_of(route, control)
    if n_audits <= burst:
        return burst
    if _free_audits(route):
        return n_audits if n_audits < MOST_AUDITS else inf
    # Audits of the smaller share after the burst form a window of their own.
    share = route.later_audit_share
    return burst + n_audits / share if share > 0 and n_audits <= window_size(control, route.max_em_drop) else inf


def _free_audits(route: Route) -> bool:
    return route.audit_share is None and route.probe is None


def start_terms(route: Route, control: Control, *, delta: float | None = None) -> StartTerms:
    return StartTerms(
        max_em_drop=route.max_em_drop,
        delta=1 - route.confidence if delta is None else delta,
        finishes=route.kind == "reasoning",
        n_learning=burst_requests(control, route.max_em_drop),
    )
