"""Full runs at the beginning of an epoch, and the time to a first certificate.

Without `audit_share` audits are frequent until something is certified, and few afterwards. A configured share holds
from the end of the burst on, also while nothing is certified: a small one can keep a route at full runs for good.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from math import inf
from typing import Final, TypedDict

from suffice.assurance.certify import audits_to_certify, window_audits
from suffice.assurance.fidelity import FIDELITY_CONFIDENCE, MOST_BANDS, VERBATIM, bound_fidelity, budget_left
from suffice.certification.plan import Plan, full_runs
from suffice.rollout.assign import audit_share
from suffice.settings import Control, Route
from suffice.types import Epoch

USUAL_PART: Final = 0.25  # of the budget: the typical loss of a certified level
PATIENCE: Final = 100_000  # requests to the first certificate; more cause a warning
MOST_AUDITS: Final = 10**7  # stands for never: of a budget outside (0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    n_audits: int  # to certify a level that loses a quarter of the budget; `MOST_AUDITS`: never
    n_requests: float  # until then; infinite: the window never holds that many audits

    @property
    def is_long(self) -> bool:
        return self.n_requests > PATIENCE and self.n_audits < MOST_AUDITS


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
    return min(burst_of(route, control), _needed(route, delta))


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
        free_audits=route.audit_share is None and route.probe is None,
    )


def first_certificate(route: Route, control: Control) -> Start:
    """Estimate the audits and requests, in expectation, that certify a level which loses a quarter of the budget."""
    share, burst = route.audit_share or 0.0, burst_of(route, control)
    needed = _needed(route, 1 - route.confidence)
    if needed <= burst:
        return Start(n_audits=needed, n_requests=burst)
    # Audits of the smaller share after the burst form a window of their own.
    fits = share > 0 and needed <= window_size(control, route.max_em_drop)
    return Start(n_audits=needed, n_requests=burst + needed / share if fits else inf)


def _needed(route: Route, delta: float) -> int:
    """Audits that certify a level which loses a quarter of the budget net of the charge for finishing."""
    if not 0 < route.max_em_drop < 1 or not 0 < delta < 1:
        return MOST_AUDITS
    if route.kind != "reasoning":
        left = budget_left(route.max_em_drop, VERBATIM).max_em_drop
        return audits_to_certify(USUAL_PART * left, max_em_drop=left, delta=delta)

    def proves(n: int) -> bool:
        # Each audit compares one finish, in one of the bands of levels.
        finish = bound_fidelity(0, n // MOST_BANDS, confidence=FIDELITY_CONFIDENCE, anytime=False)
        left = budget_left(route.max_em_drop, finish).max_em_drop
        return left > 0 and audits_to_certify(USUAL_PART * left, max_em_drop=left, delta=delta) <= n

    # More audits leave more of the budget, and a larger budget needs fewer audits.
    return 1 + bisect_left(range(1, MOST_AUDITS), True, key=proves)
