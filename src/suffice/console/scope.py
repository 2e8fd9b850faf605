"""What the figures of a page cover: route, class, version, time range and comparison, as the URL says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, TypeAlias

import msgspec

from suffice.errors import BadRequest
from suffice.formatting import format_day
from suffice.store.routes.rollups import DAY_HOURS, HOUR_S

PRESETS: Final[Mapping[str, int]] = {"1": 1, "7": 7, "30": 30, "90": 90, "all": 0}  # days; 0: all
PRESET_NAMES: Final[Mapping[str, str]] = {
    name: {0: "since the beginning", 1: "last 24 hours"}.get(days, f"last {days} days")
    for name, days in PRESETS.items()
}
USUAL_PRESET: Final = "30"
CUSTOM: Final = "custom"
# The name of each range that a page offers to compare with, in words, and how many hours back it lies; 0: its length.
COMPARISONS: Final[Mapping[str, tuple[str, int]]] = {
    "previous": ("with the time before", 0),
    "week": ("with a week earlier", 7 * DAY_HOURS),
    "month": ("with four weeks earlier", 28 * DAY_HOURS),
}
SCOPE_FIELDS: Final[Mapping[str, str]] = {
    "route": "only this one",
    "class": "only this class of questions",
    "version": "only this version of the policy",
    "days": f"the time range: {', '.join(PRESETS)}; or {CUSTOM}, with `from` and `to`",
    "from": "first day or hour (UTC) of a range of your own, as 2026-10-01 or 2026-10-01T05",
    "to": "its last day or hour; without it, until now",
    "compare": f"beside the range before, or the one so much earlier: {', '.join(COMPARISONS)}; or its first day",
}
ScopePart: TypeAlias = Literal["route", "class", "version", "range", "compare"]
SCOPE_PARTS: Final[tuple[ScopePart, ...]] = ("route", "class", "version", "range", "compare")
MOST_NAME: Final = 400


class TimeRange(msgspec.Struct, frozen=True, kw_only=True):
    name: str  # a key of PRESETS, or CUSTOM
    since_hour: int  # since 1970, UTC
    until_hour: int  # exclusive

    @property
    def days(self) -> int:
        """Of a preset; 0: all, or a range of one's own."""
        return PRESETS.get(self.name, 0)

    @property
    def n_hours(self) -> int:
        return self.until_hour - self.since_hour

    @property
    def label(self) -> str:
        if self.name != CUSTOM:
            return PRESET_NAMES[self.name]
        first, last = format_bound(self.since_hour), format_bound(self.until_hour, last=True)
        return first if first == last else f"{first} to {last}"

    @property
    def phrase(self) -> str:
        """As it ends a sentence."""
        if self.name != CUSTOM:
            return "since the beginning" if not self.days else f"in the {self.label}"
        first, last = format_bound(self.since_hour), format_bound(self.until_hour, last=True)
        return f"on {first}" if first == last else f"from {first} to {last}"

    def shifted(self, hours: int) -> TimeRange:
        return TimeRange(name=CUSTOM, since_hour=self.since_hour - hours, until_hour=self.until_hour - hours)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewScope:
    route: str | None  # None: all
    query_class: str | None
    version: str | None
    range: TimeRange
    compare: TimeRange | None
    fields: Mapping[str, str]  # of the URL, without those at their default


def parse_scope(query: Mapping[str, str], now_s: float) -> ViewScope:
    """Parse the scope of a query string. Raises BadRequest for what it does not offer."""
    window = _parse_range(query, now_s)
    fields = {name: query[name] for name in SCOPE_FIELDS if query.get(name)}
    if fields.get("days", USUAL_PRESET) == USUAL_PRESET:
        fields.pop("days", None)
    if window.name != CUSTOM:
        fields.pop("from", None)
        fields.pop("to", None)
    names = {name: query.get(name) for name in ("route", "class", "version")}
    for name, value in names.items():
        if value is not None and len(value) > MOST_NAME:
            raise BadRequest(f"{name}: at most {MOST_NAME} characters", param=name)
    return ViewScope(
        route=None if names["route"] in (None, "", "*") else names["route"],
        query_class=names["class"] or None,
        version=names["version"] or None,
        range=window,
        compare=_parse_comparison(query.get("compare", ""), window),
        fields=fields,
    )


def _parse_range(query: Mapping[str, str], now_s: float) -> TimeRange:
    has_bounds = bool(query.get("from") or query.get("to"))
    name, until = query.get("days") or (CUSTOM if has_bounds else USUAL_PRESET), int(now_s // HOUR_S) + 1
    if name not in (*PRESETS, CUSTOM):
        allowed = ", ".join((*PRESETS, CUSTOM))
        raise BadRequest(f"days: got {name[:40]!r}; allowed: {allowed}", param="days")
    if name == CUSTOM:
        since = parse_bound(query, "from") if query.get("from") else 0
        end = parse_bound(query, "to", last=True) if query.get("to") else until
        if end <= since:
            raise BadRequest("to: must not be before `from`", param="to")
        return TimeRange(name=CUSTOM, since_hour=since, until_hour=end)
    days = PRESETS[name]
    if days == 1:
        return TimeRange(name=name, since_hour=until - DAY_HOURS - 1, until_hour=until)
    today = (until - 1) // DAY_HOURS  # whole days, including today
    since = DAY_HOURS * (today - days + 1) if days else 0
    return TimeRange(name=name, since_hour=since, until_hour=DAY_HOURS * (today + 1))


def _parse_comparison(text: str, window: TimeRange) -> TimeRange | None:
    if not text or not window.since_hour:
        return None
    if text in COMPARISONS:
        return window.shifted(COMPARISONS[text][1] or window.n_hours)
    return window.shifted(window.since_hour - parse_bound({"compare": text}, "compare"))


def parse_bound(query: Mapping[str, str], name: str, *, last: bool = False) -> int:
    """Return the hour since 1970 of a day or an hour; `last`: the first one behind it. Raises BadRequest."""
    text = query[name]
    for pattern, hours in (("%Y-%m-%d", DAY_HOURS), ("%Y-%m-%dT%H", 1), ("%Y-%m-%dT%H:%M", 1)):
        try:
            at_s = datetime.strptime(text, pattern).replace(tzinfo=UTC).timestamp()
        except ValueError:
            continue
        return int(at_s // HOUR_S) + (hours if last else 0)
    raise BadRequest(
        f"{name}: got {text[:40]!r}; allowed: a day as 2026-10-01, or an hour as 2026-10-01T05", param=name
    )


def format_bound(hour: int, *, last: bool = False) -> str:
    """Format an hour since 1970 as a day where it begins one; `last`: the day or hour before it."""
    if hour % DAY_HOURS == 0:
        return format_day(hour // DAY_HOURS - last)
    hour -= last
    return f"{format_day(hour // DAY_HOURS)}T{hour % DAY_HOURS:02}"
