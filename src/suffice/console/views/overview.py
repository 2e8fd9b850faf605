"""The first page: what stopping saved, what it cost in EM, what is certified, what needs somebody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from suffice.assurance.bounds import wilson
from suffice.assurance.estimate import pooled_saving, pooled_would_save
from suffice.console.auth import Principal
from suffice.console.exchange import ConsoleRequest
from suffice.console.view_context import TimeRange, ViewContext, parse_window, route_url
from suffice.console.views.alerts import AlertLine, AlertReader
from suffice.console.views.standing import RouteState, standings
from suffice.sanitize import plural
from suffice.store.database.views import has_requests
from suffice.store.routes import rollups
from suffice.store.routes.rollups import ReadTo, RollupSums

MOST_DAYS: Final = 400
LATE_S: Final = 60.0  # behind an alert: a sink that has not taken it by then does not work
STARTS_S: Final = 30.0  # a worker that starts with the gateway takes some seconds until it holds the log


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """One day (UTC). Intervals are for one look at that day alone, at 95 %."""

    day: int  # since 1970
    n_requests: int
    n_stopped: int
    saved_tokens: int
    spent_tokens: int
    saved_usd: float
    em_full: float | None  # None: no label came
    em_full_low: float | None
    em_full_high: float | None
    em_stopped: float | None
    em_stopped_low: float | None
    em_stopped_high: float | None
    drop: float | None  # of audits, unlabelled disagreement counted as lost


@dataclass(frozen=True, slots=True, kw_only=True)
class OverviewNotice:
    """Something that somebody should look at."""

    level: Literal["alarm", "warn", "info"]
    text: str
    href: str
    action: str  # what the link says


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """Everything on the first page."""

    window: TimeRange
    read_to: ReadTo
    total: RollupSums
    saving: float | None  # of tokens, of all routes since the log began (`assurance.estimate.saving_of`); None: unknown
    would_save: float | None  # what the shadow stops of routes that observe would have saved; None: there are none
    n_certified: int
    n_learned: int  # routes that a control loop may certify
    worst: RouteState | None  # the route nearest to its EM budget; None: none is measured
    routes: tuple[RouteState, ...]
    days: tuple[Day, ...]
    notices: tuple[OverviewNotice, ...]
    alerts: tuple[AlertLine, ...]  # that stand, and those of the last 24 hours, as on their page; a few at most
    is_empty: bool  # has nothing been asked yet, ever?
    liked: RouteState | None  # the route whose satisfaction stopping harms most, or helps least; None: unmeasured


def overview(alerts: AlertReader) -> Callable[[ViewContext, ConsoleRequest, Principal], Overview]:
    """The view, which reads alerts on from where they were read to."""
    return lambda look, asked, _visitor: overview_of(look, asked, alerts.lately(look))


def overview_of(look: ViewContext, asked: ConsoleRequest, alerts: tuple[AlertLine, ...]) -> Overview:
    """Look at all routes. Raises StoreError, and BadRequest for a window that is not offered."""
    window = parse_window(asked.query, look.now_s)
    read_to = rollups.read_to(look.connection)
    found = standings(look, window)
    total, tallies = rollups.NOTHING, rollups.read_tallies(look.connection).values()
    for one in found:
        total = total.plus(one.sums)
    measured = [one for one in found if one.budget_used is not None]
    measured = [one for one in measured if one.phase.level] or measured  # where something is stopped, that is asked
    return Overview(
        window=window,
        read_to=read_to,
        total=total,
        saving=pooled_saving(tallies),
        would_save=pooled_would_save(tallies),
        n_certified=sum(one.is_certified for one in found),
        n_learned=sum(route.certifies_itself for route in look.settings.routes.values()),
        worst=max(measured, key=lambda one: one.budget_used or 0.0) if measured else None,
        routes=found,
        days=days_of(look, window),
        notices=notices(found, read_to, look, alerts),
        alerts=alerts,
        is_empty=not total.n_requests and not has_requests(look.connection),
        liked=min((one for one in found if one.liking_effect), key=_effect_of, default=None),
    )


def _effect_of(one: RouteState) -> float:
    return one.liking_effect.value if one.liking_effect is not None else 0.0


def days_of(look: ViewContext, window: TimeRange, route: str | None = None) -> tuple[Day, ...]:
    """What each day was like, of all routes together or of one."""
    found = rollups.read_rollups(look.connection, ("day",), route=route, since_hour=window.since_hour)
    return tuple(_day(int(key[0]), one) for key, one in list(found.items())[-MOST_DAYS:])


def _day(day: int, one: RollupSums) -> Day:
    full, stopped = _band(one.n_full_right, one.n_full_marked), _band(*one.stopped_marks)
    return Day(
        day=day,
        n_requests=one.n_requests,
        n_stopped=one.n_stopped,
        saved_tokens=one.saved_tokens,
        spent_tokens=one.completion_tokens + one.overhead_tokens,
        saved_usd=one.saved_usd,
        em_full=full[0],
        em_full_low=full[1],
        em_full_high=full[2],
        em_stopped=stopped[0],
        em_stopped_low=stopped[1],
        em_stopped_high=stopped[2],
        drop=(one.n_lost + one.n_pending - one.n_gained) / one.n_audits if one.n_audits else None,
    )


def _band(k: int, n: int) -> tuple[float | None, float | None, float | None]:
    if not n:
        return None, None, None
    between = wilson(k, n, 0.95)
    return k / n, between.low, between.high


def notices(
    found: tuple[RouteState, ...], read_to: ReadTo, look: ViewContext, alerts: tuple[AlertLine, ...]
) -> tuple[OverviewNotice, ...]:
    """What needs somebody, the worst first."""
    told = list(untold(alerts, look.now_s))
    for one in found:
        place = route_url(one.name)
        if one.phase.phase == "paused":
            told.append(
                OverviewNotice(
                    level="alarm", text=f"{one.name} is paused: {one.phase.reason}", href=place, action="Decide"
                )
            )
        told += [
            OverviewNotice(level="warn", text=f"{one.name}: {alert}", href=place, action="See the forecast")
            for alert in one.alerts
        ]
        route = look.route(one.name)
        alone = route is not None and route.certifies_itself and not one.phase.attended and one.sums.n_requests
        if alone and look.now_s - look.begun_s > STARTS_S:
            told.append(
                OverviewNotice(
                    level="warn",
                    text=f"{one.name}: no control loop looks after it now",
                    href=place,
                    action="See why",
                )
            )
        if one.phase.n_labels_wanted:
            told.append(
                OverviewNotice(
                    level="info",
                    text=f"{one.name}: {wait_for(one.phase.n_labels_wanted)}",
                    href="/console/review",
                    action="Review",
                )
            )
    if read_to.n_behind > 50_000:
        told.append(
            OverviewNotice(
                level="info",
                text=f"Figures are {read_to.n_behind:,} rows of the log behind; the worker is summing up",
                href="/console/settings",
                action="See jobs",
            )
        )
    order = {"alarm": 0, "warn": 1, "info": 2}
    return tuple(sorted(told, key=lambda one: order[one.level]))


def untold(alerts: tuple[AlertLine, ...], now_s: float) -> Iterator[OverviewNotice]:
    """Sinks that do not take what they should have been told a while ago."""
    late = [name for one in alerts if now_s - one.at_s > LATE_S for name in one.waits_for]
    for name in dict.fromkeys(late):
        said = f"The sink {name} has not taken {plural(late.count(name), 'alert')} yet"
        yield OverviewNotice(level="alarm", text=said, href="/console/alerts", action="See alerts")


def wait_for(n: int) -> str:
    """How many answers somebody should judge."""
    return f"{plural(n, 'answer waits', 'answers wait')} for a person's word"
