"""What a page says of one route, and how far a new route has come. Pure."""

from __future__ import annotations

from typing import Literal

from suffice.assurance.estimate import IntervalEstimate
from suffice.assurance.satisfaction import SatisfactionEffect
from suffice.console.context import ViewRecord
from suffice.formatting import format_percent
from suffice.settings import Route
from suffice.store.routes.deployments import Phase
from suffice.store.routes.period import PeriodFigures
from suffice.store.rows.sums import RollupSums


class RampStep(ViewRecord, frozen=True):
    name: str
    detail: str
    state: Literal["done", "here", "ahead"]
    share: float  # of the step that is done


class RouteState(ViewRecord, frozen=True):
    name: str
    mode: str  # of the settings; "not configured"
    kind: str
    scorer: str
    upstream: str
    max_em_drop: float  # fraction: the owner's budget
    confidence: float
    phase: Phase
    owned: str  # the fixed policy of the settings, whatever rollouts changed; "": the control loop decides
    promise: str  # the guarantee's sentence (`review.route_guarantee`)
    promise_state: str  # its state
    beside: tuple[str, ...]  # experiments and rollouts that serve some requests otherwise
    capped: int | None  # the highest level that an override or a forecast allows; None: no cap
    ramp: tuple[RampStep, ...]  # from full runs to the highest level; (): nobody certifies it
    figures: PeriodFigures  # of the scope
    sparks: tuple[PeriodFigures, ...]  # the same in buckets of time, oldest first
    em_full: IntervalEstimate | None  # of the scope, valid for one look
    em_stopped: IntervalEstimate | None  # stopped runs are the easy ones: not comparable with `em_full`
    em_drop: IntervalEstimate | None  # paired, on audits, from `monitor`: since its accounts began, at every look
    saving: IntervalEstimate | None  # of tokens, since the log began (`assurance.estimate.saving_of`)
    satisfaction: SatisfactionEffect | None  # from `monitor`; None: no ratings
    seen_at: int | None  # requests of the route at the last look of `monitor`; None: none yet
    alerts: tuple[str, ...]  # forecasts that cross their limit, in sentences
    audits_a_day: float | None  # recent rate; None: no audits
    missing: str  # what the next level needs, as a sentence

    @property
    def sums(self) -> RollupSums:
        return self.figures.sums

    @property
    def is_certified(self) -> bool:
        return self.promise_state == "certified"

    @property
    def satisfaction_effect(self) -> IntervalEstimate | None:
        """Satisfaction of stopped runs minus full ones, paired by the audit draw; None: not measured."""
        return self.satisfaction.effect if self.satisfaction is not None else None

    @property
    def budget_used(self) -> float | None:
        """Upper end of the EM drop divided by the budget; None: not measured."""
        high = self.em_drop.high if self.em_drop is not None else None
        return None if high is None or not self.max_em_drop else high / self.max_em_drop


def ramp_of(phase: Phase, route: Route | None, *, acts: bool) -> tuple[RampStep, ...]:
    """The steps of a route from full runs to its highest level; (): nobody certifies it."""
    if route is None or not route.certifies_itself:
        return ()
    proved, more = "a first level is proved", phase.n_missing
    begun = min(1.0, phase.n_requests / phase.n_burst) if phase.n_burst else 0.0
    if phase.phase == "searching":
        proved = "no level is proved yet" if more is None else f"about {more:,} more audits"
    elif phase.phase == "paused":
        proved = "paused: every request runs in full"
    audits = "" if phase.audit_share is None else f"; {format_percent(phase.audit_share, 0)} audits run in full"
    what = f"with {phase.arm}" if phase.arm else f"level {phase.level} of {phase.n_levels}"
    steps = [
        ("All in full", f"{phase.n_requests:,} of {phase.n_burst:,} runs of evidence" if phase.n_burst else "", begun),
        ("Proved", proved, 0.0 if more is None else phase.n_audits / max(1, phase.n_audits + more)),
        ("Acts", f"{what}{audits}" if acts else "proved, and not acted on", 0.0),
    ]
    if phase.n_levels > 1:
        further = "" if more is None else f"about {more:,} more audits to the next"
        steps.append(("Highest level", further, phase.level / phase.n_levels))
    at = _step_of(phase, acts=acts, n_steps=len(steps))
    return tuple(
        RampStep(
            name=name,
            detail=detail if number == at or number == 2 < at else "",
            state="done" if number < at else "here" if number == at else "ahead",
            share=1.0 if number < at else share if number == at else 0.0,
        )
        for number, (name, detail, share) in enumerate(steps)
    )


def _step_of(phase: Phase, *, acts: bool, n_steps: int) -> int:
    """The place of the step that is under way; `n_steps`: none is left."""
    if phase.phase in ("unattended", "cold start", "burst"):
        return 0
    if not phase.level:  # also while it is paused
        return 1
    if not acts:
        return 2
    return n_steps if n_steps == 3 or phase.level >= phase.n_levels else 3
