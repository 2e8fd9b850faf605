"""Traffic, saving and EM drop of any route, class and version between two hours, in buckets, from the hourly sums."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from math import exp, sqrt
from statistics import NormalDist
from typing import Final

from msgspec import Struct

from suffice.assurance.estimate import MIN_AUDITS, IntervalEstimate, paired_drop, with_audits
from suffice.store.database.views import LogReader
from suffice.store.routes.rollups import DAY_HOURS, Group, read_rollups
from suffice.store.rows.sums import NO_SUMS, RollupSums

CONFIDENCE: Final = 0.95  # of each interval, for one look


class PeriodFigures(Struct, frozen=True, kw_only=True):
    begin_hour: int  # since 1970, UTC
    end_hour: int  # the first hour that no longer counts
    sums: RollupSums  # counts, tokens and money of all requests
    # EM(full) - EM(as served) over all enforced requests; without any, what stops would have lost of observed runs. An
    # unlabelled difference counts as lost, and as gained for the lower end. None: no audit shows it.
    em_drop: IntervalEstimate | None
    saving: IntervalEstimate | None  # as `assurance.estimate.saving_of`; None: see there
    would_save: float | None  # the same by the shadow stops of observed runs; None: requests were enforced, or none ran
    saved_tokens: float | None  # of enforced requests, net; None: there were none
    saved_certified_tokens: float | None  # part of it under certified policies


class Period(Struct, frozen=True, kw_only=True):
    total: PeriodFigures
    buckets: tuple[PeriodFigures, ...]  # oldest first; those without requests are missing. Saved tokens add up to total


def read_total(
    log: LogReader, route: str | None, *, since_hour: int, until_hour: int, tenants: Collection[str] | None = None
) -> PeriodFigures:
    """Read the figures of [since_hour, until_hour), hours since 1970 (UTC), as `read_periods` does."""
    n_hours = until_hour - since_hour
    every = read_periods(
        log, since_hour=since_hour, until_hour=until_hour, bucket_hours=n_hours, route=route, tenants=tenants
    )
    return every[0].total


def read_periods(
    log: LogReader,
    *,
    since_hour: int,
    until_hour: int,
    bucket_hours: int,
    route: str | None = None,
    query_class: str | None = None,
    version: str | None = None,
    tenants: Collection[str] | None = None,
) -> tuple[Period, dict[str, Period]]:
    """Read the figures of [since_hour, until_hour), hours since 1970 (UTC), of all routes together and of each.

    until_hour    may lie ahead: for "until now" give the next midnight
    bucket_hours  length of a bucket, counted from `since_hour`. If all three are multiples of 24, days are read
                  instead of hours, which is far less
    route, query_class, version, tenants  None: every one. Tenants' requests are known by route and whole days alone
    """
    if bucket_hours < 1 or until_hour <= since_hour:
        raise ValueError(f"need bucket_hours >= 1 and until_hour > since_hour; got {bucket_hours=}")
    by_day = not (since_hour % DAY_HOURS or until_hour % DAY_HOURS or bucket_hours % DAY_HOURS)
    by: tuple[Group, ...] = ("route", "day" if by_day else "hour")
    rows = [
        row
        for tenant in ((None,) if tenants is None else tenants)
        for row in read_rollups(
            log,
            by,
            route=route,
            query_class=query_class,
            version=version,
            since_hour=since_hour,
            until_hour=until_hour,
            tenant=tenant,
        ).items()
    ]
    buckets = defaultdict[int, dict[str, RollupSums]](dict)
    totals = dict[str, RollupSums]()
    for (name, at), one in rows:
        route_name, hour = str(name), int(at) * (DAY_HOURS if by_day else 1)
        place = buckets[(hour - since_hour) // bucket_hours]
        place[route_name] = place.get(route_name, NO_SUMS).plus(one)
        totals[route_name] = totals.get(route_name, NO_SUMS).plus(one)

    def figures(begin: int, end: int, sums: dict[str, RollupSums]) -> PeriodFigures:
        return _figures(begin, min(end, until_hour), sums)

    def period(names: Collection[str]) -> Period:
        listed = [
            (since_hour + at * bucket_hours, {name: place[name] for name in names if name in place})
            for at, place in sorted(buckets.items())
        ]
        return Period(
            total=figures(since_hour, until_hour, {name: totals[name] for name in names}),
            buckets=tuple(figures(begin, begin + bucket_hours, sums) for begin, sums in listed if sums),
        )

    return period(totals), {name: period([name]) for name in totals}


def period_figures(sums: RollupSums, begin_hour: int, end_hour: int) -> PeriodFigures:
    """The figures of one route's sums over a period."""
    return _figures(begin_hour, end_hour, {"": sums})


def _figures(begin: int, end: int, by_route: dict[str, RollupSums]) -> PeriodFigures:
    total = NO_SUMS
    for one in by_route.values():
        total = total.plus(one)
    saving = saving_between(by_route.values())
    return PeriodFigures(
        begin_hour=begin,
        end_hour=end,
        sums=total,
        em_drop=drop_between(total),
        saving=saving,
        would_save=1 - total.would_tokens / total.whole_tokens
        if total.whole_tokens and not total.enforced_weight
        else None,
        saved_tokens=None if saving is None else float(total.saved_tokens),
        saved_certified_tokens=None if saving is None else total.certified_tokens,
    )


def drop_between(sums: RollupSums) -> IntervalEstimate | None:
    """The drop of the enforced requests; without any, of the observed ones."""
    weights = (sums.pair_weight, sums.pair_squares, sums.lost_weight, sums.gained_weight, sums.pending_weight)
    if sums.pair_weight < 0.5:
        weights = (sums.n_audits, sums.n_audits, sums.n_lost, sums.n_gained, sums.n_pending)
    return paired_drop(*weights, confidence=CONFIDENCE)


def saving_between(routes: Iterable[RollupSums]) -> IntervalEstimate | None:
    """Saved / (saved + spent) over the enforced requests of all routes; its interval holds the one by audits, too.

    That takes these requests as fixed, and the draw of audits as random: the mean of the full runs is Hájek's, with its
    linearised variance (Särndal, Swensson and Wretman 1992, result 5.7.1), which does not assume that questions are
    independent, as draws are.
    """
    enforced = [one for one in routes if one.enforced_weight]
    spent, saved = sum(one.enforced_tokens for one in enforced), sum(one.saved_tokens for one in enforced)
    if not (spent > 0 and spent + saved > 0):
        return None
    full = variance = n_audits = 0.0
    for one in enforced:
        if not one.drawn_weight:
            continue
        mean = one.drawn_tokens / one.drawn_weight
        squares = one.drawn_square_squares - 2 * mean * one.drawn_square_tokens + mean * mean * one.drawn_squares
        full += one.enforced_weight * mean
        variance += max(0.0, squares) * (one.enforced_weight / one.drawn_weight) ** 2
        n_audits += one.drawn_weight**2 / one.drawn_squares
    is_enough = n_audits >= MIN_AUDITS - 0.5 and all(one.drawn_weight for one in enforced)
    ends = None
    if is_enough and full:
        radius = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * sqrt(variance) / full
        ends = 1 - spent / full * exp(radius), 1 - spent / full * exp(-radius)
    return with_audits(saved / (saved + spent), ends, round(n_audits))
