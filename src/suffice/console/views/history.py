"""What the figures of a scope were, in all and in buckets of time, with what was decided meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal, TypeAlias
from urllib.parse import urlencode

from suffice.assurance.estimate import IntervalEstimate
from suffice.console.context import ViewContext, ViewRecord
from suffice.console.scope import TimeRange, ViewScope, format_bound
from suffice.console.views.precision import describe_needed, says_nothing
from suffice.console.views.version_names import name_version
from suffice.formatting import format_bounds, format_large, format_percent, format_points, format_usd
from suffice.store.database.log import StoredEvent
from suffice.store.database.views import read_events_where
from suffice.store.routes import rollups
from suffice.store.routes.deployments import decisions_of
from suffice.store.routes.period import Period, PeriodFigures, drop_between, read_periods
from suffice.store.routes.rollups import DAY_HOURS, HOUR_S
from suffice.store.rows.events import KillSwitchState
from suffice.store.rows.sums import NO_SUMS
from suffice.types import Alarm, Pause, Publication, Resumption

MOST_HOURLY: Final = 49  # hours of a range that is shown by the hour
MOST_DAILY: Final = 62 * DAY_HOURS
WEEK_HOURS: Final = 7 * DAY_HOURS
MOST_MARKERS: Final = 60
MOST_MARKED_ROUTES: Final = 12
_SWITCHED: Final = "kind = 'kill_switched' ORDER BY seq DESC LIMIT ?"
MarkerKind: TypeAlias = Literal["version", "alarm", "decision"]


class Marker(ViewRecord, frozen=True):
    at_s: float  # Unix time
    kind: MarkerKind
    text: str
    href: str


class HistoryBucket(ViewRecord, frozen=True):
    figures: PeriodFigures
    so_far: IntervalEstimate | None  # EM drop from the beginning of the range to the end of this bucket
    is_partial: bool  # the time of it is not over
    runs: str  # address of the runs behind it

    @property
    def begin_s(self) -> int:
        return self.figures.begin_hour * HOUR_S


class History(ViewRecord, frozen=True):
    since_hour: int
    until_hour: int
    bucket_hours: int
    total: PeriodFigures
    before: PeriodFigures | None  # of the comparison; None: nothing is compared
    buckets: tuple[HistoryBucket, ...]
    markers: tuple[Marker, ...]  # oldest first
    budget: float | None  # EM drop that the routes' budgets allow together, weighted by their enforced requests

    @property
    def is_empty(self) -> bool:
        return not self.total.sums.n_requests


def read_history(
    view: ViewContext, route: str | None, scope: ViewScope | None = None
) -> tuple[History, Mapping[str, Period]]:
    """Read the history of one route; None: of all. Return it with that of each route by itself.

    scope  None: what the bar says
    """
    scope = scope or view.scope
    window = bounded(view, scope.range)
    hours = bucket_hours_of(window)
    period, each = _read(view, scope, window, route, hours)
    before = None if scope.compare is None else _read(view, scope, scope.compare, route, hours)[0].total
    return (
        History(
            since_hour=window.since_hour,
            until_hour=window.until_hour,
            bucket_hours=hours,
            total=period.total,
            before=before,
            buckets=tuple(_buckets(period.buckets, scope, route, view.now_s)),
            markers=_markers(view, window, route),
            budget=budget_of(view, each),
        ),
        each,
    )


def bounded(view: ViewContext, window: TimeRange) -> TimeRange:
    """The range, begun where the log begins if it would begin before everything."""
    if window.since_hour:
        return window
    first = rollups.first_hour(view.connection)
    since = window.until_hour - DAY_HOURS if first is None else first // DAY_HOURS * DAY_HOURS
    return TimeRange(name=window.name, since_hour=min(since, window.until_hour - 1), until_hour=window.until_hour)


def bucket_hours_of(window: TimeRange) -> int:
    if window.n_hours <= MOST_HOURLY:
        return 1
    return DAY_HOURS if window.n_hours <= MOST_DAILY else WEEK_HOURS


def _read(
    view: ViewContext, scope: ViewScope, window: TimeRange, route: str | None, hours: int
) -> tuple[Period, dict[str, Period]]:
    return read_periods(
        view.connection,
        since_hour=window.since_hour,
        until_hour=window.until_hour,
        bucket_hours=hours,
        route=route,
        query_class=scope.query_class,
        version=scope.version,
    )


def _buckets(
    buckets: Iterable[PeriodFigures], scope: ViewScope, route: str | None, now_s: float
) -> Iterator[HistoryBucket]:
    sums = NO_SUMS
    for one in buckets:
        sums = sums.plus(one.sums)
        fields = {
            "route": route,
            "class": scope.query_class,
            "version": scope.version,
            "from": format_bound(one.begin_hour),
            "to": format_bound(one.end_hour, last=True),
        }
        yield HistoryBucket(
            figures=one,
            so_far=drop_between(sums),
            is_partial=now_s < one.end_hour * HOUR_S,
            runs=f"/console/runs?{urlencode({name: value for name, value in fields.items() if value})}",
        )


def budget_of(view: ViewContext, each: Mapping[str, Period]) -> float | None:
    """If no route loses more than its budget, all together lose no more than this."""
    routes = view.settings.routes
    weights = {name: each[name].total.sums.enforced_weight for name in each if name in routes}
    if total := sum(weights.values()):
        return sum(routes[name].max_em_drop * weight for name, weight in weights.items()) / total
    budgets = {routes[name].max_em_drop for name in weights if routes[name].mode != "off"}
    return budgets.pop() if len(budgets) == 1 else None


def _markers(view: ViewContext, window: TimeRange, route: str | None) -> tuple[Marker, ...]:
    names = [route] if route is not None else list(view.settings.routes)[:MOST_MARKED_ROUTES]
    rows = [one for name in names for one in decisions_of(view.connection, name, MOST_MARKERS)]
    rows += [
        one
        for one in read_events_where(view.connection, _SWITCHED, (MOST_MARKERS,))
        if isinstance(one.event, KillSwitchState) and not one.event.ordered
    ]
    since_s, until_s = window.since_hour * HOUR_S, window.until_hour * HOUR_S
    markers = (one for one in _marked(view, rows, several=route is None) if since_s <= one.at_s < until_s)
    return tuple(sorted(markers, key=lambda one: one.at_s)[-MOST_MARKERS:])


def _marked(view: ViewContext, rows: Iterable[StoredEvent], *, several: bool) -> Iterator[Marker]:
    """The first row of each version, alarms, and what people decided."""
    published = set[tuple[str, str]]()
    for stored in sorted(rows, key=lambda one: one.seq):
        event = stored.event
        kind: MarkerKind = "decision"
        if isinstance(event, Publication):
            address = event.fit or event.version.partition("@")[0]
            if not address or (event.route, address) in published:
                continue
            published.add((event.route, address))
            kind, text = "version", f"{name_version(view.connection, address)} is published"
        elif isinstance(event, Alarm):
            kind, text = "alarm", f"alarm: {event.reason}"
        elif isinstance(event, Pause | Resumption):
            text = f"{'paused' if isinstance(event, Pause) else 'resumed'} by {event.author}: {event.reason}"
        elif isinstance(event, KillSwitchState):
            text = f"all stopping {'stopped' if event.on else 'released'}: {event.reason}"
        else:
            continue
        name = getattr(event, "route", "")
        prefix = f"{name}: " if several and name else ""
        href = f"/console/changes?{urlencode({'route': name})}" if name else "/console/changes"
        yield Marker(at_s=stored.at_s, kind=kind, text=f"{prefix}{text}", href=href)


def describe_saved(history: History, window: TimeRange) -> str:
    """One sentence on what was saved in a scope."""
    sums = history.total.sums
    money = f", and {format_usd(sums.saved_usd)}" if sums.n_priced and history.total.saving is not None else ""
    return f"{_spared(history, window)}{money}."


def describe_saving(history: History, window: TimeRange) -> str:
    """One sentence on what was saved at what cost in a scope."""
    total, certified = history.total, ""
    if total.saving is None and total.would_save is None:
        return f"{_spared(history, window)}."
    if total.saving is not None and total.saved_tokens is not None and total.saved_tokens > 0:
        share = min(1.0, max(0.0, total.saved_certified_tokens or 0.0) / total.saved_tokens)
        certified = f" ({format_large(total.saved_tokens)}, {format_percent(share, 0)} of them certified)"
    return f"{_spared(history, window)}{certified}{_cost(history)}."


def _spared(history: History, window: TimeRange) -> str:
    total, phrase = history.total, window.phrase
    begin = phrase[:1].upper() + phrase[1:]
    if history.is_empty:
        return f"No request came {phrase}"
    requests = f"{total.sums.n_requests:,} requests"
    if total.saving is None:
        if total.would_save is None:
            return f"{begin}, {requests} came; none of them shows yet what stopping saves"
        return f"{begin}, nothing was stopped: stops would have saved {format_percent(total.would_save)}"
    return f"{begin}, stopping saved {format_percent(total.saving.value)} of the tokens of {requests}"


def _cost(history: History) -> str:
    drop = history.total.em_drop
    if drop is None:
        return ", at a cost in Exact Match that no audit shows yet"
    if says_nothing(drop):
        return f", at a cost in Exact Match that is not known yet: {describe_needed(drop, 'audit')}"
    budget = "" if history.budget is None else f", of {100 * history.budget:.2f} points allowed"
    ends = format_bounds(drop.low, drop.high, "points", 2)
    return f", at an EM drop of {format_points(drop.value)}{f' ({ends})' if ends else ''}{budget}"
