"""What a page says of one route, and how far a new route has come: its snapshot, with the figures of the scope."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final, Literal

from suffice.assurance.bounds import wilson
from suffice.assurance.estimate import IntervalEstimate, saving_of
from suffice.assurance.exposure import describe_part
from suffice.assurance.forecast import Forecast, RouteForecast
from suffice.assurance.satisfaction import SatisfactionEffect
from suffice.assurance.served import ServedLoss
from suffice.console.context import DAY_S, LogView, ViewRecord
from suffice.console.scope import TimeRange
from suffice.console.views.history import History
from suffice.formatting import format_percent
from suffice.report.sentences import describe_missing
from suffice.report.snapshot import RouteSnapshot, read_snapshots, scorer_name
from suffice.review.route_guarantee import RouteGuarantee
from suffice.settings import Route
from suffice.store.routes import rollups
from suffice.store.routes.deployments import Phase
from suffice.store.routes.period import Period, PeriodFigures, period_figures
from suffice.store.routes.rollups import DAY_HOURS
from suffice.store.rows.sums import NO_SUMS, RollupSums


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
    served_level: int
    cap_reason: str  # why no higher level is served; "": nothing caps it
    ramp: tuple[RampStep, ...]  # from full runs to the highest level; (): nobody certifies it
    figures: PeriodFigures  # of the scope
    sparks: tuple[PeriodFigures, ...]  # the same in buckets of time, oldest first
    em_full: IntervalEstimate | None  # of the scope, valid for one look
    em_stopped: IntervalEstimate | None  # stopped runs are the easy ones: not comparable with `em_full`
    em_drop: IntervalEstimate | None  # paired, on audits, from `monitor`: since its accounts began, at every look
    served: ServedLoss | None  # from `monitor`, since its accounts began; None: nothing to tell
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
    what += "" if phase.exposure == 1 else f" on {describe_part(phase.exposure)}"
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


RATE_DAYS: Final = 7  # over which the rate of audits is averaged


def snapshots_of(view: LogView, names: Iterable[str]) -> list[RouteSnapshot]:
    tallies = rollups.read_tallies(view.connection)
    return read_snapshots(
        view.connection, view.path, view.settings, tallies, names, now_s=view.now_s, killed=view.killed
    )


def route_states(
    view: LogView, each: Mapping[str, Period], window: TimeRange | History, *, only: str | None = None
) -> tuple[RouteState, ...]:
    """The states of all routes, or of one, with their figures of the window."""
    names = [name for name in dict.fromkeys([*view.settings.routes, *sorted(each)]) if only in (None, name)]
    return states_of(view, snapshots_of(view, names), each, window)


def states_of(
    view: LogView, snapshots: Iterable[RouteSnapshot], each: Mapping[str, Period], window: TimeRange | History
) -> tuple[RouteState, ...]:
    since_hour = DAY_HOURS * (int(view.now_s // DAY_S) - RATE_DAYS + 1)
    recent = rollups.read_rollups(view.connection, ("route",), since_hour=since_hour)
    n_audits = {str(name): one.n_audits for (name,), one in recent.items()}
    nothing = Period(total=period_figures(NO_SUMS, window.since_hour, window.until_hour), buckets=())
    return tuple(
        state_of(
            one,
            each.get(one.name, nothing),
            audits_a_day=n_audits.get(one.name, 0) / RATE_DAYS or None,
        )
        for one in snapshots
    )


def state_of(one: RouteSnapshot, period: Period, *, audits_a_day: float | None) -> RouteState:
    route, phase, forecast, sums = one.settings, one.phase, one.forecast, period.total.sums
    guarantee = one.guarantee if route is not None else RouteGuarantee(state="off")  # only in the log
    return RouteState(
        name=one.name,
        mode=route.mode if route is not None else "not configured",
        kind=route.kind if route is not None else "",
        scorer=scorer_name(route),
        upstream=route.upstream if route is not None else "",
        max_em_drop=route.max_em_drop if route is not None else 0.0,
        confidence=one.confidence,
        phase=phase,
        owned="" if route is None or route.certifies_itself else str(route.policy.get("policy", "")),
        promise=guarantee.sentence,
        promise_state=guarantee.state,
        beside=guarantee.beside if guarantee.state not in ("off", "observe", "killed") else (),
        capped=one.cap,
        served_level=one.served_level,
        cap_reason=one.cap_reason,
        ramp=ramp_of(replace(phase, level=one.served_level), route, acts=guarantee.stops),
        figures=period.total,
        sparks=period.buckets,
        em_full=estimate_rate(sums.n_full_right, sums.n_full_marked),
        em_stopped=estimate_rate(*sums.stopped_marks),
        em_drop=forecast.whole.em_drop if forecast is not None and forecast.whole is not None else None,
        served=forecast.served if forecast is not None else None,
        saving=saving_of(one.tally, one.confidence),
        satisfaction=forecast.satisfaction if forecast is not None else None,
        seen_at=forecast.at if forecast is not None else None,
        alerts=tuple(f"{each.reason}{_capped(phase, each)}" for each in forecasts_of(forecast) if each.alert),
        audits_a_day=audits_a_day,
        missing=describe_missing(phase, route, audits_a_day),
    )


def _capped(phase: Phase, forecast: Forecast) -> str:
    return f"; level {phase.cap} at most meanwhile" if phase.cap is not None and forecast.of == "em_drop" else ""


def forecasts_of(report: RouteForecast | None) -> tuple[Forecast, ...]:
    return () if report is None else tuple(one for one in (report.drop, report.em) if one is not None)


def estimate_rate(k: int, n: int) -> IntervalEstimate | None:
    if not n:
        return None
    between = wilson(k, n, 0.95)
    return IntervalEstimate(value=k / n, low=between.low, high=between.high, n=n, method="Wilson, for one look")
