"""The report of a month: what was saved at what cost on each route, and what was decided; it prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from suffice.console.context import ViewContext, ViewRecord
from suffice.console.scope import CUSTOM, TimeRange, format_bound
from suffice.console.views.history import History, describe_saving, read_history
from suffice.console.views.route_state import RouteState, route_states
from suffice.errors import BadRequest
from suffice.store.routes import rollups
from suffice.store.routes.rollups import HOUR_S

MOST_MONTHS: Final = 24  # to choose from


class MonthReport(ViewRecord, frozen=True):
    month: str  # as 2026-10
    first_day: str  # as 2026-10-01
    last_day: str
    is_over: bool
    months: tuple[str, ...]  # with sums, latest first
    headline: str
    history: History  # compared with the month before
    routes: tuple[RouteState, ...]  # with requests in it; the most saved first


class ReportLine(ViewRecord, frozen=True):
    """A route of a month's report, as a row of its table; None: not measured."""

    month: str
    route: str
    n_requests: int
    n_stopped: int
    n_audits: int
    saving: float | None  # fraction of tokens, with its interval
    saving_low: float | None
    saving_high: float | None
    saved_tokens: float | None
    saved_certified_tokens: float | None
    saved_usd: float | None
    em_drop: float | None  # fraction, with its interval
    em_drop_low: float | None
    em_drop_high: float | None
    max_em_drop: float  # fraction: the budget now


def report_lines(view: ViewContext) -> Iterator[ReportLine]:
    """Raises BadRequest for what is no month."""
    report = month_report(view)
    for one in report.routes:
        figures, sums, saving, drop = one.figures, one.sums, one.figures.saving, one.figures.em_drop
        yield ReportLine(
            month=report.month,
            route=one.name,
            n_requests=sums.n_requests,
            n_stopped=sums.n_stopped,
            n_audits=sums.n_audits,
            saving=saving.value if saving is not None else None,
            saving_low=saving.low if saving is not None else None,
            saving_high=saving.high if saving is not None else None,
            saved_tokens=figures.saved_tokens,
            saved_certified_tokens=figures.saved_certified_tokens,
            saved_usd=sums.saved_usd if sums.n_priced else None,
            em_drop=drop.value if drop is not None else None,
            em_drop_low=drop.low if drop is not None else None,
            em_drop_high=drop.high if drop is not None else None,
            max_em_drop=one.max_em_drop,
        )


def month_report(view: ViewContext) -> MonthReport:
    """Raises BadRequest for what is no month."""
    this = format_month(view.now_s)
    first = rollups.first_hour(view.connection)
    months = _months(this if first is None else format_month(first * HOUR_S), this)
    month = view.query.get("month") or (months[1] if len(months) > 1 else this)
    window = range_of_month(month)
    before = range_of_month(shift_month(month, -1))
    scope = replace(view.scope, range=window, compare=before, route=None, query_class=None, version=None)
    history, each = read_history(view, None, scope)
    states = [one for one in route_states(view, each, window) if one.sums.n_requests]
    return MonthReport(
        month=month,
        first_day=format_bound(window.since_hour),
        last_day=format_bound(window.until_hour, last=True),
        is_over=view.now_s >= window.until_hour * HOUR_S,
        months=months,
        headline=describe_saving(history, window),
        history=history,
        routes=tuple(sorted(states, key=lambda one: (-(one.figures.saved_tokens or 0.0), one.name))),
    )


def format_month(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m")


def range_of_month(month: str) -> TimeRange:
    """The hours of a month as 2026-10. Raises BadRequest."""
    begins = [_begin_hour(month), _begin_hour(shift_month(month, 1))]
    return TimeRange(name=CUSTOM, since_hour=begins[0], until_hour=begins[1])


def shift_month(month: str, by: int) -> str:
    """Return the month so many months later.

    >>> [shift_month("2026-12", 1), shift_month("2026-01", -1)]
    ['2027-01', '2025-12']
    """
    _begin_hour(month)
    year, number = (int(part) for part in month.split("-"))
    at = 12 * year + number - 1 + by
    return f"{at // 12:04}-{at % 12 + 1:02}"


def _begin_hour(month: str) -> int:
    try:
        begin = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
        if begin.year < 1971 or len(month) != len("2026-10"):
            raise ValueError(month)
    except ValueError:
        raise BadRequest(f"month: got {month[:40]!r}; allowed: a month as 2026-10", param="month") from None
    return int(begin.timestamp() // HOUR_S)


def _months(first: str, last: str) -> tuple[str, ...]:
    months = [last]
    while months[-1] > first and len(months) < MOST_MONTHS:
        months.append(shift_month(months[-1], -1))
    return tuple(months)
